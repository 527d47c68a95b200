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
