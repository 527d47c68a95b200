"""An activation that the house does not know, added as docs/pages/activations.md says: a row and a line a framework."""

import dataclasses
import re
from pathlib import Path

import cvxpy as cp
import numpy as np
import pytest
from backends import BACKENDS
from cases import fields, random_weights
from numpy.polynomial.hermite_e import hermegauss

import convexmoe_jax.hull.petals
import convexmoe_torch.hull.petals
from convexmoe.hull.activations import ACTIVATIONS
from interop import to_cvxpy

PAGE = Path(__file__).parents[1] / "docs" / "pages" / "activations.md"
TABLES = (ACTIVATIONS, convexmoe_jax.hull.petals.FUNCTIONS, convexmoe_torch.hull.petals.FUNCTIONS)
AT = np.linspace(-4, 4, 81)


@pytest.fixture
def squareplus():
    """The page's own blocks, run; all three tables are as before afterwards."""
    before = [dict(table) for table in TABLES]
    names = {"__name__": "page"}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(block, names)
    yield ACTIVATIONS["squareplus"]
    for table, entries in zip(TABLES, before, strict=True):
        table.clear()
        table.update(entries)


def faults(row):
    """What of a row contradicts the rest of it."""
    nodes, weights = hermegauss(201)
    weights = weights / weights.sum()
    mean = weights @ row.value(nodes)
    deviation = np.sqrt(weights @ (row.value(nodes) - mean) ** 2)
    step = 1e-5
    slope = (row.value(AT + step) - row.value(AT - step)) / (2 * step)
    curvature = (row.slope(AT + step) - row.slope(AT - step)) / (2 * step)
    slopes = np.linspace(0.01, 0.99, 33)
    wide = np.linspace(-60, 60, 40_001)
    gain = np.min(row.value(wide) - slopes[:, None] * wide, axis=1)
    smooth = np.abs(AT) > 1e-3 if row.smooth is None else np.abs(np.abs(AT) - np.round(np.abs(AT))) > 1e-3
    atom = row.atom(cp, cp.Constant(AT)).value
    checks = {
        "mean": abs(mean - row.mean) <= 3e-3,
        "deviation": abs(deviation - row.deviation) <= 3e-3,
        "slope": np.abs(slope - row.slope(AT))[smooth].max() <= 1e-6,
        "curvature": np.abs(curvature - row.curvature(AT))[smooth].max() <= 1e-5,
        "gain": np.abs(gain - row.gain(slopes)).max() <= 1e-4,
        "atom": np.abs(atom - row.value(AT)).max() <= 1e-12,
        "range of slopes": row.slope(AT).min() >= 0 and row.slope(AT).max() <= 1,
    }
    return [name for name, holds in checks.items() if not holds]


def test_the_rows_hold_together(squareplus):
    assert len(ACTIVATIONS) == 4 and squareplus is ACTIVATIONS["squareplus"]
    for name, row in ACTIVATIONS.items():
        assert faults(row) == [], name


@pytest.mark.parametrize("field", ["mean", "deviation", "value", "slope", "curvature", "gain", "atom"])
def test_control_a_row_with_a_fault_is_caught(field):
    row = ACTIVATIONS["softplus"]
    right = getattr(row, field)
    wrong = right + 0.01 if isinstance(right, float) else lambda *arguments: right(*arguments) + 0.01
    assert faults(dataclasses.replace(row, **{field: wrong})) != []


@pytest.mark.usefixtures("squareplus")
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_it_is_fitted_proved_minimized_and_exported(backend):
    """A hull with it through the whole house; `certify` knows nothing of the row."""
    package, rng = backend.package, np.random.default_rng(0)
    x = rng.normal(size=(60, 3)).astype(np.float32)
    y = np.abs(x).sum(axis=1, keepdims=True)
    given = fields(in_dim=3, out_dim=1, petals=3, hidden_dim=7, activation="squareplus")
    first = backend.model(given, random_weights(given), "float32")
    fitted = package.fit(first, x, y, steps=40, validation=0)
    assert fitted.history.train_loss[-1] < fitted.history.train_loss[0]
    model = fitted.model
    certificate = package.certify(model, backend.array(x[:4]))
    assert certificate.verdict == "proved"
    minimum = package.minimize(model, package.Box([-1.0] * 3, [1.0] * 3))
    at = cp.Variable(3)
    problem = cp.Problem(cp.Minimize(to_cvxpy(model, at, output=0)), [cp.abs(at) <= 1])
    optimum = problem.solve(solver=cp.CLARABEL)
    assert minimum.value - minimum.gap - 1e-5 <= optimum <= minimum.value + 1e-5
    at.value = x[0]
    np.testing.assert_allclose(backend.apply(model, x[:1])[0, 0], problem.objective.value, rtol=1e-4)
