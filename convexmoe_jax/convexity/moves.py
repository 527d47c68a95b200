"""Primitives that move elements and change none: facts and bounds move along."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from convexmoe.convexity import Array, Inputs, Operation, Rule, Value, Walk, facts, moves


def _broadcast(part: Array, params: moves.Params) -> Array:
    shape = [1] * len(params["shape"])
    for axis, size in zip(params["broadcast_dimensions"], part.shape, strict=True):
        shape[axis] = size
    return np.broadcast_to(part.reshape(shape), params["shape"])


def _slice(part: Array, params: moves.Params) -> Array:
    strides = params["strides"] or (1,) * part.ndim
    return part[tuple(map(slice, params["start_indices"], params["limit_indices"], strides))]


def _reshape(part: Array, params: moves.Params) -> Array:
    if params.get("dimensions") is not None:
        part = np.transpose(part, params["dimensions"])
    return part.reshape(params["new_sizes"])


def _concatenate(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    return [facts.join(inputs, lambda group: np.concatenate(group, operation.params["dimension"]))]


def _split(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    ends, axis = np.cumsum(operation.params["sizes"])[:-1], operation.params["axis"]
    groups = [np.split(part, ends, axis) for part in inputs[0].parts]
    return [Value(*group) for group in zip(*groups, strict=True)]


def _stack(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    return [facts.join(inputs, lambda group: np.stack(group, operation.params["axis"]))]


def _iota(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    shape, axis = operation.params["shape"], operation.params["dimension"]
    counts = np.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return [facts.literal(counts).broadcast(tuple(shape))]


def number_elements(inputs: Inputs) -> list[Array]:
    """Return the indices of the elements of each input in `concatenate_flat`, in the shape of the input."""
    starts = np.cumsum([0, *(value.facts.size for value in inputs)])
    return [
        np.arange(start, start + value.facts.size, dtype=np.int32).reshape(value.shape)
        for start, value in zip(starts, inputs, strict=False)
    ]


def known_integers(values: Inputs, dtypes: list[str]) -> list[jax.Array] | None:
    """Return known whole numbers as arrays, None where one is not known."""
    if not all(value.known.all() for value in values):
        return None
    return [jnp.asarray(value.lower.astype(dtype)) for value, dtype in zip(values, dtypes, strict=True)]


def _by_index(primitive: Any, arrays: int, walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    """A primitive whose first `arrays` inputs are moved to places that the other inputs give.

    Known places are found by moving indices with the primitive itself. Places that do not depend on the chosen input,
    but are not known, may be any; places that depend on it leave bounds only.
    """
    data, at = inputs[:arrays], inputs[arrays:]
    shape = walk.graph.shapes[operation.outputs[0]]
    if primitive is lax.scatter_p:
        data, at = [inputs[0], inputs[2]], [inputs[1]]
    params = dict(operation.params)
    fill = params.get("fill_value")
    if "fill_value" in params:
        params["fill_value"] = -1
    numbers = operation.inputs[1:2] if primitive is lax.scatter_p else operation.inputs[arrays:]
    where = known_integers(at, [walk.graph.dtypes[number] for number in numbers])
    if where is None:
        return [_at_unknown_places(operation, data, at, shape)]
    if primitive is lax.scatter_p and not _unique(params, where[0], data):
        return [_at_unknown_places(operation, data, at, shape)]
    given = [jnp.asarray(place) for place in number_elements(data)]
    order = [given[0], *where, given[1]] if primitive is lax.scatter_p else [*given, *where]
    index = np.asarray(primitive.bind(*order, **params))
    result = moves.concatenate_flat(data).take(index)
    if fill is not None:
        result = facts.merge(index < 0, facts.literal(np.float64(fill)).broadcast(shape), result)
    return [result]


def _unique(params: moves.Params, at: jax.Array, data: Inputs) -> bool:
    """Return whether a scatter puts one element at most into each place: of several, one would win."""
    ones = jnp.ones(data[1].shape, jnp.int32)
    counts = lax.scatter_add(
        jnp.zeros(data[0].shape, jnp.int32), at, ones, params["dimension_numbers"], mode=params["mode"]
    )
    return bool((counts <= 1).all())


def _at_unknown_places(operation: Operation, data: Inputs, at: Inputs, shape: tuple[int, ...]) -> Value:
    """Return what holds wherever the elements are taken from, or put."""
    if operation.params.get("mode") == lax.GatherScatterMode.FILL_OR_DROP and operation.name == "gather":
        return facts.nothing(shape)  # outside there is NaN
    if any(value.facts.size == 0 for value in data):
        return facts.nothing(shape)
    if operation.name == "gather":
        cases = [moves.weakest_element(data[0]).broadcast(shape)]
    elif operation.name == "scatter":
        cases = [data[0], moves.weakest_element(data[1]).broadcast(shape)]
    elif operation.name == "dynamic_slice":
        cases = [_along(data[0], shape).broadcast(shape)]
    else:
        cases = [data[0], _along(data[1], shape).broadcast(shape)]
    return moves.unknown_places(cases, at)


def _along(value: Value, shape: tuple[int, ...]) -> Value:
    """Return what holds of all elements along the axes whose size is not that of `shape`: there they may move."""
    axes = tuple(axis for axis, size in enumerate(value.shape) if size != shape[axis])
    return facts.either_over(value, axes) if axes else value


MOVING_RULES: dict[str, Rule] = {
    "broadcast_in_dim": moves.moving_rule(_broadcast),
    "reshape": moves.moving_rule(_reshape),
    "squeeze": moves.moving_rule(lambda part, params: np.squeeze(part, tuple(params["dimensions"]))),
    "transpose": moves.moving_rule(lambda part, params: np.transpose(part, params["permutation"])),
    "rev": moves.moving_rule(lambda part, params: np.flip(part, tuple(params["dimensions"]))),
    "slice": moves.moving_rule(_slice),
    "concatenate": Rule("moved", _concatenate),
    "split": Rule("moved", _split),
    "stack": Rule("moved", _stack),
    "iota": Rule("constant", _iota),
    "pad": Rule("moved", partial(_by_index, lax.pad_p, 2)),
    "gather": Rule("moved", partial(_by_index, lax.gather_p, 1)),
    "dynamic_slice": Rule("moved", partial(_by_index, lax.dynamic_slice_p, 1)),
    "dynamic_update_slice": Rule("moved", partial(_by_index, lax.dynamic_update_slice_p, 2)),
    "scatter": Rule("moved", partial(_by_index, lax.scatter_p, 2)),
}
