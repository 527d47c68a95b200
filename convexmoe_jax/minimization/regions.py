"""A set as interior-point methods see it: an affine image of a small standard set, with rows that hold it in.

`z = center + basis v`, v in the cube [-1, 1]^d, in the unit ball, in the unit simplex or anywhere; `rows v <= heights`.
Coordinates without a bound are cut off some input scales away from the mean of the inputs.

Letters: B problems, D in, d free directions, m rows, M rows of a polytope.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from convexmoe.minimization.sets import ENDLESS, Ball, Box, Polytope, Simplex

from .scalar_hull import EPSILON, ScalarHull

FARTHEST = 1e12  # input scales from the mean of the inputs: the last cut
SWEEPS = 4  # of the bounds that a polytope's rows give its coordinates
ROOM = 0.05  # of their width: by how much those bounds are moved out, so that the rows alone hold the set in
LEAST_ROOM = 1e-3  # input scales


@dataclass(frozen=True, eq=False)
class Frame:
    """The cube and the rows of polytopes before the directions were taken out in which they have no extent.

    The point w of the smaller cube is `shift + turn w` in this one. Lower bounds are taken over this one, with its rows
    as they were given: they hold whatever was taken out.

    Args:
        center: (B, D); basis: (B, D, D); rows: (B, M, D); heights: (B, M).
        shift: (B, D); turn: (B, D, D); lengths: (B, M + 2 D), of the rows and of the sides of the cube seen from the
            smaller one, by which they were divided; inf where they say nothing there.
        inverse: (B, M, D), pseudo-inverse of the rows that hold with equality, or nearly; ray: (B, M), their weights
            > 0 of a sum that is 0 in every direction; both 0 for other rows.
    """

    center: jax.Array
    basis: jax.Array
    rows: jax.Array
    heights: jax.Array
    shift: jax.Array
    turn: jax.Array
    lengths: jax.Array
    inverse: jax.Array
    ray: jax.Array

    def point(self, w: jax.Array) -> jax.Array:
        """Return w, (B, D), as a point of the cube."""
        return self.shift + jnp.einsum("bij,bj->bi", self.turn, w)

    def least(self, slope: jax.Array, w: jax.Array, multipliers: jax.Array) -> jax.Array:
        """Return a lower bound of `slope . (v - point(w))` over the set, (B,), by weak duality.

        Rows are added with multipliers >= 0, (B, M + 2 D) with those of the sides: right for any, good for good ones.
        What is left across the rows that hold with equality is cancelled by theirs, and `ray` makes them positive.
        """
        M, D = self.rows.shape[1:]
        shares = multipliers / self.lengths
        sides = shares[:, M : M + D] - shares[:, M + D :]
        rest = slope + sides + jnp.einsum("bm,bmd->bd", shares[:, :M], self.rows)
        shares = shares[:, :M] - jnp.einsum("bmd,bd->bm", self.inverse, rest)
        wanted = jnp.clip(-shares, min=0.0) / jnp.clip(self.ray, min=1e-300)
        raised = jnp.max(jnp.where(self.ray > 0, wanted, 0.0), axis=-1, keepdims=True) * self.ray
        shares = jnp.clip(shares + raised, min=0.0)
        rest = slope + jnp.einsum("bm,bmd->bd", shares, self.rows)
        sizes = jnp.abs(self.heights) + jnp.sum(jnp.abs(self.rows), axis=-1)
        total = jnp.sum(shares * sizes, axis=-1) + jnp.sum(jnp.abs(slope), axis=-1)
        low = -jnp.sum(slope * self.point(w), axis=-1) - jnp.sum(shares * self.heights, axis=-1)
        return low - jnp.sum(jnp.abs(rest), axis=-1) - 2 * (M + D + 4) * EPSILON * total


@dataclass(frozen=True, eq=False)
class Region:
    """Sets of B problems.

    Args:
        shape: "cube", "ball", "simplex" or "space".
        center: (B, D); basis: (B, D, d): to normalized units.
        rows: (B, m, d); heights: (B, m): `rows v <= heights`, strictly inside; the first `general` are a polytope's.
        start: (B, d), strictly inside but for a polytope's rows.
        open: (B, 2 D): which faces of the cube are cuts; empty: (B,): no point, as the numbers of the set show.
        slip: (B, M), by how much rounding may have moved a polytope's rows; frame: of a polytope that has rows.
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
    slip: jax.Array | None = None
    frame: Frame | None = None

    def place(self, v: jax.Array) -> jax.Array:
        """Return v, (B, ..., d), in normalized units."""
        flat = v.reshape(v.shape[0], -1, v.shape[-1])
        z = self.center[:, None] + flat @ self.basis.swapaxes(1, 2)
        return z.reshape(*v.shape[:-1], -1)

    def slack(self, v: jax.Array) -> jax.Array:
        """Return `heights - rows v`, (B, ..., m), and with a ball `1 - ||v||^2` as the last."""
        flat = v.reshape(v.shape[0], -1, v.shape[-1])
        slack = self.heights[:, None] - flat @ self.rows.swapaxes(1, 2)
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

    def least(self, slope: jax.Array, v: jax.Array, multipliers: jax.Array) -> jax.Array:
        """Return a lower bound of `slope . (z - place(v))` over the set, (B,): exact but for a polytope's rows.

        Those are added with multipliers >= 0, (B, M): right for any, good for good ones.
        """
        if self.frame is not None:
            pulled = jnp.einsum("bij,bi->bj", self.frame.basis, slope)
            return self.frame.least(pulled, v, multipliers[:, : self.general])
        slope = jnp.einsum("bij,bi->bj", self.basis, slope)
        here = jnp.sum(slope * v, axis=-1)
        if self.shape == "ball":
            return -jnp.linalg.norm(slope, axis=-1) - here
        if self.shape == "simplex":
            return jnp.clip(jnp.min(slope, axis=-1), max=0.0) - here
        return -jnp.sum(jnp.abs(slope), axis=-1) - here

    def outer(self, v: jax.Array) -> jax.Array:
        """Return v, (B, d), as a point of the cube that the set was given in, (B, D)."""
        return v if self.frame is None else self.frame.point(v)

    def extent(self) -> jax.Array:
        """Return the largest size of every coordinate of z, (B, D), of what it is computed from too."""
        if self.frame is not None:
            return jnp.abs(self.frame.center) + 2 * jnp.sum(jnp.abs(self.frame.basis), axis=-1)
        return jnp.abs(self.center) + jnp.sum(jnp.abs(self.basis), axis=-1)


def region(constraints: Any, hull: ScalarHull, problems: tuple[int, ...], far: jax.Array) -> Region:
    """Return the sets in normalized units; `problems` are the leading axes of all, flattened to B.

    Coordinates without a bound are cut `far` input scales, (B,), away from the mean of the inputs, and with strong
    convexity others too.
    """
    D = hull.config.in_dim

    def rows(value: Any, *shape: int) -> jax.Array:
        array = jnp.asarray(value, jnp.float64)
        return jnp.broadcast_to(array, (*problems, *shape)).reshape(len(far), *shape)

    scale, mean = hull.input_scale, hull.input_mean
    if isinstance(constraints, Ball):
        center, radius = rows(constraints.center, D), rows(constraints.radius)
        good = jnp.all(jnp.abs(center) < ENDLESS, axis=-1) & (radius >= 0) & (radius < ENDLESS)
        center, radius = jnp.where(good[:, None], center, mean), jnp.where(good, radius, 0.0)
        basis = radius[:, None, None] * jnp.diag(1 / scale)
        none = jnp.zeros((len(center), 0, D))
        return replace(_made("ball", (center - mean) / scale, basis, none, none[..., 0]), empty=~good)
    if isinstance(constraints, Simplex):
        total = rows(constraints.total)
        good = (total >= 0) & (total < ENDLESS)
        total = jnp.where(good, total, 0.0)
        if D > 1:
            return replace(_simplex(total, hull), empty=~good)
        low = high = jnp.where(good, total, jnp.nan)[:, None]
    elif isinstance(constraints, Box):
        low, high = rows(constraints.lower, D), rows(constraints.upper, D)
    if isinstance(constraints, Polytope):
        A, b = rows(constraints.A, *constraints.A.shape[-2:]), rows(constraints.b, constraints.b.shape[-1])
        A, b = _scaled(A, b)
        low, high = _implied(A, b)
        room = ROOM * (high - low) + LEAST_ROOM * scale
        low, high = jnp.where(low <= high, low - room, low), jnp.where(low <= high, high + room, high)
    else:
        A, b = jnp.zeros((len(low), 0, D)), jnp.zeros((len(low), 0))
    good = jnp.all((low <= high) & (low < ENDLESS) & (high > -ENDLESS), axis=-1)
    low = jnp.where(good[:, None] & (low > -ENDLESS), low, -jnp.inf)
    high = jnp.where(good[:, None] & (high < ENDLESS), high, jnp.inf)
    reach = far[:, None] * scale
    bottom, top = jnp.minimum(mean, high) - reach, jnp.maximum(mean, low) + reach
    above, below = jnp.isposinf(high), jnp.isneginf(low)
    if hull.config.strong_convexity > 0:  # bounds further out may wait: the hull tells whether they matter
        nearer = far[:, None] < FARTHEST
        above, below = above | (nearer & (high > top)), below | (nearer & (low < bottom))
    cuts = jnp.concatenate([above, below], axis=-1)
    lower, upper = jnp.where(below, bottom, low), jnp.where(above, top, high)
    middle, half = 0.5 * (lower + upper), 0.5 * (upper - lower)
    general = A * half[:, None]
    heights = b - jnp.einsum("bmd,bd->bm", A, middle)
    size = jnp.linalg.norm(general, axis=-1)
    heights = jnp.where((size > 0) | (heights < 0), heights, 1.0)
    size = jnp.where(size > 0, size, 1.0)
    sizes = jnp.abs(b) + jnp.einsum("bmd,bd->bm", jnp.abs(A), jnp.abs(middle) + half)
    basis = _diagonals(half / scale)
    made = _made("cube", (middle - mean) / scale, basis, general / size[..., None], heights / size)
    eye = jnp.eye(D)
    sides = _each(jnp.concatenate([eye, -eye]), len(middle))
    return replace(
        made,
        rows=jnp.concatenate([made.rows, sides], axis=1),
        heights=jnp.concatenate([made.heights, jnp.ones_like(sides[..., 0])], axis=1),
        general=A.shape[1],
        open=cuts & good[:, None],
        empty=~good,
        slip=4 * (D + 4) * EPSILON * sizes / size,
    )


def space(hull: ScalarHull, problems: int) -> Region:
    """Return the whole space, for as many problems, in normalized units."""
    zero = _each(jnp.zeros_like(hull.input_mean), problems)
    basis = _diagonals(jnp.ones_like(zero))
    return _made("space", zero, basis, basis[:, :0], zero[:, :0])


def _simplex(total: jax.Array, hull: ScalarHull) -> Region:
    """Return the simplices of totals, (B,), in two dimensions at least: the last coordinate is the rest."""
    D = hull.config.in_dim
    eye, ones = jnp.eye(D - 1), jnp.ones((1, D - 1))
    last = jnp.zeros((D,)).at[-1].set(1.0)
    basis = total[:, None, None] * jnp.concatenate([eye, -ones]) / hull.input_scale[:, None]
    sides = _each(jnp.concatenate([-eye, ones]), len(total))
    heights = _each(jnp.concatenate([jnp.zeros((D - 1,)), jnp.ones((1,))]), len(total))
    center = (total[:, None] * last - hull.input_mean) / hull.input_scale
    made = _made("simplex", center, basis, sides, heights)
    return replace(made, start=jnp.full_like(made.start, 1.0 / D))


def _made(shape: str, center: jax.Array, basis: jax.Array, rows: jax.Array, heights: jax.Array) -> Region:
    start = jnp.zeros_like(basis[:, 0])
    none = jnp.zeros_like(start[:, :0], dtype=bool)
    empty = jnp.zeros((len(start),), dtype=bool)
    return Region(shape, center, basis, rows, heights, 0, start, none, empty)


def _scaled(A: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return rows divided by their largest number; a row that says nothing is 0, one that nothing satisfies NaN."""
    size = jnp.max(jnp.abs(A), axis=-1)
    height = b / jnp.where(size > 0, size, 1.0)
    idle = ((size == 0) & (b >= 0)) | (height >= ENDLESS)
    A = jnp.where(idle[..., None], 0.0, A / jnp.where(size > 0, size, 1.0)[..., None])
    bad = ((size == 0) & (b < 0)) | (height <= -ENDLESS) | ~jnp.isfinite(size) | jnp.isnan(b)
    return A, jnp.where(bad, jnp.nan, jnp.where(idle, 1.0, height))


def _implied(A: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return bounds of each coordinate over `A x <= b`, a little wide for rounding; NaN where a row is."""
    B, M, D = A.shape
    lower = jnp.full((B, D), -jnp.inf)
    upper = -lower
    if M == 0:
        return lower, upper
    for _ in range(SWEEPS):
        least = jnp.where(A > 0, A * lower[:, None], A * upper[:, None])  # what each coordinate adds to a row
        endless = jnp.isinf(least) & (A != 0)
        least = jnp.where(endless | (A == 0), 0.0, least)
        room = b[..., None] - (jnp.sum(least, axis=-1, keepdims=True) - least)
        wide = jnp.abs(b[..., None]) + jnp.sum(jnp.abs(least), axis=-1, keepdims=True)
        bound = (room + 4 * (D + 1) * EPSILON * wide) / jnp.where(A == 0, 1.0, A)
        known = (jnp.sum(endless, axis=-1, keepdims=True) - endless == 0) & (A != 0)
        highest = jnp.min(jnp.where((A > 0) & known, bound, jnp.inf), axis=1)
        lowest = jnp.max(jnp.where((A < 0) & known, bound, -jnp.inf), axis=1)
        lower, upper = jnp.maximum(lower, lowest), jnp.minimum(upper, highest)
    fault = jnp.any(jnp.isnan(b), axis=-1, keepdims=True)
    return jnp.where(fault, jnp.nan, lower), upper


def _each(value: jax.Array, problems: int) -> jax.Array:
    """Return the same array for each problem."""
    return jnp.broadcast_to(value, (problems, *value.shape))


def _diagonals(values: jax.Array) -> jax.Array:
    """Return diagonal matrices, (B, D, D)."""
    return values[:, :, None] * jnp.eye(values.shape[-1])
