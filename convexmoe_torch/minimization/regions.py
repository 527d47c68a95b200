"""A set as interior-point methods see it: an affine image of a small standard set, with rows that hold it in.

`z = center + basis v`, v in the cube [-1, 1]^d, in the unit ball, in the unit simplex or anywhere; `rows v <= heights`.
Coordinates without a bound are cut off some input scales away from the mean of the inputs.

Letters: B problems, D in, d free directions, m rows, M rows of a polytope.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

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

    center: Tensor
    basis: Tensor
    rows: Tensor
    heights: Tensor
    shift: Tensor
    turn: Tensor
    lengths: Tensor
    inverse: Tensor
    ray: Tensor

    def point(self, w: Tensor) -> Tensor:
        """Return w, (B, D), as a point of the cube."""
        return self.shift + torch.einsum("bij,bj->bi", self.turn, w)

    def least(self, slope: Tensor, w: Tensor, multipliers: Tensor) -> Tensor:
        """Return a lower bound of `slope . (v - point(w))` over the set, (B,), by weak duality.

        Rows are added with multipliers >= 0, (B, M + 2 D) with those of the sides: right for any, good for good ones.
        What is left across the rows that hold with equality is cancelled by theirs, and `ray` makes them positive.
        """
        M, D = self.rows.shape[1:]
        shares = multipliers / self.lengths
        sides = shares[:, M : M + D] - shares[:, M + D :]
        rest = slope + sides + torch.einsum("bm,bmd->bd", shares[:, :M], self.rows)
        shares = shares[:, :M] - torch.einsum("bmd,bd->bm", self.inverse, rest)
        wanted = torch.clamp(-shares, min=0.0) / torch.clamp(self.ray, min=1e-300)
        raised = torch.amax(torch.where(self.ray > 0, wanted, 0.0), dim=-1, keepdim=True) * self.ray
        shares = torch.clamp(shares + raised, min=0.0)
        rest = slope + torch.einsum("bm,bmd->bd", shares, self.rows)
        sizes = torch.abs(self.heights) + torch.sum(torch.abs(self.rows), dim=-1)
        total = torch.sum(shares * sizes, dim=-1) + torch.sum(torch.abs(slope), dim=-1)
        low = -torch.sum(slope * self.point(w), dim=-1) - torch.sum(shares * self.heights, dim=-1)
        return low - torch.sum(torch.abs(rest), dim=-1) - 2 * (M + D + 4) * EPSILON * total


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
    center: Tensor
    basis: Tensor
    rows: Tensor
    heights: Tensor
    general: int
    start: Tensor
    open: Tensor
    empty: Tensor
    slip: Tensor | None = None
    frame: Frame | None = None

    def place(self, v: Tensor) -> Tensor:
        """Return v, (B, ..., d), in normalized units."""
        flat = v.reshape(v.shape[0], -1, v.shape[-1])
        z = self.center[:, None] + flat @ self.basis.transpose(1, 2)
        return z.reshape(*v.shape[:-1], -1)

    def slack(self, v: Tensor) -> Tensor:
        """Return `heights - rows v`, (B, ..., m), and with a ball `1 - ||v||^2` as the last."""
        flat = v.reshape(v.shape[0], -1, v.shape[-1])
        slack = self.heights[:, None] - flat @ self.rows.transpose(1, 2)
        if self.shape == "ball":
            slack = torch.cat([slack, 1 - torch.sum(flat * flat, dim=-1, keepdim=True)], dim=-1)
        return slack.reshape(*v.shape[:-1], -1)

    def normals(self, v: Tensor) -> Tensor:
        """Return minus the derivative of the slack, (B, m, d)."""
        if self.shape != "ball":
            return self.rows
        return torch.cat([self.rows, 2 * v[:, None]], dim=1)

    def reach(self, v: Tensor, step: Tensor) -> Tensor:
        """Return the largest t for which `v + t step` is in the set, (B,); inf where there is none."""
        slack, along = self.slack(v), torch.einsum("bmd,bd->bm", self.normals(v), step)
        limits = torch.where(along > 0, slack / along, torch.inf)
        if self.shape == "ball":
            size, half = torch.sum(step * step, dim=-1), 0.5 * along[:, -1]
            root = torch.sqrt(half * half + size * slack[:, -1])
            limits = torch.where(size > 0, slack[:, -1] / (half + root), torch.inf)[:, None]
        return torch.amin(limits, dim=-1) if limits.shape[-1] else torch.full_like(v[:, 0], torch.inf)

    def least(self, slope: Tensor, v: Tensor, multipliers: Tensor) -> Tensor:
        """Return a lower bound of `slope . (z - place(v))` over the set, (B,): exact but for a polytope's rows.

        Those are added with multipliers >= 0, (B, M): right for any, good for good ones.
        """
        if self.frame is not None:
            pulled = torch.einsum("bij,bi->bj", self.frame.basis, slope)
            return self.frame.least(pulled, v, multipliers[:, : self.general])
        slope = torch.einsum("bij,bi->bj", self.basis, slope)
        here = torch.sum(slope * v, dim=-1)
        if self.shape == "ball":
            return -torch.linalg.vector_norm(slope, dim=-1) - here
        if self.shape == "simplex":
            return torch.clamp(torch.amin(slope, dim=-1), max=0.0) - here
        return -torch.sum(torch.abs(slope), dim=-1) - here

    def outer(self, v: Tensor) -> Tensor:
        """Return v, (B, d), as a point of the cube that the set was given in, (B, D)."""
        return v if self.frame is None else self.frame.point(v)

    def extent(self) -> Tensor:
        """Return the largest size of every coordinate of z, (B, D), of what it is computed from too."""
        if self.frame is not None:
            return torch.abs(self.frame.center) + 2 * torch.sum(torch.abs(self.frame.basis), dim=-1)
        return torch.abs(self.center) + torch.sum(torch.abs(self.basis), dim=-1)


def region(constraints: Any, hull: ScalarHull, problems: tuple[int, ...], far: Tensor) -> Region:
    """Return the sets in normalized units; `problems` are the leading axes of all, flattened to B.

    Coordinates without a bound are cut `far` input scales, (B,), away from the mean of the inputs, and with strong
    convexity others too.
    """
    like, D = hull.input_mean, hull.config.in_dim

    def rows(value: Any, *shape: int) -> Tensor:
        array = torch.as_tensor(value, dtype=like.dtype, device=like.device)
        return torch.broadcast_to(array, (*problems, *shape)).reshape(len(far), *shape)

    scale, mean = hull.input_scale, hull.input_mean
    if isinstance(constraints, Ball):
        center, radius = rows(constraints.center, D), rows(constraints.radius)
        good = torch.all(torch.abs(center) < ENDLESS, dim=-1) & (radius >= 0) & (radius < ENDLESS)
        center, radius = torch.where(good[:, None], center, mean), torch.where(good, radius, 0.0)
        basis = radius[:, None, None] * torch.diag(1 / scale)
        none = like.new_zeros(len(center), 0, D)
        return replace(_made("ball", (center - mean) / scale, basis, none, none[..., 0]), empty=~good)
    if isinstance(constraints, Simplex):
        total = rows(constraints.total)
        good = (total >= 0) & (total < ENDLESS)
        total = torch.where(good, total, 0.0)
        if D > 1:
            return replace(_simplex(total, hull), empty=~good)
        low = high = torch.where(good, total, torch.nan)[:, None]
    elif isinstance(constraints, Box):
        low, high = rows(constraints.lower, D), rows(constraints.upper, D)
    if isinstance(constraints, Polytope):
        A, b = rows(constraints.A, *constraints.A.shape[-2:]), rows(constraints.b, constraints.b.shape[-1])
        A, b = _scaled(A, b)
        low, high = _implied(A, b)
        room = ROOM * (high - low) + LEAST_ROOM * scale
        low, high = torch.where(low <= high, low - room, low), torch.where(low <= high, high + room, high)
    else:
        A, b = like.new_zeros(len(low), 0, D), like.new_zeros(len(low), 0)
    good = torch.all((low <= high) & (low < ENDLESS) & (high > -ENDLESS), dim=-1)
    low = torch.where(good[:, None] & (low > -ENDLESS), low, -torch.inf)
    high = torch.where(good[:, None] & (high < ENDLESS), high, torch.inf)
    reach = far[:, None] * scale
    bottom, top = torch.minimum(mean, high) - reach, torch.maximum(mean, low) + reach
    above, below = torch.isposinf(high), torch.isneginf(low)
    if hull.config.strong_convexity > 0:  # bounds further out may wait: the hull tells whether they matter
        nearer = far[:, None] < FARTHEST
        above, below = above | (nearer & (high > top)), below | (nearer & (low < bottom))
    cuts = torch.cat([above, below], dim=-1)
    lower, upper = torch.where(below, bottom, low), torch.where(above, top, high)
    middle, half = 0.5 * (lower + upper), 0.5 * (upper - lower)
    general = A * half[:, None]
    heights = b - torch.einsum("bmd,bd->bm", A, middle)
    size = torch.linalg.vector_norm(general, dim=-1)
    heights = torch.where((size > 0) | (heights < 0), heights, 1.0)
    size = torch.where(size > 0, size, 1.0)
    sizes = torch.abs(b) + torch.einsum("bmd,bd->bm", torch.abs(A), torch.abs(middle) + half)
    basis = torch.diag_embed(half / scale)
    made = _made("cube", (middle - mean) / scale, basis, general / size[..., None], heights / size)
    eye = torch.eye(D, dtype=like.dtype, device=like.device)
    sides = torch.cat([eye, -eye]).expand(len(middle), -1, -1)
    return replace(
        made,
        rows=torch.cat([made.rows, sides], dim=1),
        heights=torch.cat([made.heights, torch.ones_like(sides[..., 0])], dim=1),
        general=A.shape[1],
        open=cuts & good[:, None],
        empty=~good,
        slip=4 * (D + 4) * EPSILON * sizes / size,
    )


def space(hull: ScalarHull, problems: int) -> Region:
    """Return the whole space, for as many problems, in normalized units."""
    zero = torch.zeros_like(hull.input_mean).expand(problems, -1)
    basis = torch.diag_embed(torch.ones_like(zero))
    return _made("space", zero, basis, basis[:, :0], zero[:, :0])


def _simplex(total: Tensor, hull: ScalarHull) -> Region:
    """Return the simplices of totals, (B,), in two dimensions at least: the last coordinate is the rest."""
    like, D = hull.input_mean, hull.config.in_dim
    eye, ones = torch.eye(D - 1, dtype=like.dtype, device=like.device), like.new_ones(1, D - 1)
    last = like.new_zeros(D)
    last[-1] = 1.0
    basis = total[:, None, None] * torch.cat([eye, -ones]) / hull.input_scale[:, None]
    sides = torch.cat([-eye, ones]).expand(len(total), -1, -1)
    heights = torch.cat([like.new_zeros(D - 1), like.new_ones(1)]).expand(len(total), -1)
    center = (total[:, None] * last - hull.input_mean) / hull.input_scale
    made = _made("simplex", center, basis, sides, heights)
    return replace(made, start=torch.full_like(made.start, 1.0 / D))


def _made(shape: str, center: Tensor, basis: Tensor, rows: Tensor, heights: Tensor) -> Region:
    start = torch.zeros_like(basis[:, 0])
    none = torch.zeros_like(start[:, :0], dtype=torch.bool)
    empty = torch.zeros(len(start), dtype=torch.bool, device=start.device)
    return Region(shape, center, basis, rows, heights, 0, start, none, empty)


def _scaled(A: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows divided by their largest number; a row that says nothing is 0, one that nothing satisfies NaN."""
    size = torch.amax(torch.abs(A), dim=-1)
    height = b / torch.where(size > 0, size, 1.0)
    idle = ((size == 0) & (b >= 0)) | (height >= ENDLESS)
    A = torch.where(idle[..., None], 0.0, A / torch.where(size > 0, size, 1.0)[..., None])
    bad = ((size == 0) & (b < 0)) | (height <= -ENDLESS) | ~torch.isfinite(size) | torch.isnan(b)
    return A, torch.where(bad, torch.nan, torch.where(idle, 1.0, height))


def _implied(A: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return bounds of each coordinate over `A x <= b`, a little wide for rounding; NaN where a row is."""
    B, M, D = A.shape
    lower = torch.full((B, D), -torch.inf, dtype=A.dtype, device=A.device)
    upper = -lower
    if M == 0:
        return lower, upper
    for _ in range(SWEEPS):
        least = torch.where(
            A > 0, A * lower[:, None], A * upper[:, None]
        )  # what each coordinate adds to a row
        endless = torch.isinf(least) & (A != 0)
        least = torch.where(endless | (A == 0), 0.0, least)
        room = b[..., None] - (torch.sum(least, dim=-1, keepdim=True) - least)
        wide = torch.abs(b[..., None]) + torch.sum(torch.abs(least), dim=-1, keepdim=True)
        bound = (room + 4 * (D + 1) * EPSILON * wide) / torch.where(A == 0, 1.0, A)
        known = (torch.sum(endless, dim=-1, keepdim=True) - endless.long() == 0) & (A != 0)
        highest = torch.amin(torch.where((A > 0) & known, bound, torch.inf), dim=1)
        lowest = torch.amax(torch.where((A < 0) & known, bound, -torch.inf), dim=1)
        lower, upper = torch.maximum(lower, lowest), torch.minimum(upper, highest)
    fault = torch.any(torch.isnan(b), dim=-1, keepdim=True)
    return torch.where(fault, torch.nan, lower), upper
