"""One adapter a framework: the names that the table of functions uses, and `certify`. Numpy goes in."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from convexity_table import Monotone, Row
from torch_engine import Torch

import convexmoe_jax
from convexmoe_jax.hull.petals import huber_relu

OWN = {
    "relu": jax.nn.relu,
    "softplus": jax.nn.softplus,
    "sigmoid": jax.nn.sigmoid,
    "elu": jax.nn.elu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "softmax": jax.nn.softmax,
    "log_softmax": jax.nn.log_softmax,
    "logsumexp": lambda u, axis: jax.nn.logsumexp(u, axis=axis),
    "norm": jnp.linalg.norm,
    "top_k": jax.lax.top_k,
    "huber_relu": huber_relu,
    "array": lambda values: jnp.asarray(values, jnp.float32),
    "cummax": lambda u: jax.lax.cummax(u, 0),
    "xlogy": jax.scipy.special.xlogy,
    "entr": jax.scipy.special.entr,
}


class Jax:
    """Functions of the table in JAX."""

    name = "jax"
    package = convexmoe_jax
    xp = SimpleNamespace(**{name: getattr(jnp, name) for name in dir(jnp) if name[0] != "_"} | OWN)

    def example(self, shape: tuple[int, ...]) -> Any:
        """A point around which a counterexample is looked for."""
        return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)

    def certify(self, row: Row | Monotone, **options: Any) -> Any:
        """The certificate of a row of the table; fewer segments than a batch are one shape to compile."""
        options = {"segments": 4096} | options
        shape = getattr(row, "shape", (3,))
        return convexmoe_jax.certify(lambda x: row.function(self.xp, x), self.example(shape), **options)


ENGINES = (Jax(), Torch())
