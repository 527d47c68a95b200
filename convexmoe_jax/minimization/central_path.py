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

import jax
import jax.numpy as jnp
from jax.lax.linalg import triangular_solve

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

    v: jax.Array
    width: jax.Array
    best: jax.Array
    best_v: jax.Array
    low: jax.Array
    iterations: jax.Array
    done: jax.Array


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
    tilt: jax.Array
    goal: Callable[[jax.Array], jax.Array]
    early: Callable[[jax.Array, jax.Array], jax.Array]
    margin: jax.Array


def begun(problem: Problem, v: jax.Array) -> Path:
    """Return the start of a path at v, inside the region."""
    infinite = jnp.full_like(problem.margin, jnp.inf)
    count = jnp.zeros_like(problem.margin, dtype=jnp.int64)
    done = jnp.zeros_like(problem.margin, dtype=bool)
    return Path(v, jnp.ones_like(infinite), infinite, v, -infinite, count, done)


def followed(problem: Problem, v: jax.Array) -> Path:
    """Return the end of the path from v: every problem done, or `LIMIT` steps taken."""

    def goes_on(path: Path) -> jax.Array:
        return jnp.any(~path.done) & (jnp.max(path.iterations) < LIMIT)

    return jax.lax.while_loop(goes_on, lambda path: advanced(problem, path), begun(problem, v))


def advanced(problem: Problem, path: Path) -> Path:
    """Return the path after one step; problems that are done stay where they are."""
    objective, region, tilt = problem.objective, problem.region, problem.tilt
    v, width = path.v, path.width
    z = region.place(v)
    value = objective.value(z) - jnp.sum(tilt * z, axis=-1)
    at = objective.expand(z, width)
    slope, drift = _pulled(at.slope - tilt, region), _pulled(at.drift, region)
    slack, normals = region.slack(v), region.normals(v)
    multipliers = width[:, None] / slack
    push = jnp.einsum("bm,bmd->bd", multipliers, normals)
    system = jnp.einsum("bij,bik,bkl->bjl", region.basis, at.curvature, region.basis)
    system = system + jnp.einsum("bmd,bm,bme->bde", normals, multipliers / slack, normals)
    if region.shape == "ball":
        eye = jnp.eye(v.shape[-1])
        system = system + 2 * multipliers[:, -1, None, None] * eye
    newton, centring = _solved(system, jnp.stack([slope + push, drift + push], axis=-1))
    decrement = jnp.sum((slope + push) * newton, axis=-1)

    def bound(step: jax.Array, shrinkage: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the intrinsic gap and the lower bound of the tangent that the step leads to."""
        change = shrinkage - 1
        tangent = objective.tangent(at, z, region.place(v + step) - z, change)
        height, incline = objective.minorant(z, tangent)
        along = jnp.einsum("bmd,bd->bm", normals, step)
        carried = jnp.clip(multipliers * shrinkage[:, None] + multipliers / slack * along, 0.0)
        if region.shape == "space":
            rest = incline - tilt
            mu = objective.config.strong_convexity
            low = height - jnp.sum(incline * z, axis=-1) - 0.5 / mu * jnp.sum(rest * rest, axis=-1)
            return value - low, low
        rise, lean = objective.square(z, tangent)
        height = height + rise - jnp.sum(tilt * z, axis=-1)
        gap = value - height + width * slack.shape[-1]
        return gap, height + region.least(incline + lean - tilt, v, carried)

    predictor = -newton - (SHRINKAGE - 1) * centring
    gap, low = bound(-newton, jnp.ones_like(width))
    low = jnp.fmax(low, bound(predictor, jnp.full_like(width, SHRINKAGE))[1])
    better = value < path.best
    best = jnp.where(better, value, path.best)
    best_v = jnp.where(better[:, None], v, path.best_v)
    goal = problem.goal(best)
    shrinks = (decrement <= CENTRAL * width) & (gap > 0.5 * goal)
    step = jnp.where(shrinks[:, None], predictor, -newton)
    low = jnp.fmax(path.low, low - problem.margin)
    done = path.done | (best - low <= goal) | problem.early(best, low) | ~jnp.isfinite(value)
    width = jnp.clip(jnp.where(shrinks, SHRINKAGE * width, width), LEAST_WIDTH)
    moved = _best_length(problem, v, jnp.nan_to_num(step), width)
    count = path.iterations + 1
    return Path(
        jnp.where(path.done[:, None], path.v, moved),
        jnp.where(path.done, path.width, width),
        jnp.where(path.done, path.best, best),
        jnp.where(path.done[:, None], path.best_v, best_v),
        jnp.where(path.done, path.low, low),
        jnp.where(path.done, path.iterations, count),
        done,
    )


def _best_length(problem: Problem, v: jax.Array, step: jax.Array, width: jax.Array) -> jax.Array:
    """Return the best of `LENGTHS` points along a step, by smooth hull and barrier; the farthest where they tie."""
    region = problem.region
    halves = 0.5 ** jnp.arange(LENGTHS)
    lengths = jnp.clip(INSIDE * region.reach(v, step), max=1.0)[:, None] * halves
    tried = v[:, None] + lengths[..., None] * step[:, None]
    z = region.place(tried)
    widths = jnp.repeat(width, LENGTHS)
    heights = problem.objective.smooth(z.reshape(-1, z.shape[-1]), widths).reshape(lengths.shape)
    barrier = jnp.sum(jnp.log(region.slack(tried)), axis=-1)
    merit = heights - jnp.sum(problem.tilt[:, None] * z, axis=-1) - width[:, None] * barrier
    merit = jnp.nan_to_num(merit, nan=jnp.inf)
    lowest = jnp.min(merit, axis=-1, keepdims=True)
    chosen = (merit <= lowest + SAME * (1 + jnp.abs(lowest))) & jnp.isfinite(merit)
    return v + jnp.max(jnp.where(chosen, lengths, 0.0), axis=-1, keepdims=True) * step


def _pulled(slope: jax.Array, region: Region) -> jax.Array:
    """Return a slope in z as one in v."""
    return jnp.einsum("bij,bi->bj", region.basis, slope)


def _solved(system: jax.Array, right: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the solutions for the two columns of `right`, (B, d, 2), by Cholesky's method, refined once."""
    scale = jax.lax.rsqrt(jnp.clip(jnp.diagonal(system, axis1=1, axis2=2), 1e-300))
    eye = jnp.eye(system.shape[-1])
    scaled, wanted = system * scale[:, :, None] * scale[:, None], right * scale[..., None]
    root = jnp.linalg.cholesky(scaled + REGULAR * eye)

    def solution(columns: jax.Array) -> jax.Array:
        half = triangular_solve(root, columns, left_side=True, lower=True)
        return triangular_solve(root, half, left_side=True, lower=True, transpose_a=True)

    found = solution(wanted)
    found = found + solution(wanted - scaled @ found)
    found = scale[..., None] * jnp.where(jnp.isnan(found), wanted, found)  # or a step down the gradient
    return found[..., 0], found[..., 1]
