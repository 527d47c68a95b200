"""Losses of a hierarchy, for arrays of JAX."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from convexmoe import hierarchy as core

from ..settings import standard_promotion


@standard_promotion
def _add(total: jax.Array, weight: float, value: jax.Array) -> jax.Array:
    return total + weight * value.astype(jnp.promote_types(value.dtype, jnp.float32))


@standard_promotion
def _fetch(values: list[jax.Array]) -> list[float]:
    return jax.device_get(jnp.stack(values)).tolist()


class LossBundle(core.LossBundle):
    __doc__ = core.LossBundle.__doc__

    _arrays = core.LossArrays(jnp.zeros, jnp.asarray, _add, _fetch)


jax.tree_util.register_dataclass(LossBundle, ["terms"], [])


class CELMoELossAPI(core.CELMoELossAPI):
    __doc__ = core.CELMoELossAPI.__doc__

    bundle = LossBundle
