"""Overlapping max-of-means: the fusion of the petals into one convex function.

Letters: N rows, P petals (and groups), O out.

    g_i = (f_i + f_{i+1 mod P}) / 2 + s_i           group_size 2;  g_i = f_i + s_i at group_size 1
    y   = max_i g_i                                 temperature 0
    y   = T (log sum_i exp(g_i / T) - log P)        temperature T > 0

Both are non-decreasing and convex in f, so y is convex where every f_p is.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from convexmoe.hull import parameters
from convexmoe.hull.config import LEAST_TEMPERATURE

from .positive import softplus

FLAT = 16.0  # the temperature from which `log_mean_exp` takes its form for small differences


def learned_temperature(raw: jax.Array) -> jax.Array:
    """Return `softplus(raw) + LEAST_TEMPERATURE`: positive for every raw value."""
    return softplus(raw) + LEAST_TEMPERATURE


def group_values(f_NPO: jax.Array, shifts_P: jax.Array, group_size: int) -> jax.Array:
    """Return g, the shifted means of neighboring petals, (N, P, O)."""
    if group_size == 1:
        return shifts_P[:, None] + f_NPO
    return shifts_P[:, None] + neighbor_means(f_NPO)


def neighbor_means(weight: jax.Array) -> jax.Array:
    """Return the means of each petal and the next one in a circle, of the axis before the last."""
    return parameters.neighbor_means(weight, jnp.roll)


def maximum(g_NPO: jax.Array) -> jax.Array:
    """Return the maximum over groups, (N, O). A tie shares the gradient evenly."""
    return jnp.max(g_NPO, axis=-2)


def smooth_maximum(g_NPO: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """Return `T (log sum_i exp(g_i / T) - log P)`, (N, O): below the maximum by at most `T log P`.

    Half precision is widened to float32 inside, where `g / T` would overflow.

    Args:
        g_NPO: group values.
        temperature: T > 0, a number or one an output, (O,).
    """
    dtype = g_NPO.dtype
    wide = g_NPO.astype(jnp.promote_types(dtype, jnp.float32))
    T = jnp.asarray(temperature, wide.dtype)
    top = jax.lax.stop_gradient(jnp.max(wide, axis=-2, keepdims=True))
    mean = log_mean_exp((wide - top) / T, temperature)
    return (top.squeeze(-2) + T * mean).astype(dtype)


def log_mean_exp(u_NPO: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """Return `log mean_i exp(u_i)` for u <= 0, (N, O).

    Above `FLAT` all u are near 0, where the difference of two logarithms would cancel, and T would magnify what is
    left: there it is `log1p(mean_i expm1(u_i))`.
    """

    def steep() -> jax.Array:
        return jnp.log(jnp.sum(jnp.exp(u_NPO), axis=-2)) - math.log(u_NPO.shape[-2])

    def flat() -> jax.Array:
        return jnp.log1p(jnp.mean(jnp.expm1(u_NPO), axis=-2))

    if isinstance(temperature, float):
        return flat() if temperature > FLAT else steep()
    return jnp.where(temperature > FLAT, flat(), steep())
