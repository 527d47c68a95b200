"""What is known of sorted values, of running sums and maxima, and of the places of the largest."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import accumulate

import numpy as np

from . import calculus, facts
from .facts import Value
from .graph import Operation
from .walk import Inputs, Rule, Walk


def places_along(value: Value, axis: int, of_all: bool = True) -> Value:
    """Return what is known of places along an axis, which has size 1: constant where all elements there are.

    Args:
        value: the elements whose order decides the places.
        axis: of `value`.
        of_all: all places are there, numbers whatever the elements are; else those of extremes among real numbers.
    """
    whole = facts.either_over(value, (axis,))
    real = np.uint16(facts.REAL) if of_all else whole.facts & np.uint16(facts.REAL)
    claim = np.where(whole.constant, np.uint16(facts.REAL | facts.CONSTANT), real)
    return facts.settle(np.zeros(claim.shape), np.full(claim.shape, value.shape[axis] - 1.0), claim)


def _place_of_extreme(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    [axis] = operation.params["axes"]
    return [places_along(inputs[0], axis, of_all=False).map(lambda part: np.squeeze(part, axis))]


def running(step: Callable[[Value, Value], Value], walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    """Return sums, maxima and so on from the first element along an axis to each."""
    [value], axis = inputs, operation.params["axis"]
    turn = -1 if operation.params.get("reverse", False) else 1
    places = range(value.shape[axis])[::turn]
    results = list(accumulate((value.map(partial(np.take, indices=[k], axis=axis)) for k in places), step))
    return [facts.join(results[::turn], lambda group: np.concatenate(group, axis)) if results else value]


def log_add(a: Value, b: Value) -> Value:
    """Return log(exp(a) + exp(b))."""
    shape = np.broadcast_shapes(a.shape, b.shape)
    return calculus.log_sum_exp(facts.join((a.broadcast(shape), b.broadcast(shape)), np.stack), (0,))


def softplus(value: Value) -> Value:
    """Return log(1 + exp(u)), which is > 0, and whose logarithm is concave and rises."""
    result = log_add(value, facts.literal(np.zeros(value.shape)))
    claim = facts.facts_where((facts.LOG_CONCAVE, value.has(facts.CONCAVE))) | np.uint16(facts.NONZERO)
    return facts.settle(result.lower, result.upper, result.facts | claim)


def order_statistics(value: Value, axis: int, count: int, falling: bool) -> Value:
    """Return the first `count` elements in order.

    Each lies within the bounds of all and rises with them; the largest is their maximum, the smallest their minimum.
    """
    shape = tuple(count if a == axis else size for a, size in enumerate(value.shape))
    if count == 0 or value.facts.size == 0:
        return facts.nothing(shape)
    whole = facts.either_over(value, (axis,))
    claim = whole.facts & np.uint16(facts.REAL | facts.NONZERO | facts.RISING | facts.FALLING)
    result = facts.settle(whole.lower, whole.upper, claim).broadcast(shape)
    place = np.arange(count).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    first, last = (0, value.shape[axis] - 1) if falling else (value.shape[axis] - 1, 0)
    for extreme, position in ((calculus.maximum, first), (calculus.minimum, last)):
        most = calculus.fold(value, (axis,), extreme, np.nan).map(lambda part: np.expand_dims(part, axis))
        result = facts.merge(np.broadcast_to(place == position, shape), most.broadcast(shape), result)
    return result


ORDER_RULES: dict[str, Rule] = {
    "argmax": Rule("comparison", _place_of_extreme),
    "argmin": Rule("comparison", _place_of_extreme),
    "cumsum": Rule("sum", partial(running, calculus.add)),
    "cummax": Rule("maximum", partial(running, calculus.maximum)),
    "cummin": Rule("minimum", partial(running, calculus.minimum)),
    "cumprod": Rule("product", partial(running, calculus.multiply)),
}
PLACE_OF_RUNNING_EXTREME = Rule(
    "comparison", lambda _, operation, inputs: [places_along(inputs[0], operation.params["axis"], of_all=False)]
)
RUNNING_LOG_SUM_EXP = Rule("log_sum_exp", partial(running, log_add))
