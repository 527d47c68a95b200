"""Context, mask and state: what each sample has its own of, what all samples share, and the checks of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import describe, fail
from .checks import OWNER

ExpertContext = Any
"""An array, or nested mappings and lists of arrays, of `Shared` ones, and of what is no array."""
RESERVED = ("level", "expert")  # names in `state` that the hierarchy sets
CheckKind = Callable[[str, Any], None]  # of (argument, array): refuses an array that the framework cannot take


@dataclass(frozen=True)
class Shared:
    """Context that every sample sees whole, whatever its sizes: `Shared(value)`. A pytree node."""

    value: Any


def map_leaves(tree: Any, function: Callable[[Any], Any]) -> Any:
    """Return a context with `function` applied to everything that is no mapping, list or tuple."""
    if isinstance(tree, Mapping):
        return {name: map_leaves(value, function) for name, value in tree.items()}
    if not isinstance(tree, (list, tuple)):
        return function(tree)
    parts = [map_leaves(value, function) for value in tree]
    if isinstance(tree, list):
        return parts
    return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)


def is_array(value: Any) -> bool:
    """Return whether a value has axes that may be those of samples; a number of numpy has none."""
    return hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, np.generic)


def check_inputs(rows: int, context: Any, mask: Any, state: Any, check_kind: CheckKind) -> None:
    """Check what a hierarchy is given beside the input and the routes.

    Args:
        rows: the number of samples.
        context: arrays in it that are not marked have a leading axis of samples; no mark stands inside another.
        mask: None, or an array with a leading axis of samples.
        state: None, or a mapping without marks and without the names that the hierarchy sets.
        check_kind: refuses an array that the framework cannot take.
    """

    def check(leaf: Any) -> None:
        if isinstance(leaf, Shared):
            map_leaves(leaf.value, _check_unmarked)
        elif is_array(leaf):
            _check_leading("context", leaf, rows, check_kind)

    map_leaves(context, check)
    if state is not None:
        _check_state(state)
    if mask is not None:
        _check_leading("mask", mask, rows, check_kind)


def _check_unmarked(leaf: Any) -> None:
    if isinstance(leaf, Shared):
        fail(OWNER, "context", "one mark a value", "Shared inside of Shared", "Mark the outer one alone.")


def _check_leading(argument: str, value: Any, rows: int, check_kind: CheckKind) -> None:
    if not hasattr(value, "shape") or len(value.shape) == 0 or value.shape[0] != rows:
        mark = "Give it one entry for each sample, or mark it: Shared(value)."
        fix = mark if argument == "context" else "Give it one."
        fail(OWNER, argument, f"a leading axis of {rows} samples", describe(value), fix)
    check_kind(argument, value)


def _check_state(state: Any) -> None:
    if not isinstance(state, Mapping):
        fail(OWNER, "state", "a mapping", describe(state), "Pass {name: value}.", TypeError)
    taken = [name for name in RESERVED if name in state]
    if taken:
        fail(OWNER, "state", f"names other than {list(RESERVED)}", repr(taken), "Rename it: the hierarchy gives these.")
    map_leaves(state, _check_state_leaf)


def _check_state_leaf(leaf: Any) -> None:
    if isinstance(leaf, Shared):
        fail(OWNER, "state", "values without a mark", "Shared", "Pass the value itself.")
