"""A hull of columns of any size inside a problem of CVXPY: solvers find what `minimize` finds, whatever the units."""

import warnings
from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest
import torch
from backends import BACKENDS
from cases import fields, random_weights
from small_hulls import hull

import convexmoe_torch
from convexmoe import Normalization
from convexmoe_torch import Box, Polytope, minimize
from interop import set_weights, to_cvxpy
from interop.cvxpy import units

pytestmark = pytest.mark.usefixtures("quick_compilation")

# scales of the inputs, mean in scales, scale and mean of the output, options of the hull
HULLS = {
    "one": ([1e5], 1.0, 1.0, 0.0, {"temperature": "learned"}),
    "two": ([1e5] * 2, 1.0, 1.0, 0.0, {"activation": "huber_relu", "strong_convexity": 0.05}),
    "eight": ([1e5] * 8, 1.0, 1.0, 0.0, {"temperature": "learned", "strong_convexity": 0.05}),
    "kinks": ([1e5] * 8, 1.0, 1e3, 0.0, {"activation": "relu", "strong_convexity": 0.05}),
    "mixed": ([1e-6, 1e6, 1.0, 1e-3, 1e3], 0.5, 1e6, 0.0, {"temperature": 0.5, "strong_convexity": 0.05}),
    "small": ([1e-6] * 3, 3.0, 1.0, 0.0, {"temperature": "learned", "trunk": "private"}),
    "far": ([1e6] * 3, 100.0, 1.0, 50.0, {"depth": 2, "gate": True, "strong_convexity": 0.1}),
}
SETS = ("box", "bounds", "row", "epigraph")


def made(case):
    """A hull of a case, mean and scale of its inputs, and the scale of its output."""
    scale, offset, factor, mean, options = HULLS[case]
    scale = np.array(scale)
    normalization = Normalization(offset * scale, scale, (mean,), (factor,))
    model = hull(3, in_dim=len(scale), normalization=normalization, **options)
    return model, offset * scale, scale, factor


def problem_of(model, mean, scale, kind, **options):
    """A problem over the hull, its variable, and the set for `minimize`."""
    low, high = mean - 1.3 * scale, mean + 0.7 * scale
    x = cp.Variable(len(scale), bounds=[low, high]) if kind == "bounds" else cp.Variable(len(scale))
    rules, wanted = [x >= low, x <= high], Box(low, high)
    if kind == "row":
        rules.append(cp.sum(x / scale) <= np.sum(mean / scale) - 0.5)
        rows = np.concatenate([np.diag(-1 / scale), np.diag(1 / scale), 1 / scale[None]])
        ends = np.concatenate([-low / scale, high / scale, [np.sum(mean / scale) - 0.5]])
        wanted = Polytope(rows, ends)
    y = to_cvxpy(model, x, output=0, **options)
    top = cp.Variable()
    goal, more = (top, [y <= top]) if kind == "epigraph" else (y, [])
    return cp.Problem(cp.Minimize(goal), ([] if kind == "bounds" else rules) + more), x, wanted


def errors(model, problem, x, wanted):
    """By how much the objective, and the hull at the point, miss the minimum."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of CVXPY, about accuracy; it is what is measured
        problem.solve(solver=cp.CLARABEL)
    least = float(minimize(model, wanted, tol=1e-9).value)
    with torch.no_grad():
        at = float(model(torch.tensor(x.value)))
    return abs(problem.value - least), abs(at - least)


PROBLEMS = [(case, kind) for case in HULLS for kind in SETS]
QUICK = [("one", "box"), ("two", "epigraph"), ("eight", "box"), ("mixed", "bounds"), ("mixed", "row"), ("far", "box")]


@pytest.mark.parametrize(
    ("case", "kind"), [each if each in QUICK else pytest.param(*each, marks=pytest.mark.release) for each in PROBLEMS]
)
def test_a_solver_finds_the_minimum_in_any_units(case, kind):
    model, mean, scale, factor = made(case)
    problem, x, wanted = problem_of(model, mean, scale, kind)
    assert problem.is_dcp() and not problem.is_mixed_integer()
    assert max(errors(model, problem, x, wanted)) < 1e-5 * factor
    assert problem.status in (cp.OPTIMAL, cp.OPTIMAL_INACCURATE)
    lowest = mean - 1.3 * scale
    assert (x.value >= lowest - 1e-5 * scale).all()


def test_control_in_its_own_units_the_solver_misses_it(monkeypatch):
    monkeypatch.setattr(units, "scale_variables", lambda *_: None)
    missed = 0
    for case in ("two", "eight", "kinks"):
        model, mean, scale, factor = made(case)
        try:
            missed += max(errors(model, *problem_of(model, mean, scale, "box"))) > 1e-3 * factor
        except cp.SolverError:
            missed += 1
    assert missed >= 1


@pytest.mark.parametrize("case", ["two", "eight", "kinks"])
def test_a_hull_that_has_its_units_in_its_weights(case):
    """Without a normalization, as one that was trained on raw columns; the first layer tells of what size they are."""
    model, mean, scale, _ = made(case)
    plain = convexmoe_torch.VectorHull.from_params(
        replace(model.config, normalization=None, strong_convexity=0.0), model.params
    )
    unit, center = torch.tensor(1 / scale), torch.tensor(mean / scale)
    with torch.no_grad():
        for part in (plain.trunk["0"], plain.readout):
            weight = part["weight"]
            part["bias"] -= torch.einsum("d,d...->...", center, weight)
            weight *= unit.reshape(-1, *[1] * (weight.ndim - 1))
    assert max(errors(plain, *problem_of(plain, mean, scale, "box"))) < 1e-5


@pytest.mark.parametrize("case", ["two", "mixed"])
def test_weights_as_parameters_and_new_units(case):
    model, mean, scale, factor = made(case)
    other = hull(
        4, in_dim=len(scale), **HULLS[case][4], normalization=Normalization(mean, 2 * scale, (1.0,), (factor,))
    )
    problem, x, wanted = problem_of(model, mean, scale, "box", parameters=True)
    assert problem.is_dpp()
    for now in (model, other):
        set_weights(problem.objective.expr, now)
        assert max(errors(now, problem, x, wanted)) < 1e-4 * factor


def test_parts_of_variables_take_the_units_of_their_columns():
    """Columns from several variables, some of them halved; two hulls share them, and values stay as they were."""
    model, mean, scale, _ = made("mixed")
    a, b, c = cp.Variable(2, value=[1.0, 2.0]), cp.Variable(), cp.Variable((2, 1))
    whole = cp.hstack([a, 0.5 * b + 3.0, cp.reshape(c, (2,), order="C")])
    low, high = mean - scale, mean + scale
    y = to_cvxpy(model, whole) + to_cvxpy(model, whole)
    np.testing.assert_array_equal(a.value, [1.0, 2.0])
    assert b.value is None
    problem = cp.Problem(cp.Minimize(cp.sum(y)), [whole >= low, whole <= high])
    problem.solve(solver=cp.CLARABEL)
    least = float(minimize(model, Box(low, high), tol=1e-9).value)
    assert problem.value == pytest.approx(2 * least, abs=1e-5 * 1e6)
    assert a.convexmoe_units.scale == pytest.approx(scale[:2])
    assert c.convexmoe_units.mean.ravel() == pytest.approx(mean[3:])
    assert not hasattr(b, units.ATTRIBUTE)  # of order one as it is


def test_a_whole_number_keeps_its_own_units():
    """Only its bounds could move to the image of a variable."""
    model, *_ = made("one")
    x = cp.Variable(1, integer=True)
    to_cvxpy(model, x)
    assert not hasattr(x, units.ATTRIBUTE)
    plain = cp.Variable(1)
    to_cvxpy(model, plain)
    assert hasattr(plain, units.ATTRIBUTE)  # the control


@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1e-6), (1e9, 1.0), (0.0, 1e9)])
def test_an_output_below_the_tolerance_of_solvers_is_said(mean, scale):
    """The remedy of the warning finds the minimum."""
    model = hull(3, in_dim=2, strong_convexity=0.05, normalization=Normalization((0, 0), (1, 1), (mean,), (scale,)))
    x = cp.Variable(2)
    with pytest.warns(UserWarning, match=r"to_cvxpy.model: expected outputs that solvers tell apart.*Minimize \("):
        y = to_cvxpy(model, x, output=0)
    top = cp.Variable()
    cp.Problem(cp.Minimize(top), [(y - mean) / scale <= top, cp.abs(x) <= 1]).solve(solver=cp.CLARABEL)
    least = float(minimize(model, Box([-1.0] * 2, [1.0] * 2), tol=1e-12).value)
    with torch.no_grad():
        at = float(model(torch.tensor(x.value)))
    assert abs(at - least) < 1e-4 * scale
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_cvxpy(hull(3, in_dim=2), x)


def test_a_variable_far_from_zero_is_said():
    """The remedy of the warning finds the minimum."""
    mean, scale = np.array([1e6, -1.0, 3e2]), np.array([1.0, 1.0, 1e2])
    model = hull(3, in_dim=3, normalization=Normalization(mean, scale, (0.0,), (1.0,)))
    with pytest.warns(UserWarning, match=r"to_cvxpy.variable: .* got one near 1e\+06 with a scale of 1. Pass m"):
        to_cvxpy(model, cp.Variable(3))
    u = cp.Variable(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        problem = cp.Problem(cp.Minimize(to_cvxpy(model, mean + cp.multiply(scale, u), output=0)), [cp.abs(u) <= 1])
        to_cvxpy(hull(3, in_dim=3, normalization=Normalization(1e3 * scale, scale, (0.0,), (1.0,))), cp.Variable(3))
    problem.solve(solver=cp.CLARABEL)
    assert abs(problem.value - float(minimize(model, Box(mean - scale, mean + scale), tol=1e-9).value)) < 1e-7


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_both_packages_give_one_program(backend):
    """And a folded hull; the other tests take PyTorch's."""
    scales = np.array([1e5, 1e-4, 1.0, 1e3, 1e-2])
    config = fields(out_dim=1) | {
        "normalization": {"input_mean": scales, "input_scale": scales, "output_mean": (0.0,), "output_scale": (1.0,)}
    }
    model = backend.model(config, random_weights(config))
    with backend.precision("float64"):
        folded = backend.fold(model)
    twin = BACKENDS[1].model(config, random_weights(config))
    wanted = float(minimize(twin, Box(0 * scales, 2 * scales), tol=1e-9).value)
    for given in (model, folded):
        x = cp.Variable(5)
        problem = cp.Problem(cp.Minimize(to_cvxpy(given, x, output=0)), [x >= 0, x <= 2 * scales])
        problem.solve(solver=cp.CLARABEL)
        assert problem.value == pytest.approx(wanted, abs=1e-6)
