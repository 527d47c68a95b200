"""`maximize` of concave hulls, bounds of non-negative ones, refusals; broken minorants are caught."""

import backends
import cvxpy as cp
import numpy as np
import pytest
import shaped_hulls
from shaped_hulls import LOWER, OUTPUT, POLYTOPE, SHAPES, UPPER, best, bound, contexts, contradictions, shaped, values

from convexmoe.minimization import outputs
from convexmoe.minimization.nonnegative import NonnegativeHull
from convexmoe.minimization.scalar_hull import ScalarHull

pytestmark = pytest.mark.usefixtures("quick_compilation")

TORCH = backends.BACKENDS[1]
NONNEGATIVE = [name for name, options in SHAPES.items() if options.get("nonnegative")]
CONCAVE = [name for name, options in SHAPES.items() if options.get("curvature") == "concave"]


def context_of(model, seed=0):
    """One context, or None."""
    return contexts(model, 1, seed)[0] if model.config.context_dim else None


@pytest.mark.parametrize("name", sorted({*NONNEGATIVE, *CONCAVE}))
def test_the_interval_holds_the_best_value(backend, name):
    """Over a polytope against Clarabel, over a box against a grid too."""
    for seed in range(2):
        model = shaped(backend, name, seed)
        context, package = context_of(model, seed), backend.package
        found = best(backend, model, package.Box(LOWER, UPPER), context)
        known = values(backend, model, shaped_hulls.grid(), context)
        known = known.max() if model.config.is_concave else known.min()
        assert found["status"] == 0 and found["gap"] <= 1e-6 * (1 + abs(found["value"]))
        assert contradictions(model, found, known) == 0
        A, b = POLYTOPE
        found = best(backend, model, package.Polytope(A, b), context, tol=1e-8)
        x = cp.Variable(2)
        problem = bound(model, x, context)[1]
        problem = cp.Problem(problem.objective, [A @ x <= b])
        problem.solve(solver=cp.CLARABEL)
        assert abs(problem.value - found["value"]) <= found["gap"] + 1e-6 * (1 + abs(problem.value))


@pytest.mark.parametrize("name", CONCAVE)
def test_it_is_the_minimum_of_minus_the_hull(backend, name):
    model = shaped(backend, name, 7)
    with backend.precision("float64"):
        minus = backend.package.VectorHull.from_params(model.config.negate(), model.params)
    assert not minus.config.is_concave and minus.config.negate() == model.config
    context, constraints = context_of(model), backend.package.Ball([0.0, -1.0], 2.0)
    one, other = (best(backend, hull, constraints, context) for hull in (model, minus))
    np.testing.assert_array_equal(one["x"], other["x"])
    assert one["value"] == -other["value"] and one["bound"] == -other["bound"] and one["gap"] == other["gap"]
    points = shaped_hulls.grid(4)
    planes = backend.package.max_affine(model, points, output=OUTPUT, context=context)
    rows = shaped_hulls.grid()
    above = (rows @ backend.numpy(planes.slopes).T + backend.numpy(planes.intercepts)).min(axis=1)
    assert (above >= values(backend, model, rows, context) - 1e-9).all() and 0 <= float(planes.gap) <= 1e-6


@pytest.mark.parametrize("name", NONNEGATIVE)
def test_a_bound_of_zero_needs_no_bounded_set(backend, name):
    """A non-negative hull does not fall without end; where it tends to 0 the bound is 0, exactly."""
    model = shaped(backend, name, 3, strong_convexity=0.0, monotone=None)
    context, package = context_of(model), backend.package
    found = best(backend, model, package.Box([-np.inf] * 2, [np.inf] * 2), context)
    sign = -1 if model.config.is_concave else 1
    assert found["status"] == 0 and sign * found["bound"] >= 0 and not found["direction"].any()
    assert sign * found["value"] >= 0 and found["gap"] <= 1e-6 * (1 + abs(found["value"]))


def test_what_rises_without_end_is_refused_with_a_direction(backend):
    model = shaped(backend, "concave", strong_convexity=0.0, monotone=(1, 0))
    constraints = backend.package.Box([0.0, 0.0], [np.inf, 1.0])
    with pytest.raises(ValueError) as caught:
        best(backend, model, constraints, context_of(model))
    wanted = "maximize.constraints: expected a set in which the model is bounded above; got one without a maximum: it "
    assert str(caught.value) == wanted + "rises without end along [2, 0]. Add bounds."


def broken_share(kept):
    """A minorant that takes a wrong constant for the softplus: above the hull."""
    return lambda self, z, tangent: (kept(self, z, tangent)[0] + 0.05, kept(self, z, tangent)[1])


def broken_slope(kept):
    """A minorant with half the slope: a bound at the edge of a set is then above the hull."""
    return lambda self, z, tangent: (kept(self, z, tangent)[0], 0.5 * kept(self, z, tangent)[1])


def is_bound_wrong(name):
    """Whether a bound of one of some problems is beyond a value on a grid."""
    for seed in range(6):
        model = shaped(TORCH, name, seed, depth=1)
        found = best(TORCH, model, TORCH.package.Box(LOWER, UPPER), context_of(model, seed))
        known = values(TORCH, model, np.concatenate([shaped_hulls.grid(21), found["x"][None]]), context_of(model, seed))
        if contradictions(model, found, known.max() if model.config.is_concave else known.min()):
            return True
    return False


@pytest.mark.parametrize(
    "name, fault", [("nonnegative", broken_share), ("nonpositive", broken_share), ("everything", broken_slope)]
)
def test_control_a_wrong_minorant_is_caught(monkeypatch, name, fault):
    assert not is_bound_wrong(name)
    monkeypatch.setattr(NonnegativeHull, "minorant", fault(NonnegativeHull.minorant))
    assert is_bound_wrong(name)


@pytest.mark.parametrize("name", NONNEGATIVE)
def test_control_a_forgotten_softplus_is_caught(monkeypatch, name):
    monkeypatch.setattr(outputs, "NonnegativeHull", ScalarHull)
    model = shaped(TORCH, name)
    found = best(TORCH, model, TORCH.package.Box(LOWER, UPPER), context_of(model))
    assert abs(values(TORCH, model, found["x"][None], context_of(model))[0] - found["value"]) > 1e-3


REFUSALS = {
    "minimize": "minimize.model: expected a convex hull; got a concave one, of which a minimum lies at a corner of the "
    "set. Call maximize.",
    "maximize": "maximize.model: expected a concave hull; got a convex one, of which a maximum lies at a corner of the "
    "set. Call minimize.",
    "conjugate": "conjugate.model: expected a convex hull; got a concave one. Take minus it: "
    "VectorHull.from_params(model.config.negate(), model.params).",
}


@pytest.mark.parametrize("name", REFUSALS)
def test_the_wrong_curvature_is_refused_with_the_remedy(backend, name):
    package = backend.package
    model = shaped(backend, "context" if name == "maximize" else "concave")
    given = backend.array(np.zeros(2, np.float32)) if name == "conjugate" else package.Box(LOWER, UPPER)
    with pytest.raises(ValueError) as caught:
        getattr(package, name)(model, given, output=OUTPUT, context=context_of(model))
    assert str(caught.value) == REFUSALS[name]
