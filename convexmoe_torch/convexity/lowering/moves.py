"""Operators of ATen that move elements, and those that make known numbers.

Where an operator puts each element is found by running the operator itself on the numbers of the places. Place 0 is
what it fills in; elements are counted from 1, through all tensors it takes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from .elementwise import Call, Declined, Lowering, Ref


class Places:
    """Where elements come from: a whole array as a static parameter that can be compared.

    Args:
        array: int64 `[*shape of the result]`.
    """

    def __init__(self, array: np.ndarray) -> None:
        self.array = np.asarray(array, np.int64)
        self.key = (self.array.shape, self.array.tobytes())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Places) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def number_elements(shapes: list[tuple[int, ...]]) -> list[torch.Tensor]:
    """Return the places of tensors of these shapes, counted from 1 through all."""
    sizes = [math.prod(shape) for shape in shapes]
    parts = torch.arange(1, 1 + sum(sizes)).split(sizes)
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def refs(arguments: Any) -> list[int]:
    """Return the values among arguments, each once, in their order."""
    if isinstance(arguments, Ref):
        return [int(arguments)]
    if isinstance(arguments, dict):
        arguments = list(arguments.values())
    if isinstance(arguments, (list, tuple)):
        return list(dict.fromkeys(number for part in arguments for number in refs(part)))
    return []


def _move_to_known_places(call: Call) -> list[int]:
    """Known places: one operation an output."""
    given = refs(call.arguments)
    if given != refs([call.get(name) for name in ("self", "src", "tensors")]):
        raise Declined("places that are values of the program")
    name, fill = call.target._opname, float(call.get("value", 0))
    tensors = number_elements([call.shape_of(value) for value in given])
    arguments = call.arguments | ({"value": 0} if "value" in call.arguments else {})
    results = call.target(**{key: fill_template(_template(part, given), tensors) for key, part in arguments.items()})
    results = results if isinstance(results, (list, tuple)) else [results]
    params = ({"places": Places(result.numpy()), "fill": fill} for result in results)
    pairs = zip(params, call.kinds, strict=True)
    return [call.graph.add(name, tuple(given), param, [kind], call.source)[0] for param, kind in pairs]


def _reshape(call: Call) -> list[int]:
    if "dtype" in call.arguments:
        raise Declined("bits")
    return [call.reshape(call["self"], call.shape)]


def _expand_value(call: Call, value: int) -> list[int]:
    if call.shape_of(value) == call.shape:
        return [value]
    return [call.op("expand", value, shape=call.shape, new_shape=call.shape)]


def _permute(call: Call) -> list[int]:
    """The order of the axes, seen on an array whose sizes are all different."""
    value = int(call["self"])
    probe = torch.empty([2 + axis for axis in range(len(call.shape))], device="meta")
    dims = tuple(size - 2 for size in call.target(**call.arguments | {"self": probe}).shape)
    return [value if dims == tuple(range(len(dims))) else call.op("permute", value, shape=call.shape, dims=dims)]


def _move_by_index(call: Call) -> list[int]:
    """Places that are values of the program themselves: what moves comes first, then the places."""
    arguments, dtype = dict(call.arguments), call.dtype
    if arguments.get("accumulate") or arguments.get("reduce") is not None or arguments.get("sparse_grad"):
        raise Declined("a sum over places")
    if "value" in arguments:
        arguments["value"] = Ref(call.value(arguments["value"], dtype))
    sources = ("self", "src", "source", "values", "value", "weight")
    moved = [int(arguments[name]) for name in sources if name in arguments]
    at = [number for name in ("index", "indices") for number in refs(arguments.get(name))]
    if len({call.graph.dtypes[number] for number in moved}) > 1:
        raise Declined("mixed dtypes")
    template = tuple((name, _template(value, [*moved, *at])) for name, value in arguments.items())
    params = {"target": call.target, "moved": len(moved), "template": template}
    return list(call.graph.add(call.target._opname, (*moved, *at), params, [(call.shape, dtype)], call.source))


class Slot(int):
    """The position of a tensor among the inputs of an operation."""


def _template(value: Any, given: list[int]) -> Any:
    """Return an argument with a `Slot` for each tensor."""
    if isinstance(value, Ref):
        return Slot(given.index(value))
    return tuple(_template(part, given) for part in value) if isinstance(value, (list, tuple)) else value


def fill_template(template: Any, tensors: list[torch.Tensor]) -> Any:
    """Return an argument with the tensors in their slots."""
    if isinstance(template, Slot):
        return tensors[template]
    return [fill_template(part, tensors) for part in template] if isinstance(template, tuple) else template


def _make_constant(call: Call) -> list[int]:
    """Numbers that depend on no tensor but for its shape."""
    dtype = getattr(torch, call.dtype)
    name = call.target._opname.removesuffix("_like").removeprefix("new_")
    is_filled = name in ("zeros", "ones", "full")
    number = {"zeros": 0, "ones": 1}.get(name, call.get("fill_value"))
    if refs(number if is_filled else call.arguments) or (is_filled and not isinstance(number, (bool, int, float))):
        raise Declined("made of a tensor")
    if is_filled:
        tensor = torch.full(call.shape, number, dtype=dtype)
    else:
        placement = dict.fromkeys(call.arguments.keys() & {"layout", "device", "pin_memory"})
        tensor = call.target(**call.arguments | placement)
    tensor = tensor.double() if dtype in (torch.bfloat16, torch.float16) else tensor
    return [call.graph.constant(tensor.numpy())]


SPLITS = ("unbind", "split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk")
JOINS = ("cat", "concat", "concatenate", "stack", "hstack", "vstack", "column_stack", "repeat", "tile")
PARTS = ("slice", "select", "narrow", "diagonal", "unfold", "tril", "triu", "diag")
WRITES = ("select_scatter", "slice_scatter", "diagonal_scatter", "diag_embed", "constant_pad_nd")
PLACED = (*SPLITS, *JOINS, *PARTS, *WRITES, "flip", "fliplr", "flipud", "roll", "rot90")
VIEWS = ("view", "view_as", "reshape", "reshape_as", "_unsafe_view", "flatten", "unflatten", "ravel")
RESHAPES = (*VIEWS, "squeeze", "unsqueeze", "atleast_1d")
PERMUTES = ("permute", "transpose", "t", "numpy_T", "mT", "movedim", "moveaxis", "swapaxes", "swapdims")
READS = ("index_select", "gather", "index", "take", "embedding")
INDEXED = (*READS, "scatter", "index_put", "index_copy", "index_fill")
LIKE = ("full_like", "zeros_like", "ones_like", "new_full", "new_zeros", "new_ones")
CONSTANTS = (*LIKE, "full", "zeros", "ones", "arange", "eye", "linspace", "scalar_tensor")

MOVES: dict[str, Lowering] = {
    **dict.fromkeys(PLACED, _move_to_known_places),
    **dict.fromkeys(RESHAPES, _reshape),
    **dict.fromkeys(PERMUTES, _permute),
    **dict.fromkeys(INDEXED, _move_by_index),
    **dict.fromkeys(CONSTANTS, _make_constant),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), lambda call: _expand_value(call, int(call["self"]))),
    "copy": lambda call: _expand_value(call, call.cast(call["src"], call.dtype)),
}
