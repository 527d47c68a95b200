"""The rows that `fit` is given: checked, held out in part, normalized."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np

from ..errors import describe, fail
from ..hull.config import HullConfig, Normalization

HELD_OUT = 0.2

Data = tuple[np.ndarray, np.ndarray]


def check_data(argument: str, x: Any, y: Any, config: HullConfig) -> Data:
    """Return x `(rows, in_dim)` and y `(rows, out_dim)` as float64 after their checks."""
    targets = "y" if argument == "x" else argument
    x, y = np.asarray(x), np.asarray(y)
    for name, array in ((argument, x), (targets, y)):
        if array.dtype.kind not in "fiu":
            fix = "Encode text and missing values first."
            fail("fit", name, "numbers", describe(array), fix, TypeError)
    y = y[:, None] if y.ndim == 1 else y
    if x.ndim != 2 or x.shape[1] != config.in_dim:
        rule, fix = f"[rows, in_dim={config.in_dim}]", "Give one column for each input of the hull."
        fail("fit", argument, rule, describe(x), fix)
    if y.ndim != 2 or y.shape[1] != config.out_dim or len(y) != len(x):
        rule = f"targets [rows={len(x)}, out_dim={config.out_dim}]"
        fix = f"Give one target row for each row of x, out_dim={config.out_dim} wide."
        fail("fit", targets, rule, describe(y), fix)
    least = 2 if argument == "x" else 1
    if len(x) < least:
        rule = f"{least} row{'s' * (least > 1)} at least"
        fail("fit", argument, rule, str(len(x)), "Give more rows.")
    for name, array in ((argument, x), (targets, y)):
        bad = np.argwhere(~np.isfinite(array))
        if len(bad):
            row, column = bad[0]
            got = f"{array[row, column]} at row {row}, column {column}"
            fail("fit", name, "finite numbers", got, "Remove that row or fill it.")
    return x.astype(np.float64), y.astype(np.float64)


def hold_out(x: np.ndarray, y: np.ndarray, validation: Any, config: HullConfig, seed: int) -> tuple[Data, Data]:
    """Return the rows to train on and those held out: the ones given, or a share of the rows."""
    if isinstance(validation, (tuple, list)) and len(validation) == 2:
        x_held_out, y_held_out = validation
        return (x, y), check_data("validation", x_held_out, y_held_out, config)
    rows, held_out = held_out_rows(len(x), validation, seed)
    return (x[rows], y[rows]), (x[held_out], y[held_out])


def held_out_rows(rows: int, share: Any, seed: int) -> Data:
    """Return the numbers of the rows to train on, and of the `share` to hold out, drawn by the seed."""
    rule = "(x, y), or a share of the rows from 0 to below 1"
    fix = f"Leave it out for {HELD_OUT}, pass 0 for none."
    if isinstance(share, bool) or not isinstance(share, Real):
        fail("fit", "validation", rule, repr(share), fix, TypeError)
    share = float(share)
    if not 0 <= share < 1:
        fail("fit", "validation", rule, repr(share), fix)
    order = np.random.default_rng([seed, 1]).permutation(rows)
    count = min(round(share * rows), rows - 2)
    return np.sort(order[count:]), np.sort(order[:count])


def check_held_out(losses: Sequence[float], loss: float | None) -> None:
    """Check that the rows held out are those of the run so far: its best weights have its least loss on them."""
    least = min(losses) if losses else None
    if (least is None) != (loss is None) or not np.allclose(loss or 0.0, least or 0.0, rtol=0.01, atol=1e-9):
        rule = "a state of a run that held the same rows out"
        got = f"a least loss of {least} in its history and of {loss} on the rows held out now"
        fix = "Pass the data, validation and seed that the run was begun with."
        fail("fit", "resume", rule, got, fix)


def normalization_of(x: np.ndarray, y: np.ndarray, *dtypes: Any) -> Normalization:
    """Return mean and deviation of each column; 1 for the deviation of a constant column.

    Args:
        x, y: `[N, D]` and `[N, O]`.
        dtypes: the limits (`finfo`) of each dtype that computes on them: in training, and in the fitted model.

    Raises:
        ValueError: one of the dtypes cannot resolve a column: its spread is lost beside its size, or leaves the range.
    """
    values = []
    for argument, array in (("x", x), ("y", y)):
        size = np.abs(array).max(axis=0)
        unit = np.where(size > 0, size, 1.0)
        deviation = size * (array / unit).std(axis=0)
        constant = array.max(axis=0) == array.min(axis=0)
        for limits in dtypes:
            steps, room = (16, 1e4) if limits.bits > 16 else (2, 4.0)  # half precision has no more to spare
            too_fine = (deviation < steps * limits.eps * size) | (deviation < room * limits.tiny)
            for column in np.flatnonzero((too_fine | (size > limits.max / room)) & ~constant):
                got = f"deviation {deviation[column]:.2g} at size {size[column]:.2g} in column {column}"
                fix = "Subtract an offset or change its unit."
                fail("fit", argument, f"columns that {limits.dtype} can resolve", got, fix)
        values += [unit * (array / unit).mean(axis=0), np.where(constant, 1.0, deviation)]
    return Normalization(*[tuple(value.tolist()) for value in values])


def normalize(x: np.ndarray, y: np.ndarray, units: Normalization) -> Data:
    """Return x and y in the units of a normalization."""
    x = (x - np.asarray(units.input_mean)) / np.asarray(units.input_scale)
    return x, (y - np.asarray(units.output_mean)) / np.asarray(units.output_scale)
