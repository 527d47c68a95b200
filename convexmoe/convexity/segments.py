"""Segments on which a function may lie above its chord: how they are drawn, judged and confirmed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ..errors import fail
from .domain import Domain

# What rounding alone can make of a convex function, relative to its largest value.
TOLERANCES = {"float64": 1e-9, "float32": 1e-5, "bfloat16": 5e-2, "float16": 1e-2}
BATCH = 8192
BEST = 16  # segments of each batch that go on
# A segment is perturbed by these shares of its length; how often, and which share of the copies must retain a gap.
# Numbers near each other are rounded alike: a perturbation below a share of the reach of the search shows nothing.
PERTURBATIONS, COPIES, RETAINED = (0.05, 0.01, 0.002), 32, 0.9
LEAST_PERTURBATION = {"float64": 1e-7, "float32": 1e-2}

Values = Callable[[np.ndarray], np.ndarray]
Corners = tuple[np.ndarray, np.ndarray]  # of a box
Segments = tuple[np.ndarray, np.ndarray, np.ndarray]  # left ends, right ends, weights


class Violation(NamedTuple):
    """A segment on which one output of a function lies above its chord; below it where concavity is refuted.

    Args:
        left: one end point, `[in_dim]`.
        right: the other end point, `[in_dim]`.
        weight: the share of `left` in the point between them, `weight * left + (1 - weight) * right`.
        output: the index of the output coordinate.
        value_left: the function at `left`.
        value_right: the function at `right`.
        value: the function between them.
        gap: the distance of `value` from the chord, `weight * value_left + (1 - weight) * value_right`: > 0.
        dtype: in which the three values were computed last; not float64 where the function takes no other.
        context: of the segment, `[context_dim]`; None where none were searched.
    """

    left: np.ndarray
    right: np.ndarray
    weight: float
    output: int
    value_left: float
    value_right: float
    value: float
    gap: float
    dtype: str = "float64"
    context: np.ndarray | None = None


class Candidates(NamedTuple):
    """The segments with the largest gaps, relative to the size of the function; not all of them are violations.

    Args:
        left: end points, `[candidates, in_dim]`.
        right: the other end points, `[candidates, in_dim]`.
        weight: `[candidates, 1]`.
        output: index of the output coordinate, `[candidates]`.
        gap: relative to `size`, `[candidates]`.
        size: the largest value of the batch, `[candidates]`.
    """

    left: np.ndarray
    right: np.ndarray
    weight: np.ndarray
    output: np.ndarray
    gap: np.ndarray
    size: np.ndarray


class Region(NamedTuple):
    """Where is searched.

    Args:
        near: corners of the box around the points that a user gave.
        whole: those of the domain, with the sides of `near` where it has none.
    """

    near: Corners
    whole: Corners

    @property
    def reach(self) -> np.ndarray:
        """Half the widths of the box around the points."""
        return np.maximum((self.near[1] - self.near[0]) / 2, 1e-300)


def search_region(points: np.ndarray, domain: Domain | None) -> Region:
    """Return twice the bounding box of some points, and the domain, whose nearest point counts for one outside."""
    least, most = points.min(axis=0), points.max(axis=0)
    middle, reach = (most + least) / 2, np.maximum(most - least, 1e-6)
    if domain is None:
        return Region((middle - reach, middle + reach), (middle - reach, middle + reach))
    middle = np.clip(middle, *domain)
    near = np.clip(middle - reach, *domain), np.clip(middle + reach, *domain)
    low, high = (np.where(np.isfinite(side), side, end) for side, end in zip(domain, near, strict=True))
    return Region(near, (low, high))


def draw_segments(region: Region, segments: int, seed: int) -> Iterator[Segments]:
    """Yield batches of end points (batch, in_dim) and weights (batch, 1): wide, narrow and along the axes in turn.

    Every second one lies in the whole domain, and one in eight has ends on some of its faces.
    """
    rng = np.random.default_rng(seed)
    for start in range(0, segments, BATCH):
        shape = (min(BATCH, segments - start), len(region.reach))
        rows = (start + np.arange(shape[0]))[:, None]
        low, high = (np.where(rows % 2 == 1, *corners) for corners in zip(region.whole, region.near, strict=True))
        stretch = np.where(rows % 8 == 7, 1.25, 1.0)
        left, right = (
            np.clip((low + high) / 2 + stretch * (high - low) / 2 * rng.uniform(-1, 1, shape), low, high)
            for _ in range(2)
        )
        kind = rows % 3
        length = 10.0 ** rng.uniform(-3, 0, (shape[0], 1))
        step = np.where(kind == 1, length * (right - left), right - left)
        axis = np.arange(shape[1]) == rng.integers(shape[1], size=(shape[0], 1))
        right = left + np.where((kind == 2) & ~axis, 0.0, step)
        yield left, np.clip(right, low, high), rng.uniform(0.02, 0.98, (shape[0], 1))


def add_contexts(
    region: Region, drawn: Iterator[Segments], contexts: np.ndarray, seed: int
) -> tuple[Region, Iterator[Segments]]:
    """Return region and segments of rows that go on with a context, one of those given, which does not move."""
    rng, width = np.random.default_rng([seed, 1]), contexts.shape[1]
    still, free = np.zeros(width), np.full(width, np.inf)
    near = tuple(np.concatenate([corner, still]) for corner in region.near)
    whole = tuple(np.concatenate(pair) for pair in zip(region.whole, (-free, free), strict=True))

    def follow() -> Iterator[Segments]:
        for left, right, weight in drawn:
            own = contexts[rng.integers(len(contexts), size=len(left))]
            yield np.concatenate([left, own], axis=1), np.concatenate([right, own], axis=1), weight

    return Region(near, whole), follow()  # type: ignore[arg-type]


def between(xp: Any, left: Any, right: Any, weight: Any) -> Any:
    """Return the points between the ends; rounding takes none of them out of the box of the two."""
    return xp.clip(weight * left + (1 - weight) * right, xp.minimum(left, right), xp.maximum(left, right))


def judge(values: list[np.ndarray], segments: Segments, domain: Corners, strict: bool) -> Candidates:
    """Return the best segments of a batch, from the values at their ends and between them.

    Args:
        values: at the left ends, at the right ends and between, each `[batch, outputs]`.
        segments: left ends, right ends and the shares of the left ends.
        domain: its corners; a function may be +inf on the faces.
        strict: another value that is not finite is an error; else its segment is passed over.
    """
    left, right, weight = segments
    three = np.asarray(values, np.float64).reshape(3, len(left), -1)
    finite = np.isfinite(three).all(axis=0)
    if strict and not finite.all():
        inside = np.logical_and.reduce([(end > domain[0]) & (end < domain[1]) for end in (left, right)])
        wrong = ~np.isfinite(three) & ~(np.isposinf(three) & ~inside.all(axis=1, keepdims=True))
        if wrong.any():
            _, bad, _ = np.argwhere(wrong)[0]
            got = f"{three[wrong][0]} between {left[bad].tolist()} and {right[bad].tolist()}"
            fail("find_violation", "function", "finite values", got, "Search where the function is finite.")
    with np.errstate(invalid="ignore", over="ignore"):
        gap = three[2] - (weight * three[0] + (1 - weight) * three[1])
    size = float(np.max(np.abs(three), where=finite, initial=1e-300))
    gap = np.where(finite & np.isfinite(gap), gap / size, -np.inf)
    output = np.argmax(gap, axis=1) if gap.shape[1] else np.zeros(len(gap), np.int64)
    best = gap[np.arange(len(gap)), output] if gap.shape[1] else np.full(len(gap), -np.inf)
    order = np.argsort(-best, kind="stable")[:BEST]
    order = order[np.isfinite(best[order])]
    return Candidates(left[order], right[order], weight[order], output[order], best[order], np.full(len(order), size))


def merge_candidates(parts: list[Candidates]) -> Candidates:
    """Return the best of all batches, the largest gap first."""
    whole = Candidates(*(np.concatenate(group) for group in zip(*parts, strict=True)))
    order = np.argsort(-whole.gap, kind="stable")[:BEST]
    return Candidates(*(part[order] for part in whole))


def confirm(candidates: Candidates, values: Values, tolerance: float, region: Region, dtype: str) -> Violation | None:
    """Return the candidate with the largest gap that remains when its values are computed anew, or None.

    A gap that rounding inside the function makes comes and goes from point to point, however large it is; a gap of the
    function itself remains where the segment is perturbed a little.

    Args:
        candidates: at most `BEST` of them.
        values: the function in `dtype`, `[rows, in_dim]` -> `[rows, outputs]`.
        tolerance: what counts as rounding of the values, relative to `candidates.size`.
        region: of the search.
        dtype: name of a dtype.

    Raises:
        ValueError: the function gives other values when it is called again.
    """
    if not len(candidates.gap):
        return None
    ends, gap = _gaps(candidates, values)
    size = np.maximum(candidates.size, np.max(np.abs(ends), axis=0))
    with np.errstate(invalid="ignore"):
        valid = np.isfinite(gap) & (gap > tolerance * size)
    if not valid.any():
        return None
    again, _ = _gaps(candidates, values)
    if not np.all((np.abs(again - ends) <= tolerance * size)[:, valid]):
        fix = "Take out what draws random numbers: call .eval() on a module with dropout."
        fail("find_violation", "function", "the same values at the same points", "others", fix)
    valid &= _survive_perturbation(candidates, values, region, dtype)
    if not valid.any():
        return None
    best = int(np.argmax(np.where(valid, gap, -np.inf)))
    left, right, weight, output, *_ = (part[best] for part in candidates)
    one, two, value = map(float, ends[:, best])
    return Violation(left, right, float(weight[0]), int(output), one, two, value, float(gap[best]), dtype)


def chord_gaps(xp: Any, function: Callable[[Any], Any], segments: tuple[Any, Any, Any], output: Any) -> tuple[Any, Any]:
    """Return the values of one output each at the ends and between, `[3, candidates]`, and the gaps, for any `xp`."""
    left, right, weight = segments
    rows = xp.concatenate([left, right, between(xp, left, right, weight)])
    values = function(rows).reshape(3, len(left), -1)[:, xp.arange(len(left)), output]
    return values, values[2] - (weight[:, 0] * values[0] + (1 - weight[:, 0]) * values[1])


def _gaps(candidates: Candidates, values: Values) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of candidates at the ends and between, `[3, candidates]`, and the gaps."""
    with np.errstate(invalid="ignore", over="ignore"):
        return chord_gaps(np, values, candidates[:3], candidates.output)


def _survive_perturbation(candidates: Candidates, values: Values, region: Region, dtype: str) -> np.ndarray:
    """Return which candidates retain a gap > 0 in nearly all copies, under one of `PERTURBATIONS` at least."""
    rng, reach = np.random.default_rng(0), region.reach
    dim = candidates.left.shape[1]
    length = np.max(np.abs(candidates.right - candidates.left) / reach, axis=1)
    copies = Candidates(*(np.repeat(part, COPIES, axis=0) for part in candidates))
    least = LEAST_PERTURBATION.get(dtype, LEAST_PERTURBATION["float32"])
    survives = np.zeros(len(length), bool)
    for share in PERTURBATIONS:
        size = np.repeat(share * length, COPIES)[:, None]
        left, right = (
            np.clip(end + rng.uniform(-1, 1, end.shape) * size * reach / np.sqrt(dim), *region.whole)
            for end in (copies.left, copies.right)
        )
        _, gap = _gaps(copies._replace(left=left, right=right), values)
        retained = np.mean((gap > 0).reshape(-1, COPIES), axis=1) >= RETAINED
        survives |= retained & (share * length >= least)
    return survives
