"""Both packages give what one sample after the other gives: outputs, losses and all gradients."""

import hierarchies
import numpy as np
import pytest
from hierarchies import CASES, naive, random_inputs, random_weights, rounded, uniform
from tolerances import relative_error

from convexmoe_jax.hierarchy.dispatch import block_sizes

BOUNDS = {"float64": 1e-12, "float32": 1e-5}

# (rows, experts): a sparse grid; every ladder of block sizes that the JAX dispatch has is on it
GRID = {(1, 1): "linear", (5, 3): "linear", (37, 3): "linear", (127, 3): "mlp7", (401, 2): "linear"}
WIDE = {(2, 3): "linear", (3, 64): "linear", (17, 3): "mlp7", (64, 16): "linear", (127, 1): "linear"}
WIDE |= {(300, 64): "mlp7", (1100, 2): "linear"}
GRID |= WIDE
CASE = uniform("mlp7", 3)
SEQUENCES = {
    "two_widths": CASES["two_widths"],
    "mixed_experts": CASES["mixed_experts"],
    "tanh_and_mlp": hierarchies.Case((hierarchies.Level("a", ("tanh", "mlp7")),)),
}
RELEASE = pytest.mark.release


def for_release(cases, wide):
    """The cases, of which a release alone runs the wide ones: each is a compilation."""
    return [pytest.param(*case, marks=RELEASE) if case in wide else pytest.param(*case) for case in cases]


def largest_error(got, wanted):
    """Over all arrays, each relative to its largest entry; infinite where one is missing.

    Losses of experts without rows, which JAX has as zeros and torch leaves out, must be zero.
    """
    extra = {name for name in got.keys() - wanted.keys() if not np.any(got[name])}
    if got.keys() - extra != wanted.keys():
        return float("inf")
    return max(relative_error(got[name], value) for name, value in wanted.items())


def error_of(engine, case, inputs, dtype="float64", every="reverse"):
    weights, inputs = rounded(random_weights(case), dtype), rounded(inputs, dtype)
    model = engine.build(case, weights, dtype, every)
    return largest_error(engine.run(case, model, inputs), naive(case, weights, inputs))


def test_the_grid_has_every_ladder():
    small = GRID.keys() - WIDE.keys()
    ladders = {block_sizes(rows, experts, False) for rows, experts in small}
    assert ladders == {block_sizes(rows, 1, False) for rows in range(1, 1000)} and len(ladders) == 4
    assert {block_sizes(rows, experts, False) for rows, experts in list(small)[:2]} != ladders  # control


@pytest.mark.parametrize(("rows", "experts"), for_release(GRID, WIDE))
def test_every_row_goes_through_its_own_expert(engine, rows, experts):
    case = uniform(GRID[rows, experts], experts)
    for spread in ("uniform", "zipf", "one") if experts > 1 else ("one",):
        assert error_of(engine, case, random_inputs(case, rows, spread=spread)) < BOUNDS["float64"]


@pytest.mark.parametrize(("rows", "experts"), for_release([(1, 3), (300, 16)], [(300, 16)]))
def test_every_row_goes_through_its_own_expert_in_float32(engine, rows, experts):
    case = uniform("mlp7", experts)
    for spread in ("uniform", "zipf", "one"):
        assert error_of(engine, case, random_inputs(case, rows, spread=spread), "float32") < BOUNDS["float32"]


SIMPLE = [("one_level",), ("five_levels",), ("stops_in_a_level",)]  # of which others have parts


@pytest.mark.parametrize("name", for_release([(name,) for name in CASES], SIMPLE))
def test_every_structure(engine, name):
    assert error_of(engine, CASES[name], random_inputs(CASES[name])) < BOUNDS["float64"]


@pytest.mark.parametrize("name", for_release([(name,) for name in SEQUENCES], [("mixed_experts",)]))
def test_sequences(engine, name):
    inputs = random_inputs(SEQUENCES[name], sequence=True)
    assert error_of(engine, SEQUENCES[name], inputs) < BOUNDS["float64"]


def test_experts_without_rows_have_zero_gradients(engine):
    inputs = random_inputs(CASE, spread="one")
    found = engine.run(CASE, engine.build(CASE, random_weights(CASE)), inputs)
    sizes = {name: np.abs(value).max() for name, value in found.items() if "level_modules" in name}
    assert all((size > 0) == (".e1." in name) for name, size in sizes.items()) and len(sizes) == 12


@pytest.mark.parametrize("fault", ["route", "weight", "stop"])
def test_control_a_fault_would_be_seen(engine, fault):
    case = CASES["stops_in_a_level"]
    weights, inputs = random_weights(case), random_inputs(case)
    model = engine.build(case, weights)
    if fault == "route":
        inputs["routes"]["b"][3] = (inputs["routes"]["b"][3] + 1) % 3
        wanted = naive(case, weights, random_inputs(case))
    elif fault == "weight":
        wanted = naive(case, weights | {"fusion.gates.0.weight": weights["fusion.gates.0.weight"] * (1 + 1e-9)}, inputs)
    else:
        free = hierarchies.Case((case.levels[0], hierarchies.Level("b", case.levels[1].kinds, stops=(0,))))
        wanted = naive(free, weights, inputs)
    assert largest_error(engine.run(case, model, inputs), wanted) > BOUNDS["float64"]
