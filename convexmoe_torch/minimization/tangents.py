"""A piecewise-linear function below a hull, from tangents."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from convexmoe.errors import describe, fail

from .central_path import LEAST_WIDTH
from .scalar_hull import checked_output, checked_weights, scalar_hull


class MaxAffine(NamedTuple):
    """`max_j slopes_j . x + intercepts_j`, in float64 and in the units of the model.

    Args:
        slopes: `[points, in_dim]`; intercepts: `[points]`.
        gap: the largest distance of the hull from it over the rows asked about, a scalar.
    """

    slopes: Tensor
    intercepts: Tensor
    gap: Tensor


@torch.no_grad()
def max_affine(model: Any, points: Any, at: Any = None, *, output: int | None = None) -> MaxAffine:
    """Return the maximum of the tangents to one output of a hull: a lower bound that a linear program can hold.

    Guarantee: nowhere above the hull, in exact arithmetic; intercepts are lowered by a first-order bound on rounding
    within the box around the points (tests/contract/test_tangents.py).

    Args:
        model: a `VectorHull` or `FoldedHull`.
        points: `[points, in_dim]`, where it touches the hull.
        at: `[rows, in_dim]`, over which `gap` is taken; None for the points themselves, where it is rounding.
        output: which output, where the model has several.

    Raises:
        TypeError: no hull, points or rows no numbers.
        ValueError: points or rows are no finite `[rows, in_dim]`; weights are not finite.

    >>> from convexmoe_torch import VectorHull
    >>> max_affine(VectorHull(2, petals=3, out_dim=1), torch.eye(2)).slopes.shape
    torch.Size([2, 2])
    """
    chosen = checked_output("max_affine", model, output)
    points = checked_rows("points", points, model.config.in_dim)
    checked_weights("max_affine", model)
    at = points if at is None else checked_rows("at", at, model.config.in_dim)
    hull = scalar_hull(model, chosen)
    x, rows = points.to(hull.input_mean), at.to(hull.input_mean)
    z = hull.normalized(x)
    width = torch.full_like(z[:, 0], LEAST_WIDTH)
    tangent = hull.tangent(hull.expand(z, width), z, torch.zeros_like(z), torch.zeros_like(width))
    height, slope = hull.minorant(z, tangent)
    rise, lean = hull.square(z, tangent)
    reach = torch.amax(torch.abs(z), dim=0) + 2 * torch.abs(hull.input_mean / hull.input_scale)
    height = height + rise - hull.rounding(reach[None])
    slopes = hull.output_scale * (slope + lean) / hull.input_scale
    intercepts = hull.output_mean + hull.output_scale * height - torch.sum(slopes * x, dim=-1)
    value = hull.output_mean + hull.output_scale * hull.value(hull.normalized(rows))
    below = torch.amax(rows @ slopes.T + intercepts, dim=-1)
    return MaxAffine(slopes, intercepts, torch.amax(value - below))


def checked_rows(argument: str, value: Any, in_dim: int) -> Tensor:
    """Return rows in float64 after the check of their shape and of their values."""
    try:
        rows = value.detach() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value, np.float64))
    except (TypeError, ValueError):
        fix = "Pass one row at least, one number for each input."
        fail("max_affine", argument, "an array of numbers", type(value).__name__, fix, TypeError)
    if rows.ndim != 2 or rows.shape[-1] != in_dim or not len(rows):
        fix = "Pass one row at least, one number for each input."
        fail("max_affine", argument, f"[rows, in_dim={in_dim}]", describe(value), fix)
    if not bool(torch.isfinite(rows).all()):
        fail("max_affine", argument, "finite numbers", "inf or nan", "Remove that row.")
    return rows.to(torch.float64)
