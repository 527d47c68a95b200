"""Hulls from one framework to the other. Weights are copied: neither side can see the other's changes.

Both packages name a parameter alike and store it alike, (in, [petal,] out): the table of names is the identity, and
no transpose exists to get wrong. `from_params` checks every name and shape.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch

import convexmoe_jax
import convexmoe_jax.names
import convexmoe_torch
import convexmoe_torch.names


def to_torch(model: Any, *, expert_factory: Any = None, fusion_module: Any = None) -> Any:
    """Return the PyTorch twin of a JAX hull or hierarchy, on the CPU: same config, same dtype, a copy of the weights.

    Args:
        model: a `convexmoe_jax.VectorHull` or `HierarchicalCELMoE`.
        expert_factory: of a hierarchy with experts of your own: builds their PyTorch twins. Their attributes must
            have the same names; layers are translated by `convexmoe_jax.names.RULES`.
        fusion_module: of a hierarchy with a fusion of your own: its PyTorch twin.

    >>> from flax import nnx
    >>> to_torch(convexmoe_jax.VectorHull(3, petals=4, rngs=nnx.Rngs(0))).config.petals
    4
    """
    if isinstance(model, convexmoe_jax.HierarchicalCELMoE):
        recipes = convexmoe_jax.names.recipes_of(model)
        config = convexmoe_torch.CELMoEConfig.from_json(model.config.to_json())
        twin = convexmoe_torch.names.built(config, recipes, expert_factory, fusion_module)
        arrays = convexmoe_jax.names.neutral_arrays(model)
        convexmoe_torch.names.fill(twin, {name: tensor_of(array) for name, array in arrays.items()})
        return twin
    if not isinstance(model, convexmoe_jax.VectorHull):
        raise TypeError(f"to_torch.model: expected a convexmoe_jax.VectorHull; got {type(model)}. Pass one.")
    hull_config = convexmoe_torch.HullConfig.from_json(model.config.to_json())
    weights = {name: tensor_of(array) for name, array in convexmoe_jax.hull.flatten(model.params).items()}
    return convexmoe_torch.VectorHull.from_params(hull_config, convexmoe_torch.hull.nest(weights))


def to_jax(model: Any, *, expert_factory: Any = None, fusion_module: Any = None) -> Any:
    """Return the JAX twin of a PyTorch hull or hierarchy: same config, same dtype, a copy of the weights.

    Args:
        model: a `convexmoe_torch.VectorHull` or `HierarchicalCELMoE`.
        expert_factory, fusion_module: as for `to_torch`, of JAX modules.

    Raises:
        ValueError: the weights are float64 and JAX has float64 switched off.

    >>> to_jax(convexmoe_torch.VectorHull(3, petals=4)).config.petals
    4
    """
    if isinstance(model, convexmoe_torch.HierarchicalCELMoE):
        recipes = convexmoe_torch.names.recipes_of(model)
        config = convexmoe_jax.CELMoEConfig.from_json(model.config.to_json())
        twin = convexmoe_jax.names.built(config, recipes, expert_factory, fusion_module)
        tensors = convexmoe_torch.names.neutral_arrays(model)
        convexmoe_jax.names.fill(twin, {name: array_of(tensor) for name, tensor in tensors.items()})
        return twin
    if not isinstance(model, convexmoe_torch.VectorHull):
        raise TypeError(f"to_jax.model: expected a convexmoe_torch.VectorHull; got {type(model)}. Pass one.")
    hull_config = convexmoe_jax.HullConfig.from_json(model.config.to_json())
    weights = {name: array_of(tensor) for name, tensor in model.named_parameters()}
    return convexmoe_jax.VectorHull.from_params(hull_config, convexmoe_jax.hull.nest(weights))


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
