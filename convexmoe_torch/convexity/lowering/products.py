"""Operators of ATen that multiply arrays and sum, as one operation with its axes (`contraction`)."""

from __future__ import annotations

from functools import partial
from typing import Any

from convexmoe.convexity import contraction

from .elementwise import Call, Declined, Lowering


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


def _convolution(call: Call) -> list[int]:
    names = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")
    params: dict[str, Any] = {name: tuple(v) if isinstance(v := call[name], (list, tuple)) else v for name in names}
    result = call.op("convolution", call["input"], call["weight"], shape=call.shape, **params)
    if call.get("bias") is None:
        return [result]
    bias = call.reshape(call["bias"], (*call.shape_of(call["bias"]), *(1 for _ in call.shape[2:])))
    return [call.op("add", result, bias)]


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
}
