"""What is known of the outputs of each operation of `lowering`. An operation that is not here proves nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import torch

from convexmoe.convexity import calculus, scalars
from convexmoe.convexity.contraction import contract
from convexmoe.convexity.facts import (
    CONSTANT,
    FALLING,
    NONZERO,
    REAL,
    RISING,
    Array,
    Value,
    facts_where,
    fixed,
    known,
    merge,
    nothing,
    settle,
)
from convexmoe.convexity.graph import Operation
from convexmoe.convexity.walk import Rule, Walk

from .control import CONTROL_RULES
from .moves import MOVING_RULES
from .order import ORDER_RULES, two_log_sum_exp

Inputs = list[Value]

SCALAR_LAWS = {"sqrt": "root", "log": "logarithm", "log1p": "logarithm"}


def elementwise(law: str, function: Callable[..., Value]) -> Rule:
    """Return the rule of a primitive whose value is a function of the values at one place."""
    return Rule(law, lambda walk, operation, inputs: [function(*inputs)], elementwise=True)


def reals_only(walk: Walk, operation: Operation) -> None:
    """Refuse integers, for which a primitive is another function."""
    if walk.graph.dtypes[operation.outputs[0]].startswith(("int", "uint", "bool")):
        raise TypeError("on integers this rounds, or works on bits")


def _scalar(name: str, as_name: str | None = None) -> Rule:
    def rule(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
        return [scalars.apply(as_name or name, inputs[0])]

    return Rule(SCALAR_LAWS.get(name, "scalar"), rule, elementwise=True)


def _multiply(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    if operation.inputs[0] == operation.inputs[1]:
        return [scalars.power(inputs[0], 2.0)]
    return [calculus.multiply(*inputs)]


def _divide(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    reals_only(walk, operation)
    return [calculus.divide(*inputs)]


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


def _where(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    which, if_true, if_false = inputs
    return [calculus.choose(which, [if_false, if_true])]


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


def _log_add(a: Value, b: Value) -> Value:
    shape = np.broadcast_shapes(a.shape, b.shape)
    return two_log_sum_exp(a.broadcast(shape), b.broadcast(shape))


def _log_sum_exp(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    axes = operation.params["axes"]
    return [calculus.log_sum_exp(inputs[0], axes) if axes else inputs[0]]


def _log_softmax(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    return [calculus.log_softmax(inputs[0], operation.params["axes"])]


def _dot(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    same = operation.inputs[0] == operation.inputs[1]
    return [contract(inputs[0], inputs[1], operation.params["axes"], same)]


def _convolve(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    """A convolution with a factor that is constant."""
    params = dict(operation.params)

    def product(left: Array, right: Array) -> Array:
        one, two = (torch.from_numpy(np.ascontiguousarray(part)) for part in (left, right))
        return torch.ops.aten.convolution(one, two, None, **params).numpy()

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


def _softplus(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    """log(1 + exp(beta u)) / beta, and u itself where beta u is above the threshold.

    There the two differ by log1p(exp(-beta u)) / beta, a jump down, and such a function is not convex in exact
    arithmetic. It is taken for softplus where the jump is below the resolution of the dtype, so that the program never
    computes it: from 34 on in float64, from 15 on in float32. PyTorch's default of 20 is too small for float64.
    """
    beta, threshold = operation.params["beta"], operation.params["threshold"]
    dtype = walk.graph.dtypes[operation.outputs[0]]
    number = np.float64 if dtype == "float64" else np.float32  # half precision is computed in float32
    jump = math.log1p(math.exp(-threshold)) if threshold > 0 else math.inf
    if not beta > 0:
        raise ValueError(f"beta = {beta:g}")
    if not number(threshold) + number(jump) == number(threshold):
        raise ValueError(
            f"from its threshold {threshold:g} on it is u, and there it jumps down by {jump:.2g}"
        )
    scale = known(np.float64(beta))
    scaled = calculus.multiply(scale, inputs[0])
    found = _log_add(scaled, known(np.zeros(())))
    return [found if beta == 1 else calculus.divide(found, scale)]


def _elu(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    """s u above 0, s a (exp(b u) - 1) below: convex for s, a, b >= 0 and a b <= 1, its slope on the left."""
    [value] = inputs
    a, s, b = (operation.params[name] for name in ("alpha", "scale", "input_scale"))
    if (a, s, b) == (1.0, 1.0, 1.0):
        return [scalars.apply("elu", value)]
    if not (min(a, s, b) >= 0 and max(a, s, b) < math.inf and Fraction(a) * Fraction(b) <= 1):
        return [nothing(value.shape)]
    every = np.ones(value.shape, bool)
    facts = scalars.composed(value, every, ~every, every, ~every) | facts_where((REAL, value.has(REAL)))
    return [settle(np.full(value.shape, -s * a * (1 + 1e-12)), np.full(value.shape, np.inf), facts)]


def _logarithm(base: float) -> Rule:
    """log u / log of the base, which lies between two numbers next to each other."""
    scale = 1 / math.log(base)

    def rule(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
        factor = fixed((), math.nextafter(scale, 0.0), math.nextafter(scale, 2.0))
        return [calculus.multiply(factor, scalars.apply("log", inputs[0]))]

    return Rule("logarithm", rule, elementwise=True)


# Those of `scalars` that ATen has under the same name.
SCALAR_OPERATIONS = (
    "exp",
    "exp2",
    "expm1",
    "log",
    "log1p",
    "sqrt",
    "tanh",
    "erf",
    "erfc",
    "atan",
    "asinh",
    "sinh",
    "cosh",
    "sin",
    "cos",
    "abs",
    "lgamma",
    "digamma",
    "sign",
    "floor",
    "ceil",
    "round",
)

RULES: dict[str, Rule] = {
    **{name: _scalar(name) for name in SCALAR_OPERATIONS},
    "sigmoid": _scalar("sigmoid", "logistic"),
    "huber": _scalar("huber"),
    "log2": _logarithm(2.0),
    "log10": _logarithm(10.0),
    **{name: _compare(name) for name in ("lt", "le", "gt", "ge", "eq", "ne")},
    "logical_and": _logic("and"),
    "logical_or": _logic("or"),
    "logical_not": _logic("not"),
    "bitwise_and": _logic("and"),
    "bitwise_or": _logic("or"),
    "bitwise_not": _logic("not"),
    "isfinite": Rule("comparison", _is_finite, elementwise=True),
    "add": elementwise("sum", calculus.add),
    "sub": elementwise("sum", lambda a, b: calculus.add(a, calculus.negate(b))),
    "neg": elementwise("negative", calculus.negate),
    "mul": Rule("product", _multiply, elementwise=True),
    "div": Rule("quotient", _divide, elementwise=True),
    "pow": Rule("power", _power, elementwise=True),
    "maximum": elementwise("maximum", calculus.maximum),
    "minimum": elementwise("minimum", calculus.minimum),
    "to": Rule("same", _convert, elementwise=True),
    "where": Rule("choice", _where, elementwise=True),
    "softplus": Rule("softplus", _softplus, elementwise=True),
    "elu": Rule("scalar", _elu, elementwise=True),
    "logaddexp": elementwise("log_sum_exp", _log_add),
    "logsumexp": Rule("log_sum_exp", _log_sum_exp),
    "log_softmax": Rule("log_softmax", _log_softmax),
    "sum": Rule("sum", _reduce_sum),
    "prod": Rule("product", _product_over),
    "amax": _reduce(calculus.maximum, -np.inf),
    "amin": _reduce(calculus.minimum, np.inf),
    "all": _truth_reduce(calculus.minimum, 1.0),
    "any": _truth_reduce(calculus.maximum, 0.0),
    "dot": Rule("linear", _dot),
    "convolution": Rule("linear", _convolve),
    **ORDER_RULES,
    **MOVING_RULES,
    **CONTROL_RULES,
}
