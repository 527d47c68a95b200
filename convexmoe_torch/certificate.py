"""The search for a counterexample to convexity: a segment on which a function lies above its chord."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._checks import describe, dtype_name, fail, whole_number

# What rounding alone can make of a convex function, relative to its largest value.
TOLERANCES = {"float64": 1e-9, "float32": 1e-5, "bfloat16": 5e-2, "float16": 1e-2}
BATCH = 8192


class Violation(NamedTuple):
    """A segment on which one output of a function lies above its chord.

    Args:
        left, right: the end points, `[in_dim]`.
        weight: the share of `left` in the point between them, `weight * left + (1 - weight) * right`.
        output: the index of the output coordinate.
        value_left, value_right, value: the function at the ends and between them.
        gap: `value` minus the chord, `weight * value_left + (1 - weight) * value_right`: > 0.
    """

    left: np.ndarray
    right: np.ndarray
    weight: float
    output: int
    value_left: float
    value_right: float
    value: float
    gap: float


def find_violation(
    function: Callable[[Tensor], Tensor],
    points: Tensor,
    *,
    segments: int = 100_000,
    seed: int = 0,
    tolerance: float | None = None,
) -> Violation | None:
    """Search random segments for one that shows that a function is not convex; return the worst, or None.

    None is no proof. A third of the segments is wide, a third narrow, a third along one axis of the input.

    Args:
        function: `[rows, in_dim]` -> `[rows, out_dim]`, row by row.
        points: `[rows, in_dim]`, of the dtype the function takes: the search covers twice their bounding box.
        segments: how many to try.
        seed: of the search.
        tolerance: what counts as rounding, relative to the largest value of a batch of `BATCH` segments
            (near a zero of the function its rounding does not shrink); None means `TOLERANCES` for the
            dtype of `points`.

    Raises:
        TypeError, ValueError: points are not floating `[rows, in_dim]` with two rows at least, or the function is
            not finite on a segment.

    >>> from convexmoe_torch import VectorHull
    >>> find_violation(VectorHull(2, petals=3), torch.eye(2), segments=1000) is None
    True
    """
    if getattr(points, "ndim", 0) != 2 or len(points) < 2:
        fail(
            "find_violation", "points", "[rows >= 2, in_dim]", describe(points), "Pass some rows of the data."
        )
    whole_number("find_violation", "segments", segments, 1)
    if dtype_name(points.dtype) not in TOLERANCES:
        fix = "Cast them to the dtype the function takes."
        fail("find_violation", "points", f"one of {list(TOLERANCES)}", describe(points), fix, TypeError)
    tolerance = TOLERANCES[dtype_name(points.dtype)] if tolerance is None else tolerance
    worst: Violation | None = None
    for left, right, weight in _segments(points.detach().double().cpu().numpy(), segments, seed):
        ends = [torch.as_tensor(end).to(points) for end in (left, right)]
        share = torch.as_tensor(weight).to(points)
        with torch.no_grad():
            three = [function(at) for at in (*ends, share * ends[0] + (1 - share) * ends[1])]
        found = _worst([part.double().cpu().numpy() for part in three], left, right, weight, tolerance)
        if found is not None and (worst is None or found.gap > worst.gap):
            worst = found
    return worst


def _segments(
    points: np.ndarray, segments: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield batches of end points (batch, in_dim) and weights (batch, 1): wide, narrow and along the axes in turn."""
    rng = np.random.default_rng(seed)
    middle = (points.max(axis=0) + points.min(axis=0)) / 2
    reach = np.maximum(points.max(axis=0) - points.min(axis=0), 1e-6)
    for start in range(0, segments, BATCH):
        shape = (min(BATCH, segments - start), points.shape[1])
        left, right = (middle + reach * rng.uniform(-1, 1, shape) for _ in range(2))
        kind = (start + np.arange(shape[0]))[:, None] % 3
        length = 10.0 ** rng.uniform(-3, 0, (shape[0], 1))
        step = np.where(kind == 1, length * (right - left), right - left)
        axis = np.arange(shape[1]) == rng.integers(shape[1], size=(shape[0], 1))
        right = left + np.where((kind == 2) & ~axis, 0.0, step)
        yield left, right, rng.uniform(0.02, 0.98, (shape[0], 1))


def _worst(
    values: list[np.ndarray], left: np.ndarray, right: np.ndarray, weight: np.ndarray, tolerance: float
) -> Violation | None:
    """Return the segment with the largest gap beyond the tolerance, None where there is none."""
    value_left, value_right, value = (part.reshape(len(left), -1) for part in values)
    for part in (value_left, value_right, value):
        if not np.isfinite(part).all():
            bad = int(np.argwhere(~np.isfinite(part))[0, 0])
            got = f"{part[~np.isfinite(part)][0]} between {left[bad].tolist()} and {right[bad].tolist()}"
            fail("find_violation", "function", "finite values", got, "Search where the function is finite.")
    gap = value - (weight * value_left + (1 - weight) * value_right)
    size = max(float(np.max(np.abs(part), initial=1e-300)) for part in (value_left, value_right, value))
    excess = np.where(gap > tolerance * size, gap, -np.inf)
    row, output = np.unravel_index(np.argmax(excess), excess.shape)
    if not np.isfinite(excess[row, output]):
        return None
    ends = float(value_left[row, output]), float(value_right[row, output])
    three = (*ends, float(value[row, output]))
    return Violation(
        left[row], right[row], float(weight[row, 0]), int(output), *three, float(gap[row, output])
    )
