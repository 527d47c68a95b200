"""The table of functions gets the verdicts it says, and counterexamples are what they say they are."""

import numpy as np
import pytest
from convexity_table import MONOTONE, TABLE
from engines_of_proof import ENGINES

CASES = [pytest.param(engine, row, id=f"{engine.name}-{row.name}") for engine in ENGINES for row in TABLE]


def test_the_table_is_large_and_its_names_are_its_own():
    assert len(TABLE) >= 60 and len({row.name for row in TABLE}) == len(TABLE)
    assert min(sum(row.verdict == verdict for row in TABLE) for verdict in ("proved", "refuted")) >= 40


@pytest.mark.parametrize(("engine", "row"), CASES)
def test_verdict_and_curvature(engine, row):
    # A search that finds nothing has its ascent compiled in JAX; that nothing is found is told in PyTorch.
    options = {"segments": 0} if (engine.name, row.verdict) == ("jax", "unknown") else {}
    found = engine.certify(row, **options)
    assert (found.verdict, found.outputs[0].weakest) == (row.verdict, row.curvature), str(found)
    assert (found.failed is None) == (row.verdict == "proved")
    assert (found.violation is not None) == (row.verdict == "refuted")
    if found.violation is not None:
        left, right, weight = found.violation.left, found.violation.right, found.violation.weight
        at = [left, right, weight * left + (1 - weight) * right]
        x = [engine.xp.array(point.reshape(row.shape)) for point in at]
        one, two, between = (np.ravel(row.function(engine.xp, point))[found.violation.output] for point in x)
        assert between - (weight * one + (1 - weight) * two) == pytest.approx(found.violation.gap, rel=0.05)


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_a_function_is_not_known_by_its_name(engine):
    """The user's `softplus` is a cube; and ours under another name is recognized."""
    rows = {row.name: row for row in TABLE}
    assert engine.certify(rows["a softplus that is not"], segments=0).verdict == "unknown"
    [last] = [step for step in engine.certify(rows["softplus"]).steps if step.operation == "softplus"]
    assert last.curvature == "convex"


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
@pytest.mark.parametrize("row", MONOTONE, ids=lambda row: row.name)
def test_monotonicity(engine, row):
    found = engine.certify(row, segments=0, per_input=True).outputs[0]
    assert set(np.ravel(found.monotonicity)) == {row.monotonicity}
    if row.monotonicity != "unknown":  # in each input as in all, and not at all in those it does not look at
        assert set(np.ravel(found.per_input)) <= {row.monotonicity, "constant"}
        low = np.random.default_rng(3).normal(size=(200, 3))
        high = low + np.random.default_rng(4).exponential(size=(200, 3))
        x = [[row.function(engine.xp, engine.xp.array(at)) for at in points] for points in (low, high)]
        rise = np.asarray(x[1], np.float64) - np.asarray(x[0], np.float64)
        turn = {"nondecreasing": 1, "nonincreasing": -1, "constant": 0}[row.monotonicity]
        assert (rise * turn >= -1e-5).all() and (turn != 0 or (rise == 0).all())
