"""What is known of the outputs of each primitive of JAX. A primitive that is not here proves nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from convexmoe.convexity import calculus, scalars
from convexmoe.convexity.contraction import Axes, contract
from convexmoe.convexity.facts import (
    CONSTANT,
    FALLING,
    NONZERO,
    REAL,
    RISING,
    Array,
    Value,
    facts_where,
    known,
    merge,
    nothing,
    settle,
    uniform,
)
from convexmoe.convexity.graph import Operation
from convexmoe.convexity.walk import Rule, Walk

from .control import CONTROL_RULES
from .moves import MOVING_RULES, indices
from .order import ORDER_RULES

Inputs = list[Value]

SCALAR_LAWS = {"sqrt": "root", "log": "logarithm", "log1p": "logarithm"}


def elementwise(law: str, function: Callable[..., Value]) -> Rule:
    """Return the rule of a primitive whose value is a function of the values at one place."""
    return Rule(law, lambda walk, operation, inputs: [function(*inputs)], elementwise=True)


def whole_numbers(primitive: Any) -> Rule:
    """Return the rule of a primitive of integers: known ones are computed, others are integers."""

    def rule(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
        dtype = walk.graph.dtypes[operation.outputs[0]]
        if not dtype.startswith(("int", "uint")):
            return [nothing(walk.graph.shapes[operation.outputs[0]])]
        given = indices(inputs, [walk.graph.dtypes[number] for number in operation.inputs])
        if given is not None:
            return [known(np.asarray(primitive.bind(*given, **operation.params)))]
        facts = REAL | CONSTANT if all(value.constant.all() for value in inputs) else REAL
        facts = facts if all(value.has(REAL).all() for value in inputs) else 0
        bounds = np.iinfo(dtype)
        return [uniform(walk.graph.shapes[operation.outputs[0]], facts, float(bounds.min), float(bounds.max))]

    return Rule("comparison", rule)


def _scalar(name: str) -> Rule:
    def rule(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
        return [scalars.apply(name, inputs[0])]

    return Rule(SCALAR_LAWS.get(name, "scalar"), rule, elementwise=True)


def _multiply(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    if operation.inputs[0] == operation.inputs[1]:
        return [scalars.power(inputs[0], 2.0)]
    return [calculus.multiply(*inputs)]


def _divide(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    if walk.graph.dtypes[operation.outputs[0]].startswith(("int", "uint")):
        return whole_numbers(lax.div_p).apply(walk, operation, inputs)
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


def _total_order(name: str) -> Rule:
    """A comparison in which -0 is below 0: of integers the same."""

    def rule(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
        if not walk.graph.dtypes[operation.inputs[0]].startswith(("int", "uint")):
            return [nothing(walk.graph.shapes[operation.outputs[0]])]
        return _compare(name).apply(walk, operation, inputs)

    return Rule("comparison", rule)


def _logic(name: str) -> Rule:
    """and, or, not of truth values; of integers only where they are known."""

    def rule(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
        if walk.graph.dtypes[operation.outputs[0]] != "bool":
            return whole_numbers({"and": lax.and_p, "or": lax.or_p, "not": lax.not_p}[name]).apply(
                walk, operation, inputs
            )
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


def _dot_general(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    (sum_left, sum_right), (batch_left, batch_right) = operation.params["dimension_numbers"]
    axes = Axes(tuple(sum_left), tuple(sum_right), tuple(batch_left), tuple(batch_right))
    return [contract(inputs[0], inputs[1], axes, operation.inputs[0] == operation.inputs[1])]


def _convolve(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    """A convolution with a factor that is constant."""
    names = (
        "window_strides",
        "padding",
        "lhs_dilation",
        "rhs_dilation",
        "dimension_numbers",
        "feature_group_count",
        "batch_group_count",
    )
    params = {name: operation.params[name] for name in names}

    def product(left: Array, right: Array) -> Array:
        return np.asarray(lax.conv_general_dilated(jnp.asarray(left), jnp.asarray(right), **params))

    value, kernel = inputs
    if kernel.constant.all():
        return [calculus.linear(kernel, value, lambda first, second: product(second, first))]
    if value.constant.all():
        return [calculus.linear(value, kernel, product)]
    return [nothing(walk.graph.shapes[operation.outputs[0]])]


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
    **{f"{name}_to": _total_order(name) for name in ("lt", "le", "eq")},
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
    "rem": whole_numbers(lax.rem_p),
    "shift_left": whole_numbers(lax.shift_left_p),
    "shift_right_logical": whole_numbers(lax.shift_right_logical_p),
    "shift_right_arithmetic": whole_numbers(lax.shift_right_arithmetic_p),
    "is_finite": Rule("comparison", _is_finite, elementwise=True),
    "convert_element_type": Rule("same", _convert, elementwise=True),
    "select_n": Rule("choice", _select, elementwise=True),
    "reduce_sum": Rule("sum", _reduce_sum),
    "reduce_max": _reduce(calculus.maximum, -np.inf),
    "reduce_min": _reduce(calculus.minimum, np.inf),
    "reduce_prod": Rule("product", _product_over),
    "reduce_and": _truth_reduce(calculus.minimum, 1.0),
    "reduce_or": _truth_reduce(calculus.maximum, 0.0),
    "dot_general": Rule("linear", _dot_general),
    "conv_general_dilated": Rule("linear", _convolve),
    **ORDER_RULES,
    **MOVING_RULES,
    **CONTROL_RULES,
}
