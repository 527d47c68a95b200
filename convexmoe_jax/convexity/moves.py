"""Primitives that move elements and change none: facts and bounds move along."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from convexmoe.convexity import Array, Inputs, Operation, Rule, Value, Walk, contraction, facts, moves, rules

from .trace import graph_of


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


def _joining_rule(join: Callable[[list[Array], int], Array], axis: str) -> Rule:
    """Return the rule of a primitive that joins arrays along the axis that a parameter names."""

    def rule(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
        return [facts.join(inputs, lambda group: join(group, operation.params[axis]))]

    return Rule("moved", rule)


def _split(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    ends, axis = np.cumsum(operation.params["sizes"])[:-1], operation.params["axis"]
    groups = [np.split(part, ends, axis) for part in inputs[0].parts]
    return [Value(*group) for group in zip(*groups, strict=True)]


def _iota(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    shape, axis = operation.params["shape"], operation.params["dimension"]
    counts = np.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return [facts.literal(counts).broadcast(tuple(shape))]


def number_elements(inputs: Inputs) -> list[jax.Array]:
    """Return the indices of the elements of each input in `concatenate_flat`, in the shape of the input."""
    ends = np.cumsum([value.facts.size for value in inputs])
    places = np.split(np.arange(ends[-1], dtype=np.int32), ends[:-1])
    return [jnp.asarray(part.reshape(value.shape)) for part, value in zip(places, inputs, strict=True)]


def known_integers(values: Inputs, dtypes: list[str]) -> list[jax.Array] | None:
    """Return known whole numbers as arrays, None where one is not known."""
    if not all(value.known.all() for value in values):
        return None
    return [jnp.asarray(value.lower.astype(dtype)) for value, dtype in zip(values, dtypes, strict=True)]


def _by_index(primitive: Any, moved: tuple[int, ...], walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    """A primitive whose inputs `moved` go to places that the other inputs give.

    Known places are found by moving indices with the primitive itself. Places that do not depend on the chosen input,
    but are not known, may be any; places that depend on it leave bounds only.
    """
    shape, params = walk.graph.shapes[operation.outputs[0]], dict(operation.params)
    others = [k for k in range(len(inputs)) if k not in moved]
    data, at = ([inputs[k] for k in places] for places in (moved, others))
    where = known_integers(at, [walk.graph.dtypes[operation.inputs[k]] for k in others])
    if where is None or (primitive is lax.scatter_p and not _unique(params, where[0], data)):
        return [_at_unknown_places(operation, data, at, shape)]
    fill = params.get("fill_value")
    if "fill_value" in params:
        params["fill_value"] = -1
    given = dict(zip((*moved, *others), (*number_elements(data), *where), strict=True))
    index = np.asarray(primitive.bind(*(given[k] for k in range(len(inputs))), **params))
    result = moves.concatenate_flat(data).take(index)
    if fill is not None:
        result = facts.merge(index < 0, facts.literal(np.float64(fill)).broadcast(shape), result)
    return [result]


def _unique(params: moves.Params, at: jax.Array, data: Inputs) -> bool:
    """Return whether a scatter puts one element at most into each place: of several, one would win."""
    zeros, ones = jnp.zeros(data[0].shape, jnp.int32), jnp.ones(data[1].shape, jnp.int32)
    return bool((lax.scatter_add(zeros, at, ones, params["dimension_numbers"], mode=params["mode"]) <= 1).all())


def _reduce_at_index(reduce: Rule, fill: float, walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    """A scatter that adds, or takes the largest: of what is there and of all that is put there."""
    data, at = [inputs[0], inputs[2]], known_integers(inputs[1:2], [walk.graph.dtypes[operation.inputs[1]]])
    if at is None or not all(value.facts.size for value in data):
        return [facts.nothing(data[0].shape)]
    zeros, ones = (jnp.zeros(value.shape, jnp.float32) for value in data)
    params = operation.params

    def put(updates: jax.Array) -> jax.Array:
        return lax.scatter_add(zeros, at[0], updates, params["dimension_numbers"], mode=params["mode"])

    count = data[0].facts.size
    [target] = jax.vjp(put, ones)[1](jnp.arange(1.0, count + 1, dtype=jnp.float32).reshape(zeros.shape))
    index = moves.group_places(np.asarray(target).astype(int) - 1, count)
    return [_reduce_places(reduce, fill, data, index.reshape(*zeros.shape, -1), walk)]


def _reduce_places(reduce: Rule, fill: float, data: Inputs, index: Array, walk: Walk) -> Value:
    """Return what is known of a reduction over the elements at places, -1 for what is filled in."""
    if index.size > contraction.LARGEST_EXPANSION:
        raise ValueError(f"{index.size} places")
    elements = moves.concatenate_flat([facts.literal(np.full(1, fill)), *data]).take(index + 1)
    last = Operation("", (), (), {"axes": (index.ndim - 1,)})
    return reduce.apply(walk, last, [elements])[0]


def _reduce_windows(reduce: Rule, fill: float, walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    """A reduction over windows, which `fill` pads."""
    params, [value] = operation.params, inputs
    out = walk.graph.shapes[operation.outputs[0]]
    rank, flat = len(out), np.zeros((), int)
    for axis, (low, _) in enumerate(params["padding"]):
        size, base = value.shape[axis], params["base_dilation"][axis]
        first = np.arange(out[axis]) * params["window_strides"][axis] - low
        step = np.arange(params["window_dimensions"][axis]) * params["window_dilation"][axis]
        at = first[:, None] + step
        at = np.where((at >= 0) & (at % base == 0) & (at // base < size), at // base, -1)
        at = at.reshape([at.shape[k // rank] if k % rank == axis else 1 for k in range(2 * rank)])
        flat = np.where((flat < 0) | (at < 0), -1, flat * size + at)
    return [_reduce_places(reduce, fill, inputs, flat.reshape(*out, -1), walk)]


def _reduce_windows_by_program(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    """A reduction by a program of one operation, whose start must leave every number as it is."""
    value, start = inputs
    program = graph_of(core.ClosedJaxpr(operation.params["jaxpr"], operation.params["consts"]))
    [last] = program.operations
    [(_, reduce, fill)] = [row for row in REDUCTIONS if row[0] == last.name.replace("add", "sum")]
    if not (start.lower == start.upper == fill and sorted(last.inputs) == program.inputs):
        raise ValueError("another start, or another program")
    return _reduce_windows(reduce, fill, walk, operation, [value])


def _at_unknown_places(operation: Operation, data: Inputs, at: Inputs, shape: tuple[int, ...]) -> Value:
    """Return what holds wherever the elements are taken from, or put."""
    by_index = operation.name in ("gather", "scatter")
    fills = operation.name == "gather" and operation.params["mode"] == lax.GatherScatterMode.FILL_OR_DROP
    if fills or any(value.facts.size == 0 for value in data):  # outside there is NaN
        return facts.nothing(shape)
    *stays, moved = data
    anywhere = moves.weakest_element(moved) if by_index else _along(moved, shape)
    return moves.unknown_places([*stays, anywhere.broadcast(shape)], at)


def _along(value: Value, shape: tuple[int, ...]) -> Value:
    """Return what holds of all elements along the axes whose size is not that of `shape`: there they may move."""
    axes = tuple(axis for axis, size in enumerate(value.shape) if size != shape[axis])
    return facts.either_over(value, axes) if axes else value


REDUCTIONS: list[tuple[str, Rule, float]] = [
    ("sum", rules.SUM, 0.0),
    ("max", rules.LARGEST, -np.inf),
    ("min", rules.SMALLEST, np.inf),
]
MOVING_RULES: dict[str, Rule] = {
    "tile": moves.moving_rule(lambda part, params: np.tile(part, params["reps"])),
    "broadcast_in_dim": moves.moving_rule(_broadcast),
    "reshape": moves.moving_rule(_reshape),
    "squeeze": moves.moving_rule(lambda part, params: np.squeeze(part, tuple(params["dimensions"]))),
    "transpose": moves.moving_rule(lambda part, params: np.transpose(part, params["permutation"])),
    "rev": moves.moving_rule(lambda part, params: np.flip(part, tuple(params["dimensions"]))),
    "slice": moves.moving_rule(_slice),
    "concatenate": _joining_rule(np.concatenate, "dimension"),
    "split": Rule("moved", _split),
    "stack": _joining_rule(np.stack, "axis"),
    "iota": Rule("constant", _iota),
    "pad": Rule("moved", partial(_by_index, lax.pad_p, (0, 1))),
    "gather": Rule("moved", partial(_by_index, lax.gather_p, (0,))),
    "dynamic_slice": Rule("moved", partial(_by_index, lax.dynamic_slice_p, (0,))),
    "dynamic_update_slice": Rule("moved", partial(_by_index, lax.dynamic_update_slice_p, (0, 1))),
    "scatter": Rule("moved", partial(_by_index, lax.scatter_p, (0, 2))),
    **{
        f"{kind}{name}".replace("-sum", "-add"): Rule(reduce.law, partial(function, reduce, fill))
        for kind, function in (("scatter-", _reduce_at_index), ("reduce_window_", _reduce_windows))
        for name, reduce, fill in REDUCTIONS
    },
    "scatter-mul": Rule("product", partial(_reduce_at_index, rules.PRODUCT, 1.0)),
    "reduce_window": Rule("sum", _reduce_windows_by_program),
}
