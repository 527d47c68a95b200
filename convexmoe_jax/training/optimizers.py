"""Adam and AdamW that take the steps PyTorch's take, to the rounding.

It has no mirror: the twin is `torch.optim.Adam` and `AdamW`.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax


def scale_by_adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """Return Adam's direction (Kingma and Ba, arXiv 1412.6980, algorithm 1), to be scaled by the learning rate.

    Differs from `optax.scale_by_adam`: the bias correction is `-expm1(count log(decay))`, exact in float32,
    where `1 - decay**count` is not; so PyTorch's Adam takes the same steps. The state is optax's own.
    """

    def init(params: Any) -> optax.ScaleByAdamState:
        zeros = partial(jax.tree.map, jnp.zeros_like)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros(params), zeros(params))

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, optax.ScaleByAdamState]:
        count = optax.safe_increment(state.count)
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, grads)

        def direction(m: jax.Array, v: jax.Array) -> jax.Array:
            first, second = (-jnp.expm1(count.astype(m.dtype) * math.log(b)) for b in (b1, b2))
            return (m / first) / (jnp.sqrt(v) / jnp.sqrt(second) + eps)

        return jax.tree.map(direction, mu, nu), optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def adam(
    learning_rate: optax.ScalarOrSchedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Return Adam as `torch.optim.Adam(lr, betas=(b1, b2), eps)` computes it.

    Args:
        learning_rate: a number, or an optax schedule.
        b1, b2, eps: decay of both moments, and what is added to the root of the second.
    """
    return optax.chain(scale_by_adam(b1, b2, eps), optax.scale_by_learning_rate(learning_rate))


def adamw(
    learning_rate: optax.ScalarOrSchedule, weight_decay: float, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Return AdamW (Loshchilov and Hutter, arXiv 1711.05101) as `torch.optim.AdamW` computes it.

    Args:
        learning_rate: a number, or an optax schedule.
        weight_decay: has no default: optax's is 1e-4, PyTorch's 1e-2.
        b1, b2, eps: as for `adam`.
    """
    return optax.chain(
        scale_by_adam(b1, b2, eps), optax.add_decayed_weights(weight_decay), optax.scale_by_learning_rate(learning_rate)
    )
