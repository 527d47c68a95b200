"""Trees like a model's parameters (gradients, moments) by neutral name, whichever way the framework holds them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import convexmoe_jax
import convexmoe_jax.names
import convexmoe_torch
import convexmoe_torch.names


def parameters_of(twin: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return neutral name -> parameter of a torch model."""
    if isinstance(twin, convexmoe_torch.HierarchicalCELMoE):
        return convexmoe_torch.names.parameters_of(twin)  # type: ignore[return-value]
    return dict(twin.named_parameters())


def by_path(tree: Any) -> dict[tuple[str, ...], Any]:
    """Return path -> leaf of a tree of parameters; of an NNX state as of plain dicts."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    keys = [tuple(str(getattr(key, "key", "")) for key in path if hasattr(key, "key")) for path, _ in leaves]
    return dict(zip(keys, (leaf for _, leaf in leaves), strict=True))


def neutral_of(model: Any, tree: Any) -> dict[str, np.ndarray]:
    """Return neutral name -> array of a tree like the parameters of a JAX model."""
    if isinstance(model, convexmoe_jax.VectorHull):
        return {".".join(path): np.array(leaf) for path, leaf in by_path(tree).items()}
    return convexmoe_jax.names.neutral_arrays(_with(model, tree))


def _with(model: Any, tree: Any) -> Any:
    """Return a copy of a hierarchy with the leaves of a tree for its parameters."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    given, own = by_path(tree), by_path(params)
    if given.keys() != own.keys():
        raise ValueError(
            f"state: expected trees like the model's parameters; got others at "
            f"{sorted(given.keys() ^ own.keys())[:4]}. Pass the model that the state is of."
        )
    filled = jax.tree.unflatten(jax.tree.structure(params), [given[path] for path in own])
    return nnx.merge(graph, filled, rest)


def tree_like(model: Any, tree: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Return neutral arrays as a tree like `tree`."""
    if isinstance(model, convexmoe_jax.VectorHull):
        new: dict[tuple[str, ...], Any] = {
            tuple(name.split(".")): jnp.array(value) for name, value in arrays.items()
        }
    else:
        copy = _with(model, jax.tree.map(jnp.array, tree))
        convexmoe_jax.names.fill(copy, arrays)
        new = by_path(nnx.state(copy, nnx.Param))
    return jax.tree.unflatten(jax.tree.structure(tree), [new[path] for path in by_path(tree)])
