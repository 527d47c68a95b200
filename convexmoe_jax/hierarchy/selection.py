"""Context, mask and state: what each sample has its own of, what all share, and what is no array."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convexmoe.errors import describe, fail

from .routes import Shared

# an array, or nested mappings and lists of arrays, of `Shared` ones, and of what is no array
ExpertContext = Any
RESERVED = ("level", "expert")  # names in `state` that the hierarchy gives
OWN, SHARED = "own", "shared"


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


jax.tree_util.register_pytree_node(Whole, lambda whole: ((), whole), lambda whole, _: whole)


@dataclass(frozen=True)
class Structure:
    """How the leaves of a context go together.

    Args:
        tree: of `jax.tree.flatten`.
        marks: what each leaf is: OWN, SHARED, or a `Whole`.
    """

    tree: Any
    marks: tuple[Any, ...]

    def join(self, own: list[Any], shared: list[Any]) -> Any:
        """Return the context of some samples' own leaves and the shared ones."""
        leaves = {OWN: iter(own), SHARED: iter(shared)}
        found = [mark.value if isinstance(mark, Whole) else next(leaves[mark]) for mark in self.marks]
        return jax.tree.unflatten(self.tree, found)


def split_context(context: Any, rows: int) -> tuple[list[jax.Array], list[jax.Array], Structure]:
    """Return the arrays that each sample has its own of, those that are shared, and how they go together.

    Raises:
        ValueError: an array that is not marked has another leading axis.
    """
    leaves, tree = jax.tree.flatten(_open(context), is_leaf=_is_shared)
    own: list[jax.Array] = []
    shared: list[jax.Array] = []
    marks: list[Any] = []
    for leaf in leaves:
        inside = leaf.value if isinstance(leaf, Shared) else leaf
        if isinstance(leaf, Shared) and (is_number(inside) or (is_array(inside) and not is_text(inside))):
            shared.append(jnp.asarray(inside))
            marks.append(SHARED)
        elif is_array(leaf):
            check_leading("context", leaf, rows)
            own.append(jnp.asarray(leaf))
            marks.append(OWN)
        else:
            marks.append(Whole(inside))
    return own, shared, Structure(tree, tuple(marks))


def split_state(state: Any) -> tuple[list[jax.Array], Structure]:
    """Return the arrays and numbers of a state, and how they go together with what is none.

    Raises:
        TypeError, ValueError: it is no mapping, or has the names that the hierarchy itself gives.
    """
    if state is not None and not isinstance(state, Mapping):
        fix = "Pass {name: value}."
        fail("HierarchicalCELMoE", "state", "a mapping", describe(state), fix, TypeError)
    taken = [name for name in RESERVED if name in (state or {})]
    if taken:
        rule = f"names other than {list(RESERVED)}"
        fail("HierarchicalCELMoE", "state", rule, repr(taken), "Rename it: the hierarchy gives these.")
    _map_leaves(state, check_state_leaf)
    _, shared, structure = split_context(Shared(dict(state or {})), 0)
    return shared, structure


def _is_shared(value: Any) -> bool:
    return isinstance(value, Shared)


def _open(context: Any) -> Any:
    """Return the context with mappings as dicts, and what is marked as whole marked leaf by leaf."""

    def open_leaf(leaf: Any) -> Any:
        if not isinstance(leaf, Shared):
            return leaf
        return jax.tree.map(Shared, _map_leaves(leaf.value, check_unmarked))

    return _map_leaves(context, open_leaf)


def _map_leaves(context: Any, function: Callable[[Any], Any]) -> Any:
    """Return the context with `function` done to all that is no mapping, list or tuple."""
    if isinstance(context, Mapping):
        return {name: _map_leaves(value, function) for name, value in context.items()}
    if isinstance(context, (list, tuple)):
        parts = [_map_leaves(value, function) for value in context]
        if isinstance(context, list):
            return parts
        return type(context)(*parts) if hasattr(context, "_fields") else tuple(parts)
    return function(context)


def check_unmarked(leaf: Any) -> Any:
    """Return what stands inside a marked value, which must not be marked again."""
    if isinstance(leaf, Shared):
        rule, fix = "one mark a value", "Mark the outer one alone."
        fail("HierarchicalCELMoE", "context", rule, "Shared inside of Shared", fix)
    return leaf


def check_state_leaf(leaf: Any) -> None:
    """Check that what stands in the state is not marked: every expert gets it whole."""
    if isinstance(leaf, Shared):
        fix = "Pass the value itself."
        fail("HierarchicalCELMoE", "state", "values without a mark", "Shared", fix)


def is_array(value: Any) -> bool:
    """Return whether a value has axes that may be those of samples; a number of numpy has none."""
    return hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, np.generic)


def is_text(value: Any) -> bool:
    """Return whether a value is an array of numpy that holds text, dates or objects, which JAX cannot trace."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "OSUMm"


def is_number(value: Any) -> bool:
    """Return whether a value is a number of Python or numpy, which JAX can make an array of."""
    return isinstance(value, (bool, int, float, complex, np.number, np.bool_))


def check_leading(argument: str, value: Any, rows: int) -> None:
    """Check that `value` is an array with a leading axis of `rows`."""
    if not hasattr(value, "shape") or len(value.shape) == 0 or value.shape[0] != rows:
        fix = (
            "Give it one entry for each sample, or mark it: Shared(value)."
            if argument == "context"
            else "Give it one."
        )
        fail("HierarchicalCELMoE", argument, f"a leading axis of {rows} samples", describe(value), fix)
    if is_text(value):
        fix = "Encode it as numbers."
        fail("HierarchicalCELMoE", argument, "arrays of numbers", describe(value), fix, TypeError)
