"""The values of a hull at rows in original units."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import describe, fail
from ..hull.rows import AT_ONCE, as_numbers, bare_rows, check_finite, is_tensor
from .solver import check_hull


def predict(model: Any, x: Any) -> NDArray[np.float64]:
    """Return the values of a hull at rows of original units, which are normalized in float64.

    `model(x)` is given what is left of x in its dtype: of a Julian date or a time in seconds float32 leaves a quarter
    of a day, or two minutes. Here the hull computes in its dtype, but on rows from which the mean has been taken off
    and which have been scaled in float64, and so are its values, on the way back.

    Args:
        model: a `VectorHull` or `FoldedHull`.
        x: `[..., in_dim]`, finite numbers of any library: arrays, frames, lists, float64 for what needs it.

    Returns:
        `[..., out_dim]`, float64, of numpy; without derivatives.

    Raises:
        TypeError, ValueError: no hull; no numbers, missing cells, not finite (docs/pages/fitting.md); another width.
    """
    solver, _ = check_hull("predict", model, 0)
    if is_tensor(x) and solver.known(x) is None:
        fix = "Inside jit, vmap or grad call model(x), with x in the dtype of its parameters."
        fail("predict", "x", "values that are known", f"a traced {describe(x)}", fix, TypeError)
    x, config = as_numbers("predict", "x", x), model.config
    if x.ndim == 0 or x.shape[-1] != config.in_dim:
        rule, fix = f"[..., in_dim={config.in_dim}]", "Give one column for each input of the hull."
        fail("predict", "x", rule, describe(x), fix)
    check_finite("predict", "x", x, "Remove that row or fill it.")
    parts = [x] if x.ndim < 2 else np.split(x, range(AT_ONCE, len(x), AT_ONCE))
    y, units = np.concatenate([solver.values(model, *bare_rows(config, part)) for part in parts]), config.normalization
    return y if units is None else np.asarray(units.output_mean) + np.asarray(units.output_scale) * y
