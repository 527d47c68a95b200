"""`minimize` on hard sets: polytopes without an inside or nearly so, far or endless ones, numbers that are none."""

import decimal

import cases
import numpy as np
import programs
import pytest

from convexmoe.minimization import minimum, regions
from convexmoe.minimization.minimum import minimize_unchecked

pytestmark = pytest.mark.usefixtures("quick_compilation")

D, ROWS = 3, 14


def made(backend, **changes):
    """A hull, its fields and weights, with normalization so that the two kinds of unit differ."""
    units = {k: v[:1] if k.startswith("output") else v[:D] for k, v in cases.UNITS.items()}
    fields = {"in_dim": D, "out_dim": 1, "petals": 4, "temperature": "learned", "normalization": units}
    fields = cases.fields(**fields | changes)
    weights = cases.random_weights(fields)
    return backend.model(fields, weights), fields, weights


def point(seed=0):
    """A point near the mean of the inputs."""
    units = {name: np.array(value[:D]) for name, value in cases.UNITS.items()}
    return units["input_mean"] + units["input_scale"] * np.random.default_rng(seed).normal(size=D)


def equation(row, value, thickness=0.0):
    """`value <= row . x <= value + thickness` as two rows."""
    return np.array([row, [-r for r in row]], float), np.array([value + thickness, -value])


def box(center, half):
    return np.concatenate([np.eye(D), -np.eye(D)]), np.concatenate([center + half, half - center])


def joined(*parts):
    """One polytope of several, with rows that say nothing up to `ROWS`."""
    A, b = (np.concatenate(pair) for pair in zip(*parts, strict=True))
    rest = ROWS - len(A)
    return np.concatenate([A, np.zeros((rest, D))]), np.concatenate([b, np.zeros(rest)])


def cone(seed, turns):
    """D + 1 rows, all 0 at one point and at no other."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(D, D))
    rows = np.concatenate([rows, -rng.uniform(0.1, 1.0, (1, D)) @ rows]) * turns
    return rows, rows @ point(seed)


def flats():
    """Polytopes that have no inside, or hardly one."""
    c, row = point(), [1.0, -2.0, 0.5]
    found = {
        "equation": joined(equation(row, row @ c)),
        "equation in a box": joined(equation(row, row @ c), box(c, 1.0)),
        "two equations": joined(equation(row, row @ c), equation([0, 1, 1], c[1] + c[2]), box(c, 2.0)),
        "point": joined(box(c, 0.0)),
        "cone": joined(cone(1, 1.0)),
        "cone in other units": joined(cone(2, 1e5)),
        "simplex": joined(equation([1, 1, 1], 4.0), (-np.eye(D), np.zeros(D))),
        "three rows": joined((np.array([[1.0, 1, 0], [-1, 1, 0], [0, -1, 0]]), np.array([2.0, 0, -1]))),
        "far": joined(equation([1, 1, 1], 1e4), (-np.eye(D), np.zeros(D))),
    }
    thin = {f"thin {e:g}": joined(equation(row, row @ c, e), box(c, 1.0)) for e in 10.0 ** np.arange(-14, -1, 2)}
    return found | thin


def batch(backend, many):
    return backend.package.Polytope(*[np.stack(part) for part in zip(*many, strict=True)])


def faults(found, many, optima):
    """Which intervals miss what Clarabel finds, and which points are outside by more than rounding."""
    names = []
    for k, ((A, b), optimum) in enumerate(zip(many, optima, strict=True)):
        value, gap, x = (np.asarray(found[name])[k] for name in ("value", "gap", "x"))
        allowed = 1e-7 * (1 + abs(value))
        size = np.abs(A) @ (np.abs(x) + 10) + np.abs(b) + 1e-300
        held = ((A @ x - b) / size).max() <= 1e-14
        if optimum is not None and not (held and value - gap - allowed <= optimum <= value + allowed):
            names.append(k)
    return names


def solved(backend, model, many, **options):
    found = minimize_unchecked(model, batch(backend, many), **options)
    return {name: backend.numpy(value) for name, value in found._asdict().items()}


@pytest.mark.slow
def test_a_polytope_without_an_inside(backend):
    """Equations as two rows, points, cones, thin slabs: the interval holds, the point satisfies the rows."""
    model, fields, weights = made(backend, strong_convexity=0.2)
    many = list(flats().values())
    optima = [programs.optimum(weights, fields, "Polytope", given) for given in many]
    assert sum(optimum is not None for optimum in optima) >= len(many) - 3
    found = solved(backend, model, many)
    assert faults(found, many, optima) == [] and (found["status"] == 0).all()
    exact = backend.package.minimize(model, backend.package.Simplex(4.0), tol=1e-8)
    k = list(flats()).index("simplex")
    assert abs(float(exact.value) - found["value"][k]) <= found["gap"][k] + float(exact.gap)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["loose", "bound"])
def test_control_a_looser_polytope_is_caught(backend, replace, fault):
    """Rows moved out, as they once were, and a bound over a smaller set."""
    model, fields, weights = made(backend, strong_convexity=0.2)
    many = list(flats().values())[:6]
    optima = [programs.optimum(weights, fields, "Polytope", given) for given in many]
    if fault == "loose":
        kept = regions.scale_rows

        def looser(A, b):
            A, b = kept(A, b)
            return A, b + 1e-6

        replace(regions, "scale_rows", looser)
    else:
        kept_least = regions.Frame.least

        def least(frame, slope, w, by):
            return kept_least(frame, slope, w, by) + 1e-3

        replace(regions.Frame, "least", least)
    found = solved(backend, model, many)
    assert faults(found, many, optima) != []


def far():
    """Polytopes far from the data or wide, in the units of the input."""
    wide = np.array([[1.0, 1, 0], [1, -1, 0], [-1, 1, 0], [-1, -1, 0], [0, 0, 1], [0, 0, -1]])
    return {
        "orthant": joined((-np.eye(D), np.zeros(D)), (-np.ones((1, D)), np.array([-2500.0]))),
        "further": joined((-np.eye(D), np.zeros(D)), (-np.ones((1, D)), np.array([-4e5]))),
        "wide": joined(box(np.zeros(D), 2e5)),
        "wide and turned": joined((wide, np.full(6, 2e5))),
        "half space": joined((np.array([[-1.0, 0, 0]]), np.array([-3e4]))),
    }


@pytest.mark.slow
def test_a_far_or_wide_polytope(backend):
    """Cuts move out while the point is at them; the least value of a strongly convex hull over a far set is known."""
    model, fields, weights = made(backend, strong_convexity=0.2)
    many = list(far().values())
    found = solved(backend, model, many)
    optima = [programs.optimum(weights, fields, "Polytope", given) for given in many]
    assert sum(optimum is not None for optimum in optima) >= 3
    assert (found["status"] == 0).all() and faults(found, many, optima) == []


def falling(backend, slope, raw_temperature=0.0, **changes):
    """A hull of one input whose petals are affine, up to a square."""
    fields = cases.fields(**{"in_dim": 1, "out_dim": 1, "petals": 1} | changes)
    weights = {name: np.zeros_like(value) for name, value in cases.random_weights(fields).items()}
    weights["readout.raw_weight"] = weights["readout.raw_weight"] - 1e3
    weights["readout.weight"] = weights["readout.weight"] + slope
    if "raw_temperature" in weights:
        weights["raw_temperature"] = weights["raw_temperature"] + raw_temperature
    return backend.model(fields, weights)


@pytest.mark.parametrize("slope", [-1e-8, -1.0])
def test_a_hull_that_falls_without_end_is_found_at_any_tolerance(backend, slope):
    package, model = backend.package, falling(backend, slope)
    for low, tol in (([-np.inf], 1.0), ([0.0], 1e-6)):
        with pytest.raises(ValueError, match="one without a minimum"):
            package.minimize(model, package.Box(low, [np.inf]), tol=tol)


@pytest.mark.parametrize("at", [5.0, 950.0, 3e4, 1e7])
def test_a_far_minimum_of_a_strongly_convex_hull(backend, at):
    model, whole = falling(backend, -0.5 * at, strong_convexity=0.5), ([-np.inf], [np.inf])
    found = backend.package.minimize(model, backend.package.Box(*whole))
    least = -0.25 * at * at + float(backend.apply(model, np.zeros((1, 1)))[0, 0])
    value, gap = float(found.value), float(found.gap)
    assert value - gap <= least + 1e-12 * at * at and least <= value + 1e-12 * at * at
    assert int(found.status) == 0


def test_control_a_cut_that_stays_misses_a_far_minimum(backend, replace):
    replace(minimum, "FARTHEST", 1e3)
    with pytest.raises(AssertionError, match="1 == 0"):  # the gap stays open: a strongly convex hull has a minimum
        test_a_far_minimum_of_a_strongly_convex_hull(backend, 3e4)


@pytest.mark.parametrize("temperature", [1e3, 1e6, 1e10])
def test_a_high_temperature_is_rounded_within_the_gap(backend, temperature):
    """At single points, against the mean of exponentials in 60 digits: what cancels there is of the size of T log P."""
    slopes = np.array([[1.0, -2.0, 0.3, 0.7, -0.1]])[..., None]
    learned = "learned" if temperature > 1e6 else temperature  # a fixed one is at most that
    model = falling(backend, slopes, temperature, petals=5, group_size=1, temperature=learned)
    at = np.linspace(-3, 3, 41)[:, None]
    found = backend.package.minimize(model, backend.package.Box(at, at))
    shifts = backend.numpy(model.params["shifts"])
    with decimal.localcontext(prec=60):
        T = decimal.Decimal(temperature)
        for x, value, gap in zip(at[:, 0], *(backend.numpy(v) for v in (found.value, found.gap)), strict=True):
            groups = [
                decimal.Decimal(s) * decimal.Decimal(x) + decimal.Decimal(c)
                for s, c in zip(slopes.ravel().tolist(), shifts.tolist(), strict=True)
            ]
            exact = T * (sum((g / T).exp() for g in groups) / 5).ln()
            value, gap = decimal.Decimal(float(value)), decimal.Decimal(float(gap))
            assert value - gap <= exact <= value + gap


def unchecked(backend, kind, **values):
    """A set with values that its class refuses, as a compiler may put them there."""
    made_up = object.__new__(getattr(backend.package, kind))
    for name, value in values.items():
        object.__setattr__(made_up, name, np.array(value))
    return made_up


NO_SETS = {
    "Ball": {"center": [[0.0], [0.0], [np.nan], [0.0]], "radius": [1.0, -1.0, 1.0, np.nan]},
    "Simplex": {"total": [1.0, -1.0, np.nan, np.inf]},
    "Box": {"lower": [[0.0], [np.nan], [2.0], [np.inf]], "upper": [[1.0], [1.0], [1.0], [np.inf]]},
    "Polytope": {
        "A": [[[1.0], [-1.0]], [[np.nan], [-1.0]], [[1.0], [-1.0]], [[0.0], [-1.0]]],
        "b": [[1.0, 0.0], [1.0, 0.0], [np.nan, 0.0], [-1.0, 0.0]],
    },
}


@pytest.mark.parametrize("kind", NO_SETS)
def test_numbers_that_make_no_set_are_empty_where_nothing_can_be_raised(backend, kind):
    model = falling(backend, 1.0)
    found = minimize_unchecked(model, unchecked(backend, kind, **NO_SETS[kind]))
    assert backend.numpy(found.status).tolist() == [0, 2, 2, 2]
    for part in (found.x[1:], found.value[1:]):
        assert np.isnan(backend.numpy(part)).all()
    assert np.isinf(backend.numpy(found.gap)[1:]).all() and np.isfinite(backend.numpy(found.value)[0])


def test_a_batch_with_an_empty_set_keeps_the_rest(backend):
    package, model = backend.package, falling(backend, 1.0)
    given = np.array([[[1.0], [-1.0]]] * 2), np.array([[1.0, 0.0], [-1.0, 0.0]])
    found = package.minimize(model, package.Polytope(*given))
    assert backend.numpy(found.status).tolist() == [0, 2] and float(found.value[0]) <= 1e-6
    with pytest.raises(ValueError, match="an empty set"):
        package.minimize(model, package.Polytope(given[0][1], given[1][1]))


@pytest.mark.parametrize("kind", ["Box", "Polytope"])
def test_no_problems_and_no_rows(backend, kind):
    package, model = backend.package, falling(backend, 1.0, strong_convexity=0.5)
    if kind == "Box":
        found = package.minimize(model, package.Box(np.zeros((0, 1)), np.ones((0, 1))))
        assert found.x.shape == (0, 1) and found.value.shape == found.status.shape == (0,)
    else:
        found = package.minimize(model, package.Polytope(np.zeros((0, 1)), np.zeros(0)))
        assert int(found.status) == 0


def test_large_bounds_count_as_none(backend):
    model = falling(backend, 1.0, strong_convexity=0.5)
    open_ended = backend.package.Box([-1e308], [1e308])
    found = backend.package.minimize(model, open_ended)
    assert int(found.status) == 0 and abs(float(found.x[0]) + 2) <= 5e-3
