"""Models from one framework to the other. Weights are copied: neither side can see the other's changes.

Both packages name a parameter alike and store it alike, (in, [petal,] out): the table of names is the identity, and
no transpose exists to get wrong. `from_params` checks every name and shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch

import convexmoe_jax
import convexmoe_jax.files.layers
import convexmoe_torch
import convexmoe_torch.files.layers
from convexmoe.errors import fail
from convexmoe_torch.files.layers import to_numpy

from . import in_jax
from .in_torch import own_array as tensor_of


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
    return _twin("to_torch", model, convexmoe_jax, convexmoe_torch, tensor_of, expert_factory, fusion_module)


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
    return _twin("to_jax", model, convexmoe_torch, convexmoe_jax, _in_jax, expert_factory, fusion_module)


def _twin(
    owner: str, model: Any, source: Any, target: Any, copy: Callable[[Any], Any], expert_factory: Any, fusion: Any
) -> Any:
    """Return the model of the package `target` with the weights of one of the package `source`."""
    if isinstance(model, source.HierarchicalCELMoE):
        recipes = source.files.layers.recipes_of(model)
        twin = target.files.layers.build(model.config, recipes, expert_factory, fusion)
        arrays = source.files.layers.neutral_arrays(model)
        target.files.layers.fill(twin, {name: copy(array) for name, array in arrays.items()})
        return twin
    if not isinstance(model, (source.VectorHull, source.FoldedHull, source.NonConvexHull)):
        rule = f"a VectorHull, FoldedHull, NonConvexHull or HierarchicalCELMoE of {source.__name__}"
        got, fix = f"{type(model).__module__.split('.')[0]}.{type(model).__qualname__}", "Pass one of these."
        if isinstance(model, source.FixedHierarchy):
            fix = "Pass the hierarchy that it was made of, and fix the routes of its twin."
        fail(owner, "model", rule, got, fix, TypeError)
    if source is convexmoe_jax:
        weights = convexmoe_jax.hull.flatten(model.params)
    else:
        weights = {name: to_numpy(tensor) for name, tensor in model.named_parameters()}
    params = target.hull.nest({name: copy(array) for name, array in weights.items()})
    if isinstance(model, source.NonConvexHull):
        return target.NonConvexHull(params)
    if isinstance(model, source.FoldedHull):
        return target.FoldedHull(params, model.config)
    return target.VectorHull.from_params(model.config, params)


def array_of(tensor: torch.Tensor) -> jax.Array:
    """Return a copy as a JAX array of the same dtype; bfloat16 crosses as bits."""
    return _in_jax(to_numpy(tensor))


def _in_jax(values: np.ndarray) -> jax.Array:
    """Return a copy of an array in JAX, in the same dtype."""
    array = in_jax.own_array(values)
    if array.dtype != values.dtype:
        fix = 'Call jax.config.update("jax_enable_x64", True) first.'
        fail("to_jax", "model", "a dtype that JAX has switched on", str(values.dtype), fix)
    return array
