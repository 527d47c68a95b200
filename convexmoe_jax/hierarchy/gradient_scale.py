"""The gradient from an expert to the level before it: whole, scaled, or none. Values are never changed."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ..settings import pick
from .dispatch import expand


@jax.custom_jvp
def _scale(x: jax.Array, factor: jax.Array) -> jax.Array:
    """The identity on `x`, whose gradient is `factor` times the one that it gets."""
    return x


@_scale.defjvp
def _(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    # not the bare x: an outer derivative would pass it whole
    return _scale(*primals), tangents[0] * primals[1]


def scale_gradient(x: jax.Array, scale: float) -> jax.Array:
    """Return `x`, of whose gradient the share `scale` in [0, 1] is passed on; nothing at 0, not even a NaN."""
    if scale == 1.0:
        return x
    return jax.lax.stop_gradient(x) if scale == 0.0 else _scale(x, jnp.asarray(scale, x.dtype))


def scale_gradient_of_rows(x: jax.Array, routes: jax.Array, scales: Sequence[float]) -> jax.Array:
    """Return `x`, `[rows, ...]`, of whose rows' gradients the shares `scales[route]` are passed on.

    A route outside [0, len(scales)) is that of a row whose gradient is 0 anyway.
    """
    if len(set(scales)) == 1:
        return scale_gradient(x, scales[0])
    factor = expand(pick(jnp.asarray(scales, x.dtype), jnp.clip(routes, 0, len(scales) - 1)), x)
    if 0.0 in scales:
        x = jnp.where(factor == 0, jax.lax.stop_gradient(x), x)
    return x if set(scales) <= {0.0, 1.0} else _scale(x, factor)
