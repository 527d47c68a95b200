"""What the parity suite must catch: each mutant is one slip of a port, and breaks a bound."""

import jax
import optax
import pytest
import torch
from twins import CONFIGS, SIZES, rows, tied_hull, torch_hull, trajectories

import convexmoe_jax
import convexmoe_torch
from convexmoe.hull.parameters import positive_scale
from interop import check_parity, to_jax
from interop.parity import relative_error

pytestmark = pytest.mark.usefixtures("quick_compilation")

SEEDS = range(5)


def transposed_weight(hull):
    weight = hull.trunk["1"]["raw_weight"]
    weight.copy_(weight.T.clone())


def swapped_petals(hull):
    for parameter in hull.readout.values():
        parameter.copy_(parameter.flip(-2))


def rolled_petals(hull):
    for parameter in hull.readout.values():
        parameter.copy_(parameter.roll(1, -2))


def shifts_left_out(hull):
    hull.shifts.zero_()


WEIGHTS = [transposed_weight, swapped_petals, rolled_petals, shifts_left_out]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mutate", WEIGHTS, ids=lambda mutate: mutate.__name__)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_slip_in_the_weights_is_caught(mutate, dtype, seed):
    with jax.enable_x64(dtype == "float64"):
        hull = torch_hull(seed, dtype, depth=2)
        twin = to_jax(hull)
        assert check_parity(twin, hull, rows(seed)).ok
        with torch.no_grad():
            mutate(hull)
        report = check_parity(twin, hull, rows(seed))
    assert not report.ok and not report.comparisons[0].ok  # seen in the output already


def softplus_threshold(monkeypatch):
    monkeypatch.setitem(convexmoe_torch.hull.petals.FUNCTIONS, "softplus", torch.nn.functional.softplus)


def another_softplus(monkeypatch, softplus):
    petals = convexmoe_torch.hull.petals
    monkeypatch.setattr(petals, "OPERATIONS", petals.OPERATIONS._replace(softplus=softplus))


def wrong_positivity(monkeypatch):
    another_softplus(monkeypatch, torch.exp)


def unscaled_positivity(monkeypatch):
    softplus, c = convexmoe_torch.hull.positive.softplus, positive_scale(SIZES["hidden_dim"])
    another_softplus(monkeypatch, lambda raw: softplus(raw) / c)


def wrong_neighbour(monkeypatch):
    def group_values(f, shifts, group_size):
        return torch.add(shifts[:, None], f + torch.roll(f, 1, dims=-2), alpha=0.5)

    monkeypatch.setattr(convexmoe_torch.hull.forward, "group_values", group_values)


CODE = [softplus_threshold, wrong_positivity, unscaled_positivity, wrong_neighbour]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mutate", CODE, ids=lambda mutate: mutate.__name__)
def test_a_slip_in_the_code_is_caught(mutate, seed, monkeypatch, x64):
    hull, scale = torch_hull(seed), 12.0  # units beyond softplus' threshold
    twin = to_jax(hull)
    assert check_parity(twin, hull, rows(seed, scale=scale)).ok
    mutate(monkeypatch)
    assert not check_parity(twin, hull, rows(seed, scale=scale)).ok


@pytest.mark.parametrize("seed", SEEDS)
def test_one_winner_of_a_tie_is_caught(seed, monkeypatch, x64):
    hull, x = tied_hull(seed)
    twin = to_jax(hull)
    assert check_parity(twin, hull, x).ok
    monkeypatch.setattr(convexmoe_torch.hull.forward, "maximum", lambda g: torch.max(g, dim=-2).values)
    assert not check_parity(twin, hull, x).ok


# Each made once, so that its seeds share what is compiled. At the usual decays 1 - decay**count is the least exact.
DECAYS = 0.9, 0.999
OURS, OF_OPTAX = convexmoe_jax.training.optimizers.scale_by_adam(*DECAYS), optax.scale_by_adam(*DECAYS)
MISPLACED = optax.scale_by_adam(*convexmoe_jax.training.engine.ADAM_DECAYS, eps=0.0, eps_root=1e-8)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_misplaced_epsilon_of_adam_is_caught(seed, monkeypatch, x64):
    monkeypatch.setattr(convexmoe_jax.training.engine, "ADAM", MISPLACED)
    ours, theirs = trajectories(torch_hull(seed, **CONFIGS["default"]), seed)
    assert relative_error(ours, theirs) > 1e-12


@pytest.mark.parametrize("seed", SEEDS)
def test_the_bias_correction_of_optax_is_caught(seed, monkeypatch):
    """The reason for an own `adam`: in float32, over 200 steps, optax drifts from PyTorch more than ours does."""
    monkeypatch.setattr(convexmoe_torch.training.engine, "ADAM_DECAYS", DECAYS)
    monkeypatch.setattr(convexmoe_jax.training.engine, "ADAM", OURS)
    ours, theirs = trajectories(torch_hull(seed, "float32"), seed)
    monkeypatch.setattr(convexmoe_jax.training.engine, "ADAM", OF_OPTAX)
    stock, theirs_again = trajectories(torch_hull(seed, "float32"), seed)
    assert relative_error(theirs, theirs_again) == 0
    assert relative_error(ours, theirs) < relative_error(stock, theirs)


def test_reports_name_a_miss():
    hull = torch_hull(0, "float32")
    twin = to_jax(hull)
    with torch.no_grad():
        hull.shifts.add_(1.0)
    report = check_parity(twin, hull, rows(0))
    assert "forward" in str(report) and "MISS" in str(report) and not report.worst.ok
