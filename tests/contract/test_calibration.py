"""`fit` starts from `c f(x) + a' x + b`: least squares, and exactly a hull again."""

import cases
import numpy as np
import pytest
import reference
from convexmoe.training.starts.affine import calibrate

from convexmoe import HullConfig

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
    return calibrate(weights, config, f, x, y), weights, x, y


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
    found = calibrate(weights, config, f, x, 0.5 * f)
    assert np.array_equal(found["readout.raw_weight"], weights["readout.raw_weight"])


def test_values_that_are_not_finite_leave_the_weights():
    fields = cases.fields()
    weights = cases.random_weights(fields)
    config, x = HullConfig(**fields), np.ones((3, 5))
    found = calibrate(weights, config, np.full((3, 2), np.inf), x, np.ones((3, 2)))
    assert all(np.array_equal(found[name], weights[name]) for name in weights)


def test_few_rows_in_many_dimensions_give_no_steep_planes():
    fields = cases.fields(in_dim=61, out_dim=1)
    weights = cases.random_weights(fields)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((17, 61)), rng.standard_normal((17, 1))
    config, f = HullConfig(**fields), reference.hull(weights, x, fields)
    found = calibrate(weights, config, f, x, y)
    far = rng.standard_normal((1009, 61))
    assert reference.hull(found, far, fields).std() < 1.5


def test_fit_begins_with_the_calibrated_hull(backend):
    """One step at a rate of nearly nothing: the loss of its batch, which is all rows, is that of least squares."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(101, 5))
    y = x @ rng.normal(size=(5, 2)) * 7 + 3
    model = backend.fresh(cases.fields(), 0)
    history = backend.package.fit(model, x, y, steps=1, batch_size=101, learning_rate=1e-9).history
    assert history.train_loss[0] < 0.01
