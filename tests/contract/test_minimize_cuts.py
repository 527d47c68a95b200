"""`minimize` on wide and endless sets, hulls that are flat or fall without end, and batches with a set that is none."""

import backends
import cases
import jax
import numpy as np
import programs
import pytest
from scipy.optimize import linprog

from convexmoe.minimization import cuts, minimum
from convexmoe.minimization.minimum import minimize_unchecked

pytestmark = pytest.mark.usefixtures("quick_compilation")

NAN, INF = np.nan, np.inf


def record(backend, found):
    return {name: backend.numpy(value) for name, value in found._asdict().items()}


def wide_boxes(D, count, units, seed):
    """Boxes of widths 1e-6 to 1e10, each coordinate another, some far off the mean and some with a side open."""
    rng = np.random.default_rng(seed)
    width = 10.0 ** rng.uniform(-6, 10, (count, D))
    off = rng.normal(size=(count, D)) * 10.0 ** rng.uniform(-1, 2, (count, D))
    lower = off - width * rng.uniform(0, 1, (count, D))
    lower, upper = (
        np.where(rng.random((count, D)) < 0.2, end, side) for end, side in ((-INF, lower), (INF, lower + width))
    )
    mean, scale = np.array(units["input_mean"]), np.array(units["input_scale"])
    return mean + scale * lower, mean + scale * upper


def compare_wide_boxes(backend, activation, D, count):
    """Check gaps and statuses on wide boxes, and that the intervals hold what Clarabel finds; return how many."""
    units = {"input_mean": [0.3, -1.5, 20.0][:D], "input_scale": [0.5, 2e3, 3e-2][:D]}
    units |= {"output_mean": [-4.0], "output_scale": [0.25]}
    fields = cases.fields(in_dim=D, out_dim=1, petals=5, activation=activation, normalization=units)
    weights = cases.random_weights(fields, 3)
    lower, upper = wide_boxes(D, count, units, D)
    found = record(backend, minimize_unchecked(backend.model(fields, weights), backend.package.Box(lower, upper)))
    assert (found["status"] == np.where(np.isneginf(found["lower_bound"]), 3, 0)).all(), found["status"]
    compared = 0
    for k in np.flatnonzero(found["status"] == 0):
        value, gap = found["value"][k], found["gap"][k]
        assert gap <= 1e-6 * (1 + abs(value)) and value - gap == pytest.approx(found["lower_bound"][k], rel=1e-9)
        assert (lower[k] <= found["x"][k]).all() and (found["x"][k] <= upper[k]).all()
        optimum = programs.optimum(weights, fields, "Box", (lower[k], upper[k]))
        if optimum is not None and abs(value) < 1e6:
            compared += 1
            allowed = 1e-6 * (1 + abs(value))
            assert value - gap - allowed <= optimum <= value + allowed
    return compared


@pytest.mark.parametrize("activation, D", [("softplus", 3), ("relu", 2), ("huber_relu", 2)])
def test_the_gap_closes_on_boxes_of_every_width(backend, activation, D):
    assert compare_wide_boxes(backend, activation, D, 8) >= 3


def test_control_a_cut_that_is_taken_for_far_enough_is_caught(monkeypatch):
    monkeypatch.setattr(cuts, "search_faces", lambda cut, space, least: least == least)
    with pytest.raises(AssertionError):
        compare_wide_boxes(backends.BACKENDS[0], "softplus", 3, 8)


PLANTS = ("constant", "one", "rank", "dead", "duplicate", "plain")


def plant(kind, D, seed, activation):
    """Fields and weights of a hull that is flat in some directions."""
    units = {"input_mean": np.linspace(-1, 2, D).tolist(), "input_scale": np.geomspace(0.1, 30, D).tolist()}
    units |= {"output_mean": [3.0], "output_scale": [0.5]}
    fields = cases.fields(in_dim=D, out_dim=1, petals=4, activation=activation, normalization=units)
    weights, rng = cases.random_weights(fields, seed), np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(D, D)))[0][:, : D // 2]
    keep = {
        "constant": np.zeros((D, D)),
        "one": np.diag(np.arange(D) == 0).astype(float),
        "rank": basis @ basis.T,
        "dead": np.diag(rng.random(D) < 0.4).astype(float),
        "duplicate": np.eye(D),
        "plain": np.eye(D),
    }[kind]
    if kind == "duplicate":
        keep[1], keep[2] = keep[0], -keep[0]
    for name in ("trunk.0.weight", "readout.weight"):
        weights[name] = np.tensordot(keep, weights[name], 1)
    return fields, weights


def steepest(fields, weights, cone):
    """The least slope of a hull of one layer at infinity, over directions of size 1 at most, in normalized units."""
    cone = cone * fields["normalization"]["input_scale"]
    D, P, H = (fields[name] for name in ("in_dim", "petals", "hidden_dim"))
    deviation = programs.DEVIATIONS[fields["activation"]]
    over = programs.positive(weights["readout.raw_weight"])[..., 0] / deviation
    along = weights["readout.weight"][..., 0]
    over, along = ((part + np.roll(part, -1, axis=1)) / 2 for part in (over, along))
    units = np.concatenate([weights["trunk.0.weight"].T, -np.eye(H), np.zeros((H, 1))], axis=1)
    groups = np.concatenate([along.T, over.T, -np.ones((P, 1))], axis=1)
    rows = np.concatenate([units, groups, np.pad(cone, ((0, 0), (0, H + 1)))])
    bounds = [(-1, 1)] * D + [(0, None)] * H + [(None, None)]
    return linprog(np.eye(D + H + 1)[-1], rows, np.zeros(len(rows)), bounds=bounds).fun


def endless_sets(D, count, seed):
    """Polytopes of one to D + 1 rows, and boxes as polytopes, around random points."""
    rng = np.random.default_rng(seed)
    for k in range(count):
        A = rng.normal(size=(rng.integers(1, D + 2), D))
        if k % 2:
            A = np.concatenate([np.eye(D), -np.eye(D)])[rng.random(2 * D) < 0.5]
        A = np.concatenate([A, np.zeros((2 * D - len(A), D))])
        yield A, A @ rng.normal(size=D) + rng.uniform(0, 2, 2 * D)


def check_refusals(backend, kind, seed, tilt, count=2):
    """Check that a hull is refused on endless sets where the linear program says so, and that it falls as is said."""
    D, activation = (4, 5, 7)[seed % 3], tuple(programs.DEVIATIONS)[seed % 3]
    fields, weights = plant(kind, D, seed, activation)
    weights["readout.weight"] = weights["readout.weight"] + tilt * np.linspace(-1, 1, D)[:, None, None]
    model, many = backend.model(fields, weights), list(endless_sets(D, count, seed))
    polytopes = backend.package.Polytope(*[np.stack(part) for part in zip(*many, strict=True)])
    found = record(backend, minimize_unchecked(model, polytopes))
    refused = 0
    for k, (A, b) in enumerate(many):
        x, d, falls = found["x"][k], found["direction"][k], found["status"][k] == 3
        assert falls == (steepest(fields, weights, A) < -1e-9) and falls == d.any()
        refused += falls
        if falls:
            assert (A @ d).max() <= 1e-12 * np.abs(d).max() and (A @ x - b).max() <= 1e-9
            values = backend.apply(model, x + np.array([[0.0], [1e2], [1e4], [1e6]]) * d)[:, 0]
            assert (np.diff(values) < 0).all()
            continue
        value, gap, optimum = found["value"][k], found["gap"][k], programs.optimum(weights, fields, "Polytope", (A, b))
        allowed = 1e-6 * (1 + abs(value))
        assert gap < INF and (gap <= allowed) == (found["status"][k] == 0)  # kinks in wide cuts may leave it open
        if optimum is not None:
            assert value - gap - allowed <= optimum <= value + allowed and value - optimum <= 10 * allowed
    return refused


@pytest.mark.parametrize("kind", PLANTS)
def test_a_hull_is_refused_only_with_a_direction_in_which_it_falls(backend, kind):
    refused = [check_refusals(backend, kind, PLANTS.index(kind), tilt) for tilt in (0.0, 5.0)]
    assert refused[1] > 0


@pytest.mark.release
@pytest.mark.parametrize("kind", PLANTS)
def test_many_hulls_are_refused_only_with_a_direction_in_which_they_fall(backend, kind):
    refused = [sum(check_refusals(backend, kind, seed, tilt, 6) for seed in range(6, 9)) for tilt in (0.0, 5.0)]
    assert refused[1] > 0 and refused[0] < 18


@pytest.mark.parametrize("fault", ["constants", "none"])
def test_control_a_wrong_recession_function_is_caught(monkeypatch, fault):
    """One that keeps the constants of the hull, and one that is never below 0."""
    if fault == "constants":
        monkeypatch.setattr(cuts, "recession_hull", lambda hull: hull)
    else:
        monkeypatch.setattr(minimum, "find_fall", lambda cut, v, cone, bounded: 0 * cut.fall)
    with pytest.raises(AssertionError):
        for seed in range(2):
            check_refusals(backends.BACKENDS[0], "plain", seed, 5.0 if fault == "none" else 0.0)


def test_a_refusal_says_where_the_hull_falls_in_the_same_words_in_both_packages():
    fields, weights = plant("one", 4, 0, "relu")
    fields["normalization"] = None
    weights["readout.weight"] = weights["readout.weight"] * 0 + np.array([-4.0, 0, 0, 0])[:, None, None]
    texts = []
    for backend in backends.BACKENDS:
        endless = backend.package.Box([0.0, 0, -INF, 0], [INF, 1, INF, 1])
        with pytest.raises(ValueError, match=r"one without a minimum: it falls without end along \[1, 0, ") as caught:
            backend.package.minimize(backend.model(fields, weights), endless)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("temperature", [0.0, 1e3])
def test_an_infimum_that_is_not_attained_is_bounded_from_below(backend, temperature):
    """A tail of softplus or of log-sum-exp: the value is within the tolerance of the infimum."""
    fields = cases.fields(in_dim=1, out_dim=1, petals=2, group_size=1, temperature=temperature, hidden_dim=1)
    weights = {name: np.zeros_like(value) for name, value in cases.random_weights(fields).items()}
    weights["trunk.0.weight"] = weights["trunk.0.weight"] + 1.0
    weights["readout.weight"][0, 0] = temperature and 1.0
    raw = weights["readout.raw_weight"] = weights["readout.raw_weight"] - 1e3 * bool(temperature)
    found = backend.package.minimize(backend.model(fields, weights), backend.package.Box([-INF], [3.0]))
    size = programs.positive(raw)[0, 0, 0] / programs.DEVIATIONS["softplus"]
    infimum = temperature * np.log(0.5) - size * programs.MEANS["softplus"]
    assert int(found.status) == 0 and float(found.lower_bound) <= infimum + 1e-12
    assert infimum <= float(found.value) <= infimum + 1e-6 * (1 + abs(infimum))


A, b = np.concatenate([np.eye(3), -np.eye(3)]), np.ones(6)
GOOD = {"Box": (-np.ones(3), np.ones(3)), "Ball": (np.zeros(3), 1.0), "Simplex": (1.0,), "Polytope": (A, b)}


def changed(array, place, value):
    array = np.array(array, float)
    array[place] = value
    return array


BAD = {
    "Box": [
        *((changed(GOOD["Box"][0], 1, value), GOOD["Box"][1]) for value in (2.0, NAN, INF, 1e300)),
        *((GOOD["Box"][0], changed(GOOD["Box"][1], 2, value)) for value in (-2.0, NAN, -INF, -1e300)),
        (np.full(3, NAN), np.full(3, NAN)),
        (np.full(3, INF), np.full(3, INF)),
    ],
    "Ball": [
        *((np.zeros(3), radius) for radius in (-1.0, -1e-9, NAN, INF, -INF)),
        *((changed(np.zeros(3), 1, value), 1.0) for value in (NAN, INF, 1e40)),
    ],
    "Simplex": [(total,) for total in (-1.0, -1e-9, NAN, INF, -INF, 1e31)],
    "Polytope": [
        *((changed(A, (2, 1), value), b) for value in (NAN, INF, -INF)),
        *((A, changed(b, 3, value)) for value in (NAN, INF, -INF, -2.0)),
        (0 * A, -b),
        (np.full((6, 3), NAN), np.full(6, NAN)),
    ],
}


def check_batch(backend, found, alone):
    """Check that all but the first and the last of a batch are no sets, and that those two are as alone."""
    found = record(backend, found)
    bad = slice(1, -1)
    assert found["status"][[0, -1]].tolist() == [0, 0] and (found["status"][bad] == 2).all()
    assert np.isnan(found["x"][bad]).all() and np.isnan(found["value"][bad]).all()
    assert np.isneginf(found["lower_bound"][bad]).all() and np.isposinf(found["gap"][bad]).all()
    np.testing.assert_allclose(found["value"][[0, -1]], float(alone.value), rtol=1e-9)


@pytest.mark.parametrize(
    "dtype, changes", [("float64", {"activation": "relu"}), ("float32", {"strong_convexity": 0.5})]
)
@pytest.mark.parametrize("kind", BAD)
def test_a_set_that_is_none_costs_the_others_of_its_batch_nothing(backend, kind, dtype, changes):
    """It has status 2; alone it is refused, most of them before the model is asked."""
    fields = cases.fields(in_dim=3, out_dim=1, petals=4, **changes)
    model, make = backend.model(fields, cases.random_weights(fields), dtype), getattr(backend.package, kind)
    alone = backend.package.minimize(model, make(*GOOD[kind]))
    many = [GOOD[kind], *BAD[kind], GOOD[kind]]
    batch = make(*[np.stack(part) for part in zip(*many, strict=True)])
    check_batch(backend, backend.package.minimize(model, batch), alone)
    for values in BAD[kind]:
        with pytest.raises(ValueError, match=rf"{kind}\.\w+: expected|an empty set"):
            backend.package.minimize(model, make(*values))


@pytest.mark.usefixtures("x64")
def test_a_set_that_is_none_under_jit_and_vmap():
    kind, backend = "Box", backends.BACKENDS[0]
    fields = cases.fields(in_dim=3, out_dim=1, petals=4, strong_convexity=0.5)
    model, package = backend.model(fields, cases.random_weights(fields)), backend.package
    many = [np.stack(part) for part in zip(GOOD[kind], *BAD[kind], GOOD[kind], strict=True)]
    found = jax.jit(jax.vmap(lambda *values: package.minimize(model, getattr(package, kind)(*values))))(*many)
    check_batch(backend, found, package.minimize(model, getattr(package, kind)(*GOOD[kind])))
