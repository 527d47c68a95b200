"""Operators of ATen that multiply arrays and sum, as one operation with its axes (`contraction`)."""

from __future__ import annotations

from functools import partial

from convexmoe.convexity import contraction

from .elementwise import Call, Declined, Lowering


def add_dot(call: Call, left: int, right: int, axes: contraction.Axes) -> int:
    """Add a product that is summed over axes, `[batch..., rest of left..., rest of right...]`."""
    one, two = call.shape_of(left), call.shape_of(right)
    shape = [one[axis] for axis in axes.batch_left]
    shape += [size for k, size in enumerate(one) if k not in (*axes.sum_left, *axes.batch_left)]
    shape += [size for k, size in enumerate(two) if k not in (*axes.sum_right, *axes.batch_right)]
    return call.op("dot", left, right, shape=tuple(shape), axes=axes)


def product(call: Call, left: int, right: int) -> int:
    """Add a matrix product as `torch.matmul` has it, one factor without batch axes, or both with the same."""
    one, two = call.shape_of(left), call.shape_of(right)
    if not one or not two:
        raise Declined("a number")
    if len(two) <= 2 or len(one) == 1:
        return add_dot(call, left, right, contraction.Axes((len(one) - 1,), (max(len(two) - 2, 0),)))
    if len(one) == len(two) and one[:-2] == two[:-2]:
        batch = tuple(range(len(one) - 2))
        return add_dot(call, left, right, contraction.Axes((len(one) - 1,), (len(two) - 2,), batch, batch))
    raise Declined("batches that are broadcast")


def _product(left: str, right: str) -> Lowering:
    return lambda call: [product(call, call[left], call[right])]


def _product_plus(start: str, left: str, right: str, call: Call) -> list[int]:
    """beta start + alpha left @ right."""
    result, first = product(call, call[left], call[right]), int(call[start])
    alpha, beta = call.get("alpha", 1), call.get("beta", 1)
    result = result if alpha == 1 else call.op("mul", result, call.number(alpha))
    first = first if beta == 1 else call.op("mul", first, call.number(beta))
    return [call.op("add", first, result)]


def _linear(call: Call) -> list[int]:
    left, right = int(call["input"]), int(call["weight"])
    result = add_dot(
        call, left, right, contraction.Axes((len(call.shape_of(left)) - 1,), (len(call.shape_of(right)) - 1,))
    )
    return [result if call.get("bias") is None else call.op("add", result, call["bias"])]


def _outer(call: Call) -> list[int]:
    left, right = (int(call[name]) for name in ("self", "vec2"))
    return [call.op("mul", call.reshape(left, (*call.shape_of(left), 1)), right)]


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
    axes = contraction.Axes(
        tuple(map(left.index, summed)),
        tuple(map(right.index, summed)),
        tuple(map(left.index, batch)),
        tuple(map(right.index, batch)),
    )
    one, two = tensors
    result = add_dot(call, one, two, axes)
    order = batch + [c for c in left if c not in both] + [c for c in right if c not in both]
    dims = tuple(order.index(letter) for letter in wanted)
    if dims == tuple(range(len(dims))):
        return [result]
    return [call.op("permute", result, shape=call.shape, dims=dims)]


def _convolution(call: Call) -> list[int]:
    names = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")
    params = {name: tuple(v) if isinstance(v := call[name], (list, tuple)) else v for name in names}
    given, kinds = (int(call["input"]), int(call["weight"])), [call.kinds[0]]
    [result] = call.graph.add("convolution", given, params, kinds, call.source)
    if call.get("bias") is None:
        return [result]
    width = (-1, *(1 for _ in call.shape[2:]))
    bias = call.reshape(call["bias"], tuple(call.shape_of(call["bias"])[0] if k < 0 else k for k in width))
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
