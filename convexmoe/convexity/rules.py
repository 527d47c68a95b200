"""What is known of the outputs of the operations that both packages have, each under its own names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from . import calculus, facts, scalars
from .facts import Value
from .graph import Graph, Operation
from .order import ORDER_RULES
from .walk import Inputs, Rule, Walk

WHOLE = ("int", "uint")

SCALAR_LAWS = {"sqrt": "root", "log": "logarithm", "log1p": "logarithm"}


def elementwise(law: str, function: Callable[..., Value]) -> Rule:
    """Return the rule of an operation whose value is a function of the values at one place."""
    return Rule(law, lambda walk, operation, inputs: [function(*inputs)], elementwise=True)


def over_axes(law: str, function: Callable[[Value, tuple[int, ...]], Value]) -> Rule:
    """Return the rule of an operation that reduces its input over `axes`."""
    return Rule(law, lambda walk, operation, inputs: [function(inputs[0], tuple(operation.params["axes"]))])


def scalar_rule(name: str) -> Rule:
    """Return the rule of a function of `scalars`."""
    return elementwise(SCALAR_LAWS.get(name, "scalar"), lambda value: scalars.apply(name, value))


def logarithm(base: float) -> Rule:
    """Return the rule of log u / log of the base, which lies between two numbers next to each other."""
    scale = 1 / math.log(base)
    factor = facts.parameter((), math.nextafter(scale, 0.0), math.nextafter(scale, 2.0))
    return elementwise("logarithm", lambda value: calculus.multiply(factor, scalars.apply("log", value)))


def _multiply(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    first, second = operation.inputs
    return [scalars.power(inputs[0], 2.0) if first == second else calculus.multiply(*inputs)]


def _power(base: Value, exponent: Value) -> Value:
    """base ** exponent: a known exponent is a power, a known positive base an exponential."""
    shape = np.broadcast_shapes(base.shape, exponent.shape)
    result = facts.nothing(shape)
    if exponent.known.all() and exponent.facts.size:
        base = base.broadcast(shape)
        for p in np.unique(exponent.lower)[:16]:
            result = facts.merge(exponent.lower == p, scalars.power(base, p), result)
    elif base.constant.all():
        result = scalars.apply("exp", calculus.multiply(scalars.apply("log", base), exponent))
    return result


def _compare(name: str, walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    """A comparison is 1 or 0, and known where the order of the bounds is."""
    shape = np.broadcast_shapes(*(value.shape for value in inputs))
    a, b = (value.broadcast(shape) for value in (inputs[::-1] if name in ("gt", "ge") else inputs))
    same = operation.inputs[0] == operation.inputs[1]
    less, more = (a.upper < b.lower), (a.lower > b.upper)
    ordered = name not in ("eq", "ne")
    if name in ("lt", "gt"):
        true, false = less, (a.lower >= b.upper) | same
    elif ordered:
        true, false = (a.upper <= b.lower) | same, more
    else:
        equal, unequal = (a.known & b.known & (a.lower == b.lower)) | same, less | more
        true, false = (equal, unequal) if name == "eq" else (unequal, equal)
    claim = facts.facts_where(
        (facts.REAL, a.has(facts.REAL) & b.has(facts.REAL)),
        (facts.CONSTANT, a.constant & b.constant),
        # a < b rises where a falls and b rises
        (facts.RISING, a.has(facts.FALLING) & b.has(facts.RISING) & ordered),
        (facts.FALLING, a.has(facts.RISING) & b.has(facts.FALLING) & ordered),
    )
    return [facts.settle(np.where(true, 1.0, 0.0), np.where(false, 0.0, 1.0), claim)]


def logic_rule(name: str, of_integers: Callable[[Walk, Operation, Inputs], Inputs]) -> Rule:
    """Return the rule of "and", "or" or "not" of truth values; of integers they work on bits."""

    def rule(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
        if walk.graph.dtypes[operation.outputs[0]] != "bool":
            return of_integers(walk, operation, inputs)
        if name == "not":
            return [calculus.add(facts.literal(1.0), calculus.negate(inputs[0]))]
        return [truth((calculus.minimum if name == "and" else calculus.maximum)(*inputs))]

    return Rule("comparison", rule, elementwise=True)


def truth(value: Value) -> Value:
    """Return a truth value without curvature: 0 and 1 are no interval."""
    claim = np.where(value.constant, value.facts, value.facts & np.uint16(facts.REAL | facts.NONZERO | facts.CONSTANT))
    return facts.settle(value.lower, value.upper, claim)


def _cast(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    """A cast: the value itself between floats, cut towards 0 from floats to integers."""
    [value] = inputs
    old, new = walk.graph.dtypes[operation.inputs[0]], walk.graph.dtypes[operation.outputs[0]]
    if new == "bool":
        claim = facts.facts_where((facts.REAL, value.has(facts.REAL)), (facts.CONSTANT, value.constant))
        return [facts.settle(np.where(value.has(facts.NONZERO), 1.0, 0.0), np.where(value.zero, 0.0, 1.0), claim)]
    if new.startswith(WHOLE) and not old.startswith((*WHOLE, "bool")):
        with np.errstate(all="ignore"):
            lower, upper = np.trunc(value.lower), np.trunc(value.upper)
        return [facts.settle(lower, upper, value.facts & np.uint16(facts.REAL | facts.CONSTANT))]
    return [truth(value) if new.startswith(WHOLE) and old == "bool" else value]


def _is_finite(value: Value) -> Value:
    """In exact arithmetic a real number is finite."""
    real = value.has(facts.REAL)
    return facts.settle(real * 1.0, np.ones(real.shape), facts.facts_where((facts.REAL, real)))


def branch(walk: Walk, which: Value, graphs: Mapping[int, Graph], inputs: Inputs) -> Inputs:
    """Return what is known of the outputs of the program `graphs[which]`."""
    if which.known.all():
        return walk.inner(graphs[int(np.clip(which.lower, min(graphs), max(graphs)))], inputs)
    choose = facts.either if which.constant.all() else facts.mixture
    results = [walk.inner(graph, inputs) for graph in graphs.values()]
    return [choose(list(cases)) for cases in zip(*results, strict=True)]


# By the names that both packages give them.
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
SHARED_RULES: dict[str, Rule] = {
    **{name: Rule("comparison", partial(_compare, name), elementwise=True) for name in COMPARISONS},
    "add": elementwise("sum", calculus.add),
    "sub": elementwise("sum", lambda a, b: calculus.add(a, calculus.negate(b))),
    "neg": elementwise("negative", calculus.negate),
    "mul": Rule("product", _multiply, elementwise=True),
    "pow": elementwise("power", _power),
    **ORDER_RULES,
}
MAXIMUM = elementwise("maximum", calculus.maximum)
MINIMUM = elementwise("minimum", calculus.minimum)
CAST = Rule("same", _cast, elementwise=True)
IS_FINITE = elementwise("comparison", _is_finite)
SUM = over_axes("sum", lambda value, axes: calculus.sum_over(value, axes))
PRODUCT = over_axes("product", lambda value, axes: calculus.fold(value, axes, calculus.multiply, 1.0))
LARGEST = over_axes("maximum", lambda value, axes: calculus.fold(value, axes, calculus.maximum, -np.inf))
SMALLEST = over_axes("minimum", lambda value, axes: calculus.fold(value, axes, calculus.minimum, np.inf))
ALL = over_axes("comparison", lambda value, axes: truth(calculus.fold(value, axes, calculus.minimum, 1.0)))
ANY = over_axes("comparison", lambda value, axes: truth(calculus.fold(value, axes, calculus.maximum, 0.0)))
