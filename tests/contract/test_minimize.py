"""`minimize` against Clarabel on trained hulls, its certificate, its messages; one contract for both packages."""

import backends
import cases
import jax
import numpy as np
import programs
import pytest
import torch

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
PER_CASE = 9


def trained(name, D, seed):
    """Fields and weights in float64 of a hull after a short training in PyTorch."""
    rng = np.random.default_rng(seed)
    fields = cases.fields(in_dim=D, out_dim=1, hidden_dim=11, **CONFIGS[name])
    backend = backends.BACKENDS[1]
    x = rng.normal(size=(160, D)) * 3 + 10
    center = rng.uniform(8, 12, D)
    y = 5 * np.abs(x - center).sum(1) + ((x - 10) @ rng.normal(size=D)) ** 2
    fitted = backend.package.fit(backend.fresh(fields, seed, "float64"), x, y, steps=60).model
    units = fitted.config.normalization
    kept = {name: getattr(units, name) for name in cases.UNITS}
    return fields | {"normalization": kept}, backend.weights(fitted)


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
        misses += not value - gap - allowed <= optimum <= value + allowed
    return misses


def problems(name, kind, seed, count=PER_CASE):
    """A trained hull, sets, and what Clarabel finds; where it is not sure the problem is left out."""
    D = (2, 3, 5, 7)[seed % 4]
    fields, weights = trained(name, D, seed)
    rng = np.random.default_rng(RNG_SEED + seed)
    many = [numbers(kind, D, rng) for _ in range(count)]
    optima = [programs.optimum(weights, fields, kind, given) for given in many]
    kept = [k for k, optimum in enumerate(optima) if optimum is not None]
    return fields, weights, [many[k] for k in kept], [optima[k] for k in kept]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_interval_contains_what_clarabel_finds_and_closes(name, kind):
    """32 hulls, 9 sets each, on both packages; at least 200 in all are compared: Clarabel gives up on cold ones."""
    seed = list(CONFIGS).index(name) + len(CONFIGS) * KINDS.index(kind)
    fields, weights, many, optima = problems(name, kind, seed)
    assert len(optima) >= (1 if name == "cold" else PER_CASE - 2)
    records = []
    for backend in backends.BACKENDS:
        found = solved(backend, backend.model(fields, weights), kind, many)
        records.append(found)
        assert contradictions(found, optima) == 0
        assert (found["gap"] <= 1e-6 * (1 + np.abs(found["value"]))).all()
        assert (found["status"] == 0).all() and (found["iterations"] <= 100).all()
        outside = [violation(kind, given, x) for given, x in zip(many, found["x"], strict=True)]
        assert max(outside) <= 1e-7
    for one, other in zip(records[0].values(), records[1].values(), strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
    scale = 1 + np.abs(records[0]["value"])
    assert (np.abs(records[0]["value"] - records[1]["value"]) <= 2e-6 * scale).all()


@pytest.mark.parametrize("fault", ["cut", "gain", "slope"])
def test_control_a_wrong_bound_is_caught(backend, replace, fault):
    """Three mutants of the certificate: half of a group dropped, a gain added, the slope of a function not convex."""
    fields, weights, many, optima = problems("hard", "Box", 3, count=4)
    package = backend.package
    if fault == "cut":  # weights need not sum to one: a dropped cut
        kept = package.minorants.ScalarHull.minorant

        def minorant(hull, z, tangent):
            return kept(hull, z, tangent._replace(weights=tangent.weights * 0.97))

        replace(package.minorants.ScalarHull, "minorant", minorant)
    elif fault == "gain":
        kept_gain = package.minorants.gain
        replace(package.minorants, "gain", lambda slope, name: kept_gain(slope, name) + 0.01)
    else:  # the least value over a smaller set
        least = package.regions.Region.least

        def smaller(region, slope, v, by):
            return least(region, slope, 0.9 * v, by)

        replace(package.regions.Region, "least", smaller)
    jax.clear_caches()
    found = package.minimization.minimized(backend.model(fields, weights), sets(backend, "Box", many))
    found = {name: backend.numpy(value) for name, value in found._asdict().items()}
    jax.clear_caches()
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
    "empty": (
        lambda p: p.Polytope(np.array([[1.0, 0, 0], [-1, 0, 0]]), np.array([-1.0, -1])),
        "an empty set",
    ),
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
            lambda: package.minimize(model, box, x0=[0.0, 0.0, 0.0]),
            lambda: package.Box([1e308], [1e308]),
            lambda: package.Box(-3, 3),
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


def test_gradients_are_left_alone_in_torch():
    model = small(backends.BACKENDS[1])
    found = backends.BACKENDS[1].package.minimize(model, backends.BACKENDS[1].package.Simplex(1.0))
    assert isinstance(found.x, torch.Tensor) and not found.value.requires_grad
