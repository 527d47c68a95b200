"""A point inside a polytope, and the directions taken out in which it has no extent.

The deepest point is where the largest violation of a row is least. Where that is 0 the polytope has no inside: the rows
that hold with equality everywhere are those that the multipliers of that problem are on (strict complementarity,
Goldman and Tucker, 1956), and the smaller cube spans what they leave.

Letters: B problems, D in, M rows of a polytope.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

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

    rows: jax.Array
    heights: jax.Array

    def _groups(self, z: jax.Array) -> jax.Array:
        each = z.reshape(len(self.rows), -1, z.shape[-1])
        return (each @ self.rows.swapaxes(1, 2) - self.heights[:, None]).reshape(len(z), -1)

    def value(self, z: jax.Array) -> jax.Array:
        return jnp.max(self._groups(z), axis=-1)

    def smooth(self, z: jax.Array, width: jax.Array) -> jax.Array:
        return bent_maximum(self._groups(z), width, None).value

    def expand(self, z: jax.Array, width: jax.Array) -> Expansion:
        _, weights, bend, drift = bent_maximum(self._groups(z), width, None)
        slopes = self.rows.swapaxes(1, 2)
        among = centred(slopes, bend)
        curvature = jnp.einsum("ndp,np,nep->nde", among, bend, among)
        moved = jnp.einsum("ndp,np->nd", slopes, drift)
        slope = jnp.einsum("ndp,np->nd", slopes, weights)
        return Expansion(slope, curvature, moved, [], slopes, weights, bend, drift)

    def tangent(self, at: Expansion, z: jax.Array, step: jax.Array, change: jax.Array) -> Tangent:
        moved = centred(jnp.einsum("ndp,nd->np", at.jacobian, step), at.weight_curvature)
        weights = at.weights + at.weight_curvature * moved + change[:, None] * at.weight_drift
        weights = jnp.clip(weights, min=0.0)
        return Tangent([], weights / jnp.sum(weights, axis=-1, keepdims=True), z + step)

    def minorant(self, z: jax.Array, tangent: Tangent) -> tuple[jax.Array, jax.Array]:
        slope = jnp.einsum("np,npd->nd", tangent.weights, self.rows)
        return jnp.sum(tangent.weights * self._groups(z), axis=-1), slope

    def square(self, z: jax.Array, tangent: Tangent) -> tuple[jax.Array, jax.Array]:
        return jnp.zeros_like(z[:, 0]), jnp.zeros_like(z)


def inside(space: Region, idle: jax.Array) -> tuple[jax.Array, Region]:
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
    deepest = _deepest(rows, heights, space.start, idle | space.empty, jnp.max(space.slip, axis=-1))
    empty = space.empty | (deepest.low > 0)
    deep = (deepest.best < -THIN) | empty
    weights = MostViolated(rows, heights).expand(deepest.v, deepest.width).weights
    equal = (weights * weights > deepest.width[:, None]) & ~deep[:, None]
    smaller = _smaller(space, deepest, weights, equal, deep)
    rows, heights = smaller.rows[:, : smaller.general], smaller.heights[:, : smaller.general]
    start = jnp.where(deep[:, None], deepest.best_v, 0.0)
    found = _deepest(rows, heights, start, idle | deep, jnp.zeros_like(deepest.best))
    out = jnp.clip(found.best + 64 * EPSILON, min=0.0)[:, None]
    heights = jnp.concatenate([heights + out, smaller.heights[:, smaller.general :]], axis=1)
    return found.best_v, replace(smaller, heights=heights, empty=empty)


def _deepest(rows: jax.Array, heights: jax.Array, start: jax.Array, idle: jax.Array, slip: jax.Array) -> Path:
    """Return the end of the path to the deepest point of `rows v <= heights` in the cube; slip: (B,), of rounding."""
    B, D = start.shape
    eye = jnp.eye(D)
    sides = jnp.broadcast_to(jnp.concatenate([eye, -eye]), (B, 2 * D, D))
    none = jnp.zeros((B, 0), dtype=bool)
    zero = jnp.zeros_like(start)
    cube = Region(
        "cube",
        zero,
        jnp.broadcast_to(eye, (B, D, D)),
        sides,
        jnp.ones_like(sides[..., 0]),
        0,
        zero,
        none,
        idle,
    )
    size = jnp.max(jnp.abs(heights), axis=-1) + D
    margin = 16 * D * EPSILON * size + slip

    def early(best: jax.Array, low: jax.Array) -> jax.Array:
        return (low > 0) | ((best < -THIN) & (best < 0.5 * low)) | idle

    def goal(best: jax.Array) -> jax.Array:
        return 0.1 * FLAT + 2 * margin

    return followed(Problem(MostViolated(rows, heights), cube, zero, goal, early, margin), start)


def _smaller(space: Region, deepest: Path, weights: jax.Array, equal: jax.Array, deep: jax.Array) -> Region:
    """Return the region in a cube around the deepest point that is narrow across the rows that hold with equality.

    Args:
        space: the sets in the cube that they were given in; deepest: the path to their deepest points.
        weights: (B, M), multipliers of the deepest point; equal: (B, M), which rows hold with equality, nearly.
        deep: (B,): those which have an inside keep their cube.
    """
    count, D = space.general, space.rows.shape[-1]
    rows, heights, middle = space.rows[:, :count], space.heights[:, :count], deepest.best_v
    equations = jnp.where(equal[..., None], rows, 0.0)
    padded = jnp.concatenate([equations, jnp.zeros_like(space.basis)], axis=1)
    left, sizes, right = jnp.linalg.svd(padded, full_matrices=False)
    free = sizes <= DEPENDENT * jnp.clip(sizes[:, :1], min=DEPENDENT)
    # the weighted slack of these rows is the same everywhere: that bounds the extent across them
    least = jnp.min(jnp.where(equal, weights, jnp.inf), axis=-1, keepdims=True)
    depth = jnp.clip(-deepest.best, min=0.0)[:, None]
    flat = (depth <= FLAT) & ~deep[:, None]
    width = jnp.where(flat, 0.0, depth * count / (least * jnp.where(free, 1.0, sizes)))
    widest = 2 * D**0.5
    width = jnp.where(free, widest, jnp.clip(width, max=widest))
    taken = equal & flat
    inverted = jnp.where(free, 0.0, 1 / jnp.where(free, 1.0, sizes))
    inverse = jnp.einsum("bmk,bk,bkd->bmd", left[:, :count], inverted, right)
    inverse = jnp.where(equal[..., None], inverse, 0.0)
    wrong = jnp.where(taken, heights - jnp.einsum("bmd,bd->bm", rows, middle), 0.0)
    shift = middle + jnp.einsum("bmd,bm->bd", inverse, wrong)
    eye = jnp.eye(D)
    turn = jnp.where(deep[:, None, None], eye, right.swapaxes(1, 2) * width[:, None])
    shift = jnp.where(deep[:, None], 0.0, shift)
    kept = jnp.where(equal, weights, 0.0)
    across = jnp.einsum("bm,bmd->bd", kept, equations)
    ray = jnp.clip(kept - jnp.einsum("bmd,bd->bm", inverse, across), min=1e-300)
    ray = jnp.where(equal, ray, 0.0)
    return _turned(space, shift, turn, taken, deep, inverse, ray)


def _turned(
    space: Region,
    shift: jax.Array,
    turn: jax.Array,
    taken: jax.Array,
    deep: jax.Array,
    inverse: jax.Array,
    ray: jax.Array,
) -> Region:
    """Return the region in the cube of w where `v = shift + turn w`; rows taken out say nothing there."""
    assert space.slip is not None
    count, D = space.general, space.rows.shape[-1]
    turned = space.rows @ turn  # a polytope's rows and the sides of its cube
    lengths = jnp.linalg.norm(turned, axis=-1)
    says = (lengths > LOST) & ~jnp.concatenate([taken, jnp.repeat(deep[:, None], 2 * D, axis=1)], axis=1)
    lengths = jnp.where(says, lengths, jnp.inf)
    moved = (space.heights - jnp.einsum("bmd,bd->bm", space.rows, shift)) / lengths
    rows, heights = space.rows[:, :count], space.heights[:, :count] + space.slip
    frame = Frame(space.center, space.basis, rows, heights, shift, turn, lengths, inverse, ray)
    sides = space.rows[:, count:]
    return replace(
        space,
        center=space.place(shift),
        basis=space.basis @ turn,
        rows=jnp.concatenate([turned / lengths[..., None], sides], axis=1),
        heights=jnp.concatenate([jnp.where(says, moved, 1.0), jnp.ones_like(sides[..., 0])], axis=1),
        general=count + 2 * D,
        frame=frame,
    )
