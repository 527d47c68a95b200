"""The convex conjugate of a strongly convex hull, and the inverse of its gradient."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ..arrays import Array, as_array, einsum, library, namespace
from ..errors import describe, fail
from ..hull.config import HullConfig
from ..hull.parameters import Tree, map_tree
from ..hull.rows import as_numbers, is_tensor
from .central_path import Path, Problem, follow_path
from .outputs import scalar_hull
from .regions import space
from .scalar_hull import ScalarHull
from .solver import Solver, check_contexts, check_curvature, check_hull, check_point, check_tolerance, check_weights


class Conjugate(NamedTuple):
    """The result of `conjugate`; one entry a row of y, of its dtype and in the units of the model.

    It is computed in float64; the rounding to the dtype of y is in `gap` and in `error`.

    Args:
        x: where the maximum is attained, `[..., in_dim]`: the inverse of the gradient at y.
        value: `<x, y> - f(x)`, `[...]`, a lower bound of the conjugate but for its rounding.
        gap: `[...]`: the conjugate is within `value + gap`, and not below `value - gap` in a narrow dtype.
        error: `[...]`: a bound on the distance of x from the maximizer, in normalized units.
        iterations: steps of Newton's method, int64 `[...]`.
    """

    x: Array
    value: Array
    gap: Array
    error: Array
    iterations: Array


def conjugate(
    model: Any, y: Any, x0: Any = None, tol: float = 1e-9, *, output: int | None = None, context: Any = None
) -> Conjugate:
    """Return `f*(y) = max_x <x, y> - f(x)` for one output f of a strongly convex hull, and where it is attained.

    Guarantee: `value <= f*(y) <= value + gap`, up to `gap` of rounding, and x is within `error` of the maximizer
    (tests/contract/test_conjugate.py). value has the gradient x by y, and `-df/dw` at x by a weight w (Danskin's
    theorem); x has the derivative of an implicit function, with the inverse of the Hessian, by y, by the weights and by
    contexts, and that is the second derivative of value. Further derivatives, the second of x, are not given: they miss
    terms.

    Args:
        model: a `VectorHull` or `FoldedHull` with `strong_convexity > 0`.
        y: `[..., in_dim]`, floating, finite, in units of the output over those of the input.
        x0: where to start, `[..., in_dim]`, as the x of a y nearby; None for the mean of the inputs.
        tol: stop at `gap <= tol (1 + |value|)`.
        output: which output, where the model has several.
        context: for a hull that has one, `[context_dim]`, or one a row of y, in original units.

    Raises:
        TypeError: no hull, y, x0 or context no array, y not floating, no context where there is one.
        ValueError: the hull is not strongly convex, or it is concave, shapes do not match, tol is not in (0, 1], y, x0,
            context or weights are not finite (those that JAX traces give NaN), or y is under `torch.func.vmap`.
    """
    solver, output = check_hull("conjugate", model, output)
    fix = "Take minus it: VectorHull.from_params(model.config.negate(), model.params)."
    check_curvature("conjugate", model.config, "convex", "a concave one", fix)
    check_slopes(model, y, solver)
    context, axes = check_contexts("conjugate", model, context, tuple(y.shape[:-1]), solver, "those of y")
    if axes != tuple(y.shape[:-1]):
        rule, fix = f"one context, or one a row of y {describe(y)}", "Repeat y for every context."
        fail("conjugate", "context", rule, describe(context), fix)
    check_weights("conjugate", model, solver)
    check_tolerance("conjugate", tol, solver)
    if x0 is not None:
        x0 = check_point("conjugate", x0, model.config.in_dim, tuple(y.shape[:-1]), solver)
    static = {"output": output, "unit": solver.precision(y)}
    return solver.solve(find_conjugate, model, (y, x0, tol, context), static, beside=y)


def inverse_gradient(
    model: Any, y: Any, x0: Any = None, tol: float = 1e-9, *, output: int | None = None, context: Any = None
) -> Array:
    """Return the x, `[..., in_dim]`, at which one output of a strongly convex hull has the gradient y.

    Where the hull has a kink, y is one of its subgradients there. Arguments and errors are those of `conjugate`.
    """
    return conjugate(model, y, x0, tol, output=output, context=context).x


def check_slopes(model: Any, y: Any, solver: Solver) -> None:
    """Check that the hull is strongly convex, and y a floating array, finite where it is known."""
    if model.config.strong_convexity == 0.0:
        fix = "Build the hull with strong_convexity=0.01, for example."
        fail("conjugate", "model", "a hull with strong_convexity > 0", "strong_convexity=0.0", fix)
    if not hasattr(y, "shape"):
        fail("conjugate", "y", "an array", type(y).__name__, "Convert it to an array first.", TypeError)
    if not is_tensor(y):
        as_numbers("conjugate", "y", y)
    if solver.precision(y) is None:
        fail("conjugate", "y", "floating numbers", describe(y), "Cast it to float32.", TypeError)
    D = model.config.in_dim
    if not y.shape or y.shape[-1] != D:
        fail("conjugate", "y", f"[..., in_dim={D}]", describe(y), "Give one number for each input.")
    try:
        finite = solver.is_finite(y)
    except RuntimeError:  # the steps of the path depend on values, which vmap of PyTorch hides
        fix = "Pass all rows at once: leading axes are rows."
        fail("conjugate", "y", "a tensor outside of torch.func.vmap", describe(y), fix)
    if finite is False:
        fail("conjugate", "y", "finite numbers", "inf or nan", "Remove that row.")


def find_conjugate(
    weights: Tree,
    y: Array,
    start: Array | None,
    tol: Any,
    context: Array | None,
    *,
    config: HullConfig,
    output: int,
    unit: float,
) -> Conjugate:
    """Return the record of `conjugate` in float64, from effective weights; unit: of rounding, of the dtype of y."""
    batch, beside = tuple(y.shape[:-1]), weights["shifts"]
    xp, own, y = namespace(beside), library(beside), as_array(y, beside)
    if math.prod(y.shape) == 0:
        none = xp.zeros_like(xp.sum(y, axis=-1))
        return Conjugate(y, none, none, none, xp.zeros_like(none, dtype=xp.int64))
    y, hull = y.reshape(-1, config.in_dim), scalar_hull(weights, config, output, context, batch)
    tilt = hull.input_scale * y / hull.output_scale
    context = None if context is None else own.stop_gradient(as_array(context, tilt))
    still = scalar_hull(map_tree(own.stop_gradient, weights), config, output, context, batch)
    start = None if start is None else own.stop_gradient(as_array(start, tilt))
    path = find_maximizer(still, own.stop_gradient(tilt), start, tol)
    z = path.best_v
    x = hull.input_mean + hull.input_scale * z
    value = xp.sum(x * y, axis=-1) - hull.output_mean - hull.output_scale * hull.value(z)
    gradient = own.gradient(hull.value, z)
    if gradient is not None:
        rest, inverse = tilt - gradient, xp.linalg.inv(still.expand(z, path.width).curvature)
        stirred = rest - own.stop_gradient(rest)  # 0, with the derivatives of rest
        moved = einsum("bij,bj->bi", inverse, stirred)
        value = value + 0.5 * hull.output_scale * xp.sum(stirred * moved, axis=-1)
        x = x + hull.input_scale * moved
    broken = ~xp.isfinite(value)
    x = xp.where(broken[:, None], xp.nan, x)
    margin = still.rounding(xp.abs(z))
    gap = xp.clip(path.best - path.low, min=0.0) + 2 * margin
    gap = xp.where(broken, xp.nan, gap)
    error = xp.sqrt(2 * gap / config.strong_convexity)
    gap = still.output_scale * gap + unit * xp.abs(own.stop_gradient(value))
    error = error + unit * xp.linalg.vector_norm(own.stop_gradient(x) / still.input_scale, axis=-1)
    parts = (x, value, gap, error, path.iterations)
    return Conjugate(*(part.reshape((*batch, *part.shape[1:])) for part in parts))


def find_maximizer(hull: ScalarHull, tilt: Array, start: Array | None, tol: Any) -> Path:
    """Return the end of the path."""
    xp, whole = namespace(tilt), space(hull, tilt.shape[0])
    v = whole.start
    if start is not None:
        v = hull.normalize(xp.broadcast_to(start.reshape(-1, v.shape[-1]), tuple(v.shape)))
    center = xp.sum(hull.input_mean / hull.input_scale * tilt, axis=-1)
    offset = hull.output_mean / hull.output_scale

    def goal(best: Array) -> Array:
        return tol * (1 / hull.output_scale + xp.abs(center - offset - best))

    def early(best: Array, low: Array) -> Array:
        return xp.zeros_like(best, dtype=xp.bool)

    return follow_path(Problem(hull, whole, tilt, goal, early, xp.zeros_like(center)), v)
