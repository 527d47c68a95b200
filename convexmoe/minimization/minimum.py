"""Minimize a trained hull over a set, with a certified gap."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ..arrays import Array, as_array, einsum, library, namespace, zeros
from ..errors import fail
from ..hull.config import HullConfig
from ..hull.parameters import Tree
from .central_path import LEAST_WIDTH, Path, Problem, follow_path, keep_where
from .polytopes import enter
from .regions import FARTHEST, Region, region
from .scalar_hull import EPSILON, ScalarHull, scalar_hull
from .sets import Box, Constraints, Polytope, leading_axes
from .solver import check_hull, check_point, check_tolerance

Shape = tuple[int, ...]
SOLVED, UNCERTIFIED, EMPTY, UNBOUNDED, BROKEN = range(5)
FAR = 1e3  # input scales from the mean of the inputs: where coordinates without a bound are cut off first
NEAR = 10.0  # with strong convexity, which tells whether that was far enough
GROWTH = 32.0  # of a cut, up to FARTHEST, that the point is at, or outside of which the set lies
AT_CUT = 0.9  # of the way to it
LOOSEST = 100.0  # times tol, in output scales: an offset of the output, or a tiny unit of it, must not make tol coarse
CUT_TOLERANCE = 1e-9  # of the gap, where a set is cut: a slope along it must drive the point to the cut

FAULTS = (
    (BROKEN, "model", "finite weights and values", "inf or nan", "Train it again, or use a smaller set."),
    (EMPTY, "constraints", "a set with a point in it", "an empty set", "Loosen some of its bounds."),
    (UNBOUNDED, "constraints", "a set in which the model is bounded below", "one without a minimum", "Add bounds."),
)


class Minimum(NamedTuple):
    """The result of `minimize`; one entry a problem, in float64 and in the units of the model.

    Args:
        x: the best point found, `[..., in_dim]`, in the set.
        value: the hull there, `[...]`, computed in float64.
        lower_bound: `[...]`: no point of the set has a lower value.
        gap: `[...]`: at least `value - min`.
        iterations: steps of Newton's method, int64 `[...]`.
        status: int64 `[...]`: 0 the gap is within tol; 1 it is not, inf where no point of a polytope was found up to
            rounding; 2 the set is empty, or no set (a negative radius, NaN); 3 the hull falls without end in it; 4
            values are not finite. lower_bound is -inf and gap inf at 2, 3 and 4, x and value NaN at 2 and 4.
    """

    x: Array
    value: Array
    lower_bound: Array
    gap: Array
    iterations: Array
    status: Array


def minimize(
    model: Any, constraints: Constraints, x0: Any = None, tol: float = 1e-6, *, output: int | None = None
) -> Minimum:
    """Minimize one output of a hull over a set, for one problem or for a batch of them.

    A hull of JAX is minimized in numpy, without a compilation, where all values are known; inside `jax.jit` and
    `jax.vmap` the same solver is compiled. A hull of PyTorch is minimized on its device.

    Guarantee: `value - gap <= min <= value`, up to `gap` of rounding: lower_bound is the least value over the set of an
    affine function that lies nowhere above the hull, lowered by a first-order bound on its own rounding in float64
    (tests/contract/test_minimize.py, against Clarabel). The hull is the one with the given weights, computed in
    float64. A set without a bound is cut off, further and further out while the point is at a cut, up to `FARTHEST`
    input scales from the mean of the inputs. With strong convexity the cut leaves no lower point out; without, the
    interval is of the part within the cut, of `FAR` scales at least, and convexity carries it on: r times as far out
    nothing is lower than `value - r gap`.

    Args:
        model: a `VectorHull` or `FoldedHull`.
        constraints: a `Box`, `Ball`, `Simplex` or `Polytope`, in the units of the model; leading axes are problems.
        x0: where to start, `[..., in_dim]`, None for the middle of the set; it need not lie in it.
        tol: stop at `gap <= tol (1 + |value|)`, and at `LOOSEST` tol of the scale of the output or less.
        output: which output, where the model has several.

    Raises:
        TypeError: no hull, no set, x0 no array of numbers.
        ValueError: dimensions do not match, tol is not in (0, 1], weights are not finite; of a single problem that the
            set is empty, or that the hull has no minimum in it: a batch tells that in `status`.
    """
    solver, _ = check_hull("minimize", model, output)
    minimum = minimize_unchecked(model, constraints, x0, tol, output=output)
    status = solver.known(minimum.status)
    if status is not None and (status.ndim == 0 or (status == BROKEN).all()):
        for code, argument, rule, got, fix in FAULTS:
            if (status == code).any():
                fail("minimize", argument, rule, got, fix)
    return minimum


def minimize_unchecked(
    model: Any, constraints: Any, x0: Any = None, tol: float = 1e-6, *, output: int | None = None
) -> Minimum:
    """Return the result of `minimize`; faults of the values are in `status`, as under a compiler."""
    solver, output = check_hull("minimize", model, output)
    D = model.config.in_dim
    problems = leading_axes("minimize", constraints, D)
    check_tolerance("minimize", tol, solver)
    if x0 is not None:
        x0 = check_point("minimize", x0, D, problems, solver)
        problems = np.broadcast_shapes(problems, tuple(x0.shape[:-1]))
    static = {"output": output, "problems": problems}
    return solver.solve(find_minimum, model, (constraints, x0, tol), static)


def find_minimum(
    weights: Tree, constraints: Any, start: Array | None, tol: Any, *, config: HullConfig, output: int, problems: Shape
) -> Minimum:
    """Return the record of `minimize` for problems with these leading axes, from effective weights in float64."""
    hull, D, B = scalar_hull(weights, config, output), config.in_dim, math.prod(problems)
    xp, like = namespace(hull.shifts), hull.input_mean
    if start is not None:
        start = xp.reshape(xp.broadcast_to(as_array(start, like), (*problems, D)), (B, D))
        start = hull.normalize(start)
    none = zeros((B,), like)
    count = xp.zeros_like(none, dtype=xp.int64)
    first = Minimum(zeros((B, D), like), none, none, none, count, count)
    if B == 0:
        return Minimum(*(part.reshape((*problems, *part.shape[1:])) for part in first))

    def goes_on(state: tuple[Array, Minimum, Array]) -> Array:
        far, _, settled = state
        return xp.any(~settled) & (far < FARTHEST)

    def widen(state: tuple[Array, Minimum, Array]) -> tuple[Array, Minimum, Array]:
        far, last, settled = state
        far = xp.where(far == 0, NEAR if config.strong_convexity > 0 else FAR, GROWTH * far)
        far = xp.clip(far, max=FARTHEST)
        cut = Cut(hull, constraints, tol, problems, xp.broadcast_to(far, (B,)), settled)
        wider, enough = minimize_within(cut, start)
        return far, keep_where(settled, last, wider), settled | enough

    state = (zeros((), like), first, xp.zeros_like(none, dtype=xp.bool))
    _, minimum, settled = library(like).while_loop(goes_on, widen, state)
    minimum = mark_unbounded(minimum, settled)
    return Minimum(*(part.reshape((*problems, *part.shape[1:])) for part in minimum))


class Cut(NamedTuple):
    """Problems over sets that are cut off where they have no bound.

    Args:
        hull: what is minimized; constraints: the sets, with leading axes `problems`; tol: as of `minimize`.
        far: (B,), input scales from the mean of the inputs to the cuts; idle: (B,), problems that are settled.
    """

    hull: ScalarHull
    constraints: Any
    tol: Any
    problems: Shape
    far: Array
    idle: Array


def minimize_within(cut: Cut, start: Array | None) -> tuple[Minimum, Array]:
    """Return the record, one row a problem, and whether the cut was far enough; start: (B, D), normalized, or None."""
    hull = cut.hull
    v, space = enter(region(cut.constraints, hull, cut.problems, cut.far), cut.idle)
    xp = namespace(v)
    if start is not None:
        v = approach(space, v, start)
    offset, factor = hull.output_mean, hull.output_scale
    reach = space.extent() + 2 * xp.abs(hull.input_mean / hull.input_scale)
    margin = hull.rounding(reach)
    is_cut = xp.any(space.open, axis=-1)
    tight = is_cut & (hull.config.strong_convexity == 0)

    def goal(best: Array) -> Array:
        size = xp.minimum((1 + xp.abs(offset + factor * best)) / factor, LOOSEST * (1 + xp.abs(best)))
        wanted = cut.tol * size - 2 * margin
        close = xp.maximum(CUT_TOLERANCE * size, 8 * margin)
        return xp.where(tight, xp.minimum(wanted, close), wanted)

    def early(best: Array, low: Array) -> Array:
        return space.empty | cut.idle

    path = follow_path(Problem(hull, space, xp.zeros_like(reach), goal, early, margin), v)
    minimum = record(path, cut, space, margin)
    if not space.open.shape[-1]:
        return minimum, ~is_cut
    return minimum, ~is_cut | is_far_enough(path, hull, space, minimum)


def is_far_enough(path: Path, hull: ScalarHull, space: Region, minimum: Minimum) -> Array:
    """Return whether the cuts leave the minimum in, (B,).

    With strong convexity mu it is no further from a point of the set than `2 ||slope|| / mu`, slope a subgradient
    there. Without, the point must not be at a cut.
    """
    xp = namespace(path.v)
    z, at = space.place(path.best_v), space.outer(path.best_v)
    mu = hull.config.strong_convexity
    if mu > 0:
        width = xp.full_like(path.width, LEAST_WIDTH)
        radius = 2.01 / mu * xp.linalg.vector_norm(hull.expand(z, width).slope, axis=-1)
        half = xp.linalg.diagonal(space.basis if space.frame is None else space.frame.basis)
        near = xp.concat([(1 - at) * half, (1 + at) * half], axis=-1) < radius[:, None]
    else:
        near = xp.concat([at > AT_CUT, at < -AT_CUT], axis=-1)
    return ~xp.any(space.open & near, axis=-1) & (minimum.status != EMPTY)


def mark_unbounded(minimum: Minimum, settled: Array) -> Minimum:
    """Return the record after the last cut: what has not settled by then is empty, or has no minimum."""
    xp = namespace(settled)
    falls = ~settled & (minimum.status != EMPTY)
    status = xp.where(falls & (minimum.status != BROKEN), UNBOUNDED, minimum.status)
    lost, nowhere = status > UNCERTIFIED, (status == EMPTY) | (status == BROKEN)
    return minimum._replace(
        x=xp.where(nowhere[:, None], xp.nan, minimum.x),
        value=xp.where(nowhere, xp.nan, minimum.value),
        lower_bound=xp.where(lost, -xp.inf, minimum.lower_bound),
        gap=xp.where(lost, xp.inf, minimum.gap),
        status=status,
    )


def record(path: Path, cut: Cut, space: Region, margin: Array) -> Minimum:
    """Return the record of a path's end, one row a problem, in the units of the model."""
    xp, hull, constraints = namespace(path.v), cut.hull, cut.constraints
    offset, factor = hull.output_mean, hull.output_scale
    x = hull.input_mean + hull.input_scale * space.place(path.best_v)
    outside = xp.zeros_like(space.empty)
    if isinstance(constraints, Box):  # rounding must not lead out of it
        bounds = [as_array(side, x) for side in (constraints.lower, constraints.upper)]
        low, high = (xp.reshape(xp.broadcast_to(b, (*cut.problems, x.shape[-1])), tuple(x.shape)) for b in bounds)
        x = xp.minimum(xp.maximum(x, low), high)
    if isinstance(constraints, Polytope):
        outside = is_outside(x, hull, constraints, cut.problems)
    value = offset + factor * hull.value(hull.normalize(x))
    lower = offset + factor * path.low
    gap = value - lower + factor * margin
    gap = xp.where(outside, xp.inf, gap)
    broken = ~(xp.isfinite(value) & xp.isfinite(path.best))
    solved = gap <= cut.tol * (1 + xp.abs(value))
    status = xp.where(solved, SOLVED, xp.full_like(path.iterations, UNCERTIFIED))
    for code, which in ((BROKEN, broken), (EMPTY, space.empty)):
        status = xp.where(which, code, status)
    return Minimum(x, value, lower, gap, path.iterations, status)


def is_outside(x: Array, hull: ScalarHull, polytope: Polytope, problems: Shape) -> Array:
    """Return whether points, (B, D), break a row by more than the rounding of x and of the row."""
    xp, (B, D) = namespace(x), x.shape
    A, b = as_array(polytope.A, x), as_array(polytope.b, x)
    A = xp.reshape(xp.broadcast_to(A, (*problems, *A.shape[-2:])), (B, *A.shape[-2:]))
    b = xp.reshape(xp.broadcast_to(b, (*problems, b.shape[-1])), (B, b.shape[-1]))
    sizes = xp.abs(x) + xp.abs(hull.input_mean) + hull.input_scale
    rounding = xp.abs(b) + einsum("bmd,bd->bm", xp.abs(A), sizes)
    left = einsum("bmd,bd->bm", A, x) - b
    return xp.any(left > 4 * (D + 8) * EPSILON * rounding, axis=-1)


def approach(space: Region, v: Array, z: Array) -> Array:
    """Return the point nine tenths of the way from v towards z, or as far as the region goes; v for a z not finite."""
    xp = namespace(v)
    z = xp.where(xp.isfinite(z), z, space.place(v))
    step = einsum("bij,bj->bi", xp.linalg.pinv(space.basis), z - space.center) - v
    return v + xp.clip(0.9 * space.reach(v, step), max=1.0)[:, None] * step
