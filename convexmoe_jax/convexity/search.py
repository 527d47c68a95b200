"""The search for a counterexample to convexity: a segment on which a function lies above its chord."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convexmoe.convexity.segments import (
    TOLERANCES,
    Candidates,
    Violation,
    box,
    confirmed,
    drawn,
    gathered,
    judged,
)
from convexmoe.errors import describe, dtype_name, fail, whole_number

CLIMB = 32  # steps of the ascent, each half as long as its forerunner at worst


def find_violation(
    function: Callable[[jax.Array], jax.Array],
    points: jax.Array,
    *,
    segments: int = 100_000,
    seed: int = 0,
    tolerance: float | None = None,
) -> Violation | None:
    """Search for a segment that shows that a function is not convex; return the worst found, or None.

    None is no proof. A third of the random segments is wide, a third narrow, a third along one axis of the input; the
    best climb along the gradient of their gap. What is returned was computed anew in float64, where the function takes
    that (`Violation.dtype`).

    Args:
        function: `[rows, in_dim]` -> `[rows, out_dim]`, row by row.
        points: `[rows, in_dim]`, of the dtype the function takes: the search covers twice their bounding box.
        segments: how many to try.
        seed: of the search.
        tolerance: what counts as rounding, relative to the largest value of a batch of `BATCH` segments
            (near a zero of the function its rounding does not shrink); None means `TOLERANCES` for the
            dtype of `points`. Pass that of a coarser dtype where the function rounds to it inside.

    Raises:
        TypeError, ValueError: points are not floating `[rows, in_dim]` with two rows at least, or the function is
            not finite on a segment.

    >>> from convexmoe_jax import VectorHull
    >>> find_violation(VectorHull(2, petals=3, rngs=nnx.Rngs(0)), jnp.eye(2), segments=1000) is None
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
    return search(function, points, segments, seed, tolerance, strict=True)


def search(
    function: Callable[[jax.Array], jax.Array],
    points: jax.Array,
    segments: int,
    seed: int,
    tolerance: float | None,
    strict: bool,
) -> Violation | None:
    """Return what `find_violation` does; segments with values that are not finite are an error only where `strict`."""
    values = jax.jit(function)
    rows = np.asarray(points, np.float64)
    batches = []
    for left, right, weight in drawn(rows, segments, seed):
        ends = [jnp.asarray(end, points.dtype) for end in (left, right)]
        share = jnp.asarray(weight, points.dtype)
        three = [values(ends[0]), values(ends[1]), values(share * ends[0] + (1 - share) * ends[1])]
        batches.append(judged([np.asarray(part, np.float64) for part in three], left, right, weight, strict))
    best = gathered(batches)
    if not len(best.gap):
        return None
    if not strict:  # any violation will do: the ascent has to be compiled
        found = _confirmed(function, best, points, tolerance)
        if found is not None:
            return found
    climbed = _climbed(function, best, rows, points.dtype)
    return _confirmed(function, gathered([best, climbed]), points, tolerance)


def _climbed(
    function: Callable[[jax.Array], jax.Array], candidates: Candidates, rows: np.ndarray, dtype: Any
) -> Candidates:
    """Return the segments after an ascent along the gradient of their gaps, inside the box of the search."""
    middle, reach = (jnp.asarray(part, dtype) for part in box(rows))
    output = jnp.asarray(candidates.output)
    size = jnp.asarray(candidates.size, dtype)

    def gaps(segments: Any) -> tuple[jax.Array, jax.Array]:
        left, right, weight = segments
        at = jnp.concatenate([left, right, weight * left + (1 - weight) * right])
        found = function(at).reshape(3, len(left), -1)
        one, two, three = (jnp.take_along_axis(part, output[:, None], axis=1)[:, 0] for part in found)
        gap = (three - (weight[:, 0] * one + (1 - weight[:, 0]) * two)) / size
        return jnp.sum(gap), gap

    def climb(segments: Any) -> Any:
        def step(carry: Any, _: None) -> tuple[Any, None]:
            now, height, slopes, length = carry
            norm = jnp.sqrt(sum(jnp.sum(slope**2, axis=1, keepdims=True) for slope in slopes)) + 1e-30
            scales = (reach, reach, jnp.asarray(0.5, dtype))
            moved = [
                at + length * scale * slope / norm
                for at, scale, slope in zip(now, scales, slopes, strict=True)
            ]
            ends = [jnp.clip(end, middle - reach, middle + reach) for end in moved[:2]]
            tried = (*ends, jnp.clip(moved[2], 0.02, 0.98))
            (_, found), steep = jax.value_and_grad(gaps, has_aux=True)(tried)
            better = (found > height)[:, None]
            kept, slopes = (
                tuple(jnp.where(better, one, two) for one, two in zip(new, old, strict=True))
                for new, old in ((tried, now), (jax.tree.map(jnp.nan_to_num, steep), slopes))
            )
            length = jnp.where(better, length * 1.2, length * 0.5)
            return (kept, jnp.where(better[:, 0], found, height), slopes, length), None

        lowest = jnp.full(len(candidates.gap), -jnp.inf, dtype)
        flat = jax.tree.map(jnp.zeros_like, segments)
        start = (segments, lowest, flat, jnp.full((len(candidates.gap), 1), 0.1, dtype))
        (last, height, *_), _ = jax.lax.scan(step, start, length=CLIMB)
        return last, height

    start = tuple(jnp.asarray(part, dtype) for part in (candidates.left, candidates.right, candidates.weight))
    try:
        (left, right, weight), height = jax.jit(climb)(start)
    except (TypeError, ValueError, NotImplementedError):  # a function without gradients is searched without
        return candidates
    left, right, weight, height = (np.asarray(part, np.float64) for part in (left, right, weight, height))
    return candidates._replace(
        left=left, right=right, weight=weight, gap=np.where(np.isfinite(height), height, -1.0)
    )


def _confirmed(
    function: Callable[[jax.Array], jax.Array],
    candidates: Candidates,
    points: jax.Array,
    tolerance: float | None,
) -> Violation | None:
    """Return the worst candidate that stands in float64, or in its own dtype where the function takes no other."""
    name = dtype_name(points.dtype)
    _, reach = box(np.asarray(points, np.float64))
    least = TOLERANCES[name] if tolerance is None else tolerance
    if not (candidates.gap > least).any():
        return None
    if name != "float64":
        with jax.enable_x64(True):
            wide = jax.jit(widened(function))

            def values(at: np.ndarray) -> np.ndarray:
                found = wide(jnp.asarray(at, jnp.float64))
                if dtype_name(found.dtype) != "float64":
                    raise TypeError("the function rounds to another dtype")
                return np.asarray(found)

            try:
                fine = TOLERANCES["float64"] if tolerance is None else tolerance
                return confirmed(candidates, values, fine, reach, "float64")
            except (TypeError, ValueError):
                pass  # it takes no float64

    def narrow(at: np.ndarray) -> np.ndarray:
        return np.asarray(function(jnp.asarray(at, points.dtype)), np.float64)

    found = confirmed(candidates, narrow, least, reach, name)
    return None if found is None else found._replace(dtype=name)


def widened(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """Return a module with its parameters in float64; other functions as they are."""
    if not isinstance(function, nnx.Module):
        return function
    graph, state = nnx.split(function)
    return nnx.merge(graph, in_float64(state))


def in_float64(tree: Any) -> Any:
    """Return a tree of arrays with those that hold floats in float64."""

    def wide(leaf: Any) -> Any:
        floating = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.asarray(leaf, jnp.float64) if floating else leaf

    return jax.tree.map(wide, tree)
