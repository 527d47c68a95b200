"""What is known of the outputs of each primitive of JAX. A primitive that is not here proves nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import calculus, scalars
from .contraction import Axes, contract
from .control_rules import CONTROL_RULES
from .curvature import (
    CONSTANT,
    FALLING,
    NONZERO,
    REAL,
    RISING,
    Array,
    Value,
    either_over,
    facts_where,
    known,
    merge,
    mixture,
    nothing,
    settle,
)
from .graph import Operation
from .moving_rules import MOVING_RULES
from .proof import Rule, Walk

Inputs = list[Value]


def elementwise(law: str, function: Callable[..., Value]) -> Rule:
    """Return the rule of a primitive whose value is a function of the values at one place."""
    return Rule(law, lambda walk, operation, inputs: [function(*inputs)], elementwise=True)


def reals_only(walk: Walk, operation: Operation) -> None:
    """Refuse integers, for which a primitive is another function."""
    if walk.graph.dtypes[operation.outputs[0]].startswith(("int", "uint", "bool")):
        raise TypeError("on integers this rounds, or works on bits")


def _scalar(name: str) -> Rule:
    def rule(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
        return [scalars.apply(name, inputs[0])]

    return Rule("root" if name == "sqrt" else "scalar", rule, elementwise=True)


def _multiply(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    if operation.inputs[0] == operation.inputs[1]:
        return [scalars.power(inputs[0], 2.0)]
    return [calculus.multiply(*inputs)]


def _divide(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    reals_only(walk, operation)
    return [calculus.divide(*inputs)]


def _integer_pow(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    return [scalars.power(inputs[0], operation.params["y"])]


def _power(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    """base ** exponent: a known exponent is a power, a known positive base an exponential."""
    base, exponent = inputs
    shape = np.broadcast_shapes(base.shape, exponent.shape)
    if exponent.known.all() and exponent.facts.size:
        base = base.broadcast(shape)
        result = nothing(shape)
        for p in np.unique(exponent.lower)[:16]:
            result = merge(exponent.lower == p, scalars.power(base, p), result)
        return [result]
    if base.constant.all():
        return [scalars.apply("exp", calculus.multiply(scalars.apply("log", base), exponent))]
    return [nothing(shape)]


def _clamp(low: Value, value: Value, high: Value) -> Value:
    return calculus.minimum(calculus.maximum(low, value), high)


def _compare(name: str) -> Rule:
    """A comparison is 1 or 0; of known order it is known."""

    def rule(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
        a, b = inputs
        shape = np.broadcast_shapes(a.shape, b.shape)
        a, b = a.broadcast(shape), b.broadcast(shape)
        if name in ("gt", "ge"):
            a, b = b, a
        same = operation.inputs[0] == operation.inputs[1]
        less, more = (a.upper < b.lower), (a.lower > b.upper)
        if name in ("lt", "gt"):
            true, false = less, (a.lower >= b.upper) | same
        elif name in ("le", "ge"):
            true, false = (a.upper <= b.lower) | same, more
        else:
            equal, unequal = (a.known & b.known & (a.lower == b.lower)) | same, less | more
            true, false = (equal, unequal) if name == "eq" else (unequal, equal)
        real = a.has(REAL) & b.has(REAL)
        constant = a.constant & b.constant
        # a < b rises where a falls and b rises
        rising = (a.has(FALLING) & b.has(RISING)) | constant
        falling = (a.has(RISING) & b.has(FALLING)) | constant
        ordered = name not in ("eq", "ne")
        facts = facts_where(
            (REAL, real), (RISING, constant | (rising & ordered)), (FALLING, constant | (falling & ordered))
        )
        return [settle(np.where(true, 1.0, 0.0), np.where(false, 0.0, 1.0), facts)]

    return Rule("comparison", rule, elementwise=True)


def _logic(name: str) -> Rule:
    """and, or, not of truth values; of integers only where they are known."""

    def rule(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
        if walk.graph.dtypes[operation.outputs[0]] != "bool":
            raise TypeError("bits of integers")
        if name == "not":
            return [calculus.add(known(np.ones(())), calculus.negate(inputs[0]))]
        function = {"and": calculus.minimum, "or": calculus.maximum}[name]
        return [_flat(function(*inputs))]

    return Rule("comparison", rule, elementwise=True)


def _flat(value: Value) -> Value:
    """Return a truth value without curvature: 0 and 1 are no interval."""
    kept = np.where(value.constant, value.facts, value.facts & np.uint16(REAL | NONZERO | CONSTANT))
    return settle(value.lower, value.upper, kept.astype(np.uint16))


def _convert(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    """A cast: the value itself between floats, cut towards 0 from floats to integers."""
    [value] = inputs
    old, new = walk.graph.dtypes[operation.inputs[0]], walk.graph.dtypes[operation.outputs[0]]
    if new == "bool":
        zero, other = value.zero, value.has(NONZERO)
        facts = value.facts & np.uint16(REAL) | np.where(value.constant, np.uint16(CONSTANT), np.uint16(0))
        return [settle(np.where(other, 1.0, 0.0), np.where(zero, 0.0, 1.0), facts.astype(np.uint16))]
    if new.startswith(("int", "uint")) and not old.startswith(("int", "uint", "bool")):
        keep = value.facts & np.uint16(REAL | CONSTANT)
        with np.errstate(all="ignore"):
            return [settle(np.trunc(value.lower), np.trunc(value.upper), keep)]
    if new.startswith(("int", "uint")):
        return [value if old != "bool" else _flat(value)]
    return [value]


def _select(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    return [calculus.choose(inputs[0], inputs[1:])]


def _reduce_sum(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    return [calculus.sum_over(inputs[0], tuple(operation.params["axes"]))]


def _reduce(combine: Callable[[Value, Value], Value], start: float) -> Rule:
    def rule(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
        return [calculus.fold(inputs[0], tuple(operation.params["axes"]), combine, start)]

    return Rule("maximum" if start < 0 else "minimum", rule)


def _truth_reduce(combine: Callable[[Value, Value], Value], start: float) -> Rule:
    def rule(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
        return [_flat(calculus.fold(inputs[0], tuple(operation.params["axes"]), combine, start))]

    return Rule("comparison", rule)


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
        axis, reverse = operation.params["axis"], operation.params["reverse"]
        value = inputs[0]
        parts = [
            Value(*(np.take(part, [i], axis=axis) for part in (value.lower, value.upper, value.facts)))
            for i in range(value.shape[axis])
        ]
        if not parts:
            return [value]
        parts = parts[::-1] if reverse else parts
        sums = parts[:1]
        for part in parts[1:]:
            sums.append(step(sums[-1], part))
        sums = sums[::-1] if reverse else sums
        return [
            Value(
                *(
                    np.concatenate([getattr(part, name) for part in sums], axis=axis)
                    for name in ("lower", "upper", "facts")
                )
            )
        ]

    return rule


def _two_log_sum_exp(a: Value, b: Value) -> Value:
    return calculus.log_sum_exp(stacked([a, b]), (0,))


def stacked(values: Inputs) -> Value:
    """Return values of one shape along a new first axis."""
    return Value(
        np.stack([value.lower for value in values]),
        np.stack([value.upper for value in values]),
        np.stack([value.facts for value in values]),
    )


def _dot_general(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    (sum_left, sum_right), (batch_left, batch_right) = operation.params["dimension_numbers"]
    axes = Axes(tuple(sum_left), tuple(sum_right), tuple(batch_left), tuple(batch_right))
    return [contract(inputs[0], inputs[1], axes, operation.inputs[0] == operation.inputs[1])]


def _convolve(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    """A convolution with a factor that is constant."""
    from jax import lax

    params = {key: value for key, value in operation.params.items() if key != "preferred_element_type"}

    def product(left: Array, right: Array) -> Array:
        return np.asarray(lax.conv_general_dilated_p.bind(left, right, **params, preferred_element_type=None))

    value, kernel = inputs
    if kernel.constant.all():
        return [calculus.linear(kernel, value, lambda first, second: product(second, first))]
    if value.constant.all():
        return [calculus.linear(value, kernel, product)]
    return [nothing(walk.graph.shapes[operation.outputs[0]])]


def sorts(operation: Operation) -> tuple[int, bool] | None:
    """Return (axis, whether the order is falling) of an operation that sorts one array."""
    if operation.name == "sort" and len(operation.inputs) == 1:
        return operation.params["dimension"], False
    if operation.name == "top_k":
        return operation.params.get("axis", operation.params.get("operand_axis", -1)), True
    return None


def _sort(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    """Order statistics: each lies within the bounds of all and rises with them; the largest is their maximum."""
    axis = operation.params["dimension"]
    if len(inputs) > 1:
        return [_shuffled(value, inputs, axis) for value in inputs]
    return [_in_order(inputs[0], axis, inputs[0].shape[axis], falling=False)]


def _shuffled(value: Value, keys: Inputs, axis: int) -> Value:
    """Return elements in an order that the keys make."""
    if value.shape[axis] == 0:
        return value
    steady = np.ones(value.shape, bool)
    for key in keys:
        steady = steady & key.constant.all(axis=axis, keepdims=True)
    whole = either_over(value, (axis,)).broadcast(value.shape)
    return merge(steady, whole, mixture([whole]))


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


def _top_k(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    [value] = inputs
    axis = sorts(operation)[0] % len(value.shape)  # type: ignore[index]
    count = walk.graph.shapes[operation.outputs[0]][axis]
    places = either_over(value, (axis,)).constant
    facts = np.where(places, np.uint16(REAL | CONSTANT), np.uint16(REAL)).astype(np.uint16)
    index = settle(np.zeros(facts.shape), np.full(facts.shape, value.shape[axis] - 1.0), facts)
    return [
        _in_order(value, axis, count, falling=True),
        index.broadcast(walk.graph.shapes[operation.outputs[1]]),
    ]


def _is_finite(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    """In exact arithmetic a real number is finite."""
    facts = inputs[0].facts & np.uint16(REAL)
    real = (facts != 0).astype(np.float64)
    return [settle(real, np.ones(real.shape), facts)]


def _product_over(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    return [calculus.fold(inputs[0], tuple(operation.params["axes"]), calculus.multiply, 1.0)]


# What `scalars` has beyond these are functions of models, which are no primitives.
SCALAR_PRIMITIVES = scalars.SCALARS.keys() - {"huber_relu", "elu", "huber"}

RULES: dict[str, Rule] = {
    **{name: _scalar(name) for name in SCALAR_PRIMITIVES},
    **{name: _compare(name) for name in ("lt", "le", "gt", "ge", "eq", "ne")},
    **{name: _logic(name) for name in ("and", "or", "not")},
    "add": elementwise("sum", calculus.add),
    "add_any": elementwise("sum", calculus.add),
    "sub": elementwise("sum", lambda a, b: calculus.add(a, calculus.negate(b))),
    "neg": elementwise("negative", calculus.negate),
    "mul": Rule("product", _multiply, elementwise=True),
    "div": Rule("quotient", _divide, elementwise=True),
    "square": elementwise("power", lambda value: scalars.power(value, 2.0)),
    "rsqrt": elementwise("power", lambda value: scalars.power(value, -0.5)),
    "integer_pow": Rule("power", _integer_pow, elementwise=True),
    "pow": Rule("power", _power, elementwise=True),
    "max": elementwise("maximum", calculus.maximum),
    "min": elementwise("minimum", calculus.minimum),
    "clamp": elementwise("minimum", _clamp),
    "is_finite": Rule("comparison", _is_finite, elementwise=True),
    "convert_element_type": Rule("same", _convert, elementwise=True),
    "select_n": Rule("choice", _select, elementwise=True),
    "reduce_sum": Rule("sum", _reduce_sum),
    "reduce_max": _reduce(calculus.maximum, -np.inf),
    "reduce_min": _reduce(calculus.minimum, np.inf),
    "reduce_prod": Rule("product", _product_over),
    "reduce_and": _truth_reduce(calculus.minimum, 1.0),
    "reduce_or": _truth_reduce(calculus.maximum, 0.0),
    "argmax": Rule("comparison", _arg_of),
    "argmin": Rule("comparison", _arg_of),
    "cumsum": Rule("sum", _running(calculus.add)),
    "cummax": Rule("maximum", _running(calculus.maximum)),
    "cummin": Rule("minimum", _running(calculus.minimum)),
    "cumprod": Rule("product", _running(calculus.multiply)),
    "cumlogsumexp": Rule("log_sum_exp", _running(_two_log_sum_exp)),
    "dot_general": Rule("linear", _dot_general),
    "conv_general_dilated": Rule("linear", _convolve),
    "sort": Rule("order", _sort),
    "top_k": Rule("order", _top_k),
    **MOVING_RULES,
    **CONTROL_RULES,
}
