"""softplus, which makes positive numbers of raw ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def softplus(u: jax.Array) -> jax.Array:
    """Return `log(1 + exp(u))` without overflow and with its exact second derivative everywhere."""
    return jnp.logaddexp(u, jnp.zeros((), u.dtype))
