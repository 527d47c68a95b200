"""The values of a hull at rows in original units."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import describe, fail
from ..hull.rows import AT_ONCE, as_numbers, bare_contexts, bare_rows, check_finite, is_tensor
from .solver import check_contexts, check_hull


def predict(model: Any, x: Any, context: Any = None) -> NDArray[np.float64]:
    """Return the values of a hull at rows of original units, which are normalized in float64.

    `model(x)` is given what is left of x in its dtype: of a Julian date or a time in seconds float32 leaves a quarter
    of a day, or two minutes. Here the hull computes in its dtype, but on rows from which the mean has been taken off
    and which have been scaled in float64, and so are its values, on the way back.

    Args:
        model: a `VectorHull` or `FoldedHull`.
        x: `[..., in_dim]`, finite numbers of any library: arrays, frames, lists, float64 for what needs it.
        context: `[..., context_dim]`, such numbers too, for a hull that has one; leading axes broadcast.

    Returns:
        `[..., out_dim]`, float64, of numpy; without derivatives.

    Raises:
        TypeError, ValueError: no hull; no numbers, missing cells, not finite (docs/pages/fitting.md); another width; no
            context where there is one.
    """
    solver, _ = check_hull("predict", model, 0)
    for argument, value in (("x", x), ("context", context)):
        if is_tensor(value) and solver.known(value) is None:
            fix = "Inside jit, vmap or grad call model(x), with x in the dtype of its parameters."
            fail("predict", argument, "values that are known", f"a traced {describe(value)}", fix, TypeError)
    x, config = as_numbers("predict", "x", x), model.config
    if x.ndim == 0 or x.shape[-1] != config.in_dim:
        rule, fix = f"[..., in_dim={config.in_dim}]", "Give one column for each input of the hull."
        fail("predict", "x", rule, describe(x), fix)
    check_finite("predict", "x", x, "Remove that row or fill it.")
    context = None if context is None else as_numbers("predict", "context", context)
    context, axes = check_contexts("predict", model, context, x.shape[:-1], solver, "those of x")
    if context is not None:
        x = np.broadcast_to(x, (*axes, config.in_dim))
    bare, x = bare_rows(config, x)
    rows = bare_contexts(config, context, axes)
    parts: list[slice] = (
        [slice(None)] if x.ndim < 2 else [slice(k, k + AT_ONCE) for k in range(0, max(len(x), 1), AT_ONCE)]
    )

    def contexts(part: slice) -> NDArray[np.float64] | None:
        return rows if rows is None or rows.ndim == 1 else rows[part]

    y = np.concatenate([solver.values(model, bare, x[part], contexts(part)) for part in parts])
    units = config.normalization
    return y if units is None else np.asarray(units.output_mean) + np.asarray(units.output_scale) * y
