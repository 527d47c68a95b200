"""The convex conjugate of a strongly convex hull, and the inverse of its gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from convexmoe.errors import describe, fail

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

    x: Tensor
    value: Tensor
    gap: Tensor
    error: Tensor
    iterations: Tensor


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
            finite.

    >>> from convexmoe_torch import VectorHull
    >>> hull = VectorHull(2, petals=3, out_dim=1, strong_convexity=0.5)
    >>> conjugate(hull, torch.zeros(4, 2)).x.shape
    torch.Size([4, 2])
    """
    chosen, y, start = _checked(model, y, x0, tol, output)
    hull = scalar_hull(model, chosen)
    batch, dtype = y.shape[:-1], y.dtype
    if y.numel() == 0:
        none = y.new_zeros(batch)
        return Conjugate(y, none, none, none, torch.zeros(batch, dtype=torch.int64))
    y = y.to(hull.input_mean).reshape(-1, hull.config.in_dim)
    tilt = hull.input_scale * y / hull.output_scale
    with torch.no_grad():
        path, inverse = _maximized(scalar_hull(model, chosen), tilt.detach(), start, tol)
    z = path.best_v
    x = hull.input_mean + hull.input_scale * z
    value = torch.sum(x * y, dim=-1) - hull.output_mean - hull.output_scale * hull.value(z)
    if torch.is_grad_enabled():
        rest = tilt - torch.func.grad(lambda at: hull.value(at).sum())(z)
        stirred = rest - rest.detach()  # 0, with the derivatives of rest
        moved = torch.einsum("bij,bj->bi", inverse, stirred)
        value = value + 0.5 * hull.output_scale * torch.sum(stirred * moved, dim=-1)
        x = x + hull.input_scale * moved
    margin = hull.rounding(torch.abs(z) + 2 * torch.abs(hull.input_mean / hull.input_scale)).detach()
    gap = torch.clamp(path.best - path.low, min=0.0) + 2 * margin
    error = torch.sqrt(2 * gap / hull.config.strong_convexity)
    unit = torch.finfo(dtype).eps
    gap = hull.output_scale * gap + unit * torch.abs(value.detach())
    error = error + unit * torch.linalg.vector_norm(x.detach() / hull.input_scale, dim=-1)
    return Conjugate(
        x.reshape(*batch, -1).to(dtype),
        value.reshape(batch).to(dtype),
        gap.reshape(batch).to(dtype),
        error.reshape(batch).to(dtype),
        path.iterations.reshape(batch),
    )


def inverse_gradient(
    model: Any, y: Any, x0: Any = None, tol: float = 1e-9, *, output: int | None = None
) -> Tensor:
    """Return the x, `[..., in_dim]`, at which one output of a strongly convex hull has the gradient y.

    Where the hull has a kink, y is one of its subgradients there. Arguments and errors are those of `conjugate`.
    """
    return conjugate(model, y, x0, tol, output=output).x


def _maximized(hull: ScalarHull, tilt: Tensor, start: Tensor | None, tol: float) -> tuple[Path, Tensor]:
    """Return the end of the path, and the inverse of the smooth hull's Hessian there."""
    whole = space(hull, len(tilt))
    v = whole.start
    if start is not None:
        wanted = torch.broadcast_to(start.reshape(-1, v.shape[-1]).to(v), v.shape)
        v = hull.normalized(wanted)
    center = torch.sum(hull.input_mean / hull.input_scale * tilt, dim=-1)
    offset = hull.output_mean / hull.output_scale

    def goal(best: Tensor) -> Tensor:
        return tol * (1 / hull.output_scale + torch.abs(center - offset - best))

    def early(best: Tensor, low: Tensor) -> Tensor:
        return torch.zeros_like(best, dtype=torch.bool)

    path = followed(Problem(hull, whole, tilt, goal, early, torch.zeros_like(center)), v)
    return path, torch.linalg.inv(hull.expand(path.best_v, path.width).curvature)


def _checked(model: Any, y: Any, x0: Any, tol: Any, output: int | None) -> tuple[int, Tensor, Any]:
    """Return which output is meant, y and the starting points, after all checks."""
    chosen = checked_output("conjugate", model, output)
    if model.config.strong_convexity == 0.0:
        fix = "Build the hull with strong_convexity=0.01, for example."
        fail("conjugate", "model", "a hull with strong_convexity > 0", "strong_convexity=0.0", fix)
    if not hasattr(y, "shape"):
        fail("conjugate", "y", "an array", type(y).__name__, "Convert it to an array first.", TypeError)
    y = torch.as_tensor(y)
    if not y.is_floating_point():
        fail("conjugate", "y", "floating numbers", describe(y), "Cast it to float32.", TypeError)
    D = model.config.in_dim
    if not y.shape or y.shape[-1] != D:
        fail("conjugate", "y", f"[..., in_dim={D}]", describe(y), "Give one number for each input.")
    try:
        finite = bool(torch.isfinite(y).all())
    except RuntimeError:  # the steps of the path depend on values, which vmap hides
        fix = "Pass all rows at once: leading axes are rows."
        fail("conjugate", "y", "a tensor outside of torch.func.vmap", describe(y), fix)
    if not finite:
        fail("conjugate", "y", "finite numbers", "inf or nan", "Remove that row.")
    checked_weights("conjugate", model)
    checked_tolerance("conjugate", tol)
    return chosen, y, None if x0 is None else checked_point("conjugate", x0, D, tuple(y.shape[:-1]))
