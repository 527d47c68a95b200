"""A piecewise-linear function below a hull, from tangents."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from convexmoe.errors import describe, fail
from convexmoe.hull.config import HullConfig

from ..hull.petals import Tree
from .central_path import LEAST_WIDTH
from .scalar_hull import checked_output, checked_weights, scalar_hull


class MaxAffine(NamedTuple):
    """`max_j slopes_j . x + intercepts_j`, in float64 and in the units of the model.

    Args:
        slopes: `[points, in_dim]`; intercepts: `[points]`.
        gap: the largest distance of the hull from it over the rows asked about, a scalar.
    """

    slopes: jax.Array
    intercepts: jax.Array
    gap: jax.Array


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

    >>> from convexmoe_jax import VectorHull
    >>> from flax import nnx
    >>> max_affine(VectorHull(2, petals=3, out_dim=1, rngs=nnx.Rngs(0)), jnp.eye(2)).slopes.shape
    (2, 2)
    """
    chosen = checked_output("max_affine", model, output)
    points = checked_rows("points", points, model.config.in_dim)
    checked_weights("max_affine", model)
    at = points if at is None else checked_rows("at", at, model.config.in_dim)
    with jax.enable_x64(True):
        return _max_affine(model.params, points, at, model.config, chosen)


@partial(jax.jit, static_argnames=("config", "output"))
def _max_affine(params: Tree, x: Any, rows: Any, config: HullConfig, output: int) -> MaxAffine:
    hull = scalar_hull(params, config, output)
    z = hull.normalized(x)
    width = jnp.full_like(z[:, 0], LEAST_WIDTH)
    tangent = hull.tangent(hull.expand(z, width), z, jnp.zeros_like(z), jnp.zeros_like(width))
    height, slope = hull.minorant(z, tangent)
    rise, lean = hull.square(z, tangent)
    reach = jnp.max(jnp.abs(z), axis=0) + 2 * jnp.abs(hull.input_mean / hull.input_scale)
    height = height + rise - hull.rounding(reach[None])
    slopes = hull.output_scale * (slope + lean) / hull.input_scale
    intercepts = hull.output_mean + hull.output_scale * height - jnp.sum(slopes * x, axis=-1)
    value = hull.output_mean + hull.output_scale * hull.value(hull.normalized(rows))
    below = jnp.max(rows @ slopes.T + intercepts, axis=-1)
    return MaxAffine(slopes, intercepts, jnp.max(value - below))


def checked_rows(argument: str, value: Any, in_dim: int) -> Any:
    """Return rows in float64 after the check of their shape and, where known, of their values."""
    try:
        rows = value if isinstance(value, jax.core.Tracer) else np.asarray(value, np.float64)
    except (TypeError, ValueError):
        fix = "Pass one row at least, one number for each input."
        fail("max_affine", argument, "an array of numbers", type(value).__name__, fix, TypeError)
    if rows.ndim != 2 or rows.shape[-1] != in_dim or not len(rows):
        fix = "Pass one row at least, one number for each input."
        fail("max_affine", argument, f"[rows, in_dim={in_dim}]", describe(value), fix)
    if isinstance(rows, np.ndarray) and not np.isfinite(rows).all():
        fail("max_affine", argument, "finite numbers", "inf or nan", "Remove that row.")
    return rows
