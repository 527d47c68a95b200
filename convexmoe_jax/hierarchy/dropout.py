"""Dropout by sample: which units of a sample are dropped depends on its own key, not on other samples or routes."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from convexmoe.errors import share


def sample_dropout(x: jax.Array, rate: float, key: jax.Array | None, index: int = 0) -> jax.Array:
    """Return `x` with a share `rate` of its units zero and the rest divided by `1 - rate`.

    Args:
        x: one sample, of any shape.
        rate: in [0, 1).
        key: `batch.key`; None, as outside training, returns `x`.
        index: another number for each dropout of an expert, so that they differ.

    Raises:
        ValueError: a rate out of range.
    """
    share("sample_dropout", "rate", rate)
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(jax.random.fold_in(key, index), 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0.0)
