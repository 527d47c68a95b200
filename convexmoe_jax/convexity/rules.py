"""What is known of the outputs of each primitive of JAX. A primitive that is not here proves nothing."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from convexmoe.convexity import (
    Array,
    Inputs,
    Operation,
    Rule,
    Value,
    Walk,
    calculus,
    contraction,
    factors,
    facts,
    order,
    rules,
    scalars,
    walk,
)

from .control import CONTROL_RULES
from .moves import MOVING_RULES, known_integers
from .trace import primitives_of_jax


def _whole_numbers(primitive: Any, walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    """A primitive of integers: known ones are computed, others are integers."""
    [output] = operation.outputs
    shape, dtype = walk.graph.shapes[output], walk.graph.dtypes[output]
    if not dtype.startswith(rules.WHOLE):
        return [facts.nothing(shape)]
    given = known_integers(inputs, [walk.graph.dtypes[number] for number in operation.inputs])
    if given is not None:
        return [facts.literal(np.asarray(primitive.bind(*given, **operation.params)))]
    claim, bounds = facts.REAL | facts.CONSTANT, np.iinfo(dtype)
    if not all(value.constant.all() for value in inputs):
        claim = facts.REAL if all(value.has(facts.REAL).all() for value in inputs) else 0
    return [facts.uniform(shape, claim, float(bounds.min), float(bounds.max))]


def _divide(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    if walk.graph.dtypes[operation.outputs[0]].startswith(rules.WHOLE):
        return _whole_numbers(lax.div_p, walk, operation, inputs)
    return [calculus.divide(*inputs)]


def _total_order(name: str, walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    """A comparison in which -0 is below 0: of integers the same."""
    if not walk.graph.dtypes[operation.inputs[0]].startswith(rules.WHOLE):
        return [facts.nothing(walk.graph.shapes[operation.outputs[0]])]
    return rules.SHARED_RULES[name].apply(walk, operation, inputs)


def _dot_general(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    return [contraction.contract_factors(operation, *inputs)]


def _convolve(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    params = dict(operation.params) | {"precision": None, "preferred_element_type": None}

    def product(kernel: Array, value: Array) -> Array:
        return np.asarray(lax.conv_general_dilated(jnp.asarray(value), jnp.asarray(kernel), **params))

    return [contraction.bilinear(inputs[1], inputs[0], product, walk.graph.shapes[operation.outputs[0]])]


def _factor(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    """Lower and upper factor in one matrix, the rows that were exchanged, and their order."""
    both, rows = factors.eliminate(inputs[0], pivots=True)
    place, exchanged = list(range(len(rows))), []
    for k, row in enumerate(rows):
        exchanged.append(place.index(row, k))
        place[k], place[exchanged[-1]] = place[exchanged[-1]], place[k]
    return [factors.enclose(both), facts.literal(np.array(exchanged)), facts.literal(rows)]


def _solve_triangular(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    params, matrix, lower = operation.params, inputs[0], operation.params["lower"]
    if params["transpose_a"]:
        matrix, lower = matrix.map(np.transpose), not lower
    inverse = factors.invert_triangular(matrix, lower, params["unit_diagonal"])
    pair = (inverse, inputs[1]) if params["left_side"] else (inputs[1], inverse)
    return [contraction.contract(*pair, contraction.Axes((1,), (0,)))]


def sorts(operation: Operation) -> tuple[int, bool] | None:
    """Return (axis, whether the order is falling) of an operation that sorts one array."""
    if operation.name == "sort" and len(operation.inputs) == 1:
        return operation.params["dimension"], False
    if operation.name == "top_k":
        return operation.params.get("axis", operation.params.get("operand_axis", -1)), True
    return None


def _sort(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    axis = operation.params["dimension"]
    if len(inputs) > 1:
        return [_shuffle(value, inputs, axis) for value in inputs]
    return [order.order_statistics(inputs[0], axis, inputs[0].shape[axis], falling=False)]


def _shuffle(value: Value, keys: Inputs, axis: int) -> Value:
    """Return elements in an order that the keys make."""
    if value.shape[axis] == 0:
        return value
    constant = np.all([key.constant.all(axis=axis, keepdims=True) for key in keys], axis=0)
    whole = facts.either_over(value, (axis,)).broadcast(value.shape)
    return facts.merge(constant, whole, facts.mixture([whole]))


def _top_k(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    [value] = inputs
    axis = sorts(operation)[0] % len(value.shape)  # type: ignore[index]
    shape = walk.graph.shapes[operation.outputs[0]]
    return [order.order_statistics(value, axis, shape[axis], True), order.places_along(value, axis).broadcast(shape)]


def _fold(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    """A primitive of known numbers, computed in float64; one with a program of its own has that program's dtypes."""
    primitive = primitives_of_jax()[operation.name]
    if any(hasattr(part, "eqns") or hasattr(part, "jaxpr") for part in jax.tree.leaves(dict(operation.params))):
        raise TypeError("a program")

    def compute(arrays: list[Array]) -> list[Array]:
        with jax.enable_x64(True):
            results = primitive.bind(*map(jnp.asarray, arrays), **operation.params)
            return list(map(np.asarray, results if primitive.multiple_results else [results]))

    dtypes = [walk.graph.dtypes[number] for number in operation.inputs]
    return factors.compute(compute, inputs, dtypes, primitive in vars(lax.linalg).values())


OF_INTEGERS = (lax.rem_p, lax.shift_left_p, lax.shift_right_logical_p, lax.shift_right_arithmetic_p)
LOGIC = (lax.and_p, lax.or_p, lax.not_p)

RULES: dict[str, Rule] = {
    walk.FOLD: Rule("folded", _fold),
    **{name: rules.scalar_rule(name) for name in scalars.SCALARS},
    "log2": rules.logarithm(2.0),  # of JAX 0.12, which has no primitive for the base 10
    **rules.SHARED_RULES,
    **{f"{name}_to": Rule("comparison", partial(_total_order, name)) for name in ("lt", "le", "eq")},
    **{bits.name: rules.logic_rule(bits.name, partial(_whole_numbers, bits)) for bits in LOGIC},
    "add_any": rules.SHARED_RULES["add"],
    "div": Rule("quotient", _divide, elementwise=True),
    "square": rules.elementwise("power", lambda value: scalars.power(value, 2.0)),
    "rsqrt": rules.elementwise("power", lambda value: scalars.power(value, -0.5)),
    "integer_pow": Rule("power", lambda _, step, inputs: [scalars.power(inputs[0], step.params["y"])], True),
    "max": rules.MAXIMUM,
    "min": rules.MINIMUM,
    "clamp": rules.elementwise("minimum", lambda low, u, high: calculus.minimum(calculus.maximum(low, u), high)),
    **{primitive.name: Rule("comparison", partial(_whole_numbers, primitive)) for primitive in OF_INTEGERS},
    "is_finite": rules.IS_FINITE,
    "convert_element_type": rules.CAST,
    "select_n": rules.elementwise("choice", lambda which, *cases: calculus.choose(which, list(cases))),
    "reduce_sum": rules.SUM,
    "reduce_max": rules.LARGEST,
    "reduce_min": rules.SMALLEST,
    "reduce_prod": rules.PRODUCT,
    "reduce_and": rules.ALL,
    "reduce_or": rules.ANY,
    "dot_general": Rule("linear", _dot_general),
    "conv_general_dilated": Rule("linear", _convolve),
    "lu": Rule("factors", _factor),
    "cholesky": Rule("factors", lambda _, operation, inputs: [factors.cholesky(inputs[0])]),
    "triangular_solve": Rule("factors", _solve_triangular),
    "lu_pivots_to_permutation": Rule("factors", partial(_whole_numbers, lax.linalg.lu_pivots_to_permutation_p)),
    "cumlogsumexp": order.RUNNING_LOG_SUM_EXP,
    "sort": Rule("order", _sort),
    "top_k": Rule("order", _top_k),
    **MOVING_RULES,
    **CONTROL_RULES,
}
