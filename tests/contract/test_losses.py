"""Losses of a fit, weights of its rows, the plane of each, and how far a hull is drawn back to it."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from convexmoe import HullConfig
from convexmoe.training import Expectile, Huber, Objective, Quantile
from convexmoe.training.hull_engine import HeldOut, best_share, best_share_of_loss
from convexmoe.training.losses import check_loss
from convexmoe.training.start import fit_plane, ridge
from convexmoe_jax.hull.petals import OPERATIONS as JAX
from convexmoe_torch.hull.petals import OPERATIONS as TORCH

NUMPY_VALUES = {
    "squared": lambda r: r**2,
    "absolute": np.abs,
    Huber(0.7): lambda r: np.where(np.abs(r) <= DELTA, r**2, DELTA * (2 * np.abs(r) - DELTA)),
    Quantile(0.9): lambda r: np.where(r >= 0, 0.9 * r, -0.1 * r),
    Expectile(0.2): lambda r: np.where(r >= 0, 0.2, 0.8) * r**2,
}
UNITS = {"mean": (1.0, -2.0), "scale": (3.0, 0.5)}
DELTA = 0.7 / np.array(UNITS["scale"])


def drawn(rows=11, columns=2):
    return np.random.default_rng(0).normal(size=(2, rows, columns))


@pytest.mark.parametrize("loss", NUMPY_VALUES, ids=str)
def test_losses_are_what_their_formulas_say_in_every_library(loss):
    prediction, y = drawn()
    objective, wanted = Objective(loss, **UNITS), NUMPY_VALUES[loss](y - prediction)
    assert np.allclose(objective(prediction, y), wanted, rtol=1e-14)
    assert np.allclose(objective(torch.tensor(prediction), torch.tensor(y), TORCH.constant), wanted, rtol=1e-14)
    assert np.allclose(objective(jnp.asarray(prediction), jnp.asarray(y), JAX.constant), wanted, rtol=1e-5)
    assert np.allclose(objective.negate()(-prediction, -y), wanted, rtol=1e-14)
    turns = isinstance(loss, (Quantile, Expectile))  # control: the same loss of -y is another
    assert np.allclose(objective(-prediction, -y), wanted) != turns
    weights = np.arange(11.0)[:, None]
    assert np.allclose(objective(prediction, np.concatenate([y, weights], axis=1)), weights * wanted, rtol=1e-14)


@pytest.mark.parametrize("loss", NUMPY_VALUES, ids=str)
def test_the_weights_of_least_squares_have_the_slope_of_the_loss(loss):
    prediction, y = drawn()
    objective, step = Objective(loss, **UNITS), 1e-6
    slope = (objective(prediction - step, y) - objective(prediction + step, y)) / (2 * step)
    assert np.allclose(2 * objective.curve(y - prediction) * (y - prediction), slope, atol=1e-6)


def test_a_function_is_given_original_units():
    prediction, y = drawn()
    mean, scale = np.array(UNITS["mean"]), np.array(UNITS["scale"])

    def loss(p, y):
        return (p - y) ** 4 + p

    objective = Objective(loss, **UNITS)
    wanted = loss(mean + scale * prediction, mean + scale * y)
    assert np.allclose(objective(prediction, y), wanted)
    assert np.allclose(objective.negate()(-prediction, -y), wanted)
    assert objective.curve(y) is None


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        ("cubic", ValueError, "fit.loss: expected .*; got 'cubic'. Pass"),
        ("quantile", ValueError, r"got 'quantile'. Pass .* or convexmoe\.Quantile\(0\.9\), for example"),
        (3, TypeError, "fit.loss: expected .*; got 3. Pass"),
        (Huber, TypeError, "fit.loss: expected"),
    ],
)
def test_what_is_no_loss_is_refused(loss, error, message):
    with pytest.raises(error, match=message):
        check_loss(loss)


@pytest.mark.parametrize(("kind", "value"), [(Huber, 0), (Huber, np.inf), (Quantile, 1.0), (Expectile, 0)])
def test_options_out_of_range_are_refused(kind, value):
    with pytest.raises(ValueError, match=f"{kind.__name__}.(delta|level): expected .* got {value}"):
        kind(value)
    with pytest.raises(TypeError):
        kind("high")


def rows_of(rows=401, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 3))
    return x, x @ [[1.0], [-2.0], [0.3]] + (1 + np.abs(x[:, :1])) * rng.normal(size=(rows, 1))


CONFIG = HullConfig(3, petals=2, out_dim=1)


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_the_plane_of_a_quantile_has_that_share_of_the_rows_below(level):
    x, y = rows_of()
    plane = fit_plane(x, y, Objective(Quantile(level)), None, CONFIG)
    below, squared = (np.mean(y <= p(x)) for p in (plane, ridge(x, y)))
    assert abs(below - level) < 0.02 and (level == 0.5 or abs(squared - level) > 0.2)
    # no plane nearby has a smaller loss
    objective = Objective(Quantile(level))
    least, rng = objective(plane(x), y).mean(), np.random.default_rng(1)
    for _ in range(50):
        other = plane._replace(slopes=plane.slopes + 0.1 * rng.normal(size=(3, 1)))
        assert objective(other(x), y).mean() > least - 1e-4


@pytest.mark.parametrize("loss", [loss for loss in NUMPY_VALUES if loss != "squared"], ids=str)
def test_an_offset_is_the_best_of_its_loss(loss):
    prediction, y = drawn(rows=101)
    objective = Objective(loss, **UNITS)
    weight, steps = np.arange(101.0)[:, None], (0, 0.05, -0.05)
    best = objective.best_offset(y - prediction, weight)
    means = [(objective(prediction + best + step, y) * weight).mean(axis=0) for step in steps]
    assert (means[0] <= np.minimum(means[1], means[2])).all()
    assert not np.allclose(best, 0, atol=1e-3)
    turned = objective.negate().best_offset(prediction - y, weight)
    assert np.allclose(turned, -best, atol=0.02)  # of a quantile, the next row
    unweighted = objective.best_offset(y - prediction, weight[:, :0])
    assert not np.allclose(unweighted, best, atol=1e-3)


def test_a_weight_is_how_often_a_row_counts():
    x, y = rows_of(53)
    times, penalty = np.random.default_rng(2).integers(0, 4, size=53), np.array([2.5])
    repeated = ridge(np.repeat(x, times, axis=0), np.repeat(y, times, axis=0), penalty)
    weighted = ridge(x, y, penalty * len(x) / times.sum(), weight=times.astype(float))
    assert np.allclose(weighted.slopes, repeated.slopes) and np.allclose(weighted.offsets, repeated.offsets)
    assert not np.allclose(ridge(x, y, penalty).slopes, repeated.slopes, rtol=1e-3)


def test_slopes_of_given_signs_are_the_best_of_these_signs():
    x, y = rows_of()
    x[:, 2] += x[:, 1]
    free = ridge(x, y)
    plane = ridge(x, y, free.penalty, signs=(-1, 0, 1))
    assert free.slopes[0, 0] > 0.5 and plane.slopes[0, 0] == 0
    off = y - y.mean(axis=0) - (x - x.mean(axis=0)) @ plane.slopes
    along = (x - x.mean(axis=0)).T @ off - free.penalty * plane.slopes  # Karush, Kuhn and Tucker
    assert along[0, 0] > 0 and np.abs(along[1:]).max() < 1e-6 * len(x)
    assert np.array_equal(ridge(x, y, signs=(1, 0, 0)).slopes, free.slopes)


@pytest.mark.parametrize("strength", [0.0, 0.1, 1.0])
def test_any_loss_draws_back_about_as_the_square_does(strength):
    rng = np.random.default_rng(3)
    bend = rng.normal(size=(501, 2))
    y = strength * bend + 0.5 * rng.normal(size=bend.shape)
    rows = HeldOut(y, np.zeros((501, 1)), np.zeros_like(y), bend)

    def losses(rows, share):
        return Objective()(rows.flat + share * rows.bend, rows.target)

    closed, tried = best_share(rows, 2, False, True), best_share_of_loss(losses, rows, False, True)
    assert np.allclose(closed, tried, atol=0.03)
    assert (closed == 0).all() if strength == 0 else (closed > 0.03).all()
    assert np.array_equal(best_share_of_loss(losses, rows, False, False), np.full(2, float(strength == 1.0)))
