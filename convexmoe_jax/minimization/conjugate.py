"""The convex conjugate of a strongly convex hull, and the inverse of its gradient."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from convexmoe.errors import describe, fail
from convexmoe.hull.config import HullConfig

from ..hull.petals import Tree
from .central_path import Path, Problem, followed
from .minimum import checked_point, checked_tolerance
from .regions import space
from .scalar_hull import ScalarHull, checked_output, checked_weights, scalar_hull


class Conjugate(NamedTuple):
    """What `conjugate` returns; one entry a row of y, of its dtype and in the units of the model.

    It is computed in float64; the rounding to the dtype of y is in `gap` and in `error`.

    Args:
        x: where the maximum is attained, `[..., in_dim]`: the inverse of the gradient at y.
        value: `<x, y> - f(x)`, `[...]`, a lower bound of the conjugate but for its rounding.
        gap: `[...]`: the conjugate is within `value + gap`, and not below `value - gap` in a narrow dtype.
        error: `[...]`: a bound on the distance of x from the maximiser, in normalized units.
        iterations: steps of Newton's method, int64 `[...]`.
    """

    x: jax.Array
    value: jax.Array
    gap: jax.Array
    error: jax.Array
    iterations: jax.Array


def conjugate(
    model: Any, y: Any, x0: Any = None, tol: float = 1e-9, *, output: int | None = None
) -> Conjugate:
    """Return `f*(y) = max_x <x, y> - f(x)` for one output f of a strongly convex hull, and where it is attained.

    Guarantee: `value <= f*(y) <= value + gap`, up to `gap` of rounding, and x is within `error` of the maximiser
    (tests/contract/test_conjugate.py). value has the gradient x by y, and `-df/dw` at x by a weight w (Danskin's
    theorem); x has the derivative of an implicit function, with the inverse of the Hessian, by y and by the weights,
    and that is the second derivative of value. Further derivatives, the second of x, are not given: they miss terms.

    Args:
        model: a `VectorHull` or `FoldedHull` with `strong_convexity > 0`.
        y: `[..., in_dim]`, floating, finite, in units of the output over those of the input.
        x0: where to start, `[..., in_dim]`, as the x of a y nearby; None for the mean of the inputs.
        tol: stop at `gap <= tol (1 + |value|)`.
        output: which output, where the model has several.

    Raises:
        TypeError: no hull, y or x0 no array, y not floating.
        ValueError: the hull is not strongly convex, shapes do not match, tol is not in (0, 1], y, x0 or weights are not
            finite; traced ones give NaN.

    >>> from convexmoe_jax import VectorHull
    >>> from flax import nnx
    >>> hull = VectorHull(2, petals=3, out_dim=1, strong_convexity=0.5, rngs=nnx.Rngs(0))
    >>> conjugate(hull, jnp.zeros((4, 2))).x.shape
    (4, 2)
    """
    chosen, start = _checked(model, y, x0, tol, output)
    with jax.enable_x64(True):
        return _conjugate(model.params, y, start, tol, model.config, chosen)


@partial(jax.jit, static_argnames=("config", "output"))
def _conjugate(params: Tree, y: Any, start: Any, tol: float, config: HullConfig, output: int) -> Conjugate:
    hull = scalar_hull(params, config, output)
    batch, dtype = y.shape[:-1], y.dtype
    if y.size == 0:
        none = jnp.zeros(batch, dtype)
        return Conjugate(y, none, none, none, jnp.zeros(batch, jnp.int64))
    y = jnp.asarray(y, jnp.float64).reshape(-1, hull.config.in_dim)
    tilt = hull.input_scale * y / hull.output_scale
    still = scalar_hull(jax.lax.stop_gradient(params), config, output)
    path, inverse = _maximized(still, jax.lax.stop_gradient(tilt), start, tol)
    z = path.best_v
    x = hull.input_mean + hull.input_scale * z
    value = jnp.sum(x * y, axis=-1) - hull.output_mean - hull.output_scale * hull.value(z)
    rest = tilt - jax.grad(lambda at: jnp.sum(hull.value(at)))(z)
    stirred = rest - jax.lax.stop_gradient(rest)  # 0, with the derivatives of rest
    moved = jnp.einsum("bij,bj->bi", inverse, stirred)
    value = value + 0.5 * hull.output_scale * jnp.sum(stirred * moved, axis=-1)
    broken = ~jnp.isfinite(value)
    x = jnp.where(broken[:, None], jnp.nan, x + hull.input_scale * moved)
    margin = still.rounding(jnp.abs(z) + 2 * jnp.abs(hull.input_mean / hull.input_scale))
    gap = jnp.clip(path.best - path.low, 0.0) + 2 * margin
    gap = jnp.where(broken, jnp.nan, gap)
    error = jnp.sqrt(2 * gap / hull.config.strong_convexity)
    unit = jnp.finfo(dtype).eps
    gap = still.output_scale * gap + unit * jnp.abs(jax.lax.stop_gradient(value))
    error = error + unit * jnp.linalg.norm(jax.lax.stop_gradient(x) / still.input_scale, axis=-1)
    return Conjugate(
        x.reshape(*batch, -1).astype(dtype),
        value.reshape(batch).astype(dtype),
        gap.reshape(batch).astype(dtype),
        error.reshape(batch).astype(dtype),
        path.iterations.reshape(batch),
    )


def inverse_gradient(
    model: Any, y: Any, x0: Any = None, tol: float = 1e-9, *, output: int | None = None
) -> jax.Array:
    """Return the x, `[..., in_dim]`, at which one output of a strongly convex hull has the gradient y.

    Where the hull has a kink, y is one of its subgradients there. Arguments and errors are those of `conjugate`.
    """
    return conjugate(model, y, x0, tol, output=output).x


def _maximized(
    hull: ScalarHull, tilt: jax.Array, start: jax.Array | None, tol: float
) -> tuple[Path, jax.Array]:
    """Return the end of the path, and the inverse of the smooth hull's Hessian there."""
    whole = space(hull, len(tilt))
    v = whole.start
    if start is not None:
        wanted = jnp.broadcast_to(jnp.asarray(start, v.dtype).reshape(-1, v.shape[-1]), v.shape)
        v = hull.normalized(wanted)
    center = jnp.sum(hull.input_mean / hull.input_scale * tilt, axis=-1)
    offset = hull.output_mean / hull.output_scale

    def goal(best: jax.Array) -> jax.Array:
        return tol * (1 / hull.output_scale + jnp.abs(center - offset - best))

    def early(best: jax.Array, low: jax.Array) -> jax.Array:
        return jnp.zeros_like(best, dtype=bool)

    path = followed(Problem(hull, whole, tilt, goal, early, jnp.zeros_like(center)), v)
    return path, jnp.linalg.inv(hull.expand(path.best_v, path.width).curvature)


def _checked(model: Any, y: Any, x0: Any, tol: Any, output: int | None) -> tuple[int, Any]:
    """Return which output is meant and the starting points, after all checks."""
    chosen = checked_output("conjugate", model, output)
    if model.config.strong_convexity == 0.0:
        fix = "Build the hull with strong_convexity=0.01, for example."
        fail("conjugate", "model", "a hull with strong_convexity > 0", "strong_convexity=0.0", fix)
    if not hasattr(y, "shape"):
        fail("conjugate", "y", "an array", type(y).__name__, "Convert it to an array first.", TypeError)
    if not jnp.issubdtype(y.dtype, jnp.floating):
        fail("conjugate", "y", "floating numbers", describe(y), "Cast it to float32.", TypeError)
    D = model.config.in_dim
    if not y.shape or y.shape[-1] != D:
        fail("conjugate", "y", f"[..., in_dim={D}]", describe(y), "Give one number for each input.")
    if not isinstance(y, jax.core.Tracer) and not np.isfinite(np.asarray(y, np.float64)).all():
        fail("conjugate", "y", "finite numbers", "inf or nan", "Remove that row.")
    checked_weights("conjugate", model)
    checked_tolerance("conjugate", tol)
    return chosen, None if x0 is None else checked_point("conjugate", x0, D, tuple(y.shape[:-1]))
