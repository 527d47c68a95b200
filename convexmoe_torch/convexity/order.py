"""What is known of sorted values, of running sums and maxima, and of places of the largest."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from convexmoe.convexity import calculus
from convexmoe.convexity.facts import (
    CONSTANT,
    FALLING,
    NONZERO,
    REAL,
    RISING,
    Value,
    either_over,
    merge,
    nothing,
    settle,
)
from convexmoe.convexity.graph import Operation
from convexmoe.convexity.walk import Rule, Walk

Inputs = list[Value]


def _arg_of(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    """The place of the largest: a whole number, constant where all it looks at are."""
    [value] = inputs
    [axis] = operation.params["axes"]
    whole = either_over(value, (axis,))
    facts = np.where(whole.constant, np.uint16(REAL | CONSTANT), np.uint16(0)) | (
        whole.facts & np.uint16(REAL)
    )
    facts = np.squeeze(facts, axis).astype(np.uint16)
    return [settle(np.zeros(facts.shape), np.full(facts.shape, float(value.shape[axis] - 1)), facts)]


def _running(step: Callable[[Value, Value], Value]) -> Callable[[Walk, Operation, Inputs], Inputs]:
    """Sums, maxima and so on from the first element to each."""

    def rule(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
        axis = operation.params["axis"]
        value = inputs[0]
        parts = [
            Value(*(np.take(part, [i], axis=axis) for part in (value.lower, value.upper, value.facts)))
            for i in range(value.shape[axis])
        ]
        if not parts:
            return [value]
        sums = parts[:1]
        for part in parts[1:]:
            sums.append(step(sums[-1], part))
        return [
            Value(
                *(
                    np.concatenate([getattr(part, name) for part in sums], axis=axis)
                    for name in ("lower", "upper", "facts")
                )
            )
        ]

    return rule


def two_log_sum_exp(a: Value, b: Value) -> Value:
    return calculus.log_sum_exp(stacked([a, b]), (0,))


def stacked(values: Inputs) -> Value:
    """Return values of one shape along a new first axis."""
    return Value(
        np.stack([value.lower for value in values]),
        np.stack([value.upper for value in values]),
        np.stack([value.facts for value in values]),
    )


def _running_place(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    """Where the running maximum or minimum stands: a whole number, constant where all elements are."""
    [value] = inputs
    axis = operation.params["axis"]
    steady = either_over(value, (axis,)).constant
    facts = np.where(steady, np.uint16(REAL | CONSTANT), np.uint16(REAL)).astype(np.uint16)
    facts = np.where(either_over(value, (axis,)).has(REAL), facts, np.uint16(0)).astype(np.uint16)
    return [settle(np.zeros(facts.shape), np.full(facts.shape, value.shape[axis] - 1.0), facts)]


def sorts(operation: Operation) -> tuple[int, bool] | None:
    """Return (axis, whether the order is falling) of an operation that sorts one array."""
    if operation.name in ("sort", "topk"):
        return operation.params["axis"], operation.params["falling"]
    return None


def _sort(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    """Order statistics: each lies within the bounds of all and rises with them; the largest is their maximum."""
    [value] = inputs
    axis, falling = operation.params["axis"], operation.params["falling"]
    count = walk.graph.shapes[operation.outputs[0]][axis]
    places = either_over(value, (axis,)).constant
    facts = np.where(places, np.uint16(REAL | CONSTANT), np.uint16(REAL)).astype(np.uint16)
    index = settle(np.zeros(facts.shape), np.full(facts.shape, value.shape[axis] - 1.0), facts)
    shape = walk.graph.shapes[operation.outputs[1]]
    return [_in_order(value, axis, count, falling), index.broadcast(shape)]


def _in_order(value: Value, axis: int, count: int, falling: bool) -> Value:
    """Return the first `count` elements in order."""
    shape = tuple(count if a == axis else size for a, size in enumerate(value.shape))
    if count == 0 or value.facts.size == 0:
        return nothing(shape)
    whole = either_over(value, (axis,))
    facts = whole.facts & np.uint16(REAL | NONZERO | RISING | FALLING)
    result = settle(whole.lower, whole.upper, facts).broadcast(shape)
    place = np.arange(count).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    top = calculus.fold(value, (axis,), calculus.maximum, -np.inf)
    bottom = calculus.fold(value, (axis,), calculus.minimum, np.inf)
    ends = [np.expand_dims(part, axis) for part in (top.lower, top.upper, top.facts)]
    at_top = 0 if falling else value.shape[axis] - 1
    result = merge(np.broadcast_to(place == at_top, shape), Value(*ends).broadcast(shape), result)
    ends = [np.expand_dims(part, axis) for part in (bottom.lower, bottom.upper, bottom.facts)]
    at_bottom = value.shape[axis] - 1 if falling else 0
    return merge(np.broadcast_to(place == at_bottom, shape), Value(*ends).broadcast(shape), result)


ORDER_RULES: dict[str, Rule] = {
    "argmax": Rule("comparison", _arg_of),
    "argmin": Rule("comparison", _arg_of),
    "cumsum": Rule("sum", _running(calculus.add)),
    "cummax": Rule("maximum", _running(calculus.maximum)),
    "cummin": Rule("minimum", _running(calculus.minimum)),
    "argcummax": Rule("comparison", _running_place),
    "argcummin": Rule("comparison", _running_place),
    "cumprod": Rule("product", _running(calculus.multiply)),
    "logcumsumexp": Rule("log_sum_exp", _running(two_log_sum_exp)),
    "sort": Rule("order", _sort),
    "topk": Rule("order", _sort),
}
