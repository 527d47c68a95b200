"""The core's records as pytrees of JAX."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
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

    @property
    def _key(self) -> Any:
        try:
            hash(self.value)
        except TypeError:
            return id(self.value)
        return type(self.value), self.value

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        try:
            return isinstance(other, Whole) and self._key == other._key
        except (TypeError, ValueError):
            return False


def is_text(value: Any) -> bool:
    """Return whether a value is an array of numpy that holds text, dates or objects, which JAX cannot trace."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "OSUMm"


def is_traceable(value: Any) -> bool:
    """Return whether JAX can make an array of a value: a number of Python or numpy, or an array of numbers."""
    is_number = isinstance(value, (bool, int, float, complex, np.number, np.bool_))
    return is_number or (core.is_array(value) and not is_text(value))


def unmark(tree: Any) -> Any:
    """Return a tree with what stands as `Whole` as it is."""

    def is_whole(value: Any) -> bool:
        return isinstance(value, Whole)

    return jax.tree.map(lambda leaf: leaf.value if is_whole(leaf) else leaf, tree, is_leaf=is_whole)


def _flatten_batch(batch: core.ExpertBatch) -> Any:
    """Return the children of a batch; what JAX cannot trace in context and state stands as `Whole`."""
    mark = partial(jax.tree.map, lambda leaf: Whole(leaf) if _is_constant(leaf) else leaf)
    return (batch.hidden, mark(batch.context), batch.mask, mark(batch.state), batch.key), None


def _unflatten_batch(_: None, children: Any) -> core.ExpertBatch:
    """Return the batch that `_flatten_batch` was given."""
    hidden, context, mask, state, key = children
    return core.ExpertBatch(hidden, unmark(context), mask, unmark(state), key)


def _is_constant(leaf: Any) -> bool:
    """Return whether a leaf is text or another object, which JAX cannot trace."""
    # a plain object stands for a leaf where JAX asks for the structure alone
    return not is_traceable(leaf) and type(leaf) is not object


jax.tree_util.register_pytree_node(Whole, lambda whole: ((), whole), lambda whole, _: whole)
jax.tree_util.register_pytree_node(core.ExpertBatch, _flatten_batch, _unflatten_batch)
for record, data_fields, meta_fields in core.RECORDS:
    jax.tree_util.register_dataclass(record, data_fields, meta_fields)
