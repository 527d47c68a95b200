"""Raw parameters (trained, stored, of any sign) and the non-negative weights made of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from convexmoe.hull.parameters import positive_scale


def softplus(u: jax.Array) -> jax.Array:
    """Return `log(1 + exp(u))` without overflow and with its exact second derivative everywhere."""
    return jnp.logaddexp(u, jnp.zeros((), u.dtype))


def positive_weight(raw: jax.Array, fan_in: int) -> jax.Array:
    """Return `softplus(raw) * sqrt(POSITIVE_SHARE / fan_in)`, which is >= 0 for every raw value."""
    return softplus(raw) * positive_scale(fan_in)


def signed_weight(raw: jax.Array, signs: tuple[int, ...], axis: int = 0, offset: float = 0.0) -> jax.Array:
    """Return a weight on inputs with the sign of each: `sign * positive_weight(raw + offset)`, as it is where it is 0.

    Args:
        raw: `[..., in_dim, ...]`, the inputs along `axis`; signs: -1, 0 or 1 for each input.
    """
    sign = jnp.asarray(signs, raw.dtype).reshape(-1, *[1] * (raw.ndim - 1 - axis))
    return jnp.where(sign == 0, raw, sign * positive_weight(raw + offset, len(signs)))


def add_rows(weight: jax.Array, rows: list[int], change: jax.Array) -> jax.Array:
    """Return a weight with a change added to some of its rows."""
    return weight.at[jnp.asarray(rows)].add(change)
