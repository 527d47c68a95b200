"""The rows that `fit` is given: checked, normalized, known again.

Columns are those of x and then of the context, `[N, D + C]`; targets are y and then, where rows have weights, these,
`[N, O]` or `[N, O + 1]`.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np

from ..errors import describe, fail
from ..hull.config import HullConfig, Normalization
from ..hull.rows import as_numbers, check_finite, normalize
from .parts import Parts, share

Data = tuple[np.ndarray, np.ndarray]


class Spread(NamedTuple):
    """What rows tell of each column, float64 `[columns]`.

    Args:
        rows: how many; mean, deviation, low, high: of each column.
    """

    rows: int
    mean: np.ndarray
    deviation: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def constant(self) -> np.ndarray:
        """`bool[columns]`, those with one value throughout."""
        return self.low == self.high

    def part(self, columns: slice) -> Spread:
        """Return the spread of some columns."""
        return Spread(self.rows, *(value[columns] for value in self[1:]))

    def negate(self) -> Spread:
        """Return the spread of minus the numbers."""
        return Spread(self.rows, -self.mean, self.deviation, -self.high, -self.low)

    def merge(self, other: Spread) -> Spread:
        """Return the spread of these rows and others.

        Source: Chan, Golub and LeVeque, Algorithms for computing the sample variance, The American Statistician 37,
        1983, equation 2.1. Differs from the source: roots of squares, so that nothing overflows.
        """
        rows = self.rows + other.rows
        part, apart = other.rows / rows, other.mean - self.mean
        within = np.hypot(np.sqrt(1.0 - part) * self.deviation, np.sqrt(part) * other.deviation)
        deviation = np.hypot(within, np.sqrt(part * (1.0 - part)) * np.abs(apart))
        low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        return Spread(rows, self.mean + part * apart, deviation, low, high)


def spread_of(array: np.ndarray) -> Spread:
    """Return the spread of `[rows, columns]`."""
    size = np.abs(array).max(axis=0)
    unit = np.where(size > 0, size, 1.0)
    scaled = array / unit
    return Spread(
        len(array), unit * scaled.mean(axis=0), size * scaled.std(axis=0), array.min(axis=0), array.max(axis=0)
    )


def check_data(argument: str, x: Any, y: Any, config: HullConfig, context: Any = None, weight: Any = None) -> Data:
    """Return columns `[rows, D + C]` and targets as float64 after their checks, without rows of weight 0.

    Args:
        argument: "x", or the name of rows to hold out, for the messages.
        x, y, context, weight: as `fit` is given them; config: of the hull.
    """
    x, y = check_rows(argument, x, y, config, context)
    check_count(argument, len(x), 2 if argument == "x" else 1)
    if weight is None:
        return x, y
    weight = check_weight(weight, len(x))
    counts = weight > 0
    return x[counts], np.concatenate([y[counts], (weight[counts] / weight[counts].mean())[:, None]], axis=1)


def check_count(argument: str, rows: int, least: int) -> None:
    """Check that there are as many rows as are needed."""
    if rows < least:
        fail("fit", argument, f"{least} row{'s' * (least > 1)} at least", str(rows), "Give more rows.")


def check_rows(argument: str, x: Any, y: Any, config: HullConfig, context: Any = None, first: int = 0) -> Data:
    """Return columns `[rows, D + C]` and y `[rows, O]` as float64 after their checks, weights apart.

    Args:
        argument, x, y, config, context: as for `check_data`; first: the number of the first row, for the messages.
    """
    targets, contexts = ("y", "context") if argument == "x" else (argument, argument)
    x, y = as_numbers("fit", argument, x), as_numbers("fit", targets, y)
    y = y[:, None] if y.ndim == 1 else y
    if x.ndim != 2 or x.shape[1] != config.in_dim:
        rule, fix = f"[rows, in_dim={config.in_dim}]", "Give one column for each input of the hull."
        fail("fit", argument, rule, describe(x), fix)
    if y.ndim != 2 or y.shape[1] != config.out_dim or len(y) != len(x):
        rule = f"targets [rows={len(x)}, out_dim={config.out_dim}]"
        fix = f"Give one target row for each row of x, out_dim={config.out_dim} wide."
        fail("fit", targets, rule, describe(y), fix)
    columns = check_contexts(contexts, context, len(x), config)
    for name, array in ((argument, x), (targets, y), (contexts, columns)):
        check_finite("fit", name, array, "Remove that row or fill it.", first)
    return np.concatenate([x, columns], axis=1) if config.context_dim else x, y


def check_contexts(argument: str, context: Any, rows: int, config: HullConfig) -> np.ndarray:
    """Return contexts `[rows, C]` after their checks; no columns for a hull without."""
    C = config.context_dim
    if context is None and not C:
        return np.empty((rows, 0))
    if context is None:
        fix = "Pass one row of it for each row of x."
        fail("fit", argument, f"a context [rows={rows}, context_dim={C}]", "None", fix, TypeError)
    if not C:
        fix = "Leave it out, or build the hull with context_dim."
        fail("fit", argument, "no context for a hull without one", describe(context), fix, TypeError)
    columns = as_numbers("fit", argument, context)
    if columns.shape != (rows, C):
        fix = "Give one row of it for each row of x."
        fail("fit", argument, f"a context [rows={rows}, context_dim={C}]", describe(columns), fix)
    return columns


def check_weight(weight: Any, rows: int, least: int = 2, first: int = 0) -> np.ndarray:
    """Return weights `[rows]` after their checks.

    Args:
        weight: as given; rows: how many there are; least: how many have to count; first: the number of the first row.
    """
    weight = as_numbers("fit", "sample_weight", weight)
    fix = "Give one number for each row of x."
    if weight.shape != (rows,):
        fail("fit", "sample_weight", f"[rows={rows}]", describe(weight), fix)
    check_finite("fit", "sample_weight", weight, "Remove that row or give it 0.", first)
    if (weight < 0).any() or np.count_nonzero(weight) < least:
        got = f"{weight.min():g} to {weight.max():g}, {np.count_nonzero(weight)} of them not 0"
        fail("fit", "sample_weight", "numbers >= 0, two of them above zero", got, "Give a row 0 to leave it out.")
    return weight


def held_out_data(x: np.ndarray, y: np.ndarray, validation: Any, config: HullConfig, seed: int) -> tuple[Data, Any]:
    """Return all rows, those of `validation` too, and which are for what; None for folds."""
    if validation is None:
        return (x, y), None
    if not isinstance(validation, (tuple, list)) or len(validation) != 2 + (config.context_dim > 0):
        return (x, y), share(len(x), validation, seed)
    x_held_out, y_held_out, *context = validation
    x_held_out, y_held_out = check_data("validation", x_held_out, y_held_out, config, *context)
    if y.shape[1] > config.out_dim:  # rows to hold out are as heavy as the others in the mean
        y_held_out = np.concatenate([y_held_out, np.ones((len(y_held_out), 1))], axis=1)
    rows = np.arange(len(x) + len(x_held_out))
    parts = Parts((rows[: len(x)],), (rows[len(x) :],))
    return (np.concatenate([x, x_held_out]), np.concatenate([y, y_held_out])), parts


def fingerprint(*arrays: np.ndarray) -> str:
    """Return a sha256 of arrays: shapes, dtypes, values."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype} {array.shape}\n".encode() + np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def normalization_of(x: Spread, y: Spread, config: HullConfig, *dtypes: Any) -> Normalization:
    """Return mean and deviation of each column; 1 for the deviation of a constant column, 0 for a mean to be kept.

    Args:
        x, y: of the D + C columns and of the O targets; config: of the hull, which keeps zero where it is non-negative.
        dtypes: the limits (`finfo`) of each dtype that computes on them: in training, and in the fitted model.

    Raises:
        ValueError: one of the dtypes cannot resolve a column: its spread is lost beside its size, or leaves the range.
    """
    values, D = [], config.in_dim
    for argument, part in (("x", x.part(slice(D))), ("y", y), ("context", x.part(slice(D, None)))):
        mean, deviation, constant = part.mean, part.deviation, part.constant
        size = np.maximum(np.abs(part.low), np.abs(part.high))
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
        if argument == "y" and config.nonnegative:
            mean, deviation = 0.0 * mean, np.where(constant, size, deviation)
            constant = deviation == 0
        values += [mean, np.where(constant, 1.0, deviation)]
    return Normalization(*[tuple(value.tolist()) for value in values])


def normalize_rows(x: np.ndarray, y: np.ndarray, units: Normalization) -> Data:
    """Return columns and targets in the units of a normalization; weights stay."""
    O, C = len(units.output_mean), x.shape[1] - len(units.input_mean)
    mean, scale = units.context_mean or (0.0,) * C, units.context_scale or (1.0,) * C
    columns = normalize(x, units.input_mean + mean, units.input_scale + scale)
    return columns, np.concatenate([normalize(y[:, :O], units.output_mean, units.output_scale), y[:, O:]], axis=1)
