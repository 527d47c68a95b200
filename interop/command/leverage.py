"""Whether rows lie outside those that a model was trained on: out of the range of a column, or in combination.

N training rows x_n with the mean c, and C = sum_n (x_n - c)(x_n - c)', give a row the leverage

    h(x) = 1/N + (x - c)' C^-1 (x - c)

It lies outside in combination where h(x) > max_n h(x_n) (Montgomery, Peck, Vining, "Introduction to Linear Regression
Analysis", on hidden extrapolation). Differs from the source: C has a ridge. The notes of a file hold c and F, so that
|F (x - c)|^2 = (h(x) - 1/N) / (max_n h(x_n) - 1/N).
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

RIDGE = 1e-6  # of each column's variance: what deviates by less than a thousandth in a direction is not told apart
MOST_COLUMNS = 60  # a file of more would hold more numbers for this than for its model
SLACK = 1e-9  # relative: what rounding adds
Array = NDArray[np.float64]


class Outside(NamedTuple):
    """How rows lie to those that a model was trained on.

    Attributes:
        beyond: `bool[N, in_dim]`, the columns out of range; none where the file has no ranges.
        distance: `[N]`, from the mean along the spread, 1 for the farthest training row; NaN where the file has none.
    """

    beyond: NDArray[np.bool_]
    distance: Array

    @property
    def combined(self) -> NDArray[np.bool_]:
        """`bool[N]`, the rows outside in combination."""
        return self.distance > 1 + SLACK

    @property
    def rows(self) -> NDArray[np.bool_]:
        """`bool[N]`, the rows outside in either way."""
        return self.beyond.any(axis=1) | self.combined


def notes_of_rows(x: Array, y: Array | None = None) -> dict[str, Any]:
    """Return the notes of training rows and their targets that `outside` and `read_ranges` read."""
    low, high, center = x.min(axis=0), x.max(axis=0), x.mean(axis=0)
    notes: dict[str, Any] = {"ranges": np.stack([low, high], axis=1).tolist()}
    if y is not None:
        notes["target_range"] = [float(y.min()), float(y.max())]
    if x.shape[1] <= MOST_COLUMNS and (low < high).any():
        scale = np.where(low < high, x.std(axis=0), math.inf)  # a column without spread has no say in combinations
        z = (x - center) / scale
        factor = np.linalg.inv(np.linalg.cholesky(z.T @ z / len(z) + RIDGE * np.eye(len(scale))))
        factor /= np.linalg.norm(z @ factor.T, axis=1).max()
        notes["leverage"] = {"center": center.tolist(), "factor": (factor / scale).tolist()}
    return notes


def outside(notes: dict[str, Any], x: Array) -> Outside:
    """Return how rows `[N, in_dim]` lie to those that the notes of a file describe; damaged notes count as none.

    Guarantee: no training row lies outside, a row does in combination just where its leverage exceeds all of theirs
    (`tests/test_outside.py`).
    """
    D = x.shape[1]
    low, high = read_ranges(notes, "ranges", (D, 2)).T
    held = notes.get("leverage")
    center, factor = _read(held, "center", (D,)), _read(held, "factor", (D, D))
    with np.errstate(over="ignore", invalid="ignore"):
        width = np.where(high > low, high - low, np.abs(low))  # of a constant its size: its mean may be another number
        beyond = (x < low - SLACK * width) | (x > high + SLACK * width)
        if not (np.isfinite(center).all() and np.isfinite(factor).all()):
            return Outside(beyond, np.full(len(x), math.nan))
        distance = np.linalg.norm((x - center) @ factor.T, axis=1)
    return Outside(beyond, np.where(np.isnan(distance), math.inf, distance))  # a sum that overflowed


def read_ranges(notes: dict[str, Any], name: str, shape: tuple[int, ...]) -> Array:
    """Return ranges `[..., 2]` from the notes of a file, NaN where it has none that ascend."""
    ranges = _read(notes, name, shape)
    return ranges if (ranges[..., 0] <= ranges[..., 1]).all() else np.full(shape, math.nan)


def _read(notes: Any, name: str, shape: tuple[int, ...]) -> Array:
    with suppress(TypeError, ValueError, LookupError, OverflowError, RecursionError):
        numbers = np.asarray(notes[name], np.float64)
        if numbers.shape == shape:
            return numbers
    return np.full(shape, math.nan)
