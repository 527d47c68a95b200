"""The search for a counterexample to convexity: a segment on which a function lies above its chord."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convexmoe.convexity import Candidates, Violation, between, chord_gaps, problem, read_domain, search
from convexmoe.errors import dtype_name

from ..hull.module import FoldedHull, VectorHull

Function = Callable[[jax.Array], jax.Array]


def find_violation(
    function: Function,
    points: jax.Array | tuple[jax.Array, jax.Array],
    *,
    segments: int = 100_000,
    seed: int = 0,
    tolerance: float | None = None,
    domain: Any = None,
    curvature: str | None = None,
) -> Violation | None:
    """Search for a segment that shows that a function is not convex, or not concave; return the worst found, or None.

    None is no proof. A third of the random segments is wide, a third narrow, a third along one axis of the input; the
    best climb along the gradient of their gap. The result was computed anew in float64, where the function takes
    that (`Violation.dtype`).

    Args:
        function: `[rows, in_dim]` -> `[rows, out_dim]`, row by row; `function(x, context)` where contexts are given.
        points: `[rows, in_dim]`, of the dtype the function takes: the search covers twice their bounding box. For a
            hull with a context, a tuple of these and of contexts, `[contexts, context_dim]`: along each segment the
            context is one of them.
        segments: how many to try.
        seed: of the search.
        tolerance: what counts as rounding, relative to the largest value of a batch of `BATCH` segments
            (near a zero of the function its rounding does not shrink); None means `TOLERANCES` for the
            dtype of `points`. Pass that of a coarser dtype where the function rounds to it inside.
        domain: a `Box` that no segment leaves: half of them are anywhere in it, and some have ends on its faces.
        curvature: "convex" or "concave"; None means "convex", of our models what their config says.

    Raises:
        TypeError, ValueError: points are not floating `[rows, in_dim]` with two rows at least, or the function is
            not finite on a segment.

    >>> from convexmoe_jax import VectorHull
    >>> find_violation(VectorHull(2, petals=3, rngs=nnx.Rngs(0)), jnp.eye(2), segments=1000) is None
    True
    """
    rows, contexts = search.split_points(points)
    search.check_search(rows, segments)
    where = read_domain("find_violation", domain, [rows.shape[1:]])
    ours = function if isinstance(function, (VectorHull, FoldedHull)) else None
    wanted, width = problem.read_curvature("find_violation", curvature, ours), None
    if contexts is not None:
        width, contexts = rows.shape[1], np.asarray(contexts, np.float64)
    evaluator = Evaluator(function, rows, width, wanted)
    found = search.search(evaluator, segments, seed, tolerance, True, where, contexts)
    return search.turn(found, wanted, width)


class Evaluator:
    """A function of rows; `convexmoe.convexity.search.Evaluator` says what the methods do.

    Args:
        function: `[rows, in_dim]` -> `[rows, out_dim]`.
        points: `[rows, in_dim]`, around which is searched.
        width, curvature: see `on_rows`.
    """

    limit = np.inf

    def __init__(
        self, function: Function, points: jax.Array, width: int | None = None, curvature: str = "convex"
    ) -> None:
        self._given, self._form = function, (width, curvature)
        self.function = search.on_rows(function, width, curvature)
        self.compiled = jax.jit(self.function)
        self.rows, self.dtype = np.asarray(points, np.float64), dtype_name(points.dtype)

    def on_segments(self, left: np.ndarray, right: np.ndarray, weight: np.ndarray) -> list[np.ndarray]:
        one, two, share = (jnp.asarray(part, self.dtype) for part in (left, right, weight))
        at = (one, two, between(jnp, one, two, share))
        return [np.asarray(self.compiled(part), np.float64) for part in at]

    def values(self, at: np.ndarray) -> np.ndarray:
        return np.asarray(self.function(jnp.asarray(at, self.dtype)), np.float64)

    @cached_property
    def _wide(self) -> Function:
        return jax.jit(search.on_rows(widen(self._given), *self._form))

    def values_in_float64(self, at: np.ndarray) -> np.ndarray:
        with jax.enable_x64(True):
            values = self._wide(jnp.asarray(at, jnp.float64))
            if dtype_name(values.dtype) != "float64":
                raise TypeError("the function rounds to another dtype")
            return np.asarray(values)

    def climb(self, candidates: Candidates, *box: np.ndarray) -> list[np.ndarray] | None:
        corners = [jnp.asarray(part, self.dtype) for part in box]
        size, output = jnp.asarray(candidates.size, self.dtype), jnp.asarray(candidates.output)

        def gaps_and_slopes(segments: Any) -> tuple[jax.Array, Any]:
            gaps, pull_back = jax.vjp(lambda at: chord_gaps(jnp, self.function, at, output)[1] / size, segments)
            return gaps, pull_back(jnp.ones_like(gaps))[0]

        def follow(segments: Any) -> Any:
            def step(now: Any, _: None) -> tuple[Any, None]:
                return search.ascend(jnp, gaps_and_slopes, now, *corners), None

            return jax.lax.scan(step, search.start_ascent(jnp, segments), length=search.CLIMB)[0]

        start = tuple(jnp.asarray(part, self.dtype) for part in candidates[:3])
        try:
            end = jax.jit(follow)(start)
        except (TypeError, ValueError, NotImplementedError):
            return None
        return [np.asarray(part, np.float64) for part in (*end.segments, end.gap)]


def widen(function: Function) -> Function:
    """Return a module with its parameters in float64; other functions as they are."""
    if not isinstance(function, nnx.Module):
        return function
    graph, state = nnx.split(function)
    return nnx.merge(graph, in_float64(state))


def in_float64(tree: Any) -> Any:
    """Return a tree of arrays with those that hold floats in float64."""

    def widen_leaf(leaf: Any) -> Any:
        floating = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.asarray(leaf, jnp.float64) if floating else leaf

    return jax.tree.map(widen_leaf, tree)
