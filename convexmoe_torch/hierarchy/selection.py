"""Context and mask: what each sample has its own of, and what all share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from convexmoe.errors import describe, fail

from .routes import Shared

# a tensor, or nested mappings and lists of tensors, of `Shared` ones, and of what is no array
ExpertContext = Any
RESERVED = ("level", "expert")  # names in `state` that the hierarchy gives


class Split(NamedTuple):
    """One array of the context, cut into the rows of one expert after the other."""

    parts: Iterator[Tensor]


def split_context(context: Any, split: Callable[[Tensor], Iterator[Tensor]]) -> Any:
    """Return the context with every array that each sample has its own of as `Split`."""
    return _map_leaves(context, lambda leaf: Split(split(leaf)) if is_array(leaf) else leaf)


def next_context(context: Any) -> Any:
    """Return what the next expert sees of a split context: its own rows, and the rest whole."""

    def seen(leaf: Any) -> Any:
        if isinstance(leaf, Split):
            return next(leaf.parts)
        return leaf.value if isinstance(leaf, Shared) else leaf

    return _map_leaves(context, seen)


def _map_leaves(context: Any, function: Callable[[Any], Any]) -> Any:
    """Return the context with `function` done to all that is no mapping, list or tuple."""
    if isinstance(context, Mapping):
        return {name: _map_leaves(value, function) for name, value in context.items()}
    if isinstance(context, (list, tuple)) and not isinstance(context, Split):
        parts = [_map_leaves(value, function) for value in context]
        if isinstance(context, list):
            return parts
        return type(context)(*parts) if hasattr(context, "_fields") else tuple(parts)
    return function(context)


def is_array(value: Any) -> bool:
    """Return whether a value has axes that may be those of samples; a number of numpy has none."""
    return hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, np.generic)


def check_context(context: Any, rows: int) -> None:
    """Check that every array of the context that is not marked has a leading axis of samples, and no mark a mark."""

    def check(leaf: Any) -> None:
        if isinstance(leaf, Shared):
            _map_leaves(leaf.value, check_unmarked)
        elif is_array(leaf):
            check_leading("context", leaf, rows)

    _map_leaves(context, check)


def check_unmarked(leaf: Any) -> Any:
    """Return what stands inside a marked value, which must not be marked again."""
    if isinstance(leaf, Shared):
        rule, fix = "one mark a value", "Mark the outer one alone."
        fail("HierarchicalCELMoE", "context", rule, "Shared inside of Shared", fix)
    return leaf


def check_leading(argument: str, value: Any, rows: int) -> None:
    """Check that `value` is a tensor with a leading axis of `rows`."""
    if not hasattr(value, "shape") or len(value.shape) == 0 or value.shape[0] != rows:
        fix = (
            "Give it one entry for each sample, or mark it: Shared(value)."
            if argument == "context"
            else "Give it one."
        )
        fail("HierarchicalCELMoE", argument, f"a leading axis of {rows} samples", describe(value), fix)
    if not isinstance(value, Tensor):
        fix = "Convert it to an array of this framework first."
        fail("HierarchicalCELMoE", argument, "tensors", type(value).__name__, fix, TypeError)


def check_state(state: Any) -> None:
    """Check that `state` is None or a mapping, without the names that the hierarchy itself gives."""
    if state is None:
        return
    if not isinstance(state, Mapping):
        fix = "Pass {name: value}."
        fail("HierarchicalCELMoE", "state", "a mapping", describe(state), fix, TypeError)
    taken = [name for name in RESERVED if name in state]
    if taken:
        rule = f"names other than {list(RESERVED)}"
        fail("HierarchicalCELMoE", "state", rule, repr(taken), "Rename it: the hierarchy gives these.")
    _map_leaves(state, check_state_leaf)


def check_state_leaf(leaf: Any) -> None:
    """Check that what stands in the state is not marked: every expert gets it whole."""
    if isinstance(leaf, Shared):
        fix = "Pass the value itself."
        fail("HierarchicalCELMoE", "state", "values without a mark", "Shared", fix)
