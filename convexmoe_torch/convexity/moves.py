"""Operations that move elements and change none: facts and bounds move along."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from convexmoe.convexity.facts import REAL, Array, Value, either, either_over, known, merge, mixture, nothing
from convexmoe.convexity.graph import Operation
from convexmoe.convexity.walk import Rule, Walk, compact

from .lowering.moves import FIXED, INDEXED, filled, numbered

Params = Mapping[str, Any]
Inputs = list[Value]


def parts(value: Value) -> tuple[Array, Array, Array]:
    """Return the three arrays of a value."""
    return value.lower, value.upper, value.facts


def moved(move: Callable[[Array, Params], Array]) -> Rule:
    """Return the rule of an operation that moves the elements of one array."""

    def rule(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
        value = compact(inputs[0])
        shape = walk.graph.shapes[operation.outputs[0]]
        if value.shape == () and inputs[0].shape != ():  # all alike, stored once
            return [value.broadcast(shape)]
        return [Value(*(move(part, operation.params) for part in parts(value)))]

    return Rule("moved", rule)


def together(inputs: Inputs) -> Value:
    """Return the elements of all inputs in one row, so that one index reaches each."""
    groups = zip(*map(parts, inputs), strict=True)
    return Value(*(np.concatenate([part.reshape(-1) for part in group]) for group in groups))


def _placed(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    """Places that were known when the program was written; at place 0 there is a known number."""
    index = operation.params["places"].array
    found = together(inputs).take(index - 1)
    return [merge(index > 0, found, known(operation.params["fill"]).broadcast(index.shape))]


def _indexed(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    """Places that are values of the program.

    Those that do not depend on the chosen input, but are not known, may be any; places that depend on it leave bounds
    only.
    """
    count = operation.params["moved"]
    data, at = inputs[:count], inputs[count:]
    shape = walk.graph.shapes[operation.outputs[0]]
    if not all(value.known.all() for value in at):
        return [_anywhere(operation, data, at, shape)]
    dtypes = [getattr(torch, walk.graph.dtypes[number]) for number in operation.inputs[count:]]
    places = [torch.from_numpy(value.lower.copy()).to(dtype) for value, dtype in zip(at, dtypes, strict=True)]
    tensors = [*numbered([value.shape for value in data]), *places]
    target = operation.params["target"]
    given = {name: filled(value, tensors) for name, value in operation.params["template"]}
    for argument in target._schema.arguments:
        if str(argument.type) == "number" and isinstance(given[argument.name], torch.Tensor):
            given[argument.name] = given[argument.name].item()
    index = target(**given).numpy()
    if index.shape != shape:
        raise ValueError(f"places {index.shape} for a value {shape}")
    written = index > data[0].facts.size
    if count > 1 and data[1].facts.size > 1:
        counts = np.unique(index[written]).size, int(written.sum())
        if counts != (data[1].facts.size,) * 2:  # two elements for one place, say: either may stay
            return [_anywhere(operation, data, at, shape)]
    return [together(data).take(index - 1)]


def _anywhere(operation: Operation, data: Inputs, at: Inputs, shape: tuple[int, ...]) -> Value:
    """Return what holds wherever the elements are taken from, or put."""
    if any(value.facts.size == 0 for value in data):
        return nothing(shape)
    cases = [
        value if value.shape == shape and k == 0 and len(data) > 1 else _one(value).broadcast(shape)
        for k, value in enumerate(data)
    ]
    steady = all(value.constant.all() for value in at)
    real = all(value.has(REAL).all() for value in at)
    return either(cases) if steady and real else mixture(cases)


def _one(value: Value) -> Value:
    """Return what holds of every element."""
    return either_over(value.reshape(-1), (0,)).reshape()


MOVING_RULES: dict[str, Rule] = {
    "reshape": moved(lambda part, params: part.reshape(params["new_shape"])),
    "permute": moved(lambda part, params: np.transpose(part, params["dims"])),
    "expand": moved(lambda part, params: np.broadcast_to(part, params["new_shape"])),
    **dict.fromkeys(FIXED, Rule("moved", _placed)),
    **dict.fromkeys(INDEXED, Rule("moved", _indexed)),
}
