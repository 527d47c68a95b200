"""A set as interior-point methods see it: an affine image of a small standard set, with rows that hold it in.

`z = center + basis v`, v in the cube [-1, 1]^d, in the unit ball, in the unit simplex or anywhere; `rows v <= heights`.
Coordinates without a bound are cut off some input scales away from the mean of the inputs.

Letters: B problems, D in, d free directions, m rows, M rows of a polytope.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from ..arrays import Array, as_array, einsum, eye, namespace, zeros
from .scalar_hull import EPSILON, ScalarHull
from .sets import AXES, ENDLESS, FEW, Ball, Box, Polytope, Simplex

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

    center: Array
    basis: Array
    rows: Array
    heights: Array
    shift: Array
    turn: Array
    lengths: Array
    inverse: Array
    ray: Array

    def point(self, w: Array) -> Array:
        """Return w, (B, D), as a point of the cube."""
        return self.shift + einsum("bij,bj->bi", self.turn, w)

    def least(self, slope: Array, w: Array, multipliers: Array) -> Array:
        """Return a lower bound of `slope . (v - point(w))` over the set, (B,), by weak duality.

        Rows are added with multipliers >= 0, (B, M + 2 D) with those of the sides: right for any, good for good ones.
        What is left across the rows that hold with equality is cancelled by theirs, and `ray` makes them positive.
        """
        xp = namespace(slope)
        M, D = self.rows.shape[1:]
        shares = multipliers / self.lengths
        sides = shares[:, M : M + D] - shares[:, M + D :]
        rest = slope + sides + einsum("bm,bmd->bd", shares[:, :M], self.rows)
        shares = shares[:, :M] - einsum("bmd,bd->bm", self.inverse, rest)
        wanted = xp.clip(-shares, min=0.0) / xp.clip(self.ray, min=1e-300)
        raised = xp.max(xp.where(self.ray > 0, wanted, 0.0), axis=-1, keepdims=True) * self.ray
        shares = xp.clip(shares + raised, min=0.0)
        rest = slope + einsum("bm,bmd->bd", shares, self.rows)
        sizes = xp.abs(self.heights) + xp.sum(xp.abs(self.rows), axis=-1)
        total = xp.sum(shares * sizes, axis=-1) + xp.sum(xp.abs(slope), axis=-1)
        low = -xp.sum(slope * self.point(w), axis=-1) - xp.sum(shares * self.heights, axis=-1)
        return low - xp.sum(xp.abs(rest), axis=-1) - 2 * (M + D + 4) * EPSILON * total


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
    center: Array
    basis: Array
    rows: Array
    heights: Array
    general: int
    start: Array
    open: Array
    empty: Array
    slip: Array | None = None
    frame: Frame | None = None

    def place(self, v: Array) -> Array:
        """Return v, (B, ..., d), in normalized units."""
        flat = v.reshape(v.shape[0], -1, v.shape[-1])
        z = self.center[:, None] + flat @ self.basis.mT
        return z.reshape(*v.shape[:-1], -1)

    def slack(self, v: Array) -> Array:
        """Return `heights - rows v`, (B, ..., m), and with a ball `1 - ||v||^2` as the last."""
        xp = namespace(v)
        flat = v.reshape(v.shape[0], -1, v.shape[-1])
        slack = self.heights[:, None] - flat @ self.rows.mT
        if self.shape == "ball":
            slack = xp.concat([slack, 1 - xp.sum(flat * flat, axis=-1, keepdims=True)], axis=-1)
        return slack.reshape(*v.shape[:-1], -1)

    def pull(self, slope: Array) -> Array:
        """Return a slope in z, (B, D), as one in v, (B, d)."""
        return einsum("bij,bi->bj", self.basis, slope)

    def normals(self, v: Array) -> Array:
        """Return minus the derivative of the slack, (B, m, d)."""
        xp = namespace(v)
        if self.shape != "ball":
            return self.rows
        return xp.concat([self.rows, 2 * v[:, None]], axis=1)

    def reach(self, v: Array, step: Array) -> Array:
        """Return the largest t for which `v + t step` is in the set, (B,); inf where there is none."""
        xp = namespace(v)
        slack, along = self.slack(v), einsum("bmd,bd->bm", self.normals(v), step)
        limits = xp.where(along > 0, slack / along, xp.inf)
        if self.shape == "ball":
            size, half = xp.sum(step * step, axis=-1), 0.5 * along[:, -1]
            root = xp.sqrt(half * half + size * slack[:, -1])
            limits = xp.where(size > 0, slack[:, -1] / (half + root), xp.inf)[:, None]
        return xp.min(limits, axis=-1) if limits.shape[-1] else xp.full_like(v[:, 0], xp.inf)

    def least(self, slope: Array, v: Array, multipliers: Array) -> Array:
        """Return a lower bound of `slope . (z - place(v))` over the set, (B,): exact but for a polytope's rows.

        Those are added with multipliers >= 0, (B, M): right for any, good for good ones.
        """
        xp = namespace(slope)
        if self.frame is not None:
            pulled = einsum("bij,bi->bj", self.frame.basis, slope)
            return self.frame.least(pulled, v, multipliers[:, : self.general])
        slope = self.pull(slope)
        here = xp.sum(slope * v, axis=-1)
        if self.shape == "ball":
            return -xp.linalg.vector_norm(slope, axis=-1) - here
        if self.shape == "simplex":
            return xp.clip(xp.min(slope, axis=-1), max=0.0) - here
        return -xp.sum(xp.abs(slope), axis=-1) - here

    def outer(self, v: Array) -> Array:
        """Return v, (B, d), as a point of the cube that the set was given in, (B, D)."""
        return v if self.frame is None else self.frame.point(v)

    def extent(self) -> Array:
        """Return the largest size of every coordinate of z, (B, D), of what it is computed from too."""
        xp = namespace(self.center)
        if self.frame is not None:
            return xp.abs(self.frame.center) + 2 * xp.sum(xp.abs(self.frame.basis), axis=-1)
        return xp.abs(self.center) + xp.sum(xp.abs(self.basis), axis=-1)


def region(
    constraints: Any, hull: ScalarHull, problems: tuple[int, ...], far: Array, endless: Array | None = None
) -> Region:
    """Return the sets in normalized units; `problems` are the leading axes of all, flattened to B.

    Coordinates without a bound are cut `far` input scales, (B,), away from the mean of the inputs, and those of a wide
    box, or with strong convexity. Where `endless`, (), is true, boxes and polytopes are replaced by the directions in
    the cube [-1, 1]^D in which they have no end.
    """
    xp, D = namespace(far), hull.config.in_dim
    if isinstance(constraints, Ball):
        center, radius = each_problem(constraints, problems, far)
        return ball(center, radius, hull)
    if isinstance(constraints, Simplex) and D > 1:
        [total] = each_problem(constraints, problems, far)
        good = (total >= 0) & (total < ENDLESS)
        return replace(simplex(xp.where(good, total, 0.0), hull), empty=~good)
    low, high, A, b = half_spaces(constraints, hull, problems)
    if endless is not None:
        low = xp.where(endless, xp.where(low > -ENDLESS, 0.0, -xp.inf), low)
        high = xp.where(endless, xp.where(high < ENDLESS, 0.0, xp.inf), high)
        A, b = xp.where(endless, A * hull.input_scale, A), xp.where(endless, 0 * b, b)
        units = {"input_mean": xp.where(endless, 0.0, hull.input_mean)}
        units["input_scale"] = xp.where(endless, 1.0, hull.input_scale)
        hull, far = replace(hull, **units), xp.where(endless, 1.0, far)
    if A.shape[1]:
        low, high = implied_bounds(A, b)
        room = ROOM * (high - low) + LEAST_ROOM * hull.input_scale
        low, high = xp.where(low <= high, low - room, low), xp.where(low <= high, high + room, high)
    return cube(low, high, A, b, hull, far)


def half_spaces(constraints: Any, hull: ScalarHull, problems: tuple[int, ...]) -> tuple[Array, Array, Array, Array]:
    """Return `low <= x <= high`, (B, D), and `A x <= b`, (B, M, D) and (B, M), as one set; NaN where it is none."""
    xp, mean, D = namespace(hull.input_mean), hull.input_mean, hull.config.in_dim
    if isinstance(constraints, Polytope):
        A, b = each_problem(constraints, problems, mean)
        finite = xp.all(xp.isfinite(A), axis=-1) & xp.isfinite(b)
        A, b = scale_rows(A, xp.where(finite, b, xp.nan))
        endless = zeros((b.shape[0], D), mean) + xp.inf
        return -endless, endless, A, b
    if isinstance(constraints, Box):
        low, high = each_problem(constraints, problems, mean)
    else:
        total = each_problem(constraints, problems, mean)[0][:, None]
        low = high = xp.where((total >= 0) & (total < ENDLESS), total, xp.nan)
    return low, high, zeros((low.shape[0], 0, D), mean), zeros((low.shape[0], 0), mean)


def each_problem(constraints: Any, problems: tuple[int, ...], beside: Array) -> list[Array]:
    """Return the fields of sets with their leading axes flattened to B."""
    xp, values = namespace(beside), []
    for field in fields(constraints):
        value = as_array(getattr(constraints, field.name), beside)
        shape = tuple(value.shape[value.ndim - AXES.get(field.name, FEW) :])
        values.append(xp.reshape(xp.broadcast_to(value, (*problems, *shape)), (math.prod(problems), *shape)))
    return values


def cube(low: Array, high: Array, A: Array, b: Array, hull: ScalarHull, far: Array) -> Region:
    """Return the sets `low <= x <= high`, (B, D), with `A x <= b`, cut where they have no bound."""
    xp, D = namespace(low), hull.config.in_dim
    scale, mean = hull.input_scale, hull.input_mean
    good = xp.all((low <= high) & (low < ENDLESS) & (high > -ENDLESS), axis=-1)
    low = xp.where(good[:, None] & (low > -ENDLESS), low, -xp.inf)
    high = xp.where(good[:, None] & (high < ENDLESS), high, xp.inf)
    reach = far[:, None] * scale
    bottom, top = xp.minimum(mean, high) - reach, xp.maximum(mean, low) + reach
    above, below = high == xp.inf, low == -xp.inf
    if hull.config.strong_convexity > 0 or not A.shape[1]:  # bounds further out may wait: the hull tells if they matter
        nearer = far[:, None] < FARTHEST
        above, below = above | (nearer & (high > top)), below | (nearer & (low < bottom))
    cuts = xp.concat([above, below], axis=-1)
    lower, upper = xp.where(below, bottom, low), xp.where(above, top, high)
    middle, half = 0.5 * (lower + upper), 0.5 * (upper - lower)
    general = A * half[:, None]
    heights = b - einsum("bmd,bd->bm", A, middle)
    size = xp.linalg.vector_norm(general, axis=-1)
    heights = xp.where((size > 0) | (heights < 0), heights, 1.0)
    size = xp.where(size > 0, size, 1.0)
    sizes = xp.abs(b) + einsum("bmd,bd->bm", xp.abs(A), xp.abs(middle) + half)
    basis = diagonals(half / scale)
    part = standard("cube", (middle - mean) / scale, basis, general / size[..., None], heights / size)
    identity = eye(D, mean)
    sides = each(xp.concat([identity, -identity]), middle.shape[0])
    return replace(
        part,
        rows=xp.concat([part.rows, sides], axis=1),
        heights=xp.concat([part.heights, xp.ones_like(sides[..., 0])], axis=1),
        general=A.shape[1],
        open=cuts & good[:, None],
        empty=~good,
        slip=4 * (D + 4) * EPSILON * sizes / size,
    )


def ball(center: Array, radius: Array, hull: ScalarHull) -> Region:
    """Return the balls around centers, (B, D), of radii (B,); one with a fault is empty."""
    xp, mean = namespace(center), hull.input_mean
    good = xp.all(xp.abs(center) < ENDLESS, axis=-1) & (radius >= 0) & (radius < ENDLESS)
    center, radius = xp.where(good[:, None], center, mean), xp.where(good, radius, 0.0)
    basis = radius[:, None, None] * diagonals(1 / hull.input_scale[None])
    none = zeros((center.shape[0], 0, center.shape[1]), mean)
    return replace(standard("ball", (center - mean) / hull.input_scale, basis, none, none[..., 0]), empty=~good)


def simplex(total: Array, hull: ScalarHull) -> Region:
    """Return the simplices of totals, (B,), in two dimensions at least: the last coordinate is the rest."""
    xp, B, D = namespace(total), total.shape[0], hull.config.in_dim
    identity = eye(D - 1, total)
    ones = xp.ones_like(identity[:1])
    last = eye(D, total)[-1]
    basis = total[:, None, None] * xp.concat([identity, -ones]) / hull.input_scale[:, None]
    sides = each(xp.concat([-identity, ones]), B)
    heights = each(last, B)
    center = (total[:, None] * last - hull.input_mean) / hull.input_scale
    part = standard("simplex", center, basis, sides, heights)
    return replace(part, start=xp.full_like(part.start, 1.0 / D))


def space(hull: ScalarHull, problems: int) -> Region:
    """Return the whole space, for as many problems, in normalized units."""
    zero = each(zeros(hull.input_mean.shape, hull.input_mean), problems)
    basis = diagonals(namespace(zero).ones_like(zero))
    return standard("space", zero, basis, basis[:, :0], zero[:, :0])


def standard(shape: str, center: Array, basis: Array, rows: Array, heights: Array) -> Region:
    """Return the region of a standard set of this shape, its start in the middle, no face of it a cut."""
    xp = namespace(center)
    start = xp.zeros_like(basis[:, 0])
    none = xp.zeros_like(start[:, :0], dtype=xp.bool)
    empty = xp.zeros_like(center[:, 0], dtype=xp.bool)
    return Region(shape, center, basis, rows, heights, 0, start, none, empty)


def is_outside(x: Array, A: Array, b: Array, hull: ScalarHull) -> Array:
    """Return whether points, (B, D), break one of `A x <= b` by more than the rounding of x and of the row."""
    xp, D = namespace(x), x.shape[-1]
    sizes = xp.abs(x) + xp.abs(hull.input_mean) + hull.input_scale
    rounding = xp.abs(b) + einsum("bmd,bd->bm", xp.abs(A), sizes)
    left = einsum("bmd,bd->bm", A, x) - b
    return xp.any(left > 4 * (D + 8) * EPSILON * rounding, axis=-1)


def scale_rows(A: Array, b: Array) -> tuple[Array, Array]:
    """Return rows divided by their largest number; a row that says nothing is 0, one that nothing satisfies NaN."""
    xp = namespace(A)
    size = xp.max(xp.abs(A), axis=-1)
    height = b / xp.where(size > 0, size, 1.0)
    idle = ((size == 0) & (b >= 0)) | (height >= ENDLESS)
    A = xp.where(idle[..., None], 0.0, A / xp.where(size > 0, size, 1.0)[..., None])
    bad = ((size == 0) & (b < 0)) | (height <= -ENDLESS) | ~xp.isfinite(size) | xp.isnan(b)
    return A, xp.where(bad, xp.nan, xp.where(idle, 1.0, height))


def implied_bounds(A: Array, b: Array) -> tuple[Array, Array]:
    """Return bounds of each coordinate over `A x <= b`, a little wide for rounding; NaN where a row is."""
    xp, (B, M, D) = namespace(A), A.shape
    upper = xp.full_like(A[:, 0], xp.inf) if M else zeros((B, D), A) + xp.inf
    lower = -upper
    if M == 0:
        return lower, upper
    for _ in range(SWEEPS):
        least = xp.where(A > 0, A * lower[:, None], A * upper[:, None])  # what each coordinate adds to a row
        endless = xp.isinf(least) & (A != 0)
        least = xp.where(endless | (A == 0), 0.0, least)
        room = b[..., None] - (xp.sum(least, axis=-1, keepdims=True) - least)
        wide = xp.abs(b[..., None]) + xp.sum(xp.abs(least), axis=-1, keepdims=True)
        bound = (room + 4 * (D + 1) * EPSILON * wide) / xp.where(A == 0, 1.0, A)
        others = xp.sum(xp.astype(endless, A.dtype), axis=-1, keepdims=True) - xp.astype(endless, A.dtype)
        known = (others == 0) & (A != 0)
        highest = xp.min(xp.where((A > 0) & known, bound, xp.inf), axis=1)
        lowest = xp.max(xp.where((A < 0) & known, bound, -xp.inf), axis=1)
        lower, upper = xp.maximum(lower, lowest), xp.minimum(upper, highest)
    fault = xp.any(xp.isnan(b), axis=-1, keepdims=True)
    return xp.where(fault, xp.nan, lower), upper


def each(value: Array, problems: int) -> Array:
    """Return the same array for each problem."""
    return namespace(value).broadcast_to(value, (problems, *value.shape))


def diagonals(values: Array) -> Array:
    """Return diagonal matrices, (B, D, D)."""
    return values[:, :, None] * eye(values.shape[-1], values)
