"""Operators of ATen that multiply arrays and sum, as one operation with its axes (`contraction`)."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from convexmoe.convexity import contraction

from .elementwise import Call, Declined, Lowering, Ref
from .moves import add_as_it_is, refs


def add_dot(call: Call, left: int, right: int, axes: contraction.Axes) -> int:
    """Add a product that is summed over axes, `[batch..., rest of left..., rest of right...]`."""
    shape = contraction.shape_of_product(call.shape_of(left), call.shape_of(right), axes)
    return call.op("dot", left, right, shape=shape, axes=axes)


def product(call: Call, left: int, right: int) -> int:
    """Add a matrix product as `torch.matmul` has it, one factor without batch axes, or both with the same."""
    one, two = call.shape_of(left), call.shape_of(right)
    if not one or not two:
        raise Declined("a number")
    batch: tuple[int, ...] = ()
    if len(two) > 2 and len(one) > 1:
        if one[:-2] != two[:-2]:
            raise Declined("batches that are broadcast")
        batch = tuple(range(len(one) - 2))
    return add_dot(call, left, right, contraction.Axes((len(one) - 1,), (max(len(two) - 2, 0),), batch, batch))


def _product(left: str, right: str) -> Lowering:
    return lambda call: [product(call, call[left], call[right])]


def _product_plus(start: str, left: str, right: str, call: Call) -> list[int]:
    """beta start + alpha left @ right."""
    result = call.scaled(product(call, call[left], call[right]), call.get("alpha", 1))
    return [call.op("add", call.scaled(call[start], call.get("beta", 1)), result)]


def _linear(call: Call) -> list[int]:
    left, right = (len(call.shape_of(call[name])) - 1 for name in ("input", "weight"))
    result = add_dot(call, call["input"], call["weight"], contraction.Axes((left,), (right,)))
    return [result if call.get("bias") is None else call.op("add", result, call["bias"])]


def _outer(call: Call) -> list[int]:
    return [call.op("mul", call.reshape(call["self"], (*call.shape_of(call["self"]), 1)), call["vec2"])]


def _einsum(call: Call) -> list[int]:
    """Two factors, each letter once in each, and no letter that only one of them has and the result has not."""
    equation, tensors = call["equation"].replace(" ", ""), call["tensors"]
    given, arrow, wanted = equation.partition("->")
    terms = given.split(",")
    if not arrow or len(terms) != 2 or "." in equation or any(len(set(t)) < len(t) for t in (*terms, wanted)):
        raise Declined("another form of einsum")
    left, right = terms
    both = [letter for letter in left if letter in right]
    if any(letter not in right + wanted for letter in left) or any(letter not in left + wanted for letter in right):
        raise Declined("a letter that is summed alone")
    batch, summed = ([c for c in both if (c in wanted) == stays] for stays in (True, False))
    places = (tuple(map(term.index, letters)) for letters in (summed, batch) for term in terms)
    result = add_dot(call, tensors[0], tensors[1], contraction.Axes(*places))
    order = batch + [c for c in left + right if c not in both]
    dims = tuple(order.index(letter) for letter in wanted)
    if dims == tuple(range(len(dims))):
        return [result]
    return [call.op("permute", result, shape=call.shape, dims=dims)]


def _bilinear(call: Call) -> list[int]:
    """The sum of x_i W_oij y_j, first over i and then over j."""
    one, two, weight = (int(call[name]) for name in ("input1", "input2", "weight"))
    rank, shape = len(call.shape) - 1, call.shape_of(weight)
    inner = add_dot(call, one, weight, contraction.Axes((rank,), (1,)))
    right = call.reshape(two, (*call.shape[:-1], 1, shape[2]))
    product = call.op("mul", inner, right)
    result = call.op("sum", product, shape=call.shape, axes=(rank + 1,))
    return [result if call.get("bias") is None else call.op("add", result, call["bias"])]


def _lu_solve(call: Call) -> list[int]:
    """The inverse, which the operator gives for the identity, times the right side."""
    if not (call.get("left", True) and not call.get("adjoint", False)):
        raise Declined("another side")
    factors = call.shape_of(call["LU"])
    eye = Ref(call.graph.constant(np.eye(factors[-1], dtype=call.dtype)))
    solver = Call(call.graph, call.target, call.arguments | {"B": eye}, [(factors, call.dtype)], call.source)
    return [product(call, add_as_it_is(solver)[0], call["B"])]


def _convolution(call: Call) -> list[int]:
    names = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")
    params: dict[str, Any] = {name: tuple(v) if isinstance(v := call[name], (list, tuple)) else v for name in names}
    result = call.op("convolution", call["input"], call["weight"], shape=call.shape, **params)
    if call.get("bias") is None:
        return [result]
    bias = call.reshape(call["bias"], (*call.shape_of(call["bias"]), *(1 for _ in call.shape[2:])))
    return [call.op("add", result, bias)]


def _inverse(call: Call, value: int, lower: bool | None = None, unit: bool = False) -> int:
    """Add the inverse of a matrix, of which one triangle is looked at, or all."""
    return call.op("inverse", value, shape=call.shape_of(value), lower=lower, unit=unit)


def _invert(call: Call) -> list[int]:
    return [_inverse(call, call["A"] if "A" in call.arguments else call["self"]), *call.buffers()]


def _solve(call: Call) -> list[int]:
    matrix, right = (call["A"], call["B"]) if "A" in call.arguments else (call["self"], call["other"])
    if len(call.shape_of(matrix)) != 2:
        raise Declined("several matrices")
    left = bool(call.get("left", True))
    inverse = _inverse(call, matrix)
    return [product(call, inverse, right) if left else product(call, right, inverse), *call.buffers()]


def _solve_triangular(call: Call) -> list[int]:
    inverse = _inverse(call, call["self"], not call["upper"], bool(call.get("unitriangular")))
    return [product(call, inverse, call["B"]) if call.get("left", True) else product(call, call["B"], inverse)]


def _cholesky(call: Call) -> list[int]:
    lower = call.op("cholesky", call["self"], shape=call.shape)
    return [_transposed(call, lower) if call.get("upper") else lower, *call.buffers()]


def _transposed(call: Call, value: int) -> int:
    return call.op("permute", value, shape=call.shape_of(value)[::-1], dims=(1, 0))


def _cholesky_inverse(call: Call) -> list[int]:
    """The inverse of L L^T, or of U^T U, times the right side where there is one."""
    factor = int(call["input2"] if "input2" in call.arguments else call["self"])
    inverse = _inverse(call, factor, not call.get("upper", False))
    pair = (inverse, _transposed(call, inverse)) if call.get("upper") else (_transposed(call, inverse), inverse)
    both = product(call, *pair)
    return [product(call, both, call["self"]) if "input2" in call.arguments else both]


PRODUCTS: dict[str, Lowering] = {
    "mm": _product("self", "mat2"),
    "bmm": _product("self", "mat2"),
    "mv": _product("self", "vec"),
    "dot": _product("self", "tensor"),
    "matmul": _product("self", "other"),
    "addmm": partial(_product_plus, "self", "mat1", "mat2"),
    "baddbmm": partial(_product_plus, "self", "batch1", "batch2"),
    "addmv": partial(_product_plus, "self", "mat", "vec"),
    "linear": _linear,
    "outer": _outer,
    "einsum": _einsum,
    "convolution": _convolution,
    "bilinear": _bilinear,
    "linalg_lu_solve": _lu_solve,
    **dict.fromkeys(("linalg_solve", "linalg_solve_ex", "_linalg_solve_ex"), _solve),
    **dict.fromkeys(("linalg_inv", "linalg_inv_ex", "inverse"), _invert),
    **dict.fromkeys(("det", "linalg_det"), lambda call: [call.op("det", refs(call.arguments)[0], shape=())]),
    "logdet": lambda call: [call.op("log", call.op("det", call["self"], shape=()))],
    "linalg_solve_triangular": _solve_triangular,
    **dict.fromkeys(("linalg_cholesky", "linalg_cholesky_ex", "cholesky"), _cholesky),
    **dict.fromkeys(("cholesky_solve", "cholesky_inverse"), _cholesky_inverse),
}
