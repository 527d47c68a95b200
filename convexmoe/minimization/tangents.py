"""A piecewise-linear function below a convex hull, or above a concave one, from tangents."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..arrays import Array, as_array, namespace
from ..errors import describe, fail
from ..hull.config import HullConfig
from ..hull.parameters import Tree
from .central_path import LEAST_WIDTH
from .outputs import scalar_hull
from .solver import check_contexts, check_hull, check_rows, check_weights


class MaxAffine(NamedTuple):
    """`max_j slopes_j . x + intercepts_j`, of a concave hull `min_j`, in float64 and in the units of the model.

    Args:
        slopes: `[points, in_dim]`; intercepts: `[points]`.
        gap: the largest distance of the hull from it over the rows asked about, a scalar.
    """

    slopes: Array
    intercepts: Array
    gap: Array


def max_affine(model: Any, points: Any, at: Any = None, *, output: int | None = None, context: Any = None) -> MaxAffine:
    """Return the maximum of the tangents to one output of a hull: a lower bound that a linear program can hold.

    Of a concave hull it is their minimum, an upper bound: the same record stands for `min_j slopes_j . x +
    intercepts_j`.

    Guarantee: nowhere above the hull (below a concave one), in exact arithmetic; intercepts are lowered (raised) by a
    first-order bound on rounding within the box around the points (tests/contract/test_tangents.py, test_maximize.py).

    Args:
        model: a `VectorHull` or `FoldedHull`.
        points: `[points, in_dim]`, where it touches the hull.
        at: `[rows, in_dim]`, over which `gap` is taken; None for the points themselves, where it is rounding.
        output: which output, where the model has several.
        context: `[context_dim]`, in original units, for a hull that has one.

    Raises:
        TypeError: no hull, points, rows or context no numbers, no context where there is one.
        ValueError: points or rows are no finite `[rows, in_dim]`; weights are not finite.
    """
    solver, output = check_hull("max_affine", model, output)
    points = check_rows("points", points, model.config.in_dim, solver)
    check_weights("max_affine", model, solver)
    at = points if at is None else check_rows("at", at, model.config.in_dim, solver)
    context, axes = check_contexts("max_affine", model, context, (), solver, "of one context")
    if axes:
        fail("max_affine", "context", "one context", describe(context), "Call it once for each.")
    return solver.solve(find_tangents, model, (points, at, context), {"output": output})


def find_tangents(
    weights: Tree, points: Array, rows: Array, context: Array | None, *, config: HullConfig, output: int
) -> MaxAffine:
    """Return the record of `max_affine` from effective weights in float64."""
    hull = scalar_hull(weights, config, output, context)
    xp, x, rows = namespace(hull.shifts), as_array(points, hull.shifts), as_array(rows, hull.shifts)
    z = hull.normalize(x)
    width = xp.full_like(z[:, 0], LEAST_WIDTH)
    tangent = hull.tangent(hull.expand(z, width), z, xp.zeros_like(z), xp.zeros_like(width))
    height, slope = hull.minorant(z, tangent)
    rise, lean = hull.square(z, tangent)
    height = height + rise - hull.rounding(xp.max(xp.abs(z), axis=0)[None])
    slopes = hull.output_scale * (slope + lean) / hull.input_scale
    intercepts = hull.output_mean + hull.output_scale * height - xp.sum(slopes * x, axis=-1)
    value = hull.output_mean + hull.output_scale * hull.value(hull.normalize(rows))
    below = xp.max(rows @ slopes.T + intercepts, axis=-1)
    gap = xp.max(value - below)
    return MaxAffine(-slopes, -intercepts, gap) if config.is_concave else MaxAffine(slopes, intercepts, gap)
