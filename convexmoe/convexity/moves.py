"""What is known of elements that are moved and not changed: facts and bounds move along."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .facts import Array, Value, compact, either, either_over, join, mixture
from .graph import Operation
from .walk import Inputs, Rule, Walk

Params = Mapping[str, Any]


def moving_rule(move: Callable[[Array, Params], Array]) -> Rule:
    """Return the rule of an operation that moves the elements of one array."""

    def rule(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
        value = compact(inputs[0])
        if value.shape == () and inputs[0].shape != ():  # all alike, stored once
            return [value.broadcast(walk.graph.shapes[operation.outputs[0]])]
        return [value.map(lambda part: move(part, operation.params))]

    return Rule("moved", rule)


def concatenate_flat(inputs: Inputs) -> Value:
    """Return the elements of all inputs in one row, so that one index reaches each."""
    return join(inputs, lambda group: np.concatenate([part.reshape(-1) for part in group]))


def group_places(target: Array, count: int) -> Array:
    """Return for each of `count` places itself and the elements that are put there, `[count, K]`, -1 for none.

    Args:
        target: where each element goes, -1 for nowhere; as index they come after the places.
        count: of places.
    """
    target = target.reshape(-1)
    order = np.argsort(target, kind="stable")[np.count_nonzero(target < 0) :]
    starts = np.searchsorted(target[order], np.arange(count))
    rank = np.arange(len(order)) - starts[target[order]]
    groups = np.full((count, 2 + rank.max(initial=-1)), -1)
    groups[:, 0] = np.arange(count)
    groups[target[order], 1 + rank] = count + order
    return groups


def weakest_element(value: Value) -> Value:
    """Return what holds of every element, as one element."""
    return either_over(value.reshape(-1), (0,)).reshape()


def unknown_places(cases: Inputs, places: Inputs) -> Value:
    """Return what holds of elements that are one of `cases` each, at places that are values of the program.

    Places that do not depend on the chosen input may be any; places that depend on it leave bounds only.
    """
    return either(cases) if all(value.constant.all() for value in places) else mixture(cases)
