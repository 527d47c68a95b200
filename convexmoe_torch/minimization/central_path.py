"""Minimisation by following the central path: Newton's method on a smooth hull and a barrier, widths falling to 0.

Every step tells two things that hold whatever led to them: the value at a point of the set, and the least value over
the set of an affine function below the hull, whose slopes and weights are those of the path, moved to first order. The
distance of the two is the gap. The method is a predictor-corrector one as in linear programming (Mehrotra, 1992), of
which it differs in that the units and groups of the hull are eliminated: a step solves a system in `in_dim` unknowns.

Letters: B problems, D in, d free directions, m rows, K lengths of a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .regions import Region

LIMIT = 120  # steps; trained hulls take 10 to 50
SHRINKAGE = 0.2  # of the width, once a point is central
CENTRAL = 0.5  # of the width: the Newton decrement that counts as central
LEAST_WIDTH = 1e-12
LENGTHS = 12  # of the steps that are tried, each half as long as the one before
SAME = 1e-14  # merits this close tie: rounding, which may differ between two uses of one value
INSIDE = 0.98  # of the way to the boundary, at most
REGULAR = 1e-13  # added to the diagonal of the scaled system; one refinement takes it out again


class Path(NamedTuple):
    """Where the problems stand.

    Args:
        v: (B, d); width: (B,); iterations: (B,), int64.
        best: the lowest value, (B,), at best_v, (B, d); low: the highest lower bound, (B,).
        done: (B,).
    """

    v: Tensor
    width: Tensor
    best: Tensor
    best_v: Tensor
    low: Tensor
    iterations: Tensor
    done: Tensor


class Problem(NamedTuple):
    """What is minimised: `objective(z) - tilt . z` over a region.

    Args:
        objective: a `ScalarHull`, or what has its methods; tilt: (B, D).
        goal: gap that is wanted, (B,), from the best value, (B,).
        early: whether best value and lower bound, (B,), suffice already.
        margin: for rounding, (B,): every lower bound is lowered by it.
    """

    objective: Any
    region: Region
    tilt: Tensor
    goal: Callable[[Tensor], Tensor]
    early: Callable[[Tensor, Tensor], Tensor]
    margin: Tensor


def begun(problem: Problem, v: Tensor) -> Path:
    """Return the start of a path at v, inside the region."""
    infinite = torch.full_like(problem.margin, torch.inf)
    count = torch.zeros_like(problem.margin, dtype=torch.int64)
    done = torch.zeros_like(problem.margin, dtype=torch.bool)
    return Path(v, torch.ones_like(infinite), infinite, v, -infinite, count, done)


def followed(problem: Problem, v: Tensor) -> Path:
    """Return the end of the path from v: every problem done, or `LIMIT` steps taken."""
    path = begun(problem, v)
    for _ in range(LIMIT):
        path = advanced(problem, path)
        if bool(torch.all(path.done)):
            break
    return path


def advanced(problem: Problem, path: Path) -> Path:
    """Return the path after one step; problems that are done stay where they are."""
    objective, region, tilt = problem.objective, problem.region, problem.tilt
    v, width = path.v, path.width
    z = region.place(v)
    value = objective.value(z) - torch.sum(tilt * z, dim=-1)
    at = objective.expand(z, width)
    slope, drift = _pulled(at.slope - tilt, region), _pulled(at.drift, region)
    slack, normals = region.slack(v), region.normals(v)
    multipliers = width[:, None] / slack
    push = torch.einsum("bm,bmd->bd", multipliers, normals)
    system = torch.einsum("bij,bik,bkl->bjl", region.basis, at.curvature, region.basis)
    system = system + torch.einsum("bmd,bm,bme->bde", normals, multipliers / slack, normals)
    if region.shape == "ball":
        eye = torch.eye(v.shape[-1], dtype=v.dtype, device=v.device)
        system = system + 2 * multipliers[:, -1, None, None] * eye
    newton, centring = _solved(system, torch.stack([slope + push, drift + push], dim=-1))
    decrement = torch.sum((slope + push) * newton, dim=-1)

    def bound(step: Tensor, shrinkage: Tensor) -> tuple[Tensor, Tensor]:
        """Return the intrinsic gap and the lower bound of the tangent that the step leads to."""
        change = shrinkage - 1
        tangent = objective.tangent(at, z, region.place(v + step) - z, change)
        height, incline = objective.minorant(z, tangent)
        along = torch.einsum("bmd,bd->bm", normals, step)
        carried = torch.clamp(multipliers * shrinkage[:, None] + multipliers / slack * along, min=0.0)
        if region.shape == "space":
            rest = incline - tilt
            mu = objective.config.strong_convexity
            low = height - torch.sum(incline * z, dim=-1) - 0.5 / mu * torch.sum(rest * rest, dim=-1)
            return value - low, low
        rise, lean = objective.square(z, tangent)
        height = height + rise - torch.sum(tilt * z, dim=-1)
        gap = value - height + width * slack.shape[-1]
        return gap, height + region.least(incline + lean - tilt, v, carried)

    predictor = -newton - (SHRINKAGE - 1) * centring
    gap, low = bound(-newton, torch.ones_like(width))
    low = torch.fmax(low, bound(predictor, torch.full_like(width, SHRINKAGE))[1])
    better = value < path.best
    best = torch.where(better, value, path.best)
    best_v = torch.where(better[:, None], v, path.best_v)
    goal = problem.goal(best)
    shrinks = (decrement <= CENTRAL * width) & (gap > 0.5 * goal)
    step = torch.where(shrinks[:, None], predictor, -newton)
    low = torch.fmax(path.low, low - problem.margin)
    done = path.done | (best - low <= goal) | problem.early(best, low) | ~torch.isfinite(value)
    width = torch.clamp(torch.where(shrinks, SHRINKAGE * width, width), min=LEAST_WIDTH)
    moved = _best_length(problem, v, torch.nan_to_num(step), width)
    count = path.iterations + 1
    return Path(
        torch.where(path.done[:, None], path.v, moved),
        torch.where(path.done, path.width, width),
        torch.where(path.done, path.best, best),
        torch.where(path.done[:, None], path.best_v, best_v),
        torch.where(path.done, path.low, low),
        torch.where(path.done, path.iterations, count),
        done,
    )


def _best_length(problem: Problem, v: Tensor, step: Tensor, width: Tensor) -> Tensor:
    """Return the best of `LENGTHS` points along a step, by smooth hull and barrier; the farthest where they tie."""
    region = problem.region
    halves = 0.5 ** torch.arange(LENGTHS, dtype=v.dtype, device=v.device)
    lengths = torch.clamp(INSIDE * region.reach(v, step), max=1.0)[:, None] * halves
    tried = v[:, None] + lengths[..., None] * step[:, None]
    z = region.place(tried)
    widths = torch.repeat_interleave(width, LENGTHS)
    heights = problem.objective.smooth(z.reshape(-1, z.shape[-1]), widths).reshape(lengths.shape)
    barrier = torch.sum(torch.log(region.slack(tried)), dim=-1)
    merit = heights - torch.sum(problem.tilt[:, None] * z, dim=-1) - width[:, None] * barrier
    merit = torch.nan_to_num(merit, nan=torch.inf)
    lowest = torch.amin(merit, dim=-1, keepdim=True)
    chosen = (merit <= lowest + SAME * (1 + torch.abs(lowest))) & torch.isfinite(merit)
    return v + torch.amax(torch.where(chosen, lengths, 0.0), dim=-1, keepdim=True) * step


def _pulled(slope: Tensor, region: Region) -> Tensor:
    """Return a slope in z as one in v."""
    return torch.einsum("bij,bi->bj", region.basis, slope)


def _solved(system: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return the solutions for the two columns of `right`, (B, d, 2), by Cholesky's method, refined once."""
    scale = torch.rsqrt(torch.clamp(torch.diagonal(system, dim1=1, dim2=2), min=1e-300))
    eye = torch.eye(system.shape[-1], dtype=system.dtype, device=system.device)
    scaled, wanted = system * scale[:, :, None] * scale[:, None], right * scale[..., None]
    root, fault = torch.linalg.cholesky_ex(scaled + REGULAR * eye)
    found = torch.cholesky_solve(wanted, root)
    found = found + torch.cholesky_solve(wanted - scaled @ found, root)
    found = scale[..., None] * torch.where(
        fault[:, None, None] > 0, wanted, found
    )  # or a step down the gradient
    return found[..., 0], found[..., 1]
