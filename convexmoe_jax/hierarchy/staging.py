"""Staged training: levels, experts or the fusion are frozen while the rest is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from convexmoe.errors import fail
from convexmoe.hierarchy import select_parts

from .dispatch import Tree, expand
from .module import HierarchicalCELMoE


def freeze(
    optimizer: optax.GradientTransformation, model: HierarchicalCELMoE, *names: str
) -> optax.GradientTransformationExtraArgs:
    """Return `optimizer` so that it leaves the named parts alone: zero gradients go in, zero updates come out.

    Experts of one structure share their arrays here, so that a mask of whole leaves, as optax has, could not tell
    them apart; this one is by expert. To unfreeze, go on with another `freeze` or with `optimizer` itself, and a
    fresh `init`: moments that a part gathered before it was frozen have decayed.

    Args:
        optimizer: any optax transformation.
        model: the hierarchy; the parameters may also be those of a module that holds it.
        names: "level", "level.expert", or "fusion" (where no level is called so).

    Raises:
        ValueError: no name, an unknown one, or, at the update, parameters that hold no such hierarchy.
    """
    experts, fusion = select_parts("freeze", model.config, names, model.fusion is not None)
    groups = dict(model.groups)
    inner = optax.with_extra_args_support(optimizer)

    def zero_frozen(path: tuple[str, ...], leaf: jax.Array) -> jax.Array:
        """Return a leaf of the hierarchy with zeros where it is frozen."""
        if path[0] == "fusion":
            return jnp.zeros_like(leaf) if fusion else leaf
        if path[0] != "level_modules":
            return leaf
        frozen = np.isin(groups[path[1]][int(path[2])].members, sorted(experts.get(path[1], ())))
        return jnp.where(expand(jnp.asarray(frozen), leaf), 0, leaf) if frozen.any() else leaf

    def update(updates: Tree, state: Tree, params: Tree | None = None, **extra: Any) -> tuple[Tree, Tree]:
        updates, state = inner.update(_map_hierarchy(zero_frozen, updates), state, params, **extra)
        return _map_hierarchy(zero_frozen, updates), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _map_hierarchy(function: Callable[..., jax.Array], tree: Tree) -> Tree:
    """Return a tree with `function(path, leaf)` for the leaves beside and below its one "level_modules"."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    paths = [tuple(str(getattr(key, "key", getattr(key, "name", key))) for key in path) for path, _ in leaves]
    above = {path[: path.index("level_modules")] for path in paths if "level_modules" in path}
    if len(above) != 1:
        rule, fix = "one hierarchy in them", "Pass the parameters of the model that was given to freeze."
        fail("freeze", "params", f"parameters with {rule}", f"{len(above)} of them", fix)
    (prefix,) = above
    count = len(prefix)
    new = [
        function(path[count:], leaf) if path[:count] == prefix else leaf
        for path, (_, leaf) in zip(paths, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, new)
