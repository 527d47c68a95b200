"""A point inside a polytope, and the directions taken out in which it has no extent.

The deepest point is where the largest violation of a row is least. Where that is 0 the polytope has no inside: the rows
that hold with equality everywhere are those that the multipliers of that problem are on (strict complementarity,
Goldman and Tucker, 1956), and the smaller cube spans what they leave.

Letters: B problems, D in, M rows of a polytope.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..arrays import Array, einsum, eye, namespace
from .central_path import Path, Problem, follow_path
from .regions import Frame, Region, each
from .scalar_hull import EPSILON, Expansion, Tangent
from .smoothing import center, smooth_maximum

THIN = 1e-4  # of the cube: where a polytope is nowhere deeper the cube is narrowed across it
FLAT = 1e-11  # and where it is nowhere deeper than this, those directions are taken out
DEPENDENT = 1e-9  # singular values of its equations below this, in units of the largest, are rounding
LOST = 1e-14  # rows that are shorter than this in the smaller cube say nothing there


@dataclass(frozen=True, eq=False)
class MostViolated:
    """`max_i rows_i . v - heights_i`, rows of each problem: negative inside a polytope. Methods as `ScalarHull`."""

    rows: Array
    heights: Array

    def _groups(self, z: Array) -> Array:
        each = z.reshape(self.rows.shape[0], -1, z.shape[-1])
        return (each @ self.rows.mT - self.heights[:, None]).reshape(z.shape[0], -1)

    def value(self, z: Array) -> Array:
        xp = namespace(z)
        return xp.max(self._groups(z), axis=-1)

    def smooth(self, z: Array, width: Array) -> Array:
        return smooth_maximum(self._groups(z), width, None).value

    def expand(self, z: Array, width: Array) -> Expansion:
        value, weights, bend, drift, value_drift = smooth_maximum(self._groups(z), width, None)
        slopes = self.rows.mT
        among = center(slopes, bend)
        curvature = einsum("ndp,np,nep->nde", among, bend, among)
        moved = einsum("ndp,np->nd", slopes, drift)
        slope = einsum("ndp,np->nd", slopes, weights)
        return Expansion(slope, curvature, moved, [], slopes, weights, bend, drift, value, value_drift)

    def tangent(self, at: Expansion, z: Array, step: Array, change: Array) -> Tangent:
        xp = namespace(z)
        moved = center(einsum("ndp,nd->np", at.jacobian, step), at.weight_curvature)
        weights = at.weights + at.weight_curvature * moved + change[:, None] * at.weight_drift
        weights = xp.clip(weights, min=0.0)
        return Tangent([], weights / xp.sum(weights, axis=-1, keepdims=True), z + step)

    def minorant(self, z: Array, tangent: Tangent) -> tuple[Array, Array]:
        xp = namespace(z)
        slope = einsum("np,npd->nd", tangent.weights, self.rows)
        return xp.sum(tangent.weights * self._groups(z), axis=-1), slope

    def square(self, z: Array, tangent: Tangent) -> tuple[Array, Array]:
        xp = namespace(z)
        return xp.zeros_like(z[:, 0]), xp.zeros_like(z)


def enter(space: Region, idle: Array) -> tuple[Array, Region]:
    """Return a point inside, (B, d), and the region in a cube that a thin polytope fills, or has no extent across.

    Where rounding leaves no point inside, the rows of the path are moved out; those of the bounds are not.
    `Region.empty` becomes true where a lower bound of the largest violation is above 0.

    Args:
        space: the sets; idle: (B,): problems that nothing is asked about.
    """
    xp = namespace(idle)
    count = space.general
    if count == 0:
        return space.start, space
    assert space.slip is not None
    rows, heights = space.rows[:, :count], space.heights[:, :count]
    deepest = find_deepest(rows, heights, space.start, idle | space.empty, xp.max(space.slip, axis=-1))
    empty = space.empty | (deepest.low > 0)
    deep = (deepest.best < -THIN) | empty | idle
    weights = MostViolated(rows, heights).expand(deepest.v, deepest.width).weights
    equal = (weights * weights > deepest.width[:, None]) & ~deep[:, None]
    smaller = narrow(space, deepest, weights, equal, deep)
    rows, heights = smaller.rows[:, : smaller.general], smaller.heights[:, : smaller.general]
    start = xp.where(deep[:, None], deepest.best_v, 0.0)
    inner = find_deepest(rows, heights, start, idle | deep, xp.zeros_like(deepest.best))
    out = xp.where(deep, 0.0, xp.clip(inner.best + 64 * EPSILON, min=0.0))[:, None]
    heights = xp.concat([heights + out, smaller.heights[:, smaller.general :]], axis=1)
    return inner.best_v, replace(smaller, heights=heights, empty=empty)


def find_deepest(rows: Array, heights: Array, start: Array, idle: Array, slip: Array) -> Path:
    """Return the end of the path to the deepest point of `rows v <= heights` in the cube; slip: (B,), of rounding."""
    xp = namespace(rows)
    B, D = start.shape
    identity = eye(D, rows)
    sides = each(xp.concat([identity, -identity]), B)
    none = xp.zeros_like(start[:, :0], dtype=xp.bool)
    zero = xp.zeros_like(start)
    cube = Region("cube", zero, each(identity, B), sides, xp.ones_like(sides[..., 0]), 0, zero, none, idle)
    size = xp.max(xp.abs(heights), axis=-1) + D
    margin = 16 * D * EPSILON * size + slip

    def early(best: Array, low: Array) -> Array:
        return (low > 0) | ((best < -THIN) & (best < 0.5 * low)) | idle

    def goal(best: Array) -> Array:
        return 0.1 * FLAT + 2 * margin

    return follow_path(Problem(MostViolated(rows, heights), cube, zero, goal, early, margin), start)


def narrow(space: Region, deepest: Path, weights: Array, equal: Array, deep: Array) -> Region:
    """Return the region in a cube around the deepest point that is narrow across the rows that hold with equality.

    Args:
        space: the sets in the cube that they were given in; deepest: the path to their deepest points.
        weights: (B, M), multipliers of the deepest point; equal: (B, M), which rows hold with equality, nearly.
        deep: (B,): those which have an inside keep their cube.
    """
    xp = namespace(weights)
    count, D = space.general, space.rows.shape[-1]
    rows, heights, middle = space.rows[:, :count], space.heights[:, :count], deepest.best_v
    equations = xp.where(equal[..., None], rows, 0.0)
    padded = xp.concat([equations, xp.zeros_like(space.basis)], axis=1)
    left, sizes, right = xp.linalg.svd(padded, full_matrices=False)
    free = sizes <= DEPENDENT * xp.clip(sizes[:, :1], min=DEPENDENT)
    # the weighted slack of these rows is the same everywhere: that bounds the extent across them
    least = xp.min(xp.where(equal, weights, xp.inf), axis=-1, keepdims=True)
    depth = xp.clip(-deepest.best, min=0.0)[:, None]
    flat = (depth <= FLAT) & ~deep[:, None]
    width = xp.where(flat, 0.0, depth * count / (least * xp.where(free, 1.0, sizes)))
    widest = 2 * D**0.5
    width = xp.where(free, widest, xp.clip(width, max=widest))
    taken = equal & flat
    inverted = xp.where(free, 0.0, 1 / xp.where(free, 1.0, sizes))
    inverse = einsum("bmk,bk,bkd->bmd", left[:, :count], inverted, right)
    inverse = xp.where(equal[..., None], inverse, 0.0)
    wrong = xp.where(taken, heights - einsum("bmd,bd->bm", rows, middle), 0.0)
    shift = middle + einsum("bmd,bm->bd", inverse, wrong)
    turn = xp.where(deep[:, None, None], eye(D, rows), right.mT * width[:, None])
    shift = xp.where(deep[:, None], 0.0, shift)
    kept = xp.where(equal, weights, 0.0)
    across = einsum("bm,bmd->bd", kept, equations)
    ray = xp.clip(kept - einsum("bmd,bd->bm", inverse, across), min=1e-300)
    ray = xp.where(equal, ray, 0.0)
    return turn_rows(space, shift, turn, taken, deep, inverse, ray)


def turn_rows(
    space: Region, shift: Array, turn: Array, taken: Array, deep: Array, inverse: Array, ray: Array
) -> Region:
    """Return the region in the cube of w where `v = shift + turn w`; rows taken out say nothing there."""
    xp = namespace(shift)
    assert space.slip is not None
    count, D = space.general, space.rows.shape[-1]
    turned = space.rows @ turn  # a polytope's rows and the sides of its cube
    lengths = xp.linalg.vector_norm(turned, axis=-1)
    says = (lengths > LOST) & ~xp.concat([taken, xp.broadcast_to(deep[:, None], (deep.shape[0], 2 * D))], axis=1)
    lengths = xp.where(says, lengths, xp.inf)
    moved = (space.heights - einsum("bmd,bd->bm", space.rows, shift)) / lengths
    rows, heights = space.rows[:, :count], space.heights[:, :count] + space.slip
    frame = Frame(space.center, space.basis, rows, heights, shift, turn, lengths, inverse, ray)
    sides = space.rows[:, count:]
    return replace(
        space,
        center=space.place(shift),
        basis=space.basis @ turn,
        rows=xp.concat([turned / lengths[..., None], sides], axis=1),
        heights=xp.concat([xp.where(says, moved, 1.0), xp.ones_like(sides[..., 0])], axis=1),
        general=count + 2 * D,
        frame=frame,
    )
