"""Minimization along the central path: Newton's method on a smooth hull and a barrier, widths falling to 0.

Every step gives two numbers that hold whatever led to them: the value at a point of the set, and the least value over
the set of an affine function below the hull: its slopes and weights are those of the path, moved to first order. Their
distance is the gap. The method is a predictor-corrector method as in linear programming (Mehrotra, 1992). Differs from
the source: the units and groups of the hull are eliminated, so that a step solves a system in `in_dim` unknowns.

Letters: B problems, D in, d free directions, m rows, K lengths of a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from ..arrays import Array, einsum, eye, library, like, namespace
from .regions import Region

Record = TypeVar("Record", bound=tuple)
LIMIT = 120  # steps; trained hulls take 10 to 50
SHRINKAGE = 0.2  # of the width, once a point is central
CENTRAL = 0.5  # of the width: the Newton decrement that counts as central
LEAST_WIDTH = 1e-12
LENGTHS = 12  # of the steps that are tried, each half as long as the one before
SAME = 1e-14  # merits this close tie: rounding, which may differ between two uses of one value
INSIDE = 0.98  # of the way to the boundary, at most
REGULAR = 1e-13  # added to the diagonal of the scaled system; one refinement takes it out again


class Path(NamedTuple):
    """The state of the problems along the path.

    Args:
        v: (B, d); width: (B,); iterations: (B,), int64.
        best: the lowest value, (B,), at best_v, (B, d); low: the highest lower bound, (B,).
        done: (B,).
    """

    v: Array
    width: Array
    best: Array
    best_v: Array
    low: Array
    iterations: Array
    done: Array


class Problem(NamedTuple):
    """The problem `minimize objective(z) - tilt . z` over a region.

    Args:
        objective: a `ScalarHull`, or an object with its methods; tilt: (B, D).
        goal: the gap that is wanted, (B,), from the best value, (B,).
        early: whether best value and lower bound, (B,), suffice already.
        margin: for rounding, (B,): every lower bound is lowered by it.
    """

    objective: Any
    region: Region
    tilt: Array
    goal: Callable[[Array], Array]
    early: Callable[[Array, Array], Array]
    margin: Array


class Newton(NamedTuple):
    """Newton's directions at a point of the path.

    Args:
        v, z: the point, (B, d), and in normalized units, (B, D); value: `objective(z) - tilt . z`, (B,).
        at: the expansion of the smooth objective.
        slack, normals, multipliers: of the rows, (B, m), (B, m, d), (B, m).
        step, centering: the steps to the minimum at this width, and by a change of log w, (B, d).
        decrement: (B,), small beside the width at a central point.
    """

    v: Array
    z: Array
    value: Array
    at: Any
    slack: Array
    normals: Array
    multipliers: Array
    step: Array
    centering: Array
    decrement: Array


def follow_path(problem: Problem, v: Array) -> Path:
    """Return the end of the path from v, inside the region: every problem done, or `LIMIT` steps taken."""
    xp = namespace(v)
    infinite = xp.full_like(problem.margin, xp.inf)
    count = xp.zeros_like(problem.margin, dtype=xp.int64)
    first = Path(v, xp.ones_like(infinite), infinite, v, -infinite, count, problem.early(infinite, -infinite))

    def goes_on(path: Path) -> Array:
        return xp.any(~path.done) & (xp.max(path.iterations) < LIMIT)

    return library(v).while_loop(goes_on, lambda path: advance(problem, path), first)


def advance(problem: Problem, path: Path) -> Path:
    """Return the path after one step; problems that are done stay where they are."""
    xp, v, width = namespace(path.v), path.v, path.width
    newton = newton_directions(problem, v, width)
    predictor = -newton.step - (SHRINKAGE - 1) * newton.centering
    gap, low = dual_bound(problem, newton, width, -newton.step, xp.ones_like(width))
    low = xp.fmax(low, dual_bound(problem, newton, width, predictor, xp.full_like(width, SHRINKAGE))[1])
    better = newton.value < path.best
    best = xp.where(better, newton.value, path.best)
    best_v = xp.where(better[:, None], v, path.best_v)
    goal = problem.goal(best)
    shrinks = (newton.decrement <= CENTRAL * width) & (gap > 0.5 * goal)
    step = xp.where(shrinks[:, None], predictor, -newton.step)
    low = xp.fmax(path.low, low - problem.margin)
    done = path.done | (best - low <= goal) | problem.early(best, low) | ~xp.isfinite(newton.value)
    width = xp.clip(xp.where(shrinks, SHRINKAGE * width, width), min=LEAST_WIDTH)
    moved = search_line(problem, v, xp.nan_to_num(step), width)
    return keep_where(path.done, path, Path(moved, width, best, best_v, low, path.iterations + 1, done))


def keep_where(mask: Array, old: Record, new: Record) -> Record:
    """Return a record of arrays with the entries of `old` where the mask, (B,), is true, and of `new` elsewhere."""
    xp = namespace(mask)
    return type(old)(*(xp.where(mask if a.ndim == 1 else mask[:, None], a, b) for a, b in zip(old, new, strict=True)))


def newton_directions(problem: Problem, v: Array, width: Array) -> Newton:
    """Return the value and Newton's directions at v for the smooth objective and the barrier of width `width`."""
    xp, region, tilt = namespace(v), problem.region, problem.tilt
    z = region.place(v)
    value = problem.objective.value(z) - xp.sum(tilt * z, axis=-1)
    at = problem.objective.expand(z, width)
    slope, drift = region.pull(at.slope - tilt), region.pull(at.drift)
    slack, normals = region.slack(v), region.normals(v)
    multipliers = width[:, None] / slack
    push = einsum("bm,bmd->bd", multipliers, normals)
    system = einsum("bij,bik,bkl->bjl", region.basis, at.curvature, region.basis)
    system = system + einsum("bmd,bm,bme->bde", normals, multipliers / slack, normals)
    if region.shape == "ball":
        system = system + 2 * multipliers[:, -1, None, None] * eye(v.shape[-1], v)
    step, centering = solve_scaled(system, xp.stack([slope + push, drift + push], axis=-1))
    decrement = xp.sum((slope + push) * step, axis=-1)
    return Newton(v, z, value, at, slack, normals, multipliers, step, centering, decrement)


def dual_bound(problem: Problem, newton: Newton, width: Array, step: Array, shrinkage: Array) -> tuple[Array, Array]:
    """Return the intrinsic gap and the lower bound, (B,), of the tangent that a step leads to."""
    xp, objective, region, tilt, z = (namespace(step), problem.objective, problem.region, problem.tilt, newton.z)
    tangent = objective.tangent(newton.at, z, region.place(newton.v + step) - z, shrinkage - 1)
    height, incline = objective.minorant(z, tangent)
    along = einsum("bmd,bd->bm", newton.normals, step)
    multipliers = newton.multipliers * shrinkage[:, None] + newton.multipliers / newton.slack * along
    if region.shape == "space":
        rest = incline - tilt
        mu = objective.config.strong_convexity
        low = height - xp.sum(incline * z, axis=-1) - 0.5 / mu * xp.sum(rest * rest, axis=-1)
        return newton.value - low, low
    rise, lean = objective.square(z, tangent)
    height = height + rise - xp.sum(tilt * z, axis=-1)
    gap = newton.value - height + width * newton.slack.shape[-1]
    return gap, height + region.least(incline + lean - tilt, newton.v, xp.clip(multipliers, min=0.0))


def search_line(problem: Problem, v: Array, step: Array, width: Array) -> Array:
    """Return the best of `LENGTHS` points along a step, by smooth hull and barrier; the farthest where they tie."""
    xp, region = namespace(v), problem.region
    halves = 0.5 ** xp.arange(LENGTHS, **like(v))
    lengths = xp.clip(INSIDE * region.reach(v, step), max=1.0)[:, None] * halves
    points = v[:, None] + lengths[..., None] * step[:, None]
    z = region.place(points)
    widths = xp.repeat(width, LENGTHS)
    heights = xp.reshape(problem.objective.smooth(xp.reshape(z, (-1, z.shape[-1])), widths), lengths.shape)
    barrier = xp.sum(xp.log(region.slack(points)), axis=-1)
    merit = heights - xp.sum(problem.tilt[:, None] * z, axis=-1) - width[:, None] * barrier
    merit = xp.nan_to_num(merit, nan=xp.inf)
    lowest = xp.min(merit, axis=-1, keepdims=True)
    tied = (merit <= lowest + SAME * (1 + xp.abs(lowest))) & xp.isfinite(merit)
    return v + xp.max(xp.where(tied, lengths, 0.0), axis=-1, keepdims=True) * step


def solve_scaled(system: Array, right: Array) -> tuple[Array, Array]:
    """Return the solutions for the two columns of `right`, (B, d, 2), by Cholesky's method, refined once."""
    xp = namespace(system)
    scale = 1 / xp.sqrt(xp.clip(xp.linalg.diagonal(system), min=1e-300))
    scaled, wanted = system * scale[:, :, None] * scale[:, None], right * scale[..., None]
    solve = library(system).factorize(scaled + REGULAR * eye(system.shape[-1], system))
    solution = solve(wanted)
    solution = solution + solve(wanted - scaled @ solution)
    solution = scale[..., None] * xp.where(xp.isnan(solution), wanted, solution)  # or a step down the gradient
    return solution[..., 0], solution[..., 1]
