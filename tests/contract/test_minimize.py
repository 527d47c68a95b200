"""`minimize` against Clarabel on trained hulls, its certificate, its messages.

The solver stands once, in the core. Here it runs in numpy, for hulls of JAX, and in PyTorch; what is compiled is held
against numpy in tests/jax/test_compiled_minimization.py.
"""

import dataclasses

import backends
import cases
import jax
import numpy as np
import programs
import pytest
import torch

from convexmoe.hull import activations
from convexmoe.minimization.minimum import minimize_unchecked
from convexmoe.minimization.regions import Region
from convexmoe.minimization.scalar_hull import ScalarHull

pytestmark = pytest.mark.usefixtures("quick_compilation")

RNG_SEED = 71
CONFIGS = {
    "softplus": {"temperature": "learned"},
    "hard": {"petals": 5},
    "relu": {"activation": "relu", "depth": 2},
    "huber": {"activation": "huber_relu", "trunk": "private"},
    "cold": {"temperature": 1e-2, "gate": True},
    "plain": {"group_size": 1, "strong_convexity": 0.1},
    "one": {"petals": 1, "activation": "relu"},
    "gated": {"gate": True, "trunk": "private", "activation": "relu", "temperature": "learned", "depth": 2},
}
KINDS = ("Box", "Ball", "Simplex", "Polytope")
HULLS = 2  # of each case and kind of set: 64 in all, and at a release 224
SETS_EACH = 2
STEPS = 60


def trained(name, D, seed, count):
    """Fields, and weights in float64 of as many hulls, each after a short training on a function of its own.

    They are trained side by side, in one batch; they have one normalization, so that JAX compiles once for all.
    """
    rng = np.random.default_rng(seed)
    units = {"input_mean": np.linspace(9.5, 10.5, D).tolist(), "input_scale": np.linspace(2.5, 3.5, D).tolist()}
    units |= {"output_mean": [15.0 * D], "output_scale": [20.0 * D]}
    fields = cases.fields(in_dim=D, out_dim=1, hidden_dim=11, **CONFIGS[name]) | {"normalization": units}
    backend = backends.BACKENDS[1]
    models = [backend.fresh(fields, 100 * seed + k, "float64") for k in range(count)]
    x = rng.normal(size=(count, 160, D)) * 3 + 10
    centers, along = rng.uniform(8, 12, (count, 1, D)), rng.normal(size=(count, D, 1))
    y = 5 * np.abs(x - centers).sum(-1) + ((x - 10) @ along)[..., 0] ** 2
    x, y = torch.as_tensor(x), torch.as_tensor(y) / units["output_scale"][0]
    weights, _ = torch.func.stack_module_state(models)
    optimizer = torch.optim.Adam(weights.values(), lr=0.03)

    def loss(own, inputs, wanted):
        predicted = torch.func.functional_call(models[0], own, inputs)[:, 0] / units["output_scale"][0]
        return torch.mean((predicted - wanted) ** 2)

    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        losses.append(torch.func.vmap(loss)(weights, x, y))
        losses[-1].sum().backward()
        optimizer.step()
    assert (losses[-1] < 0.5 * losses[0]).all()
    with torch.no_grad():
        for k, model in enumerate(models):
            for key, value in model.named_parameters():
                value.copy_(weights[key][k])
    return fields, [backend.weights(model) for model in models]


def numbers(kind, D, rng):
    """A random set of a kind, near the data: the arguments of its class."""
    center = rng.uniform(5, 15, D)
    if kind == "Box":
        width = rng.uniform(0.2, 6, D) * rng.integers(0, 2, D)  # some coordinates are fixed
        return center - width, center + width
    if kind == "Ball":
        return center, rng.uniform(0.5, 6)
    if kind == "Simplex":
        return (rng.uniform(5, 12) * D,)
    A = np.concatenate([rng.normal(size=(3, D)), np.eye(D), -np.eye(D)])
    return A, A @ center + np.concatenate([rng.uniform(0, 2, 3), np.full(2 * D, 5.0)])


def sets(backend, kind, many):
    """One set of a kind for many problems."""
    return getattr(backend.package, kind)(*[np.stack(part) for part in zip(*many, strict=True)])


def solved(backend, model, kind, many, **options):
    """The record of `minimize` as numpy."""
    found = backend.package.minimize(model, sets(backend, kind, many), **options)
    return {name: backend.numpy(value) for name, value in found._asdict().items()}


def violation(kind, given, x):
    """By how much x is outside of a set."""
    if kind == "Box":
        return max(np.max(given[0] - x), np.max(x - given[1]))
    if kind == "Ball":
        return np.linalg.norm(x - given[0]) - given[1]
    if kind == "Simplex":
        return max(-x.min(), abs(x.sum() - given[0]))
    return np.max(given[0] @ x - given[1])


def contradictions(found, optima):
    """How many intervals miss the optimum, beyond what the solver may be wrong by."""
    misses = 0
    for value, gap, optimum in zip(found["value"], found["gap"], optima, strict=True):
        allowed = 1e-7 * (1 + abs(value))
        if optimum is None:
            continue
        misses += not value - gap - allowed <= optimum <= value + allowed
    return misses


def problems(name, kind, seed, hulls, count=SETS_EACH):
    """Fields of a case, and for each of its hulls weights, sets and what Clarabel finds where it is sure of it."""
    D = (2, 3, 5, 7)[seed % 4]
    fields, trainings = trained(name, D, seed, hulls)
    rng = np.random.default_rng(RNG_SEED + seed)
    found = []
    for weights in trainings:
        many = [numbers(kind, D, rng) for _ in range(count)]
        found.append((weights, many, [programs.optimum(weights, fields, kind, given) for given in many]))
    return fields, found


@pytest.mark.slow
@pytest.mark.parametrize("number", [HULLS, pytest.param(7, marks=pytest.mark.release)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_interval_contains_what_clarabel_finds_and_closes(name, kind, number):
    """2 sets a hull, on both packages; most of the problems are compared: Clarabel gives up on cold ones."""
    seed = list(CONFIGS).index(name) + len(CONFIGS) * KINDS.index(kind)
    fields, hulls = problems(name, kind, seed, number)
    compared = 0
    for weights, many, optima in hulls:
        compared += sum(optimum is not None for optimum in optima)
        compare(fields, weights, kind, many, optima)
    assert compared >= (1 if name == "cold" else number * SETS_EACH - (number + 1) // 2)


def compare(fields, weights, kind, many, optima):
    """Check the records of both packages for one hull against the optima that are known, and against each other."""
    records = []
    for backend in backends.BACKENDS:
        found = solved(backend, backend.model(fields, weights), kind, many)
        records.append(found)
        assert contradictions(found, optima) == 0
        size, scale = 1 + np.abs(found["value"]), fields["normalization"]["output_scale"][0]
        closed = found["gap"] <= 1e-6 * size  # rounding at kinks may keep it open where the value is 0, nearly
        assert (closed | (found["gap"] <= 1e-6 * scale)).all()
        assert (found["status"] == ~closed).all()
        outside = [violation(kind, given, x) for given, x in zip(many, found["x"], strict=True)]
        assert max(outside) <= 1e-12
    for one, other in zip(records[0].values(), records[1].values(), strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
    scale = 1 + np.abs(records[0]["value"])
    assert (np.abs(records[0]["value"] - records[1]["value"]) <= 2e-6 * scale).all()


@pytest.mark.parametrize("fault", ["cut", "gain", "slope"])
def test_control_a_wrong_bound_is_caught(backend, replace, fault):
    """Three mutants of the certificate: half of a group dropped, a gain added, the slope of a function not convex."""
    fields, [(weights, many, optima)] = problems("hard", "Box", 3, hulls=1, count=4)
    if fault == "cut":  # weights need not sum to one: a dropped cut
        kept = ScalarHull.minorant

        def minorant(hull, z, tangent):
            return kept(hull, z, tangent._replace(weights=tangent.weights * 0.97))

        replace(ScalarHull, "minorant", minorant)
    elif fault == "gain":
        row = activations.ACTIVATIONS["softplus"]
        wrong = dataclasses.replace(row, gain=lambda slope: row.gain(slope) + 0.01)
        replace(ScalarHull, "activation", property(lambda hull: wrong))
    else:  # the least value over a smaller set
        least = Region.least

        def smaller(region, slope, v, by):
            here = (slope * (region.place(v) - region.center)).sum(-1)
            return 0.9 * (least(region, slope, v, by) + here) - here

        replace(Region, "least", smaller)
    found = minimize_unchecked(backend.model(fields, weights), sets(backend, "Box", many))
    found = {name: backend.numpy(value) for name, value in found._asdict().items()}
    assert contradictions(found, optima) > 0


def small(backend, dtype="float64", **changes):
    fields = cases.fields(**{"in_dim": 3, "out_dim": 1, "petals": 4} | changes)
    return backend.model(fields, cases.random_weights(fields), dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_a_folded_hull_and_a_narrow_dtype(backend, dtype):
    model = small(backend, dtype)
    box = backend.package.Box([-1.0, -1, -1], [1.0, 1, 2])
    one, other = (backend.package.minimize(m, box) for m in (model, backend.fold(model)))
    x = backend.numpy(one.x)
    assert x.dtype == np.float64 and float(one.gap) <= 1e-6 * (1 + abs(float(one.value)))
    close = {"float64": 3e-6, "float32": 1e-5, "bfloat16": 0.2}[dtype]
    assert abs(float(one.value) - float(other.value)) <= close
    computed = backend.apply(model, x.astype(backends.NAMES[dtype]))
    assert abs(float(computed[0]) - float(one.value)) <= close


def test_one_output_of_several(backend):
    fields = cases.fields(in_dim=3, out_dim=2, normalization=None)
    model = backend.model(fields, cases.random_weights(fields))
    box = backend.package.Box(-np.ones(3), np.ones(3))
    for output in (0, 1):
        found = backend.package.minimize(model, box, output=output)
        value = backend.apply(model, backend.numpy(found.x))[output]
        assert abs(value - float(found.value)) <= 1e-12 * (1 + abs(value))


def test_a_start_and_batches_that_broadcast(backend):
    model, package = small(backend), backend.package
    many = package.Box(-np.ones((4, 3)), np.linspace(1, 2, 12).reshape(4, 3))
    cold = package.minimize(model, many)
    warm = package.minimize(model, many, x0=backend.array(np.full(3, 5.0)))
    assert cold.x.shape == (4, 3) and cold.value.shape == (4,)
    np.testing.assert_allclose(backend.numpy(cold.value), backend.numpy(warm.value), atol=1e-5)


@pytest.mark.parametrize("kind", ["Box", "Polytope"])
def test_a_set_without_bounds_whose_minimum_is_attained(backend, kind):
    model = small(backend, strong_convexity=0.5)
    if kind == "Box":
        found = backend.package.minimize(model, backend.package.Box(np.full(3, -np.inf), np.full(3, np.inf)))
    else:
        found = backend.package.minimize(model, backend.package.Polytope(np.ones((1, 3)), np.zeros(1)))
    assert float(found.gap) <= 1e-6 * (1 + abs(float(found.value)))


def test_a_polytope_without_an_inside(backend):
    """Two rows hold a sum to one value."""
    A = np.array([[1.0, 1, 1], [-1.0, -1, -1], [1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])
    b = np.array([0.5, -0.5, 1, 1, 1, 1])
    found = backend.package.minimize(small(backend), backend.package.Polytope(A, b))
    x = backend.numpy(found.x)
    assert abs(x.sum() - 0.5) <= 1e-6 and float(found.gap) <= 1e-5


SETS = {
    "empty": (lambda p: p.Polytope(np.array([[1.0, 0, 0], [-1, 0, 0]]), np.array([-1.0, -1])), "an empty set"),
    "unbounded": (lambda p: p.Box(np.full(3, -np.inf), np.full(3, np.inf)), "one without a minimum"),
    "dimension": (lambda p: p.Box(np.zeros(2), np.ones(2)), r"in_dim=3 dimensions; got lower float64\[2\]"),
    "set": (lambda p: [0, 1], "a Box, Ball, Simplex or Polytope; got list"),
}


@pytest.mark.parametrize("name", SETS)
def test_a_set_that_cannot_be_used(backend, name):
    make, words = SETS[name]
    model = small(backend, petals=1, activation="relu") if name == "unbounded" else small(backend)
    with pytest.raises((ValueError, TypeError), match=words):
        backend.package.minimize(model, make(backend.package))


@pytest.mark.usefixtures("x64")
def test_faults_have_the_same_words_in_both_packages():
    def messages(backend):
        package, model, box = backend.package, small(backend), backend.package.Box(np.zeros(3), np.ones(3))
        flawed = cases.fields(in_dim=3, out_dim=1)
        weights = cases.random_weights(flawed)
        weights["readout.bias"] = np.full_like(weights["readout.bias"], np.nan)
        calls = [
            lambda: package.minimize(backend.model(flawed, weights), box),
            lambda: package.minimize(small(backend, out_dim=2), box),
            lambda: package.minimize(model, box, tol=0.0),
            lambda: package.minimize(model, box, x0=backend.array(np.zeros(2))),
            lambda: package.minimize(model, box, output=1),
            lambda: package.minimize(len, box),
            lambda: package.Box([0.0, 2.0], [1.0, 1.0]),
            lambda: package.Box([np.nan], [1.0]),
            lambda: package.Ball([0.0], -1.0),
            lambda: package.Simplex(np.inf),
            lambda: package.Polytope(np.eye(2), np.zeros(3)),
            lambda: package.Box("a", "b"),
            lambda: package.minimize(small(backend), SETS["empty"][0](package)),
            lambda: package.minimize(model, box, x0=backend.array(np.full(3, np.nan))),
            lambda: package.minimize(model, box, x0=[0.0, None, 0.0]),
            lambda: package.Box([1e308], [1e308]),
            lambda: package.minimize(model, package.Box(-3, 3)),
            lambda: package.Polytope([1.0, 1.0], 1.0),
            lambda: package.Ball([1e308], 1.0),
        ]
        found = []
        for call in calls:
            with pytest.raises((ValueError, TypeError)) as caught:
                call()
            found.append(f"{caught.type.__name__}: {caught.value}")
        return found

    one, other = (messages(backend) for backend in backends.BACKENDS)
    assert one == other
    assert len(set(one)) == len(one)


def test_under_jit_and_vmap_in_jax():
    """Sets are arguments; nothing is raised there, `status` tells."""
    backend = backends.BACKENDS[0]
    model, package = small(backend, "float32"), backend.package
    low, high = np.full((2, 3), -1, np.float32), np.array([[1, 1, 1], [-2, 1, 1]], np.float32)
    whole = jax.jit(lambda a, b, tol: package.minimize(model, package.Box(a, b), tol=tol))(low, high, 1e-6)
    assert np.asarray(whole.status).tolist() == [0, 2] and np.asarray(whole.x).dtype == np.float64
    each = jax.vmap(lambda a, b: package.minimize(model, package.Box(a, b)).value)(low[:1], high[:1])
    np.testing.assert_allclose(np.asarray(each), np.asarray(whole.value)[:1], rtol=1e-6)


def test_a_derivative_is_refused_in_jax():
    """A silent zero would be worse; torch says itself that the value does not require one."""
    model, package = small(backends.BACKENDS[0]), backends.BACKENDS[0].package
    for derivative in (jax.grad, jax.jacfwd):
        with pytest.raises(ValueError, match="that no derivative is taken by; got a derivative"):
            derivative(lambda r: package.minimize(model, package.Ball(np.zeros(3), r)).value)(1.0)


def test_gradients_are_left_alone_in_torch():
    model = small(backends.BACKENDS[1])
    found = backends.BACKENDS[1].package.minimize(model, backends.BACKENDS[1].package.Simplex(1.0))
    assert isinstance(found.x, torch.Tensor) and not found.value.requires_grad


def test_a_batch_of_numpy_sets_under_vmap_and_a_minimum_inside_torch_func():
    """JAX traces a batch in float64 as float32 where that is off; PyTorch hides values inside its transforms."""
    one, other = (small(backend, "float32") for backend in backends.BACKENDS)
    in_jax, in_torch = (backend.package for backend in backends.BACKENDS)
    many = in_jax.Box(np.zeros((2, 3)), np.ones((2, 3)))
    values = np.asarray(jax.vmap(lambda box: in_jax.minimize(one, box).value)(many))
    np.testing.assert_allclose(values, np.asarray(in_jax.minimize(one, many).value), rtol=1e-5)
    box = in_torch.Box(np.zeros(3), np.ones(3))
    gradient = torch.func.grad(lambda x0: in_torch.minimize(other, box, x0).value)(torch.full((3,), 0.5))
    assert not gradient.any()
