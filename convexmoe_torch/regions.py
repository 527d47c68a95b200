"""A set as interior-point methods see it: an affine image of a small standard set, with rows that hold it in.

`z = center + basis v`, v in the cube [-1, 1]^d, in the unit ball, in the unit simplex or anywhere; `rows v <= heights`.
Coordinates without a bound are cut off `FAR` input scales away from the mean of the inputs.

Letters: B problems, D in, d free directions, m rows, M rows of a polytope.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

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
    center: Tensor
    basis: Tensor
    rows: Tensor
    heights: Tensor
    general: int
    start: Tensor
    open: Tensor
    empty: Tensor

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

    def least(self, slope: Tensor, multipliers: Tensor) -> Tensor:
        """Return a lower bound of `slope . v` over the set, (B,): exact but for a polytope's rows.

        Those are added with multipliers >= 0, (B, M): right for any, good for good ones.
        """
        if self.shape == "ball":
            return -torch.linalg.vector_norm(slope, dim=-1)
        if self.shape == "simplex":
            return torch.clamp(torch.amin(slope, dim=-1), max=0.0)
        rows, heights = self.rows[:, : self.general], self.heights[:, : self.general]
        rest = slope + torch.einsum("bm,bmd->bd", multipliers, rows)
        return -torch.sum(multipliers * heights, dim=-1) - torch.sum(torch.abs(rest), dim=-1)

    def extent(self) -> Tensor:
        """Return the largest size of every coordinate of z, (B, D)."""
        return torch.abs(self.center) + torch.sum(torch.abs(self.basis), dim=-1)


def region(constraints: Any, hull: ScalarHull, problems: tuple[int, ...]) -> Region:
    """Return the sets in normalized units; `problems` are the leading axes of all, flattened to B."""
    like, D = hull.input_mean, hull.config.in_dim

    def rows(value: Any, *shape: int) -> Tensor:
        array = torch.as_tensor(value, dtype=like.dtype, device=like.device)
        return torch.broadcast_to(array, (*problems, *shape)).reshape(-1, *shape)

    scale, mean = hull.input_scale, hull.input_mean
    if isinstance(constraints, Ball):
        center, radius = rows(constraints.center, D), rows(constraints.radius)
        basis = radius[:, None, None] * torch.diag(1 / scale)
        none = like.new_zeros(len(center), 0, D)
        return _made("ball", (center - mean) / scale, basis, none, none[..., 0])
    if isinstance(constraints, Simplex) and D > 1:
        total = rows(constraints.total)
        eye, ones = torch.eye(D - 1, dtype=like.dtype, device=like.device), like.new_ones(1, D - 1)
        last = like.new_zeros(D)
        last[-1] = 1.0
        basis = total[:, None, None] * torch.cat([eye, -ones]) / scale[:, None]
        sides = torch.cat([-eye, ones]).expand(len(total), -1, -1)
        heights = torch.cat([like.new_zeros(D - 1), like.new_ones(1)]).expand(len(total), -1)
        made = _made("simplex", (total[:, None] * last - mean) / scale, basis, sides, heights)
        return replace(made, start=torch.full_like(made.start, 1.0 / D))
    if isinstance(constraints, Polytope):
        A, b = rows(constraints.A, *constraints.A.shape[-2:]), rows(constraints.b, constraints.b.shape[-1])
        low, high = _implied(A, b, rows(mean - ENDLESS * scale, D), rows(mean + ENDLESS * scale, D))
        wide = 0.1 * ENDLESS * scale
        low = torch.where(low < mean - wide, -torch.inf, low)
        high = torch.where(high > mean + wide, torch.inf, high)
    else:
        if isinstance(constraints, Box):
            low, high = rows(constraints.lower, D), rows(constraints.upper, D)
        else:
            low = high = rows(constraints.total)[:, None]
        A, b = like.new_zeros(len(low), 0, D), like.new_zeros(len(low), 0)
    cuts = torch.cat([torch.isposinf(high), torch.isneginf(low)], dim=-1)
    lower = torch.where(torch.isneginf(low), torch.minimum(mean, high) - FAR * scale, low)
    upper = torch.where(torch.isposinf(high), torch.maximum(mean, low) + FAR * scale, high)
    middle, half = 0.5 * (lower + upper), 0.5 * (upper - lower)
    empty = torch.any(half < 0, dim=-1)
    half = torch.clamp(half, min=0.0)
    general = A * half[:, None]
    heights = b - torch.einsum("bmd,bd->bm", A, middle)
    size = torch.linalg.vector_norm(general, dim=-1)
    size = torch.where(size > 0, size, 1.0)
    basis = torch.diag_embed(half / scale)
    made = _made("cube", (middle - mean) / scale, basis, general / size[..., None], heights / size)
    eye = torch.eye(D, dtype=like.dtype, device=like.device)
    sides = torch.cat([eye, -eye]).expand(len(middle), -1, -1)
    return replace(
        made,
        rows=torch.cat([made.rows, sides], dim=1),
        heights=torch.cat([made.heights, torch.ones_like(sides[..., 0])], dim=1),
        general=A.shape[1],
        open=cuts,
        empty=empty,
    )


def space(hull: ScalarHull, problems: int) -> Region:
    """Return the whole space, for as many problems, in normalized units."""
    zero = torch.zeros_like(hull.input_mean).expand(problems, -1)
    basis = torch.diag_embed(torch.ones_like(zero))
    return _made("space", zero, basis, basis[:, :0], zero[:, :0])


def _made(shape: str, center: Tensor, basis: Tensor, rows: Tensor, heights: Tensor) -> Region:
    start = torch.zeros_like(basis[:, 0])
    none = torch.zeros_like(start[:, :0], dtype=torch.bool)
    empty = torch.zeros_like(start[:, 0], dtype=torch.bool) if start.shape[-1] else none
    return Region(shape, center, basis, rows, heights, 0, start, none, empty)


def _implied(A: Tensor, b: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Return bounds of each coordinate over `A x <= b` inside given bounds, a little wide for rounding."""
    for _ in range(SWEEPS):
        terms = torch.minimum(
            A * lower[:, None], A * upper[:, None]
        )  # the least that each coordinate adds to a row
        room = (b - torch.sum(terms, dim=-1))[..., None] + terms
        bound = room / torch.where(A == 0, 1.0, A)
        wide = 1e-9 * (upper - lower) + 1e-12 * torch.maximum(torch.abs(lower), torch.abs(upper))
        highest = torch.amin(torch.where(A > 0, bound, torch.inf), dim=1)
        lowest = torch.amax(torch.where(A < 0, bound, -torch.inf), dim=1)
        lower, upper = torch.maximum(lower, lowest - wide), torch.minimum(upper, highest + wide)
    return lower, upper
