"""`conformal_width`: intervals hold what they say on new rows, within binomial bounds."""

import math

import numpy as np
import pytest

import convexmoe_jax
import convexmoe_torch
from convexmoe.training import conformal_width
from interop.command.intervals import interval_notes, measure_intervals

DRAWS = 4000


def held(level, width_of, rows, seed=0):
    """The share of draws in which a new error is within a width made of others."""
    errors = np.random.default_rng(seed).standard_t(3, (DRAWS, rows + 1))
    return np.mean([abs(row[-1]) <= width_of(row[:-1], level) for row in errors])


@pytest.mark.parametrize(("rows", "level"), [(10, 0.9), (19, 0.9), (7, 0.5)])
def test_a_new_row_is_held_as_often_as_the_level_says(rows, level):
    share, rank = held(level, conformal_width, rows), math.ceil((rows + 1) * level - 1e-9)
    expected = rank / (rows + 1)  # exactly, of exchangeable rows without ties
    slack = 4 * math.sqrt(expected * (1 - expected) / DRAWS)
    assert level <= expected and abs(share - expected) < slack
    without = held(level, lambda errors, level: np.sort(abs(errors))[math.ceil(len(errors) * level) - 1], rows)
    if rows == 10:  # the control: a quantile without the correction for so few rows
        assert without < level - slack


def test_residuals_of_training_rows_are_too_small():
    rng, out, inside = np.random.default_rng(1), [], []
    for _ in range(400):
        x, y = rng.normal(size=(61, 9)), rng.normal(size=61)
        slopes = np.linalg.lstsq(x[:30], y[:30], rcond=None)[0]
        left = y - x @ slopes
        out.append(abs(left[-1]) <= conformal_width(left[30:-1], 0.8))
        inside.append(abs(left[-1]) <= conformal_width(left[:30], 0.8))
    slack = 4 * math.sqrt(0.16 / 400)
    assert abs(np.mean(out) - 0.8) < slack and np.mean(inside) < 0.8 - slack  # the second is the control


def test_coverage_is_measured_by_residuals_of_other_folds():
    folds = [np.full(20, 1.0), np.full(20, 1.0), np.full(20, -9.0)]
    found = measure_intervals(folds)
    assert found["0.5"] == {"coverage": pytest.approx(2 / 3), "half_width": 1.0}  # a fold that errs more is not held
    assert measure_intervals([fold[:5] for fold in folds]).keys() == {"0.5", "0.8", "0.9"}  # 0.95 needs 19 others
    widths = interval_notes(np.arange(10.0))["interval_widths"]
    assert len(widths) == 50 and widths[0] == 5.0 and widths[40] == 9.0 and widths[41] is None


def test_numbers_are_checked_and_both_packages_have_it():
    assert convexmoe_jax.conformal_width is convexmoe_torch.conformal_width is conformal_width
    assert conformal_width([1.0], 0.9) == math.inf
    for residuals, level, words in (
        ([[1.0]], 0.9, "residuals: expected [rows], at least one; got float64[1, 1]."),
        ([], 0.9, "residuals: expected [rows], at least one"),
        ([np.nan], 0.9, "residuals: expected finite numbers; got nan"),
        ([1.0], 1.0, "level: expected a number between 0 and 1; got"),
        ([1.0], True, "level: expected a number between 0 and 1; got"),
    ):
        with pytest.raises(ValueError) as raised:
            conformal_width(residuals, level)
        assert words in str(raised.value)
