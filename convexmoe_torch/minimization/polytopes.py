"""A point inside a polytope, and the directions taken out in which it has no extent.

The deepest point is where the largest violation of a row is least. Where that is 0 the polytope has no inside: the rows
that hold with equality everywhere are those that the multipliers of that problem are on (strict complementarity,
Goldman and Tucker, 1956), and the smaller cube spans what they leave.

Letters: B problems, D in, M rows of a polytope.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .central_path import Path, Problem, followed
from .regions import Frame, Region
from .scalar_hull import EPSILON, Expansion, Tangent
from .smoothing import bent_maximum, centred

THIN = 1e-4  # of the cube: where a polytope is nowhere deeper the cube is narrowed across it
FLAT = 1e-11  # and where it is nowhere deeper than this, those directions are taken out
DEPENDENT = 1e-9  # singular values of its equations below this, in units of the largest, are rounding
LOST = 1e-14  # rows that are shorter than this in the smaller cube say nothing there


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


def inside(space: Region, idle: Tensor) -> tuple[Tensor, Region]:
    """Return a point inside, (B, d), and the region in a cube that a thin polytope fills, or has no extent across.

    Where rounding leaves no point inside, the rows of the path are moved out; those of the bounds are not.
    `Region.empty` becomes true where a lower bound of the largest violation is above 0.

    Args:
        space: the sets; idle: (B,): problems that nothing is asked about.
    """
    count = space.general
    if count == 0:
        return space.start, space
    assert space.slip is not None
    rows, heights = space.rows[:, :count], space.heights[:, :count]
    deepest = _deepest(rows, heights, space.start, idle | space.empty, torch.amax(space.slip, dim=-1))
    empty = space.empty | (deepest.low > 0)
    deep = (deepest.best < -THIN) | empty
    weights = MostViolated(rows, heights).expand(deepest.v, deepest.width).weights
    equal = (weights * weights > deepest.width[:, None]) & ~deep[:, None]
    smaller = _smaller(space, deepest, weights, equal, deep)
    rows, heights = smaller.rows[:, : smaller.general], smaller.heights[:, : smaller.general]
    start = torch.where(deep[:, None], deepest.best_v, 0.0)
    found = _deepest(rows, heights, start, idle | deep, torch.zeros_like(deepest.best))
    out = torch.clamp(found.best + 64 * EPSILON, min=0.0)[:, None]
    heights = torch.cat([heights + out, smaller.heights[:, smaller.general :]], dim=1)
    return found.best_v, replace(smaller, heights=heights, empty=empty)


def _deepest(rows: Tensor, heights: Tensor, start: Tensor, idle: Tensor, slip: Tensor) -> Path:
    """Return the end of the path to the deepest point of `rows v <= heights` in the cube; slip: (B,), of rounding."""
    B, D = start.shape
    eye = torch.eye(D, dtype=rows.dtype, device=rows.device)
    sides = torch.cat([eye, -eye]).expand(B, -1, -1)
    none = torch.zeros(B, 0, dtype=torch.bool, device=rows.device)
    zero = torch.zeros_like(start)
    cube = Region(
        "cube", zero, eye.expand(B, -1, -1), sides, torch.ones_like(sides[..., 0]), 0, zero, none, idle
    )
    size = torch.amax(torch.abs(heights), dim=-1) + D
    margin = 16 * D * EPSILON * size + slip

    def early(best: Tensor, low: Tensor) -> Tensor:
        return (low > 0) | ((best < -THIN) & (best < 0.5 * low)) | idle

    def goal(best: Tensor) -> Tensor:
        return 0.1 * FLAT + 2 * margin

    return followed(Problem(MostViolated(rows, heights), cube, zero, goal, early, margin), start)


def _smaller(space: Region, deepest: Path, weights: Tensor, equal: Tensor, deep: Tensor) -> Region:
    """Return the region in a cube around the deepest point that is narrow across the rows that hold with equality.

    Args:
        space: the sets in the cube that they were given in; deepest: the path to their deepest points.
        weights: (B, M), multipliers of the deepest point; equal: (B, M), which rows hold with equality, nearly.
        deep: (B,): those which have an inside keep their cube.
    """
    count, D = space.general, space.rows.shape[-1]
    rows, heights, middle = space.rows[:, :count], space.heights[:, :count], deepest.best_v
    equations = torch.where(equal[..., None], rows, 0.0)
    padded = torch.cat([equations, torch.zeros_like(space.basis)], dim=1)
    left, sizes, right = torch.linalg.svd(padded, full_matrices=False)
    free = sizes <= DEPENDENT * torch.clamp(sizes[:, :1], min=DEPENDENT)
    # the weighted slack of these rows is the same everywhere: that bounds the extent across them
    least = torch.amin(torch.where(equal, weights, torch.inf), dim=-1, keepdim=True)
    depth = torch.clamp(-deepest.best, min=0.0)[:, None]
    flat = (depth <= FLAT) & ~deep[:, None]
    width = torch.where(flat, 0.0, depth * count / (least * torch.where(free, 1.0, sizes)))
    widest = 2 * D**0.5
    width = torch.where(free, widest, torch.clamp(width, max=widest))
    taken = equal & flat
    inverted = torch.where(free, 0.0, 1 / torch.where(free, 1.0, sizes))
    inverse = torch.einsum("bmk,bk,bkd->bmd", left[:, :count], inverted, right)
    inverse = torch.where(equal[..., None], inverse, 0.0)
    wrong = torch.where(taken, heights - torch.einsum("bmd,bd->bm", rows, middle), 0.0)
    shift = middle + torch.einsum("bmd,bm->bd", inverse, wrong)
    eye = torch.eye(D, dtype=rows.dtype, device=rows.device)
    turn = torch.where(deep[:, None, None], eye, right.transpose(1, 2) * width[:, None])
    shift = torch.where(deep[:, None], 0.0, shift)
    kept = torch.where(equal, weights, 0.0)
    across = torch.einsum("bm,bmd->bd", kept, equations)
    ray = torch.clamp(kept - torch.einsum("bmd,bd->bm", inverse, across), min=1e-300)
    ray = torch.where(equal, ray, 0.0)
    return _turned(space, shift, turn, taken, deep, inverse, ray)


def _turned(
    space: Region, shift: Tensor, turn: Tensor, taken: Tensor, deep: Tensor, inverse: Tensor, ray: Tensor
) -> Region:
    """Return the region in the cube of w where `v = shift + turn w`; rows taken out say nothing there."""
    assert space.slip is not None
    count, D = space.general, space.rows.shape[-1]
    turned = space.rows @ turn  # a polytope's rows and the sides of its cube
    lengths = torch.linalg.vector_norm(turned, dim=-1)
    says = (lengths > LOST) & ~torch.cat([taken, deep[:, None].expand(-1, 2 * D)], dim=1)
    lengths = torch.where(says, lengths, torch.inf)
    moved = (space.heights - torch.einsum("bmd,bd->bm", space.rows, shift)) / lengths
    rows, heights = space.rows[:, :count], space.heights[:, :count] + space.slip
    frame = Frame(space.center, space.basis, rows, heights, shift, turn, lengths, inverse, ray)
    sides = space.rows[:, count:]
    return replace(
        space,
        center=space.place(shift),
        basis=space.basis @ turn,
        rows=torch.cat([turned / lengths[..., None], sides], dim=1),
        heights=torch.cat([torch.where(says, moved, 1.0), torch.ones_like(sides[..., 0])], dim=1),
        general=count + 2 * D,
        frame=frame,
    )
