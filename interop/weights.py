"""Hulls from one framework to the other. Weights are copied: neither side can see the other's changes.

Both packages name a parameter alike and store it alike, (in, [petal,] out): the table of names is the identity, and
no transpose exists to get wrong. `from_params` checks every name and shape.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch

import convexmoe_jax
import convexmoe_torch


def to_torch(model: convexmoe_jax.VectorHull) -> convexmoe_torch.VectorHull:
    """Return the PyTorch twin of a JAX hull, on the CPU: same config, same dtype, a copy of the weights.

    >>> from flax import nnx
    >>> to_torch(convexmoe_jax.VectorHull(3, petals=4, rngs=nnx.Rngs(0))).config.petals
    4
    """
    if not isinstance(model, convexmoe_jax.VectorHull):
        raise TypeError(f"to_torch.model: expected a convexmoe_jax.VectorHull; got {type(model)}. Pass one.")
    config = convexmoe_torch.HullConfig.from_json(model.config.to_json())
    weights = {name: tensor_of(array) for name, array in convexmoe_jax.hull.flatten(model.params).items()}
    return convexmoe_torch.VectorHull.from_params(config, convexmoe_torch.hull.nest(weights))


def to_jax(model: convexmoe_torch.VectorHull) -> convexmoe_jax.VectorHull:
    """Return the JAX twin of a PyTorch hull: same config, same dtype, a copy of the weights.

    Raises:
        ValueError: the weights are float64 and JAX has float64 switched off.

    >>> to_jax(convexmoe_torch.VectorHull(3, petals=4)).config.petals
    4
    """
    if not isinstance(model, convexmoe_torch.VectorHull):
        raise TypeError(f"to_jax.model: expected a convexmoe_torch.VectorHull; got {type(model)}. Pass one.")
    config = convexmoe_jax.HullConfig.from_json(model.config.to_json())
    weights = {name: array_of(tensor) for name, tensor in model.named_parameters()}
    return convexmoe_jax.VectorHull.from_params(config, convexmoe_jax.hull.nest(weights))


def tensor_of(array: jax.Array | np.ndarray) -> torch.Tensor:
    """Return a copy as a CPU tensor of the same dtype; bfloat16 crosses as bits."""
    own = np.array(array, order="C", copy=True)
    if own.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(own.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(own)


def array_of(tensor: torch.Tensor) -> jax.Array:
    """Return a copy as a JAX array of the same dtype; bfloat16 crosses as bits."""
    own = tensor.detach().cpu().contiguous()
    bits = (
        own.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
        if own.dtype == torch.bfloat16
        else own.numpy()
    )
    array = jnp.array(bits.copy())
    if array.dtype != bits.dtype:
        fix = 'Call jax.config.update("jax_enable_x64", True) first.'
        raise ValueError(f"to_jax.model: expected a dtype that JAX has switched on; got {bits.dtype}. {fix}")
    return array
