"""The examples with solvers plan with hulls; run in small, at a release, they pass their checks, which can fail."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import cvxpy as cp
import numpy as np
import pytest
from flax import nnx

from interop import to_cvxpy

EXAMPLES = Path(__file__).parents[1] / "examples"


def module(name):
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


dispatch, control = module("dispatch_generators"), module("predictive_control")


def run(name, *options):
    paths = [str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *options]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)


@pytest.mark.release
@pytest.mark.parametrize(
    ("name", "picture"), [("dispatch_generators", "dispatch.png"), ("predictive_control", "control.png")]
)
def test_quick_run_passes_its_check(name, picture, tmp_path):
    result = run(name, "--quick", "--out", str(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "passed:" in result.stdout
    assert (tmp_path / picture).stat().st_size > 10_000
    assert json.loads((tmp_path / "figures.json").read_text())["seconds"] > 0


def test_a_plan_by_a_hull_meets_the_demand_and_costs_no_less_than_the_optimum():
    plants = dispatch.PLANTS
    x, y = dispatch.measure_costs(plants[0], 60, 0)
    hull = dispatch.fit_hull(x, y, 40, 0)
    costs = [lambda at, p=p: dispatch.true_expression(p, at) for p in plants]
    exact = dispatch.solve(costs, 2)
    plan = dispatch.solve([lambda at: to_cvxpy(hull, at, output=0), *costs[1:]], 2)
    power, _ = dispatch.demand(2)
    np.testing.assert_allclose(sum(rows[:, 0] for rows in plan.made), power, rtol=1e-5)
    assert plan.true >= exact.true * (1 - 1e-6)
    assert plan.made[0] != pytest.approx(exact.made[0], rel=1e-3)  # control: the hull decides


def test_a_controller_with_a_hull_at_the_end_plans_otherwise_than_without():
    state = np.array([2.0, -1.0])
    hull = control.cm.VectorHull(2, petals=4, out_dim=1, hidden_dim=7, rngs=nnx.Rngs(0))
    ends = (None, lambda end: 100 * to_cvxpy(hull, end, output=0))
    without, with_hull = (control.solver_policy(control.planning_problem(control.HORIZON, end))(state) for end in ends)
    assert max(abs(without), abs(with_hull)) <= control.LARGEST_FORCE
    assert with_hull != pytest.approx(without, rel=1e-3)


@pytest.mark.skipif(importlib.util.find_spec("ott") is not None, reason="ott-jax is installed")
def test_transport_says_what_to_install():
    result = run("transport", "--quick")
    assert result.returncode == 1
    assert result.stderr.strip().endswith('pip install -e ".[peers]"')


@pytest.mark.parametrize("plant", dispatch.PLANTS, ids=lambda plant: plant.name)
def test_the_true_cost_of_the_optimum_is_that_of_the_samples(plant):
    x = np.random.default_rng(0).uniform(plant.low, plant.high, (7, len(plant.low)))
    expression = dispatch.true_expression(plant, cp.Variable(x.shape, value=x))
    assert expression.is_convex()
    np.testing.assert_allclose(expression.value, dispatch.true_cost(plant, x), rtol=1e-9)


def test_no_plan_costs_less_than_the_optimum():
    """The optimum is one: a plan by other curves costs more, and a plan by the true ones the same."""
    exact = dispatch.solve([lambda x, p=p: dispatch.true_expression(p, x) for p in dispatch.PLANTS], 6)
    assert exact.expected == pytest.approx(exact.true, rel=1e-6)
    linear = dispatch.solve([lambda x, p=p: x @ np.array(p.linear) for p in dispatch.PLANTS], 6)
    assert linear.true > exact.true * 1.01


def test_quadratics_are_fitted():
    x = np.random.default_rng(0).uniform(0, 100, (60, 2))
    Q = np.array([[0.02, 0.008], [0.008, 0.02]])
    found = dispatch.fit_quadratic(x, 5 + x @ [3.0, 2.0] + np.einsum("ni,ij,nj->n", x, Q, x))
    np.testing.assert_allclose(found[2], Q, atol=1e-5)
    value = dispatch.quadratic_expression(found, cp.Variable(x.shape, value=x)).value
    np.testing.assert_allclose(value, 5 + x @ [3.0, 2.0] + np.einsum("ni,ij,nj->n", x, Q, x), rtol=1e-3)


def test_values_are_least_costs():
    """At a state from which no bound binds the value is that of the linear regulator, by Riccati's iteration."""
    A, B, Q, R = control.A, control.B[:, None], np.diag(control.ROOTS**2), control.FORCE_COST
    P = Q
    for _ in range(500):
        gain = np.linalg.solve(R + B.T @ P @ B, B.T @ P @ A)
        P = Q + A.T @ P @ (A - B @ gain)
    state = np.array([0.05, -0.02])
    start, _, problem = control.planning_problem(control.LONG, None)
    start.value = state
    assert problem.solve(solver=cp.CLARABEL) == pytest.approx(state @ P @ state, rel=1e-5)


def test_a_descent_with_folds_is_called_stuck_and_one_without_is_not():
    import jax.numpy as jnp

    states = np.array([[1.0, 0.0], [-2.0, 1.0]])
    bowl = control.descent(lambda at: jnp.sum(at**2, axis=1))
    folds = control.descent(lambda at: 5 * jnp.cos(40 * at[:, 0]) + 5 * jnp.cos(20 * at[:, 1]))
    assert control.share_stuck(bowl, states, 0) == 0
    assert control.share_stuck(folds, states, 0) > 0.2
