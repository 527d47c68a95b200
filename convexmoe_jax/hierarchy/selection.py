"""Context and state in two parts: what each sample has its own of, and the rest, which all samples share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from convexmoe import hierarchy as core
from convexmoe.errors import describe, fail

from .records import Whole, is_text, is_traceable

Tree = Any


def split_inputs(
    rows: int, context: Any, mask: Any, state: Mapping[str, Any] | None
) -> tuple[dict[str, Tree], dict[str, Tree]]:
    """Return context and mask as each sample has them, and context and state as all share them, after their checks.

    Either part of the context has None where the other has something. What is no array is shared, as `Whole`.
    """
    opened = _open(context)
    core.check_inputs(rows, jax.tree.leaves(opened, is_leaf=_is_shared), mask, state, _check_kind)

    def take_own(leaf: Any) -> Any:
        return jnp.asarray(leaf) if core.is_array(leaf) else None

    def take_shared(leaf: Any) -> Any:
        if _is_shared(leaf):
            return _share(leaf.value)
        return None if core.is_array(leaf) else Whole(leaf)

    own, shared = (jax.tree.map(take, opened, is_leaf=_is_shared) for take in (take_own, take_shared))
    mask = None if mask is None else jnp.asarray(mask)
    return {"context": own, "mask": mask}, {"context": shared, "state": _share(dict(state or {}))}


def _open(tree: Any) -> Tree:
    """Return a tree with all mappings as dicts."""
    return core.map_leaves(tree, lambda leaf: leaf)


def _share(tree: Any) -> Tree:
    """Return a tree with its numbers and arrays as arrays of JAX, and everything else as `Whole`."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) if is_traceable(leaf) else Whole(leaf), _open(tree))


def _is_shared(value: Any) -> bool:
    return isinstance(value, core.Shared)


def _check_kind(argument: str, value: Any) -> None:
    """Check that an array holds numbers."""
    if is_text(value):
        fail(core.OWNER, argument, "arrays of numbers", describe(value), "Encode it as numbers.", TypeError)
