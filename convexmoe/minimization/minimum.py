"""Minimize a trained hull over a set, with a certified gap."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..arrays import Array, as_array, einsum, library, namespace, zeros
from ..errors import fail
from ..hull.config import HullConfig
from ..hull.parameters import Tree
from .central_path import Path, Problem, follow_path, keep_where
from .cuts import CUT_TOLERANCE, FAR, Cut, find_fall, is_far_enough
from .outputs import scalar_hull
from .polytopes import enter
from .regions import FARTHEST, Region, each_problem, is_outside, region
from .sets import Box, Constraints, Polytope, leading_axes
from .solver import Record, Solver, check_contexts, check_curvature, check_hull, check_point, check_tolerance

Shape = tuple[int, ...]
SOLVED, UNCERTIFIED, EMPTY, UNBOUNDED, BROKEN = range(5)
NEAR = 100.0  # input scales from the mean of the inputs: where coordinates without a bound are cut off first
NEARER = 10.0  # with strong convexity
FEW = 16  # numbers of a direction that a message shows
GROWTH = 32.0  # of a cut that was not far enough, up to FARTHEST
LOOSEST = 100.0  # times tol, in output scales: an offset of the output, or a tiny unit of it, must not make tol coarse

FAULTS = (
    (BROKEN, "model", "finite weights and values", "inf or nan", "Train it again, or use a smaller set."),
    (EMPTY, "constraints", "a set with a point in it", "an empty set", "Loosen some of its bounds."),
    (UNBOUNDED, "constraints", "a set in which the model is bounded {}", "one without a {}", "Add bounds."),
)
WORDS = {"minimize": ("below", "minimum", "falls"), "maximize": ("above", "maximum", "rises")}


class Minimum(NamedTuple):
    """The result of `minimize`; one entry a problem, in float64 and in the units of the model.

    Args:
        x: the best point found, `[..., in_dim]`, in the set.
        value: the hull there, `[...]`, computed in float64.
        lower_bound: `[...]`: no point of the set has a lower value.
        gap: `[...]`: at least `value - min`.
        iterations: steps of Newton's method, int64 `[...]`.
        status: int64 `[...]`: 0 the gap is within tol; 1 it is not, inf where no point of a polytope was found up to
            rounding, or no minimum within `FARTHEST`; 2 the set is empty, or no set (a negative radius, NaN); 3 the
            hull falls without end in it; 4 values are not finite. lower_bound is -inf and gap inf at 2, 3 and 4, x and
            value NaN at 2 and 4.
        direction: `[..., in_dim]`: at 3, in which the set has no end and the hull falls without end; 0 elsewhere.
    """

    x: Array
    value: Array
    lower_bound: Array
    gap: Array
    iterations: Array
    status: Array
    direction: Array


def minimize(
    model: Any,
    constraints: Constraints,
    x0: Any = None,
    tol: float = 1e-6,
    *,
    output: int | None = None,
    context: Any = None,
) -> Minimum:
    """Minimize one output of a convex hull over a set, for one problem or for a batch of them.

    A hull of JAX is minimized in numpy, without a compilation, where all values are known; inside `jax.jit` and
    `jax.vmap` the same solver is compiled. A hull of PyTorch is minimized on its device.

    Guarantee: `value - gap <= min <= value`, up to `gap` of rounding: lower_bound is the least value over the set of an
    affine function that lies nowhere above the hull, lowered by a first-order bound on its own rounding in float64
    (tests/contract/test_minimize.py, against Clarabel). The hull is the one with the given weights, computed in
    float64; of a hull with a context it is the plain one in x at that context, its weights computed in float64
    (tests/contract/test_minimize_context.py). A set without a bound, or a wide box, is cut off, further and further out
    up to `FARTHEST` input scales from the mean of the inputs, until faces of the cut, or strong convexity, tell that
    nothing outside is lower. Where they do not, as on polytopes or where the hull is flat, the interval is of the part
    within a cut of `NEAR` scales at least, with no lower value within `FAR`, and convexity carries it on: r times as
    far out nothing is lower than `value - r gap`. A hull is refused only with a direction in which it falls
    (tests/contract/test_minimize_cuts.py).

    Args:
        model: a `VectorHull` or `FoldedHull`.
        constraints: a `Box`, `Ball`, `Simplex` or `Polytope`, in the units of the model; leading axes are problems.
        x0: where to start, `[..., in_dim]`, None for the middle of the set; it need not lie in it.
        tol: stop at `gap <= tol (1 + |value|)`, and at `LOOSEST` tol of the scale of the output or less.
        output: which output, where the model has several.
        context: `[..., context_dim]`, in original units, for a hull that has one; its leading axes, those of the set
            and those of x0 are broadcast, so that a batch of contexts is a batch of problems.

    Raises:
        TypeError: no hull, no set, x0 or context no array of numbers, no context where there is one.
        ValueError: the hull is concave: its minimum lies at a corner; dimensions do not match, tol is not in (0, 1],
            weights or contexts are not finite; of a single problem that the set is empty, or that the hull falls
            without end in it, and along which direction: a batch tells that in `status` and `direction`.
    """
    solver, _ = check_hull("minimize", model, output)
    got, fix = "a concave one, of which a minimum lies at a corner of the set", "Call maximize."
    check_curvature("minimize", model.config, "convex", got, fix)
    minimum = minimize_unchecked(model, constraints, x0, tol, output=output, context=context)
    raise_faults("minimize", minimum, solver)
    return minimum


def raise_faults(owner: str, found: Any, solver: Solver) -> None:
    """Raise the error of a single problem whose record tells of none, or of weights that are not finite."""
    status = solver.known(found.status)
    if status is None or not (status.ndim == 0 or (status == BROKEN).all()):
        return
    side, end, moves = WORDS[owner]
    for code, argument, rule, got, fix in FAULTS:
        if (status == code).any():
            if code == UNBOUNDED:
                along = describe_direction(np.asarray(solver.known(found.direction)))
                rule, got = rule.format(side), f"{got.format(end)}: it {moves} without end along {along}"
            fail(owner, argument, rule, got, fix)


def describe_direction(direction: np.ndarray) -> str:
    """Return the first numbers of a direction, `[in_dim]`."""
    more = ", ..." if len(direction) > FEW else ""
    return f"[{', '.join(f'{number:.6g}' for number in direction[:FEW])}{more}]"


def minimize_unchecked(
    model: Any, constraints: Any, x0: Any = None, tol: float = 1e-6, *, output: int | None = None, context: Any = None
) -> Minimum:
    """Return the result of `minimize`; faults of the values are in `status`, as under a compiler."""
    return solve_unchecked("minimize", find_minimum, model, constraints, x0, tol, output, context)


def solve_unchecked(
    owner: str,
    function: Callable[..., Record],
    model: Any,
    constraints: Any,
    x0: Any,
    tol: Any,
    output: int | None,
    context: Any,
) -> Record:
    """Return what `find_minimum`, or another function of its arguments, gives; values are not checked."""
    solver, output = check_hull(owner, model, output)
    D = model.config.in_dim
    problems = leading_axes(owner, constraints, D)
    context, problems = check_contexts(owner, model, context, problems, solver, "the set's")
    check_tolerance(owner, tol, solver)
    if x0 is not None:
        x0 = check_point(owner, x0, D, problems, solver)
        problems = np.broadcast_shapes(problems, tuple(x0.shape[:-1]))
    static = {"output": output, "problems": problems}
    return solver.solve(function, model, (constraints, x0, tol, context), static)


def find_minimum(
    weights: Tree,
    constraints: Any,
    start: Array | None,
    tol: Any,
    context: Array | None,
    *,
    config: HullConfig,
    output: int,
    problems: Shape,
) -> Minimum:
    """Return the record of `minimize` for problems with these leading axes, from effective weights in float64.

    Of a concave hull it is that of minus the hull.
    """
    D, B = config.in_dim, math.prod(problems)
    hull = scalar_hull(weights, config, output, context, problems)
    xp, like = namespace(hull.shifts), hull.input_mean
    if start is not None:
        start = xp.reshape(xp.broadcast_to(as_array(start, like), (*problems, D)), (B, D))
        start = hull.normalize(start)
    none = zeros((B,), like)
    count = xp.zeros_like(none, dtype=xp.int64)
    first = Minimum(zeros((B, D), like), none, none, none, count, xp.full_like(count, EMPTY), zeros((B, D), like))
    if B == 0:
        return Minimum(*(part.reshape((*problems, *part.shape[1:])) for part in first))

    endless = region(constraints, hull, problems, xp.full_like(none, FARTHEST)).open
    no, least_cut = zeros((), like) > 0, NEARER if config.strong_convexity > 0 else NEAR

    def goes_on(state: tuple[Array, ...]) -> Array:
        far, _, settled, *_ = state
        return xp.any(~settled) & (far < FARTHEST)

    def widen(state: tuple[Any, ...]) -> tuple[Any, ...]:
        far, last, settled, fall, asks = state
        wider = xp.clip(xp.where(far == 0, least_cut, GROWTH * far), max=FARTHEST)
        wider = xp.where(asks, far, wider)
        cut = Cut(hull, constraints, tol, problems, endless, fall, xp.broadcast_to(wider, (B,)), settled, asks)
        minimum, enough, fall = minimize_within(cut, start, last)
        minimum = keep_where(settled | asks, last, minimum)
        # after the first cut directions are asked for once
        asks = (far == 0) & hull.can_fall & xp.any(endless)
        return wider, minimum, settled | (enough & ~cut.asks), fall, asks

    state = (zeros((), like), first, xp.zeros_like(none, dtype=xp.bool), first.direction, no)
    _, minimum, settled, fall, _ = library(like).while_loop(goes_on, widen, state)
    minimum = mark_unbounded(minimum, hull.input_scale * fall, settled)
    return Minimum(*(part.reshape((*problems, *part.shape[1:])) for part in minimum))


def minimize_within(cut: Cut, start: Array | None, last: Minimum) -> tuple[Minimum, Array, Array]:
    """Return the record, one row a problem, whether the cut was far enough, and directions of fall, (B, D).

    Args:
        start: (B, D), normalized, or None; last: the record of the cut before.
    """
    hull, fall = cut.hull, cut.fall
    xp, convex = namespace(fall), hull.config.strong_convexity == 0
    asks = cut.asks if hull.can_fall and cut.endless.shape[-1] else None
    idle = cut.idle if asks is None else cut.idle | (asks & ~xp.any(cut.endless, axis=-1))
    v, space = enter(region(cut.constraints, hull, cut.problems, cut.far, asks), idle)
    if asks is not None:
        fall = fall + find_fall(cut, v, space, idle | space.empty | ~asks)
    falls = xp.any(fall != 0, axis=-1)
    if start is not None:
        v = approach(space, v, start)
    offset, factor = hull.output_mean, hull.output_scale
    margin = hull.rounding(space.extent())
    far = (cut.far >= FAR) & ~xp.any(space.open & ~cut.endless, axis=-1)  # beyond is nothing, or no end
    tight = far & xp.any(space.open, axis=-1) & ~falls & convex

    def size(best: Array) -> Array:
        return xp.minimum((1 + xp.abs(offset + factor * best)) / factor, LOOSEST * (1 + xp.abs(best)))

    def goal(best: Array) -> Array:
        wanted = cut.tol * size(best) - 2 * margin
        close = xp.maximum(CUT_TOLERANCE * size(best), 8 * margin)
        return xp.where(tight, xp.minimum(wanted, close), wanted)

    def early(best: Array, low: Array) -> Array:
        return space.empty | cut.idle | cut.asks

    path = follow_path(Problem(hull, space, xp.zeros_like(space.center), goal, early, margin), v)
    minimum = record(path, cut, space, margin)
    if not cut.endless.shape[-1]:
        return minimum, xp.ones_like(space.empty), fall
    enough = is_far_enough(cut, path, space, margin)
    if hull.config.nonnegative:
        enough = enough | ((minimum.status == SOLVED) & (minimum.lower_bound == 0))  # which holds everywhere
    if convex:
        close = xp.maximum(last.gap, CUT_TOLERANCE * factor * size(path.best))
        level = far & (last.status <= UNCERTIFIED) & (last.value - minimum.value <= close) & xp.isfinite(close)
        minimum = keep_where(level & ~enough & (last.gap <= minimum.gap), last, minimum)
        enough = enough | level | falls
    return minimum, enough & ~(space.empty & xp.any(space.open, axis=-1)), fall


def mark_unbounded(minimum: Minimum, direction: Array, settled: Array) -> Minimum:
    """Return the record after the last cut, with the directions, (B, D), in which the hull falls without end."""
    xp = namespace(settled)
    nowhere = (minimum.status == EMPTY) | (minimum.status == BROKEN)
    falls = xp.any(direction != 0, axis=-1) & ~nowhere
    lost = falls | nowhere | ~settled
    return minimum._replace(
        x=xp.where(nowhere[:, None], xp.nan, minimum.x),
        value=xp.where(nowhere, xp.nan, minimum.value),
        lower_bound=xp.where(lost, -xp.inf, minimum.lower_bound),
        gap=xp.where(lost, xp.inf, minimum.gap),
        status=xp.where(falls, UNBOUNDED, xp.where(lost & ~nowhere, UNCERTIFIED, minimum.status)),
        direction=xp.where(falls[:, None], direction, 0.0),
    )


def record(path: Path, cut: Cut, space: Region, margin: Array) -> Minimum:
    """Return the record of a path's end, one row a problem, in the units of the model."""
    xp, hull, constraints = namespace(path.v), cut.hull, cut.constraints
    offset, factor = hull.output_mean, hull.output_scale
    x = hull.input_mean + hull.input_scale * space.place(path.best_v)
    outside = xp.zeros_like(space.empty)
    if isinstance(constraints, Box):  # rounding must not lead out of it
        low, high = each_problem(constraints, cut.problems, x)
        x = xp.minimum(xp.maximum(x, low), high)
    if isinstance(constraints, Polytope):
        A, b = each_problem(constraints, cut.problems, x)
        outside = is_outside(x, A, b, hull)
    value = offset + factor * hull.value(hull.normalize(x))
    lower = offset + factor * path.low
    if hull.config.nonnegative:
        lower = xp.clip(lower, min=0.0)
    gap = value - lower + factor * margin
    gap = xp.where(outside, xp.inf, gap)
    broken = ~(xp.isfinite(value) & xp.isfinite(path.best))
    solved = gap <= cut.tol * (1 + xp.abs(value))
    status = xp.where(solved, SOLVED, xp.full_like(path.iterations, UNCERTIFIED))
    for code, which in ((BROKEN, broken), (EMPTY, space.empty)):
        status = xp.where(which, code, status)
    return Minimum(x, value, lower, gap, path.iterations, status, xp.zeros_like(x))


def approach(space: Region, v: Array, z: Array) -> Array:
    """Return the point nine tenths of the way from v towards z, or as far as the region goes; v for a z not finite."""
    xp = namespace(v)
    z = xp.where(xp.isfinite(z), z, space.place(v))
    step = einsum("bij,bj->bi", xp.linalg.pinv(space.basis), z - space.center) - v
    return v + xp.clip(0.9 * space.reach(v, step), max=1.0)[:, None] * step
