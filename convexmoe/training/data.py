"""The rows that `fit` is given: checked, normalized, known again."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from ..errors import describe, fail
from ..hull.config import HullConfig, Normalization
from ..hull.rows import as_numbers, check_finite, is_tensor, normalize
from .parts import Parts, share

Data = tuple[np.ndarray, np.ndarray]


def check_data(argument: str, x: Any, y: Any, config: HullConfig) -> Data:
    """Return x `(rows, in_dim)` and y `(rows, out_dim)` as float64 after their checks."""
    targets = "y" if argument == "x" else argument
    x, y = as_numbers("fit", argument, x), as_numbers("fit", targets, y)
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
        check_finite("fit", name, array, "Remove that row or fill it.")
    return x, y


def given_rows(x: Any, y: Any, validation: Any) -> tuple[Any, Any]:
    """Return the rows that `train` is given, and those held out or None; what is no tensor is checked."""

    def plain(name: str, value: Any) -> Any:
        return value if is_tensor(value) else as_numbers("train", name, value)

    held_out = None if validation is None else tuple(plain("validation", part) for part in validation)
    return (plain("x", x), plain("y", y)), held_out


def held_out_data(x: np.ndarray, y: np.ndarray, validation: Any, config: HullConfig, seed: int) -> tuple[Data, Any]:
    """Return all rows, those of `validation` too, and which are for what; None for folds."""
    if validation is None:
        return (x, y), None
    if not isinstance(validation, (tuple, list)) or len(validation) != 2:
        return (x, y), share(len(x), validation, seed)
    x_held_out, y_held_out = validation
    x_held_out, y_held_out = check_data("validation", x_held_out, y_held_out, config)
    rows = np.arange(len(x) + len(x_held_out))
    parts = Parts((rows[: len(x)],), (rows[len(x) :],))
    return (np.concatenate([x, x_held_out]), np.concatenate([y, y_held_out])), parts


def fingerprint(*arrays: np.ndarray) -> str:
    """Return a sha256 of arrays: shapes, dtypes, values."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype} {array.shape}\n".encode() + np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


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
            narrow = limits.bits <= 16  # float32 computes on what float64 has normalized
            steps, room, step = (2, 4.0, limits.eps) if narrow else (16, 1e4, np.finfo(float).eps)
            too_fine = deviation < steps * step * size
            out_of_range = (deviation < room * limits.tiny) | (size > limits.max / room)
            for column in np.flatnonzero((too_fine | out_of_range) & ~constant):
                got = f"deviation {deviation[column]:.2g} at size {size[column]:.2g} in column {column}"
                fix = "Subtract an offset or change its unit."
                dtype = limits.dtype if narrow or out_of_range[column] else "float64"
                fail("fit", argument, f"columns that {dtype} can resolve", got, fix)
        values += [unit * (array / unit).mean(axis=0), np.where(constant, 1.0, deviation)]
    return Normalization(*[tuple(value.tolist()) for value in values])


def normalize_rows(x: np.ndarray, y: np.ndarray, units: Normalization) -> Data:
    """Return x and y in the units of a normalization."""
    x = normalize(x, units.input_mean, units.input_scale)
    return x, normalize(y, units.output_mean, units.output_scale)
