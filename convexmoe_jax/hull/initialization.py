"""Initial values of a hull's parameters, drawn from their laws."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from convexmoe.errors import fail
from convexmoe.hull.config import HullConfig
from convexmoe.hull.parameters import Law, initial_law, parameter_shapes, row_factors

Rngs = nnx.Rngs | None  # an argument that has to be given: without it a TypeError names the remedy


def check_rngs(owner: str, rngs: Rngs) -> nnx.Rngs:
    """Return the source of initial values after a check."""
    if not isinstance(rngs, nnx.Rngs) or not hasattr(rngs, "params"):
        rule, fix = "nnx.Rngs with a stream for params, the source of the initial values", "Pass rngs=nnx.Rngs(0)."
        fail(owner, "rngs", rule, "none" if rngs is None else f"an instance of {type(rngs).__name__}", fix, TypeError)
    return rngs


def draw(law: Law, shape: tuple[int, ...], key: jax.Array, dtype: Any) -> jax.Array:
    """Draw one parameter from its law."""
    if law.kind == "constant":
        return jnp.full(shape, law.mean, dtype)
    # half precision would cut the tails, where most of the second moment lies
    wide = jnp.promote_types(dtype, jnp.float32)
    if law.kind == "orthogonal":
        return (law.deviation * orthogonal(shape, key, wide)).astype(dtype)
    values = law.mean + law.deviation * jax.random.normal(key, shape, wide)
    if law.kind == "raw_log_normal":
        positive = jnp.exp(values)
        values = positive + jnp.log(-jnp.expm1(-positive))  # the inverse of softplus
    return values.astype(dtype)


@partial(jax.jit, static_argnums=(0, 2))
def orthogonal(shape: tuple[int, ...], key: jax.Array, dtype: Any) -> jax.Array:
    """Return entries of variance 1 whose matrix (in, units) has orthogonal rows, or columns where it is narrow."""
    D, units = shape[0], math.prod(shape[1:])
    matrix = jax.nn.initializers.orthogonal(math.sqrt(max(D, units)))(key, (D, units), dtype)
    return matrix.reshape(shape)


def switched_on(dtype: Any) -> bool:
    """Return whether JAX computes in this dtype, and does not round it to a narrower one."""
    return jnp.dtype(dtype).itemsize < 8 or jnp.result_type(float) == jnp.float64


def initial_parameters(config: HullConfig, key: jax.Array, dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    """Draw every parameter (dotted name -> array) from its `initial_law`."""
    if not jnp.issubdtype(dtype, jnp.floating) or not switched_on(dtype):
        fix = 'Pass float32, or call jax.config.update("jax_enable_x64", True) first.'
        fail("VectorHull", "dtype", "a floating dtype that JAX has switched on", str(jnp.dtype(dtype)), fix)
    shapes = parameter_shapes(config)
    keys = jax.random.split(key, len(shapes))
    drawn = {}
    for i, (name, shape) in enumerate(shapes.items()):
        drawn[name], factors = draw(initial_law(name, config), shape, keys[i], dtype), row_factors(name, config)
        if factors is not None:
            drawn[name] = drawn[name] * jnp.asarray(factors, dtype).reshape(-1, *[1] * (len(shape) - 1))
    return drawn
