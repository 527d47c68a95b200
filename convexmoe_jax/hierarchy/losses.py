"""The sum of a hierarchy's losses, and their transfer to the host; the rest stands in the core."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from convexmoe import hierarchy as core


class LossBundle(core.LossBundle):
    __doc__ = core.LossBundle.__doc__

    @property
    def total(self) -> jax.Array:
        """The sum of `weight * value` over all terms, a scalar."""
        total = jnp.zeros(())
        for term in self.terms:
            value = jnp.asarray(term.value)
            # a product in half precision may overflow where the total does not
            total = total + term.weight * value.astype(jnp.promote_types(value.dtype, jnp.float32))
        return total

    @staticmethod
    def _as_array(value: Any) -> jax.Array:
        return jnp.asarray(value)

    def _fetch(self) -> list[float]:
        return jax.device_get(jnp.stack([self.total, *[jnp.asarray(t.value) for t in self.terms]])).tolist()


jax.tree_util.register_dataclass(LossBundle, ["terms"], [])


class CELMoELossAPI(core.CELMoELossAPI):
    __doc__ = core.CELMoELossAPI.__doc__

    bundle = LossBundle
