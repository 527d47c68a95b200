"""The search for a counterexample to convexity: random segments, an ascent from the best, and a check in float64."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..errors import describe, dtype_name, fail, whole_number
from ..hull.rows import as_numbers, is_tensor
from .domain import Domain
from .segments import (
    TOLERANCES,
    Candidates,
    Region,
    Violation,
    add_contexts,
    confirm,
    draw_segments,
    judge,
    merge_candidates,
    search_region,
)

CLIMB = 32  # steps of the ascent; each is at least half as long as the one before


class Evaluator(Protocol):
    """A function of rows as a package evaluates it, with numpy arrays in float64 going in and coming out.

    Attributes:
        rows: `[rows, in_dim]`, around which is searched.
        dtype: the name of the dtype in which the function is evaluated.
        limit: how many segments are tried at most.
    """

    rows: np.ndarray
    dtype: str
    limit: float

    def on_segments(self, left: np.ndarray, right: np.ndarray, weight: np.ndarray) -> list[np.ndarray]:
        """Return the values at the left ends, at the right ends and between them, each `[batch, outputs]`."""

    def values(self, at: np.ndarray) -> np.ndarray:
        """Return the values at rows."""

    def values_in_float64(self, at: np.ndarray) -> np.ndarray:
        """Return the values at rows, computed in float64; TypeError where the function rounds to another dtype."""

    def climb(self, candidates: Candidates, *box: np.ndarray) -> list[np.ndarray] | None:
        """Return left, right, weight and gaps after `CLIMB` steps of `ascend` in a box; None without gradients."""


def check_search(points: Any, segments: Any) -> None:
    """Check the arguments of `find_violation`."""
    owner = "find_violation"
    if getattr(points, "ndim", 0) != 2 or len(points) < 2:
        fail(owner, "points", "[rows >= 2, in_dim]", describe(points), "Pass some rows of the data.")
    whole_number(owner, "segments", segments, 1)
    if dtype_name(points.dtype) not in TOLERANCES:
        fix = "Cast them to the dtype the function takes."
        fail(owner, "points", f"one of {list(TOLERANCES)}", describe(points), fix, TypeError)
    if not is_tensor(points):
        as_numbers(owner, "points", points)


def split_points(points: Any) -> tuple[Any, Any]:
    """Return points and contexts, None where points are given alone."""
    if not isinstance(points, tuple):
        return points, None
    if len(points) != 2:
        rule, fix = "points, or (points, contexts)", "Pass rows of the data, and rows of contexts."
        fail("find_violation", "points", rule, f"a tuple of {len(points)}", fix, TypeError)
    rows, contexts = points
    check_search(rows, 1)
    if getattr(contexts, "ndim", 0) != 2 or not len(contexts) or dtype_name(contexts.dtype) != dtype_name(rows.dtype):
        rule = f"{dtype_name(rows.dtype)} [contexts >= 1, context_dim], as the points"
        fail("find_violation", "contexts", rule, describe(contexts), "Pass some rows of contexts.")
    return rows, contexts


def on_rows(function: Callable[..., Any], width: int | None, curvature: str) -> Callable[[Any], Any]:
    """Return a function of rows, minus a concave one; with a width, of their first numbers and of the others."""
    if width is None and curvature == "convex":
        return function

    def call(rows: Any) -> Any:
        y = function(rows) if width is None else function(rows[:, :width], rows[:, width:])
        return y if curvature == "convex" else -y

    return call


def turn(violation: Violation | None, curvature: str, width: int | None = None) -> Violation | None:
    """Return a violation found by `on_rows`, as one of the function itself."""
    if violation is None:
        return None
    if width is not None:
        left, right = violation.left, violation.right
        violation = violation._replace(left=left[:width], right=right[:width], context=left[width:])
    if curvature == "convex":
        return violation
    values = {name: -getattr(violation, name) for name in ("value_left", "value_right", "value")}
    return violation._replace(**values)


def search(
    function: Evaluator,
    segments: int,
    seed: int,
    tolerance: float | None,
    strict: bool,
    domain: Domain | None = None,
    contexts: np.ndarray | None = None,
) -> Violation | None:
    """Return a segment on which a function lies above its chord, None where none is found.

    Args:
        function: what is searched.
        segments: how many to try.
        seed: of the random segments.
        tolerance: what counts as rounding, None for the tolerance of the dtype.
        strict: values that are not finite are an error, and the worst violation is looked for; else their segments
            are passed over, and any violation is returned.
        domain: where all segments lie, None for everywhere.
        contexts: `[contexts, context_dim]`, which follow the coordinates of a row; each segment has one of them.
    """
    region = search_region(function.rows, domain and domain.round_inward(function.dtype))
    drawn = draw_segments(region, int(min(segments, function.limit)), seed)
    if contexts is not None:
        region, drawn = add_contexts(region, drawn, contexts, seed)
    best = merge_candidates([judge(function.on_segments(*batch), batch, region.whole, strict) for batch in drawn])
    if not len(best.gap):
        return None
    violation = None if strict else _confirm(function, best, tolerance, region)
    if violation is None:  # the ascent comes last, as it may have to be compiled
        violation = _confirm(function, merge_candidates([best, _climb(function, best, region)]), tolerance, region)
    return violation


def _climb(function: Evaluator, candidates: Candidates, region: Region) -> Candidates:
    """Return the segments after an ascent along the gradient of their gaps, inside the box of the search."""
    end = function.climb(candidates, region.reach, *region.whole)
    if end is None:
        return candidates
    left, right, weight, gap = end
    return Candidates(left, right, weight, candidates.output, np.where(np.isfinite(gap), gap, -1.0), candidates.size)


def _confirm(function: Evaluator, candidates: Candidates, tolerance: float | None, region: Region) -> Violation | None:
    """Return the worst candidate that holds in float64, or in its own dtype where the function takes no float64."""
    name = function.dtype
    least, least_in_float64 = (TOLERANCES[dtype] if tolerance is None else tolerance for dtype in (name, "float64"))
    if not (candidates.gap > least).any():
        return None
    if name != "float64":
        with suppress(TypeError, ValueError, RuntimeError):  # the function takes no float64
            return confirm(candidates, function.values_in_float64, least_in_float64, region, "float64")
    return confirm(candidates, function.values, least, region, name)


# The ascent, over the namespace `xp` of the arrays of a package.


class Ascent(NamedTuple):
    """Where the ascent of several segments stands.

    Args:
        segments: left ends and right ends, `[candidates, in_dim]`, and weights, `[candidates, 1]`.
        gap: relative, `[candidates]`.
        slopes: the gradient of the gap in each of `segments`.
        length: of the next step, `[candidates, 1]`.
    """

    segments: tuple[Any, Any, Any]
    gap: Any
    slopes: tuple[Any, Any, Any]
    length: Any


def start_ascent(xp: Any, segments: tuple[Any, Any, Any]) -> Ascent:
    """Return the ascent before its first step."""
    left, right, weight = segments
    slopes = (xp.zeros_like(left), xp.zeros_like(right), xp.zeros_like(weight))
    return Ascent(segments, xp.full_like(weight[:, 0], -np.inf), slopes, xp.full_like(weight, 0.1))


def ascend(
    xp: Any, gaps_and_slopes: Callable[[Any], tuple[Any, Any]], now: Ascent, reach: Any, low: Any, high: Any
) -> Ascent:
    """Return the ascent one step further: a step that lowers a gap is taken back, and the next one is shorter.

    `reach` is the unit of the steps; low and high are the corners of a box that they do not leave.
    """
    norm = xp.sqrt(xp.sum(xp.concatenate(now.slopes, axis=1) ** 2, axis=1, keepdims=True)) + 1e-30
    left, right, weight = (
        at + now.length * scale * slope / norm
        for at, scale, slope in zip(now.segments, (reach, reach, 0.5), now.slopes, strict=True)
    )
    ends = (xp.clip(end, low, high) for end in (left, right))
    segments = (*ends, xp.clip(weight, 0.02, 0.98))
    gap, slopes = gaps_and_slopes(segments)
    better = gap > now.gap

    def select(new: Any, old: Any) -> Any:
        return tuple(xp.where(better[:, None], one, two) for one, two in zip(new, old, strict=True))

    return Ascent(
        select(segments, now.segments),
        xp.where(better, gap, now.gap),
        select(map(xp.nan_to_num, slopes), now.slopes),
        xp.where(better[:, None], now.length * 1.2, now.length * 0.5),
    )
