"""A row with a NaN or an infinity touches no other, not even by the gradients of the weights that all rows share.

Where a loss leaves such a row out, the gradient that comes back to it is 0, and 0 times NaN would be NaN in the sum
over rows that is a weight's gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp


def keep_apart(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """Return `function(*arrays)`, which works row by row, so that rows that are not finite touch no other's gradients.

    The function is given zeros in these rows, and they are NaN in what it returns.

    Args:
        function: of as many arrays.
        arrays: `[..., width]` each.
    """
    bad = ~jnp.stack([jnp.isfinite(x).all(-1, keepdims=True) for x in arrays]).all(0)
    y = function(*(jnp.where(bad, 0, x) for x in arrays))
    return y + jnp.where(bad, math.nan, 0).astype(y.dtype)  # a sum: what comes back as NaN is not swallowed
