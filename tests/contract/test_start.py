"""`fit` starts from `c f(x) + a' x + b` with the plane of ridge regression, and draws back to it: hulls, exactly."""

import cases
import numpy as np
import pytest
import reference

from convexmoe import HullConfig
from convexmoe.training.losses import Objective
from convexmoe.training.start import draw_back, fit_plane, half_square, ridge, start_at

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROWS = 211


def calibrate_hull(fields, seed=0):
    """Calibrated weights with what they were made of: weights, x, y."""
    weights = cases.random_weights(fields, seed)
    if fields["out_dim"] > 1:
        weights["shifts"] = 0 * weights["shifts"]
    x = np.random.default_rng([seed, 3]).standard_normal((ROWS, fields["in_dim"]))
    f = reference.hull(weights, x, fields)
    rng = np.random.default_rng([seed, 4])
    square = fields["strong_convexity"] / 2 * np.sum(x**2, axis=1, keepdims=True)
    y = 0.7 * (f - square) + square + x @ rng.normal(size=(fields["in_dim"], fields["out_dim"])) - 3.0
    y = y + 0.1 * rng.normal(size=y.shape)
    config = HullConfig(**fields)
    return start_at(weights, config, f, x, y), weights, x, y


def correction_of(weights, found, fields, x):
    """c, and the plane a' x + b, of each output, read off the values at other points."""
    rng = np.random.default_rng(9)
    points = rng.standard_normal((501, fields["in_dim"]))
    square = fields["strong_convexity"] / 2 * np.sum(points**2, axis=1, keepdims=True)
    before, after = (reference.hull(w, points, fields) - square for w in (weights, found))
    parts = []
    for o in range(fields["out_dim"]):
        design = np.column_stack([before[:, o], points, np.ones(len(points))])
        solution, *_ = np.linalg.lstsq(design, after[:, o], rcond=None)
        assert np.allclose(design @ solution, after[:, o], rtol=0, atol=1e-9 * np.abs(after).max())
        parts.append(solution)
    return np.array(parts)


CASES = {name: fields for name, fields in cases.HULLS.items() if fields["normalization"] is None}


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_calibrated_hull_is_a_scaled_and_tilted_one(name):
    fields = CASES[name]
    found, weights, x, y = calibrate_hull(fields)
    factor = correction_of(weights, found, fields, x)[:, 0]
    fixed = fields["temperature"] not in (0.0, "learned")
    assert np.allclose(factor, 1.0) if fixed else np.allclose(factor, 0.7, atol=0.15)
    before, after = (np.mean((reference.hull(w, x, fields) - y) ** 2) for w in (weights, found))
    assert after < 0.2 * before


def test_control_a_factor_that_leaves_the_shifts_is_no_scaled_hull():
    fields = cases.fields(out_dim=1)
    found, weights, x, _ = calibrate_hull(fields)
    with pytest.raises(AssertionError):
        correction_of(weights, found | {"shifts": weights["shifts"]}, fields, x)


def test_shifts_that_several_outputs_share_keep_the_factor_at_one():
    fields = cases.fields(out_dim=3)
    weights = cases.random_weights(fields)
    x = np.random.default_rng(0).standard_normal((ROWS, 5))
    f = reference.hull(weights, x, fields)
    config = HullConfig(**fields)
    found = start_at(weights, config, f, x, 0.5 * f)
    assert np.array_equal(found["readout.raw_weight"], weights["readout.raw_weight"])


def test_values_that_are_not_finite_leave_the_weights():
    fields = cases.fields()
    weights = cases.random_weights(fields)
    config, x = HullConfig(**fields), np.ones((3, 5))
    found = start_at(weights, config, np.full((3, 2), np.inf), x, np.ones((3, 2)))
    assert all(np.array_equal(found[name], weights[name]) for name in weights)


def test_few_rows_in_many_dimensions_give_no_steep_planes():
    fields = cases.fields(in_dim=61, out_dim=1)
    weights = cases.random_weights(fields)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((17, 61)), rng.standard_normal((17, 1))
    config, f = HullConfig(**fields), reference.hull(weights, x, fields)
    found = start_at(weights, config, f, x, y)
    far = rng.standard_normal((1009, 61))
    assert reference.hull(found, far, fields).std() < 1.5


@pytest.mark.parametrize("share", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("name", sorted(CASES))
def test_a_hull_is_drawn_back_to_its_plane(name, share):
    """`share f + (1 - share) plane`, but for the strong convexity; at a fixed temperature all or nothing."""
    fields, rng = CASES[name], np.random.default_rng(3)
    weights = cases.random_weights(fields, 1)
    if fields["out_dim"] > 1:
        weights["shifts"] = 0 * weights["shifts"]
    share = round(share) if fields["temperature"] not in (0.0, "learned") else share
    x, y = rng.normal(size=(ROWS, fields["in_dim"])), rng.normal(size=(ROWS, fields["out_dim"]))
    config, points = HullConfig(**fields), rng.normal(size=(101, fields["in_dim"]))
    plane = fit_plane(x, y - half_square(config, x), Objective(), None, config)
    drawn = draw_back(weights, config, np.full(fields["out_dim"], float(share)), plane)
    square = fields["strong_convexity"] / 2 * np.sum(points**2, axis=1, keepdims=True)
    f = reference.hull(weights, points, fields)
    wanted = square + share * (f - square) + (1 - share) * plane(points)
    assert np.allclose(reference.hull(drawn, points, fields), wanted, rtol=0, atol=1e-9 * np.abs(f).max())


@pytest.mark.parametrize(("rows", "dim"), [(57, 5), (23, 5), (17, 31)])
def test_the_penalty_of_a_plane_is_that_of_generalized_cross_validation(rows, dim):
    rng = np.random.default_rng([rows, dim])
    x = rng.normal(size=(rows, dim)) * 3.0 + 7.0
    y = x @ rng.normal(size=(dim, 2)) + [1.0, 9.0] * rng.normal(size=(rows, 2))
    found, z = ridge(x, y), x - x.mean(axis=0)

    def criterion(penalty, target):
        hat = z @ np.linalg.solve(z.T @ z + penalty * np.eye(dim), z.T) + 1 / rows
        return np.sum((target - hat @ target) ** 2) / (rows - np.trace(hat)) ** 2

    for o in range(2):
        at = criterion(found.penalty[o], y[:, o])
        others = [criterion(found.penalty[o] * factor, y[:, o]) for factor in (0.1, 0.5, 2.0, 10.0)]
        assert at <= 1.001 * min(others)  # the grid has four values a decade
        slopes = np.linalg.solve(z.T @ z + found.penalty[o] * np.eye(dim), z.T @ (y[:, o] - y[:, o].mean()))
        assert np.allclose(found.slopes[:, o], slopes, rtol=1e-6)
        assert np.allclose(found(x).mean(axis=0), y.mean(axis=0))


def test_fit_begins_with_the_calibrated_hull(backend):
    """One step at a rate of nearly nothing: the loss of its batch, which is all rows, is that of the start."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(101, 5))
    y = x @ rng.normal(size=(5, 2)) * 7 + 3
    model = backend.fresh(cases.fields(), 0)
    options = {"steps": 1, "batch_size": 101, "learning_rate": 1e-9, "validation": 0}
    history = backend.package.fit(model, x, y, **options).history
    assert history.train_loss[0] < 0.01 and history.train_loss[1] == pytest.approx(history.train_loss[0], rel=1e-4)
