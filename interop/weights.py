"""Models from one framework to the other. Weights are copied: neither side can see the other's changes.

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
import convexmoe_jax.files.layers
import convexmoe_torch
import convexmoe_torch.files.layers


def to_torch(model: Any, *, expert_factory: Any = None, fusion_module: Any = None) -> Any:
    """Return the PyTorch twin of a JAX model, on the CPU: same config, same dtype, a copy of the weights.

    Args:
        model: a `VectorHull`, `FoldedHull`, `NonConvexHull` or `HierarchicalCELMoE` of `convexmoe_jax`.
        expert_factory: of a hierarchy with experts of your own: builds their PyTorch twins. Their attributes must
            have the same names; layers are translated by `convexmoe_jax.names.RULES`.
        fusion_module: of a hierarchy with a fusion of your own: its PyTorch twin.

    Raises:
        TypeError: another model.

    >>> from flax import nnx
    >>> to_torch(convexmoe_jax.VectorHull(3, petals=4, rngs=nnx.Rngs(0))).config.petals
    4
    """
    if isinstance(model, convexmoe_jax.HierarchicalCELMoE):
        recipes = convexmoe_jax.files.layers.recipes_of(model)
        config = convexmoe_torch.CELMoEConfig.from_json(model.config.to_json())
        twin = convexmoe_torch.files.layers.build(config, recipes, expert_factory, fusion_module)
        convexmoe_torch.files.layers.fill(twin, convexmoe_jax.files.layers.neutral_arrays(model))
        return twin
    _check_hull("to_torch", model, convexmoe_jax)
    weights = {name: tensor_of(array) for name, array in convexmoe_jax.hull.flatten(model.params).items()}
    return _hull_twin(model, convexmoe_torch, convexmoe_torch.hull.nest(weights))


def to_jax(model: Any, *, expert_factory: Any = None, fusion_module: Any = None) -> Any:
    """Return the JAX twin of a PyTorch model: same config, same dtype, a copy of the weights.

    Args:
        model: a `VectorHull`, `FoldedHull`, `NonConvexHull` or `HierarchicalCELMoE` of `convexmoe_torch`.
        expert_factory, fusion_module: as for `to_torch`, of JAX modules.

    Raises:
        TypeError: another model.
        ValueError: the weights are float64 and JAX has float64 switched off.

    >>> to_jax(convexmoe_torch.VectorHull(3, petals=4)).config.petals
    4
    """
    if isinstance(model, convexmoe_torch.HierarchicalCELMoE):
        recipes = convexmoe_torch.files.layers.recipes_of(model)
        config = convexmoe_jax.CELMoEConfig.from_json(model.config.to_json())
        twin = convexmoe_jax.files.layers.build(config, recipes, expert_factory, fusion_module)
        convexmoe_jax.files.layers.fill(twin, convexmoe_torch.files.layers.neutral_arrays(model))
        return twin
    _check_hull("to_jax", model, convexmoe_torch)
    weights = {name: array_of(tensor) for name, tensor in model.named_parameters()}
    return _hull_twin(model, convexmoe_jax, convexmoe_jax.hull.nest(weights))


def _check_hull(owner: str, model: Any, package: Any) -> None:
    """Check that a model is a hull of a package."""
    if isinstance(model, (package.VectorHull, package.FoldedHull, package.NonConvexHull)):
        return
    kinds = "VectorHull, FoldedHull, NonConvexHull or HierarchicalCELMoE"
    got, fix = f"{type(model).__module__.split('.')[0]}.{type(model).__qualname__}", "Pass one of these."
    if isinstance(model, package.FixedHierarchy):
        fix = "Pass the hierarchy that it was made of, and fix the routes of its twin."
    raise TypeError(f"{owner}.model: expected a {kinds} of {package.__name__}; got {got}. {fix}")


def _hull_twin(model: Any, package: Any, params: dict[str, Any]) -> Any:
    """Return the hull of a package of the same kind, with these parameters."""
    if not hasattr(model, "config"):
        return package.NonConvexHull(params)
    config = package.HullConfig.from_json(model.config.to_json())
    if isinstance(model, (convexmoe_jax.FoldedHull, convexmoe_torch.FoldedHull)):
        return package.FoldedHull(params, config)
    return package.VectorHull.from_params(config, params)


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
