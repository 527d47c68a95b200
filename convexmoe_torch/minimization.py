"""Minimise a trained hull over a set, with a certified gap."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._checks import describe, fail
from .interior import Path, Problem, followed
from .minorants import EPSILON, Expansion, ScalarHull, Tangent, checked_output, scalar_hull
from .regions import SLACK, Region, region
from .sets import Box, Constraints, checked_set
from .smoothing import bent_maximum, centred

SOLVED, UNCERTIFIED, EMPTY, UNBOUNDED, BROKEN = range(5)
LARGEST_TOLERANCE = 1.0


class Minimum(NamedTuple):
    """What `minimize` returns; one entry a problem, in float64 and in the units of the model.

    Args:
        x: the best point found, `[..., in_dim]`, in the set.
        value: the hull there, `[...]`, computed in float64.
        lower_bound: `[...]`: no point of the set has a lower value.
        gap: `[...]`: at least `value - min`.
        iterations: steps of Newton's method, int64 `[...]`.
        status: int64 `[...]`: 0 the gap is within tol; 1 it is not; 2 the set is empty; 3 the hull falls without end in
            it; 4 values are not finite. lower_bound is -inf and gap is inf at 2, 3 and 4.
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
    float64. Coordinates of a set without a bound are cut off at `regions.FAR` input scales from the mean of the inputs;
    convexity carries the bound on: r times as far out nothing is lower than `value - r gap`.

    Args:
        model: a `VectorHull` or `FoldedHull`.
        constraints: a `Box`, `Ball`, `Simplex` or `Polytope`, in the units of the model; leading axes are problems.
        x0: where to start, `[..., in_dim]`, None for the middle of the set; it need not lie in it.
        tol: stop at `gap <= tol (1 + |value|)`.
        output: which output, where the model has several.

    Raises:
        TypeError: no hull, no set, x0 no array of numbers.
        ValueError: dimensions do not match, tol is not in (0, 1], weights are not finite; the set is empty, or the hull
            has no minimum in it.

    >>> from convexmoe_torch import Box, VectorHull
    >>> found = minimize(VectorHull(2, petals=3, out_dim=1), Box([-1.0, -1.0], [1.0, 1.0]))
    >>> bool(found.gap <= 1e-6 * (1 + abs(found.value)))
    True
    """
    found = minimized(model, constraints, x0, tol, output=output)
    for status, argument, rule, got, fix in FAULTS:
        where = torch.nonzero(found.status.reshape(-1) == status)
        if len(where):
            place = f" in problem {int(where[0, 0])}" if found.status.ndim else ""
            fail("minimize", argument, rule, got + place, fix)
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
    return _minimum(scalar_hull(model, chosen), constraints, start, tol, problems)


def _minimum(
    hull: ScalarHull, constraints: Any, start: Tensor | None, tol: float, problems: tuple[int, ...]
) -> Minimum:
    D = hull.config.in_dim
    space = region(constraints, hull, problems)
    v, space, empty = _inside(space)
    if start is not None:
        wanted = torch.broadcast_to(start.to(v), (*problems, D)).reshape(-1, D)
        v = _moved(space, v, hull.normalized(wanted))
    offset, factor = hull.output_mean, hull.output_scale
    reach = space.extent() + 2 * torch.abs(hull.input_mean / hull.input_scale)
    margin = hull.rounding(reach)

    def goal(best: Tensor) -> Tensor:
        return tol * (1 + torch.abs(offset + factor * best)) / factor - 2 * margin

    def early(best: Tensor, low: Tensor) -> Tensor:
        return empty

    path = followed(Problem(hull, space, torch.zeros_like(reach), goal, early, margin), v)
    return _reported(path, hull, space, constraints, empty, margin, tol, problems)


def _reported(
    path: Path,
    hull: ScalarHull,
    space: Region,
    constraints: Any,
    empty: Tensor,
    margin: Tensor,
    tol: float,
    problems: tuple[int, ...],
) -> Minimum:
    """Return the record of a path's end, in the units of the model."""
    offset, factor = hull.output_mean, hull.output_scale
    x = hull.input_mean + hull.input_scale * space.place(path.best_v)
    if isinstance(constraints, Box):  # rounding must not lead out of it
        bounds = [torch.as_tensor(side).to(x) for side in (constraints.lower, constraints.upper)]
        low, high = (torch.broadcast_to(b, (*problems, x.shape[-1])).reshape(x.shape) for b in bounds)
        x = torch.minimum(torch.maximum(x, low), high)
    value = offset + factor * hull.value(hull.normalized(x))
    lower = offset + factor * path.low
    gap = value - lower + factor * margin
    sides = torch.cat([path.best_v > 0.9, path.best_v < -0.9], dim=-1)
    falls = torch.zeros_like(empty)
    if space.open.shape[-1]:
        half = offset + factor * hull.value(space.place(0.5 * path.best_v))
        falls = torch.any(space.open & sides, dim=-1) & (half - value > tol * (1 + torch.abs(value)))
    broken = ~(torch.isfinite(value) & torch.isfinite(path.best))
    status = torch.where(gap <= tol * (1 + torch.abs(value)), SOLVED, UNCERTIFIED)
    for code, which in ((BROKEN, broken), (UNBOUNDED, falls), (EMPTY, empty)):
        status = torch.where(which, code, status)
    lost = status > UNCERTIFIED
    lower, gap = torch.where(lost, -torch.inf, lower), torch.where(lost, torch.inf, gap)
    shape = problems
    return Minimum(
        x.reshape(*shape, -1),
        value.reshape(shape),
        lower.reshape(shape),
        gap.reshape(shape),
        path.iterations.reshape(shape),
        status.reshape(shape),
    )


@dataclass(frozen=True, eq=False)
class MostViolated:
    """`max_i rows_i . v - heights_i`, rows of each problem: negative inside a polytope. Methods as `ScalarHull`."""

    rows: Tensor
    heights: Tensor

    def _groups(self, z: Tensor) -> Tensor:
        each = z.reshape(len(self.rows), -1, z.shape[-1])
        return (each @ self.rows.transpose(1, 2) - self.heights[:, None]).reshape(len(z), -1)

    def value(self, z: Tensor) -> Tensor:
        return torch.amax(self._groups(z), dim=-1)

    def smooth(self, z: Tensor, width: Tensor) -> Tensor:
        return bent_maximum(self._groups(z), width, None).value

    def expand(self, z: Tensor, width: Tensor) -> Expansion:
        _, weights, bend, drift = bent_maximum(self._groups(z), width, None)
        slopes = self.rows.transpose(1, 2)
        among = centred(slopes, bend)
        curvature = torch.einsum("ndp,np,nep->nde", among, bend, among)
        moved = torch.einsum("ndp,np->nd", slopes, drift)
        slope = torch.einsum("ndp,np->nd", slopes, weights)
        return Expansion(slope, curvature, moved, [], slopes, weights, bend, drift)

    def tangent(self, at: Expansion, z: Tensor, step: Tensor, change: Tensor) -> Tangent:
        moved = centred(torch.einsum("ndp,nd->np", at.jacobian, step), at.weight_curvature)
        weights = at.weights + at.weight_curvature * moved + change[:, None] * at.weight_drift
        weights = torch.clamp(weights, min=0.0)
        return Tangent([], weights / torch.sum(weights, dim=-1, keepdim=True), z + step)

    def minorant(self, z: Tensor, tangent: Tangent) -> tuple[Tensor, Tensor]:
        slope = torch.einsum("np,npd->nd", tangent.weights, self.rows)
        return torch.sum(tangent.weights * self._groups(z), dim=-1), slope

    def square(self, z: Tensor, tangent: Tangent) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(z[:, 0]), torch.zeros_like(z)


def _inside(space: Region) -> tuple[Tensor, Region, Tensor]:
    """Return a point inside, the region with rows that leave one, and which problems have none."""
    count = space.general
    if count == 0:
        return space.start, space, space.empty
    rows, heights = space.rows[:, :count], space.heights[:, :count]
    eye = torch.eye(space.rows.shape[-1], dtype=rows.dtype, device=rows.device)
    cube = replace(
        space,
        center=torch.zeros_like(space.start),
        basis=eye.expand(len(rows), -1, -1),
        rows=space.rows[:, count:],
        heights=space.heights[:, count:],
        general=0,
    )
    size = torch.amax(torch.abs(heights), dim=-1) + rows.shape[-1]
    margin = 16 * rows.shape[-1] * EPSILON * size

    def early(best: Tensor, low: Tensor) -> Tensor:
        return (low > 0) | ((best < 0) & (best < 0.5 * low)) | space.empty

    def goal(best: Tensor) -> Tensor:
        return torch.full_like(best, 0.1 * SLACK)

    path = followed(
        Problem(MostViolated(rows, heights), cube, torch.zeros_like(space.start), goal, early, margin),
        space.start,
    )
    slack = torch.clamp(path.best + SLACK, min=0.0)[:, None]
    sides = space.heights[:, count:]
    moved = replace(space, heights=torch.cat([heights + slack, sides], dim=1))
    return path.best_v, moved, space.empty | (path.low > 0)


def _moved(space: Region, v: Tensor, z: Tensor) -> Tensor:
    """Return the point nine tenths of the way from v towards z, or as far as the region goes."""
    step = torch.einsum("bij,bj->bi", torch.linalg.pinv(space.basis), z - space.center) - v
    return v + torch.clamp(0.9 * space.reach(v, step), max=1.0)[:, None] * step


def checked_tolerance(owner: str, tol: Any) -> None:
    """Check that `tol` is a number in (0, 1]."""
    if isinstance(tol, bool) or not hasattr(tol, "__float__") or not 0 < tol <= LARGEST_TOLERANCE:
        fail(owner, "tol", "a number in (0, 1]", repr(tol), "Pass tol=1e-6.")


def checked_point(owner: str, x0: Any, in_dim: int, problems: tuple[int, ...]) -> Tensor:
    """Return the starting points in float64 after the check of their shape."""
    if not hasattr(x0, "shape"):
        fail(owner, "x0", "an array", type(x0).__name__, "Convert it to an array first.", TypeError)
    start = torch.as_tensor(x0, dtype=torch.float64)
    try:
        if start.shape[-1] == in_dim:
            torch.broadcast_shapes(problems, tuple(start.shape[:-1]))
            return start
    except (RuntimeError, IndexError):
        pass
    rule = f"[..., in_dim={in_dim}], leading axes as the set's {list(problems)}"
    fail(owner, "x0", rule, describe(x0), "Give one point a problem.")
