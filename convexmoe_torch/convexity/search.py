"""The search for a counterexample to convexity: a segment on which a function lies above its chord."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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
    function: Callable[[Tensor], Tensor],
    points: Tensor,
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
    return search(function, points.detach(), segments, seed, tolerance, strict=True)


def search(
    function: Callable[[Tensor], Tensor],
    points: Tensor,
    segments: int,
    seed: int,
    tolerance: float | None,
    strict: bool,
) -> Violation | None:
    """Return what `find_violation` does; segments with values that are not finite are an error only where `strict`."""
    rows = array(points)
    batches = []
    for left, right, weight in drawn(rows, segments, seed):
        ends = [torch.as_tensor(end).to(points) for end in (left, right)]
        share = torch.as_tensor(weight).to(points)
        with torch.no_grad():
            three = [function(at) for at in (*ends, share * ends[0] + (1 - share) * ends[1])]
        batches.append(judged([array(part) for part in three], left, right, weight, strict))
    best = gathered(batches)
    if not len(best.gap):
        return None
    if not strict:  # any violation will do
        found = _confirmed(function, best, points, tolerance)
        if found is not None:
            return found
    climbed = _climbed(function, best, rows, points)
    return _confirmed(function, gathered([best, climbed]), points, tolerance)


def array(tensor: Tensor) -> np.ndarray:
    """Return a tensor as float64 of numpy."""
    return tensor.detach().cpu().double().numpy()


@torch.enable_grad()
def _climbed(
    function: Callable[[Tensor], Tensor], candidates: Candidates, rows: np.ndarray, points: Tensor
) -> Candidates:
    """Return the segments after an ascent along the gradient of their gaps, inside the box of the search."""
    middle, reach = (torch.as_tensor(part).to(points) for part in box(rows))
    size = torch.as_tensor(candidates.size).to(points)
    output = torch.as_tensor(candidates.output, device=points.device)[:, None]

    def gaps(left: Tensor, right: Tensor, weight: Tensor) -> Tensor:
        at = torch.cat([left, right, weight * left + (1 - weight) * right])
        found = function(at).reshape(3, len(left), -1)
        one, two, three = (torch.take_along_dim(part, output, dim=1)[:, 0] for part in found)
        return (three - (weight[:, 0] * one + (1 - weight[:, 0]) * two)) / size

    now = [torch.as_tensor(part).to(points) for part in candidates[:3]]
    height = torch.full_like(size, -torch.inf)
    slopes = [torch.zeros_like(part) for part in now]
    length = torch.full_like(size, 0.1)[:, None]
    try:
        for _ in range(CLIMB):
            norm = torch.sqrt(torch.sum(torch.cat(slopes, dim=1) ** 2, dim=1, keepdim=True)) + 1e-30
            scales = (reach, reach, torch.full_like(reach, 0.5)[:1])
            moved = [
                at + length * scale * slope / norm
                for at, scale, slope in zip(now, scales, slopes, strict=True)
            ]
            ends = [torch.clamp(end, middle - reach, middle + reach) for end in moved[:2]]
            tried = [part.detach().requires_grad_() for part in (*ends, torch.clamp(moved[2], 0.02, 0.98))]
            found = gaps(*tried)
            steep = torch.autograd.grad(found.sum(), tried, materialize_grads=True)
            better = (found > height).detach()[:, None]
            now = [torch.where(better, new, old).detach() for new, old in zip(tried, now, strict=True)]
            slopes = [
                torch.where(better, torch.nan_to_num(new), old)
                for new, old in zip(steep, slopes, strict=True)
            ]
            length = torch.where(better, length * 1.2, length * 0.5)
            height = torch.where(better[:, 0], found.detach(), height)
    except (TypeError, ValueError, NotImplementedError, RuntimeError):
        return candidates  # a function without gradients is searched without
    left, right, weight = map(array, now)
    heights = array(height)
    return candidates._replace(
        left=left, right=right, weight=weight, gap=np.where(np.isfinite(heights), heights, -1.0)
    )


def _confirmed(
    function: Callable[[Tensor], Tensor], candidates: Candidates, points: Tensor, tolerance: float | None
) -> Violation | None:
    """Return the worst candidate that stands in float64, or in its own dtype where the function takes no other."""
    name = dtype_name(points.dtype)
    _, reach = box(array(points))
    least = TOLERANCES[name] if tolerance is None else tolerance
    if not (candidates.gap > least).any():
        return None
    if name != "float64":
        wide = widened(function)

        def values(at: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                found = wide(torch.as_tensor(at, dtype=torch.float64, device=points.device))
            if found.dtype != torch.float64:
                raise TypeError("the function rounds to another dtype")
            return array(found)

        try:
            fine = TOLERANCES["float64"] if tolerance is None else tolerance
            return confirmed(candidates, values, fine, reach, "float64")
        except (TypeError, ValueError, RuntimeError):
            pass  # it takes no float64

    def narrow(at: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return array(function(torch.as_tensor(at).to(points)))

    found = confirmed(candidates, narrow, least, reach, name)
    return None if found is None else found._replace(dtype=name)


def widened(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a copy of a module with its parameters in float64; other functions as they are."""
    return copy.deepcopy(function).double() if isinstance(function, nn.Module) else function


def in_float64(tensors: list[Any]) -> list[Any]:
    """Return tensors with those that hold floats in float64."""
    return [t.double() if isinstance(t, Tensor) and t.is_floating_point() else t for t in tensors]
