"""A set as interior-point methods see it: an affine image of a small standard set, with rows that hold it in.

`z = center + basis v`, v in the cube [-1, 1]^d, in the unit ball, in the unit simplex or anywhere; `rows v <= heights`.
Coordinates without a bound are cut off `FAR` input scales away from the mean of the inputs.

Letters: B problems, D in, d free directions, m rows, M rows of a polytope.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from .minorants import ScalarHull
from .sets import Ball, Box, Polytope, Simplex

FAR = 1e3  # input scales: where a set without a bound is cut off
ENDLESS = 1e6  # input scales: what is as wide as this counts as without a bound
SWEEPS = 4  # of the bounds that a polytope's rows give its coordinates
SLACK = 1e-7  # by which the rows of a polytope without an inside are moved out, in units of its box


@dataclass(frozen=True, eq=False)
class Region:
    """Sets of B problems.

    Args:
        shape: "cube", "ball", "simplex" or "space".
        center: (B, D); basis: (B, D, d): to normalized units.
        rows: (B, m, d); heights: (B, m): `rows v <= heights`, strictly inside; the first `general` are a polytope's.
        start: (B, d), strictly inside but for a polytope's rows.
        open: (B, 2 d): which faces of the cube are cuts; empty: (B,): no point, as the bounds of coordinates show.
    """

    shape: str
    center: jax.Array
    basis: jax.Array
    rows: jax.Array
    heights: jax.Array
    general: int
    start: jax.Array
    open: jax.Array
    empty: jax.Array

    def place(self, v: jax.Array) -> jax.Array:
        """Return v, (B, ..., d), in normalized units."""
        flat = v.reshape(v.shape[0], -1, v.shape[-1])
        z = self.center[:, None] + flat @ jnp.swapaxes(self.basis, 1, 2)
        return z.reshape(*v.shape[:-1], -1)

    def slack(self, v: jax.Array) -> jax.Array:
        """Return `heights - rows v`, (B, ..., m), and with a ball `1 - ||v||^2` as the last."""
        flat = v.reshape(v.shape[0], -1, v.shape[-1])
        slack = self.heights[:, None] - flat @ jnp.swapaxes(self.rows, 1, 2)
        if self.shape == "ball":
            slack = jnp.concatenate([slack, 1 - jnp.sum(flat * flat, axis=-1, keepdims=True)], axis=-1)
        return slack.reshape(*v.shape[:-1], -1)

    def normals(self, v: jax.Array) -> jax.Array:
        """Return minus the derivative of the slack, (B, m, d)."""
        if self.shape != "ball":
            return self.rows
        return jnp.concatenate([self.rows, 2 * v[:, None]], axis=1)

    def reach(self, v: jax.Array, step: jax.Array) -> jax.Array:
        """Return the largest t for which `v + t step` is in the set, (B,); inf where there is none."""
        slack, along = self.slack(v), jnp.einsum("bmd,bd->bm", self.normals(v), step)
        limits = jnp.where(along > 0, slack / along, jnp.inf)
        if self.shape == "ball":
            size, half = jnp.sum(step * step, axis=-1), 0.5 * along[:, -1]
            root = jnp.sqrt(half * half + size * slack[:, -1])
            limits = jnp.where(size > 0, slack[:, -1] / (half + root), jnp.inf)[:, None]
        return jnp.min(limits, axis=-1) if limits.shape[-1] else jnp.full_like(v[:, 0], jnp.inf)

    def least(self, slope: jax.Array, multipliers: jax.Array) -> jax.Array:
        """Return a lower bound of `slope . v` over the set, (B,): exact but for a polytope's rows.

        Those are added with multipliers >= 0, (B, M): right for any, good for good ones.
        """
        if self.shape == "ball":
            return -jnp.linalg.norm(slope, axis=-1)
        if self.shape == "simplex":
            return jnp.clip(jnp.min(slope, axis=-1), max=0.0)
        rows, heights = self.rows[:, : self.general], self.heights[:, : self.general]
        rest = slope + jnp.einsum("bm,bmd->bd", multipliers, rows)
        return -jnp.sum(multipliers * heights, axis=-1) - jnp.sum(jnp.abs(rest), axis=-1)

    def extent(self) -> jax.Array:
        """Return the largest size of every coordinate of z, (B, D)."""
        return jnp.abs(self.center) + jnp.sum(jnp.abs(self.basis), axis=-1)


def region(constraints: Any, hull: ScalarHull, problems: tuple[int, ...]) -> Region:
    """Return the sets in normalized units; `problems` are the leading axes of all, flattened to B."""
    D = hull.config.in_dim

    def rows(value: Any, *shape: int) -> jax.Array:
        array = jnp.asarray(value, jnp.float64)
        return jnp.broadcast_to(array, (*problems, *shape)).reshape(-1, *shape)

    scale, mean = hull.input_scale, hull.input_mean
    if isinstance(constraints, Ball):
        center, radius = rows(constraints.center, D), rows(constraints.radius)
        basis = radius[:, None, None] * jnp.diag(1 / scale)
        none = jnp.zeros((len(center), 0, D))
        return _made("ball", (center - mean) / scale, basis, none, none[..., 0])
    if isinstance(constraints, Simplex) and D > 1:
        total = rows(constraints.total)
        eye, ones = jnp.eye(D - 1), jnp.ones((1, D - 1))
        last = jnp.zeros((D,)).at[-1].set(1.0)
        basis = total[:, None, None] * jnp.concatenate([eye, -ones]) / scale[:, None]
        sides = _each(jnp.concatenate([-eye, ones]), len(total))
        heights = _each(jnp.concatenate([jnp.zeros((D - 1,)), jnp.ones((1,))]), len(total))
        made = _made("simplex", (total[:, None] * last - mean) / scale, basis, sides, heights)
        return replace(made, start=jnp.full_like(made.start, 1.0 / D))
    if isinstance(constraints, Polytope):
        A, b = rows(constraints.A, *constraints.A.shape[-2:]), rows(constraints.b, constraints.b.shape[-1])
        low, high = _implied(A, b, rows(mean - ENDLESS * scale, D), rows(mean + ENDLESS * scale, D))
        wide = 0.1 * ENDLESS * scale
        low = jnp.where(low < mean - wide, -jnp.inf, low)
        high = jnp.where(high > mean + wide, jnp.inf, high)
    else:
        if isinstance(constraints, Box):
            low, high = rows(constraints.lower, D), rows(constraints.upper, D)
        else:
            low = high = rows(constraints.total)[:, None]
        A, b = jnp.zeros((len(low), 0, D)), jnp.zeros((len(low), 0))
    cuts = jnp.concatenate([jnp.isposinf(high), jnp.isneginf(low)], axis=-1)
    lower = jnp.where(jnp.isneginf(low), jnp.minimum(mean, high) - FAR * scale, low)
    upper = jnp.where(jnp.isposinf(high), jnp.maximum(mean, low) + FAR * scale, high)
    middle, half = 0.5 * (lower + upper), 0.5 * (upper - lower)
    empty = jnp.any(half < 0, axis=-1)
    half = jnp.clip(half, 0.0)
    general = A * half[:, None]
    heights = b - jnp.einsum("bmd,bd->bm", A, middle)
    size = jnp.linalg.norm(general, axis=-1)
    size = jnp.where(size > 0, size, 1.0)
    basis = _diagonals(half / scale)
    made = _made("cube", (middle - mean) / scale, basis, general / size[..., None], heights / size)
    eye = jnp.eye(D)
    sides = _each(jnp.concatenate([eye, -eye]), len(middle))
    return replace(
        made,
        rows=jnp.concatenate([made.rows, sides], axis=1),
        heights=jnp.concatenate([made.heights, jnp.ones_like(sides[..., 0])], axis=1),
        general=A.shape[1],
        open=cuts,
        empty=empty,
    )


def space(hull: ScalarHull, problems: int) -> Region:
    """Return the whole space, for as many problems, in normalized units."""
    zero = _each(jnp.zeros_like(hull.input_mean), problems)
    basis = _diagonals(jnp.ones_like(zero))
    return _made("space", zero, basis, basis[:, :0], zero[:, :0])


def _made(shape: str, center: jax.Array, basis: jax.Array, rows: jax.Array, heights: jax.Array) -> Region:
    start = jnp.zeros_like(basis[:, 0])
    none = jnp.zeros_like(start[:, :0], dtype=bool)
    empty = jnp.zeros_like(start[:, 0], dtype=bool) if start.shape[-1] else none
    return Region(shape, center, basis, rows, heights, 0, start, none, empty)


def _implied(A: jax.Array, b: jax.Array, lower: jax.Array, upper: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return bounds of each coordinate over `A x <= b` inside given bounds, a little wide for rounding."""
    for _ in range(SWEEPS):
        terms = jnp.minimum(
            A * lower[:, None], A * upper[:, None]
        )  # the least that each coordinate adds to a row
        room = (b - jnp.sum(terms, axis=-1))[..., None] + terms
        bound = room / jnp.where(A == 0, 1.0, A)
        wide = 1e-9 * (upper - lower) + 1e-12 * jnp.maximum(jnp.abs(lower), jnp.abs(upper))
        highest = jnp.min(jnp.where(A > 0, bound, jnp.inf), axis=1)
        lowest = jnp.max(jnp.where(A < 0, bound, -jnp.inf), axis=1)
        lower, upper = jnp.maximum(lower, lowest - wide), jnp.minimum(upper, highest + wide)
    return lower, upper


def _each(value: jax.Array, problems: int) -> jax.Array:
    """Return the same array for each problem."""
    return jnp.broadcast_to(value, (problems, *value.shape))


def _diagonals(values: jax.Array) -> jax.Array:
    """Return diagonal matrices, (B, D, D)."""
    return values[:, :, None] * jnp.eye(values.shape[-1])
