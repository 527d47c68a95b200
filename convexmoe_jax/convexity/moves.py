"""Primitives that move elements and change none: facts and bounds move along."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from convexmoe.convexity.facts import REAL, Array, Value, either, either_over, known, merge, mixture, nothing
from convexmoe.convexity.graph import Operation
from convexmoe.convexity.walk import Rule, Walk, compact

Params = Mapping[str, Any]
Inputs = list[Value]


def parts(value: Value) -> tuple[Array, Array, Array]:
    """Return the three arrays of a value."""
    return value.lower, value.upper, value.facts


def moved(move: Callable[[Array, Params], Array]) -> Rule:
    """Return the rule of a primitive that moves the elements of one array."""

    def rule(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
        value = compact(inputs[0])
        shape = walk.graph.shapes[operation.outputs[0]]
        if value.shape == () and inputs[0].shape != ():  # all alike, stored once
            return [value.broadcast(shape)]
        return [Value(*(move(part, operation.params) for part in parts(value)))]

    return Rule("moved", rule)


def _broadcast(part: Array, params: Params) -> Array:
    shape = [1] * len(params["shape"])
    for axis, size in zip(params["broadcast_dimensions"], part.shape, strict=True):
        shape[axis] = size
    return np.broadcast_to(part.reshape(shape), params["shape"])


def _slice(part: Array, params: Params) -> Array:
    strides = params["strides"] or (1,) * part.ndim
    return part[tuple(map(slice, params["start_indices"], params["limit_indices"], strides))]


def _reshape(part: Array, params: Params) -> Array:
    if params.get("dimensions") is not None:
        part = np.transpose(part, params["dimensions"])
    return part.reshape(params["new_sizes"])


def _concatenate(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    axis = operation.params["dimension"]
    return [Value(*(np.concatenate(group, axis) for group in zip(*map(parts, inputs), strict=True)))]


def _split(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    ends = np.cumsum(operation.params["sizes"])[:-1]
    groups = [np.split(part, ends, operation.params["axis"]) for part in parts(inputs[0])]
    return [Value(*group) for group in zip(*groups, strict=True)]


def _stack(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    axis = operation.params["axis"]
    return [Value(*(np.stack(group, axis) for group in zip(*map(parts, inputs), strict=True)))]


def _iota(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    shape, axis = operation.params["shape"], operation.params["dimension"]
    counts = np.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return [known(counts).broadcast(tuple(shape))]


def together(inputs: Inputs) -> Value:
    """Return the elements of all inputs in one row, so that one index reaches each."""
    groups = zip(*map(parts, inputs), strict=True)
    return Value(*(np.concatenate([part.reshape(-1) for part in group]) for group in groups))


def places(inputs: Inputs) -> list[Array]:
    """Return the indices of the elements of each input in `together`, in the shape of the input."""
    starts = np.cumsum([0, *(value.facts.size for value in inputs)])
    return [
        (start + np.arange(value.facts.size, dtype=np.int32)).reshape(value.shape).astype(np.int32)
        for start, value in zip(starts, inputs, strict=False)
    ]


def indices(values: Inputs, dtypes: list[str]) -> list[jax.Array] | None:
    """Return known whole numbers as arrays, None where one is not known."""
    if not all(value.known.all() for value in values):
        return None
    return [jnp.asarray(value.lower.astype(dtype)) for value, dtype in zip(values, dtypes, strict=True)]


def by_index(primitive: Any, arrays: int) -> Rule:
    """Return the rule of a primitive whose first `arrays` inputs are moved as the others, whole numbers, say.

    Known places are found by moving indices with the primitive itself. Places that do not depend on the chosen input,
    but are not known, may be any; places that depend on it leave bounds only.
    """

    def rule(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
        data, at = inputs[:arrays], inputs[arrays:]
        shape = walk.graph.shapes[operation.outputs[0]]
        if primitive is lax.scatter_p:
            data, at = [inputs[0], inputs[2]], [inputs[1]]
        params = dict(operation.params)
        fill = params.get("fill_value")
        if "fill_value" in params:
            params["fill_value"] = -1
        numbers = operation.inputs[1:2] if primitive is lax.scatter_p else operation.inputs[arrays:]
        where = indices(at, [walk.graph.dtypes[number] for number in numbers])
        if where is None:
            return [_anywhere(operation, data, at, shape)]
        if primitive is lax.scatter_p and not _unique(params, where[0], data):
            return [_anywhere(operation, data, at, shape)]
        given = [jnp.asarray(place) for place in places(data)]
        order = [given[0], *where, given[1]] if primitive is lax.scatter_p else [*given, *where]
        index = np.asarray(primitive.bind(*order, **params))
        result = together(data).take(index)
        if fill is not None:
            result = merge(index < 0, known(np.float64(fill)).broadcast(shape), result)
        return [result]

    return Rule("moved", rule)


def _unique(params: Params, at: jax.Array, data: Inputs) -> bool:
    """Return whether a scatter puts one element at most into each place: of several, one would win."""
    ones = jnp.ones(data[1].shape, jnp.int32)
    counts = lax.scatter_add(
        jnp.zeros(data[0].shape, jnp.int32), at, ones, params["dimension_numbers"], mode=params["mode"]
    )
    return bool((counts <= 1).all())


def _anywhere(operation: Operation, data: Inputs, at: Inputs, shape: tuple[int, ...]) -> Value:
    """Return what holds wherever the elements are taken from, or put."""
    if operation.params.get("mode") == lax.GatherScatterMode.FILL_OR_DROP and operation.name == "gather":
        return nothing(shape)  # outside there is NaN
    if any(value.facts.size == 0 for value in data):
        return nothing(shape)
    if operation.name == "gather":
        cases = [_one(data[0]).broadcast(shape)]
    elif operation.name == "scatter":
        cases = [data[0], _one(data[1]).broadcast(shape)]
    elif operation.name == "dynamic_slice":
        cases = [_along(data[0], shape).broadcast(shape)]
    else:
        cases = [data[0], _along(data[1], shape).broadcast(shape)]
    steady = all(value.constant.all() for value in at)
    real = all(value.has(REAL).all() for value in at)
    return either(cases) if steady and real else mixture(cases)


def _along(value: Value, shape: tuple[int, ...]) -> Value:
    """Return what holds of all elements along the axes whose size is not that of `shape`: there they may move."""
    axes = tuple(axis for axis, size in enumerate(value.shape) if size != shape[axis])
    return either_over(value, axes) if axes else value


def _one(value: Value) -> Value:
    """Return what holds of every element."""
    return either_over(value.reshape(-1), (0,)).reshape()


MOVING_RULES: dict[str, Rule] = {
    "broadcast_in_dim": moved(_broadcast),
    "reshape": moved(_reshape),
    "squeeze": moved(lambda part, params: np.squeeze(part, tuple(params["dimensions"]))),
    "transpose": moved(lambda part, params: np.transpose(part, params["permutation"])),
    "rev": moved(lambda part, params: np.flip(part, tuple(params["dimensions"]))),
    "slice": moved(_slice),
    "concatenate": Rule("moved", _concatenate),
    "split": Rule("moved", _split),
    "stack": Rule("moved", _stack),
    "iota": Rule("constant", _iota),
    "pad": by_index(lax.pad_p, 2),
    "gather": by_index(lax.gather_p, 1),
    "dynamic_slice": by_index(lax.dynamic_slice_p, 1),
    "dynamic_update_slice": by_index(lax.dynamic_update_slice_p, 2),
    "scatter": by_index(lax.scatter_p, 2),
}
