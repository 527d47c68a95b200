"""The core's records as pytrees of JAX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from convexmoe import hierarchy as core


@dataclass(frozen=True, eq=False)
class Whole:
    """What is no array, as a constant of the program: told apart by type and value, else by identity.

    A pytree without leaves.
    """

    value: Any

    def __hash__(self) -> int:
        try:
            return hash((type(self.value), self.value))
        except TypeError:
            return id(self.value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Whole) or type(self.value) is not type(other.value):
            return False
        if self.value is other.value:
            return True
        try:
            hash(self.value)
            return bool(self.value == other.value)
        except (TypeError, ValueError):
            return False


def is_text(value: Any) -> bool:
    """Return whether a value is an array of numpy that holds text, dates or objects, which JAX cannot trace."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "OSUMm"


def is_number(value: Any) -> bool:
    """Return whether a value is a number of Python or numpy, which JAX can make an array of."""
    return isinstance(value, (bool, int, float, complex, np.number, np.bool_))


def unmark(tree: Any) -> Any:
    """Return a tree with what stands as `Whole` as it is."""

    def is_whole(value: Any) -> bool:
        return isinstance(value, Whole)

    return jax.tree.map(lambda leaf: leaf.value if is_whole(leaf) else leaf, tree, is_leaf=is_whole)


def _flatten_batch(batch: core.ExpertBatch) -> Any:
    """Return the children of a batch; what JAX cannot trace in context and state stands as `Whole`."""

    def mark(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: Whole(leaf) if _is_constant(leaf) else leaf, tree)

    return (batch.hidden, mark(batch.context), batch.mask, mark(batch.state), batch.key), None


def _unflatten_batch(_: None, children: Any) -> core.ExpertBatch:
    """Return the batch that `_flatten_batch` was given."""
    hidden, context, mask, state, key = children
    return core.ExpertBatch(hidden, unmark(context), mask, unmark(state), key)


def _is_constant(leaf: Any) -> bool:
    """Return whether a leaf is text or another object, which JAX cannot trace."""
    # a plain object stands for a leaf where JAX asks for the structure alone
    traceable = core.is_array(leaf) or is_number(leaf) or leaf is None or type(leaf) is object
    return is_text(leaf) or not traceable


jax.tree_util.register_pytree_node(Whole, lambda whole: ((), whole), lambda whole, _: whole)
jax.tree_util.register_pytree_node(core.ExpertBatch, _flatten_batch, _unflatten_batch)
for record, data_fields, meta_fields in (
    (core.Shared, ["value"], []),
    (core.ExpertResult, ["hidden", "losses", "aux"], []),
    (core.LevelOutput, ["hidden", "routes", "losses", "aux"], ["name", "expert_names"]),
    (core.CELMoEOutput, ["levels", "fused_hidden", "losses", "aux"], ["weights"]),
    (core.LossTerm, ["value"], ["name", "weight", "scope"]),
):
    jax.tree_util.register_dataclass(record, data_fields, meta_fields)
