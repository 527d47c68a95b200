"""What is known of the outputs of each operation of `lowering`. An operation that is not here proves nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from convexmoe.convexity import (
    Array,
    Inputs,
    Operation,
    Rule,
    Walk,
    calculus,
    contraction,
    factors,
    facts,
    order,
    products,
    rules,
    walk,
)

from .lowering.elementwise import SCALAR_OPERATIONS
from .lowering.moves import fill_template
from .moves import MOVING_RULES


def _divide(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    if walk.graph.dtypes[operation.outputs[0]].startswith((*rules.WHOLE, "bool")):
        raise TypeError("on integers this rounds, or works on bits")
    return [calculus.divide(*inputs)]


def _refuse_bits(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    raise TypeError("bits of integers")


def _dot(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    return [contraction.contract_factors(operation, *inputs)]


def _resample(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    """A linear map with weights that were computed in float64, next to the true ones; whole numbers are."""
    weights = operation.params["weights"].array
    bounds = (np.where(np.rint(weights) == weights, weights, weights * (1 + sign * 1e-12)) for sign in (-1, 1))
    low, high = np.sort(np.stack(list(bounds)), axis=0)
    known = facts.settle(low, high, np.full(weights.shape, facts.REAL | facts.CONSTANT, np.uint16))
    return [contraction.contract(inputs[0], known, contraction.Axes((1,), (0,)))]


def _invert(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    lower, unit = operation.params["lower"], operation.params["unit"]
    return [factors.invert(inputs[0]) if lower is None else factors.invert_triangular(inputs[0], lower, unit)]


OF_MATRICES = ("aten.linalg", "aten._linalg", "aten.lu", "aten.pinverse", "aten.svd", "aten.qr")
NUMPY: dict[str, Any] = {"cholesky": np.linalg.cholesky, "det": np.linalg.det, "inverse": np.linalg.inv}


def _fold(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    """An operator of known numbers, computed in float64."""
    name, params = operation.name, operation.params
    dtypes = [walk.graph.dtypes[number] for number in operation.inputs]

    def call(tensors: list[Any]) -> Any:
        return params["call"](**{key: fill_template(part, tensors) for key, part in params["template"]})

    def compute(arrays: list[Array]) -> list[Array]:
        if name in NUMPY and params.get("lower") is None:
            return [NUMPY[name](*arrays)]
        tensors = list(map(torch.from_numpy, arrays))
        results = call(tensors)
        if "pinv" in name or "rank" in name:  # it is the dtype that decides which singular values are zero
            narrow = call([x.to(getattr(torch, dtype)) for x, dtype in zip(tensors, dtypes, strict=True)])
            if not torch.allclose(results.double(), narrow.double(), rtol=1e-3):
                raise ValueError("a rank that rounding decides")
        return [part.numpy() for part in (results if isinstance(results, (list, tuple)) else [results])]

    return factors.compute(compute, inputs, dtypes, name in NUMPY or name.startswith(OF_MATRICES))


def _convolve(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    def product(kernel: Array, value: Array) -> Array:
        one, two = (torch.from_numpy(np.ascontiguousarray(part)) for part in (value, kernel))
        return torch.ops.aten.convolution(one, two, None, **operation.params).numpy()

    return [contraction.bilinear(inputs[1], inputs[0], product, walk.graph.shapes[operation.outputs[0]])]


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
        raise ValueError(f"from its threshold {threshold:g} on it is u, and there it jumps down by {jump:.2g}")
    scale = facts.literal(np.float64(beta))
    value = order.softplus(calculus.multiply(scale, inputs[0]))
    return [value if beta == 1 else calculus.divide(value, scale)]


def sorts(operation: Operation) -> tuple[int, bool] | None:
    """Return (axis, whether the order is falling) of an operation that sorts one array."""
    if operation.name in ("sort", "topk"):
        return operation.params["axis"], operation.params["falling"]
    return None


def _sort(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    [value], axis, falling = inputs, operation.params["axis"], operation.params["falling"]
    shape = walk.graph.shapes[operation.outputs[0]]
    return [order.order_statistics(value, axis, shape[axis], falling), order.places_along(value, axis).broadcast(shape)]


def _cond(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    """`torch.cond`: the first program where the condition holds, else the second."""
    if_true, if_false = operation.params["branches"]
    return rules.branch(walk, inputs[0], {1: if_true, 0: if_false}, inputs[1:])


LOGIC = {name: rules.logic_rule(name, _refuse_bits) for name in ("and", "or", "not")}

RULES: dict[str, Rule] = {
    walk.FOLD: Rule("folded", _fold),
    **{name: rules.scalar_rule(name) for name in SCALAR_OPERATIONS},
    "sigmoid": rules.scalar_rule("logistic"),
    "log2": rules.logarithm(2.0),
    "log10": rules.logarithm(10.0),
    **rules.SHARED_RULES,
    **{f"logical_{name}": rule for name, rule in LOGIC.items()},
    **{f"bitwise_{name}": rule for name, rule in LOGIC.items()},
    "isfinite": rules.IS_FINITE,
    "div": Rule("quotient", _divide, elementwise=True),
    "maximum": rules.MAXIMUM,
    "minimum": rules.MINIMUM,
    "to": rules.CAST,
    "where": rules.elementwise("choice", lambda which, *cases: calculus.choose(which, list(cases[::-1]))),
    "softplus": Rule("softplus", _softplus, elementwise=True),
    "logaddexp": rules.elementwise("log_sum_exp", order.log_add),
    "xlogx": rules.elementwise("entropy", products.relative_entropy),
    "logsumexp": rules.over_axes("log_sum_exp", lambda u, axes: calculus.log_sum_exp(u, axes) if axes else u),
    "sum": rules.SUM,
    "prod": rules.PRODUCT,
    "amax": rules.LARGEST,
    "amin": rules.SMALLEST,
    "all": rules.ALL,
    "any": rules.ANY,
    "dot": Rule("linear", _dot),
    "convolution": Rule("linear", _convolve),
    "inverse": Rule("factors", _invert),
    "det": Rule("factors", lambda _, operation, inputs: [factors.determinant(inputs[0])]),
    "cholesky": Rule("factors", lambda _, operation, inputs: [factors.cholesky(inputs[0])]),
    "resample": Rule("linear", _resample),
    "argcummax": order.PLACE_OF_RUNNING_EXTREME,
    "argcummin": order.PLACE_OF_RUNNING_EXTREME,
    "logcumsumexp": order.RUNNING_LOG_SUM_EXP,
    "sort": Rule("order", _sort),
    "topk": Rule("order", _sort),
    "cond": Rule("choice", _cond),
    **MOVING_RULES,
}
