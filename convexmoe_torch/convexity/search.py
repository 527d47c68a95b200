"""The search for a counterexample to convexity: a segment on which a function lies above its chord."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convexmoe.convexity import Candidates, Violation, between, chord_gaps, problem, read_domain, search
from convexmoe.errors import dtype_name

from ..hull.module import HullModule
from ..settings import one_thread
from .trace import LOCK

Function = Callable[[Tensor], Tensor]


def find_violation(
    function: Function,
    points: Tensor | tuple[Tensor, Tensor],
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

    >>> from convexmoe_torch import VectorHull
    >>> find_violation(VectorHull(2, petals=3), torch.eye(2), segments=1000) is None
    True
    """
    rows, contexts = search.split_points(points)
    search.check_search(rows, segments)
    where = read_domain("find_violation", domain, [tuple(rows.shape[1:])])
    ours = function if isinstance(function, HullModule) else None
    wanted, width = problem.read_curvature("find_violation", curvature, ours), None
    if contexts is not None:
        width, contexts = rows.shape[1], in_numpy(contexts)
    with LOCK, one_thread():
        evaluator = Evaluator(function, rows.detach(), width=width, curvature=wanted)
        found = search.search(evaluator, segments, seed, tolerance, True, where, contexts)
    return search.turn(found, wanted, width)


class Evaluator:
    """A function of rows; `convexmoe.convexity.search.Evaluator` says what the methods do.

    Args:
        function: `[rows, in_dim]` -> `[rows, out_dim]`.
        points: `[rows, in_dim]`, around which is searched.
        limit: how many segments are tried at most.
        width, curvature: see `on_rows`.
    """

    def __init__(
        self,
        function: Function,
        points: Tensor,
        limit: float = np.inf,
        width: int | None = None,
        curvature: str = "convex",
    ) -> None:
        self._given, self._form = function, (width, curvature)
        self.function = search.on_rows(function, width, curvature)
        self.points, self.limit = points, limit
        self.rows, self.dtype = in_numpy(points), dtype_name(points.dtype)

    def _tensor(self, part: np.ndarray) -> Tensor:
        return torch.as_tensor(part).to(self.points)

    def on_segments(self, left: np.ndarray, right: np.ndarray, weight: np.ndarray) -> list[np.ndarray]:
        one, two, share = map(self._tensor, (left, right, weight))
        with torch.no_grad():
            return [in_numpy(self.function(at)) for at in (one, two, between(torch, one, two, share))]

    def values(self, at: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return in_numpy(self.function(self._tensor(at)))

    @cached_property
    def _wide(self) -> Function:
        return search.on_rows(widen(self._given), *self._form)

    def values_in_float64(self, at: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            values = self._wide(torch.as_tensor(at, dtype=torch.float64, device=self.points.device))
        if dtype_name(values.dtype) != "float64":
            raise TypeError("the function rounds to another dtype")
        return in_numpy(values)

    @torch.enable_grad()
    def climb(self, candidates: Candidates, *box: np.ndarray) -> list[np.ndarray] | None:
        corners, size = [self._tensor(part) for part in box], self._tensor(candidates.size)
        output = torch.as_tensor(candidates.output, device=self.points.device)

        def gaps_and_slopes(segments: Any) -> tuple[Tensor, Any]:
            at = tuple(part.detach().requires_grad_() for part in segments)
            gaps = chord_gaps(torch, self.function, at, output)[1] / size
            return gaps.detach(), torch.autograd.grad(gaps.sum(), at, materialize_grads=True)

        left, right, weight = map(self._tensor, candidates[:3])
        now = search.start_ascent(torch, (left, right, weight))
        try:
            for _ in range(search.CLIMB):
                now = search.ascend(torch, gaps_and_slopes, now, *corners)
        except (TypeError, ValueError, NotImplementedError, RuntimeError):
            return None
        return [in_numpy(part) for part in (*now.segments, now.gap)]


def in_numpy(tensor: Tensor) -> np.ndarray:
    """Return a tensor as float64 of numpy."""
    return tensor.detach().cpu().double().numpy()


def widen(function: Function) -> Function:
    """Return a copy of a module with its parameters in float64; other functions as they are."""
    return copy.deepcopy(function).double() if isinstance(function, nn.Module) else function


def in_float64(tensors: list[Any]) -> list[Any]:
    """Return tensors with those that hold floats in float64."""
    return [t.double() if isinstance(t, Tensor) and t.is_floating_point() else t for t in tensors]
