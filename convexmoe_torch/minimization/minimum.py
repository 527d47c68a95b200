"""Minimise a trained hull over a set, with a certified gap."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from convexmoe.errors import describe, fail
from convexmoe.minimization.sets import Box, Constraints, Polytope, checked_set

from .central_path import LEAST_WIDTH, Path, Problem, followed
from .polytopes import inside
from .regions import FARTHEST, Region, region
from .scalar_hull import EPSILON, ScalarHull, checked_output, scalar_hull

SOLVED, UNCERTIFIED, EMPTY, UNBOUNDED, BROKEN = range(5)
LARGEST_TOLERANCE = 1.0
FAR = 1e3  # input scales from the mean of the inputs: where coordinates without a bound are cut off first
NEAR = 10.0  # with strong convexity, which tells whether that was far enough
GROWTH = 32.0  # of a cut, up to FARTHEST, that the point is at, or outside of which the set lies
AT_CUT = 0.9  # of the way to it
CUT_TOLERANCE = 1e-9  # of the gap, where a set is cut: a slope along it must drive the point to the cut


class Minimum(NamedTuple):
    """What `minimize` returns; one entry a problem, in float64 and in the units of the model.

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

    x: Tensor
    value: Tensor
    lower_bound: Tensor
    gap: Tensor
    iterations: Tensor
    status: Tensor


def minimize(
    model: Any,
    constraints: Constraints,
    x0: Any = None,
    tol: float = 1e-6,
    *,
    output: int | None = None,
) -> Minimum:
    """Minimise one output of a hull over a set, for one problem or for a batch of them.

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
        tol: stop at `gap <= tol (1 + |value|)`.
        output: which output, where the model has several.

    Raises:
        TypeError: no hull, no set, x0 no array of numbers.
        ValueError: dimensions do not match, tol is not in (0, 1], weights are not finite; of a single problem that the
            set is empty, or that the hull has no minimum in it: a batch tells that in `status`.

    >>> from convexmoe_torch import Box, VectorHull
    >>> found = minimize(VectorHull(2, petals=3, out_dim=1), Box([-1.0, -1.0], [1.0, 1.0]))
    >>> bool(found.gap <= 1e-6 * (1 + abs(found.value)))
    True
    """
    found = minimized(model, constraints, x0, tol, output=output)
    if found.status.ndim == 0 or bool((found.status == BROKEN).all()):
        for code, argument, rule, got, fix in FAULTS:
            if bool((found.status == code).any()):
                fail("minimize", argument, rule, got, fix)
    return found


FAULTS = (
    (BROKEN, "model", "finite weights and values", "inf or nan", "Train it again, or use a smaller set."),
    (EMPTY, "constraints", "a set with a point in it", "an empty set", "Loosen some of its bounds."),
    (
        UNBOUNDED,
        "constraints",
        "a set in which the model is bounded below",
        "one without a minimum",
        "Add bounds.",
    ),
)


@torch.no_grad()
def minimized(
    model: Any, constraints: Any, x0: Any = None, tol: float = 1e-6, *, output: int | None = None
) -> Minimum:
    """Return what `minimize` does; faults of the values are in `status`, as under a compiler."""
    chosen = checked_output("minimize", model, output)
    D = model.config.in_dim
    problems = checked_set("minimize", constraints, D)
    checked_tolerance("minimize", tol)
    start = None
    if x0 is not None:
        start = checked_point("minimize", x0, D, problems)
        problems = torch.broadcast_shapes(problems, start.shape[:-1])
    hull, B = scalar_hull(model, chosen), math.prod(problems)
    if start is not None:
        wanted = torch.broadcast_to(start.to(hull.input_mean), (*problems, D)).reshape(B, D)
        start = hull.normalized(wanted)
    if B == 0:
        none, count = hull.input_mean.new_zeros(problems), torch.zeros(problems, dtype=torch.int64)
        return Minimum(none[..., None].expand(*problems, D), none, none, none, count, count)
    far = hull.input_mean.new_full((B,), NEAR if hull.config.strong_convexity > 0 else FAR)
    found, settled = _attempt(hull, constraints, start, tol, problems, far, torch.zeros_like(far) > 0)
    while not bool(torch.all(settled)) and float(far[0]) < FARTHEST:
        far = torch.clamp(GROWTH * far, max=FARTHEST)
        wider, enough = _attempt(hull, constraints, start, tol, problems, far, settled)
        kept = zip(found, wider, strict=True)
        found = Minimum(*(torch.where(settled if a.ndim == 1 else settled[:, None], a, b) for a, b in kept))
        settled = settled | enough
    found = _ended(found, settled)
    return Minimum(*(part.reshape((*problems, *part.shape[1:])) for part in found))


def _attempt(
    hull: ScalarHull,
    constraints: Any,
    start: Tensor | None,
    tol: float,
    problems: tuple[int, ...],
    far: Tensor,
    idle: Tensor,
) -> tuple[Minimum, Tensor]:
    """Return the record, one row a problem, of sets cut off `far` scales away, and whether that was far enough.

    Args:
        start: (B, D) in normalized units, or None; idle: (B,): problems that nothing is asked about.
    """
    space = region(constraints, hull, problems, far)
    v, space = inside(space, idle)
    if start is not None:
        v = _moved(space, v, start)
    offset, factor = hull.output_mean, hull.output_scale
    reach = space.extent() + 2 * torch.abs(hull.input_mean / hull.input_scale)
    margin = hull.rounding(reach)
    cut = torch.any(space.open, dim=-1)
    tight = cut & (hull.config.strong_convexity == 0)

    def goal(best: Tensor) -> Tensor:
        size = (1 + torch.abs(offset + factor * best)) / factor
        wanted = tol * size - 2 * margin
        close = torch.maximum(CUT_TOLERANCE * size, 8 * margin)
        return torch.where(tight, torch.minimum(wanted, close), wanted)

    def early(best: Tensor, low: Tensor) -> Tensor:
        return space.empty | idle

    path = followed(Problem(hull, space, torch.zeros_like(reach), goal, early, margin), v)
    found = _reported(path, hull, space, constraints, margin, tol, problems)
    if not space.open.shape[-1]:
        return found, ~cut
    return found, ~cut | _far_enough(path, hull, space, found)


def _far_enough(path: Path, hull: ScalarHull, space: Region, found: Minimum) -> Tensor:
    """Return whether the cuts leave the minimum in, (B,).

    With strong convexity mu it is no further from a point of the set than `2 ||slope|| / mu`, slope a subgradient
    there. Without, the point must not be at a cut.
    """
    z, at = space.place(path.best_v), space.outer(path.best_v)
    mu = hull.config.strong_convexity
    if mu > 0:
        width = torch.full_like(path.width, LEAST_WIDTH)
        radius = 2.01 / mu * torch.linalg.vector_norm(hull.expand(z, width).slope, dim=-1)
        half = torch.diagonal(space.basis if space.frame is None else space.frame.basis, dim1=1, dim2=2)
        near = torch.cat([(1 - at) * half, (1 + at) * half], dim=-1) < radius[:, None]
    else:
        near = torch.cat([at > AT_CUT, at < -AT_CUT], dim=-1)
    return ~torch.any(space.open & near, dim=-1) & (found.status != EMPTY)


def _ended(found: Minimum, settled: Tensor) -> Minimum:
    """Return the record after the last cut: what has not settled by then is empty, or has no minimum."""
    falls = ~settled & (found.status != EMPTY)
    status = torch.where(falls & (found.status != BROKEN), UNBOUNDED, found.status)
    lost, nowhere = status > UNCERTIFIED, (status == EMPTY) | (status == BROKEN)
    return found._replace(
        x=torch.where(nowhere[:, None], torch.nan, found.x),
        value=torch.where(nowhere, torch.nan, found.value),
        lower_bound=torch.where(lost, -torch.inf, found.lower_bound),
        gap=torch.where(lost, torch.inf, found.gap),
        status=status,
    )


def _reported(
    path: Path,
    hull: ScalarHull,
    space: Region,
    constraints: Any,
    margin: Tensor,
    tol: float,
    problems: tuple[int, ...],
) -> Minimum:
    """Return the record of a path's end, one row a problem, in the units of the model."""
    offset, factor = hull.output_mean, hull.output_scale
    x = hull.input_mean + hull.input_scale * space.place(path.best_v)
    outside = torch.zeros_like(space.empty)
    if isinstance(constraints, Box):  # rounding must not lead out of it
        bounds = [torch.as_tensor(side).to(x) for side in (constraints.lower, constraints.upper)]
        low, high = (torch.broadcast_to(b, (*problems, x.shape[-1])).reshape(x.shape) for b in bounds)
        x = torch.minimum(torch.maximum(x, low), high)
    if isinstance(constraints, Polytope):
        outside = _outside(x, hull, constraints, problems)
    value = offset + factor * hull.value(hull.normalized(x))
    lower = offset + factor * path.low
    gap = value - lower + factor * margin
    gap = torch.where(outside, torch.inf, gap)
    broken = ~(torch.isfinite(value) & torch.isfinite(path.best))
    status = torch.where(gap <= tol * (1 + torch.abs(value)), SOLVED, UNCERTIFIED)
    for code, which in ((BROKEN, broken), (EMPTY, space.empty)):
        status = torch.where(which, code, status)
    return Minimum(x, value, lower, gap, path.iterations, status)


def _outside(x: Tensor, hull: ScalarHull, polytope: Polytope, problems: tuple[int, ...]) -> Tensor:
    """Return whether points, (B, D), break a row by more than the rounding of x and of the row."""
    A, b = torch.as_tensor(polytope.A).to(x), torch.as_tensor(polytope.b).to(x)
    A = torch.broadcast_to(A, (*problems, *A.shape[-2:])).reshape(len(x), *A.shape[-2:])
    b = torch.broadcast_to(b, (*problems, b.shape[-1])).reshape(len(x), b.shape[-1])
    sizes = torch.abs(x) + torch.abs(hull.input_mean) + hull.input_scale
    rounding = torch.abs(b) + torch.einsum("bmd,bd->bm", torch.abs(A), sizes)
    left = torch.einsum("bmd,bd->bm", A, x) - b
    return torch.any(left > 4 * (x.shape[-1] + 8) * EPSILON * rounding, dim=-1)


def _moved(space: Region, v: Tensor, z: Tensor) -> Tensor:
    """Return the point nine tenths of the way from v towards z, or as far as the region goes; v for a z not finite."""
    z = torch.where(torch.isfinite(z), z, space.place(v))
    step = torch.einsum("bij,bj->bi", torch.linalg.pinv(space.basis), z - space.center) - v
    return v + torch.clamp(0.9 * space.reach(v, step), max=1.0)[:, None] * step


def checked_tolerance(owner: str, tol: Any) -> None:
    """Check that `tol` is a number in (0, 1]."""
    if isinstance(tol, bool) or not hasattr(tol, "__float__") or not 0 < tol <= LARGEST_TOLERANCE:
        fail(owner, "tol", "a number in (0, 1]", repr(tol), "Pass tol=1e-6.")


def checked_point(owner: str, x0: Any, in_dim: int, problems: tuple[int, ...]) -> Tensor:
    """Return the starting points in float64 after the check of their shape and of their values."""
    if not hasattr(x0, "shape"):
        fail(owner, "x0", "an array", type(x0).__name__, "Convert it to an array first.", TypeError)
    start = torch.as_tensor(x0, dtype=torch.float64)
    try:
        fits = start.shape[-1] == in_dim
        torch.broadcast_shapes(problems, tuple(start.shape[:-1]))
    except (RuntimeError, IndexError):
        fits = False
    if not fits:
        rule = f"[..., in_dim={in_dim}], leading axes as the set's {list(problems)}"
        fail(owner, "x0", rule, describe(x0), "Give one point a problem.")
    if not bool(torch.isfinite(start).all()):
        fail(owner, "x0", "finite numbers", "inf or nan", "Leave x0 out, or give a point.")
    return start
