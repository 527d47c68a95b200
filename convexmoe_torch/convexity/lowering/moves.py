"""Operators of ATen that move elements, and those that make known numbers.

Where an operator puts each element is found by running the operator itself on the numbers of the places. Place 0 is
what it fills in; elements are counted from 1, through all tensors it takes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from convexmoe.convexity import contraction, moves

from .elementwise import Call, Declined, Lowering, Ref


class Places:
    """A whole array as a static parameter that can be compared: where elements come from, or weights of elements.

    Args:
        array: int64 `[*shape of the result]`, or float64.
    """

    def __init__(self, array: np.ndarray) -> None:
        self.array = np.array(array, order="C")
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
    if arguments.get("accumulate") or arguments.get("reduce") is not None:
        return _reduce_by_index(call)
    if arguments.get("sparse_grad"):
        raise Declined("a sparse gradient")
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


def reduce_groups(call: Call, name: str, given: list[int], groups: np.ndarray, fill: float) -> list[int]:
    """Add a reduction over the elements of several values at places, `[*shape, K]`, -1 for what is filled in."""
    if groups.size > contraction.LARGEST_EXPANSION:
        raise Declined("too many places")
    params = {"places": Places(groups + 1), "fill": fill}
    [elements] = call.graph.add("unfold", tuple(given), params, [(groups.shape, call.dtype)], call.source)
    return [call.op(name, elements, shape=groups.shape[:-1], axes=(groups.ndim - 1,))]


REDUCTIONS_AT_INDEX = {
    "sum": ("sum", 0.0),
    "mean": ("sum", 0.0),
    "amax": ("amax", -math.inf),
    "amin": ("amin", math.inf),
}


def _reduce_by_index(call: Call) -> list[int]:
    """A sum or an extreme of what is there and of all that is put there, at places that are known."""
    arguments, name = call.arguments, call.target._opname
    source = next(int(arguments[key]) for key in ("src", "source", "values") if key in arguments)
    indices = [arguments["index"]] if "index" in arguments else arguments["indices"]
    at = [None if index is None else call.graph.array(index) for index in indices]
    kind = {"add": "sum"}.get(call.get("reduce", "sum"), call.get("reduce", "sum"))
    if kind not in REDUCTIONS_AT_INDEX or any(
        (index is None) != (k is None) for index, k in zip(at, indices, strict=True)
    ):
        raise Declined("another reduction, or places that are values of the program")
    numbers, given = number_elements([call.shape, call.shape_of(source)])
    places: list[Any] = [None if index is None else torch.from_numpy(index.astype(np.int64)) for index in at]
    if name == "index_put":
        target = torch.broadcast_to(numbers[places], call.shape_of(source))
    elif name.startswith("scatter"):
        target = torch.gather(numbers, call["dim"], places[0])
        given = given[tuple(map(slice, places[0].shape))]
    else:
        target = numbers.index_select(call["dim"], places[0].reshape(-1))
    everywhere = np.full(call.shape_of(source), -1).reshape(-1)
    everywhere[given.reshape(-1).numpy() - 1 - numbers.numel()] = target.reshape(-1).numpy() - 1
    groups = moves.group_places(everywhere, numbers.numel())
    if not call.get("include_self", True) and groups.shape[1] > 1:
        groups[groups[:, 1] >= 0, 0] = -1
    operation, fill = REDUCTIONS_AT_INDEX[kind]
    source = call.scaled(source, call.get("alpha", 1))
    results = reduce_groups(call, operation, [call["self"], source], groups.reshape(*call.shape, -1), fill)
    counts = np.maximum((groups >= 0).sum(axis=1), 1.0).reshape(call.shape)
    return [call.op("div", results[0], call.graph.constant(counts))] if kind == "mean" else results


def _pool_largest(call: Call) -> list[int]:
    """The largest of each window, in which an element is where the operator sees a single 1 among zeros."""
    given, axes = call.shape_of(call["self"]), int(call.target._opname.removesuffix("_with_indices")[-2])
    plane, size = given[len(given) - axes :], math.prod(given[len(given) - axes :])
    units = torch.eye(size, dtype=torch.float64).reshape(size, 1, *plane)
    seen = call.target(**call.arguments | {"self": units})
    seen = (seen[0] if isinstance(seen, tuple) else seen).reshape(size, -1) > 0
    parts = [np.flatnonzero(column) for column in seen.numpy().T]
    most = max(map(len, parts))
    window = np.array([np.pad(part, (0, most - len(part)), constant_values=-1) for part in parts])
    first = np.arange(math.prod(given) // size)[:, None, None] * size
    groups = np.where(window < 0, -1, first + window).reshape(*call.shape, most)
    return [*reduce_groups(call, "amax", [call["self"]], groups, -math.inf), *call.buffers()]


def _resample(call: Call) -> list[int]:
    """A linear map of the last axes, whose weights are what the operator makes of each unit."""
    name = call.target._opname
    argument = "input" if "input" in call.arguments else "self"
    given, axes = call.shape_of(call[argument]), int(name[name.rindex("d") - 1])
    plane, size = given[len(given) - axes :], math.prod(given[len(given) - axes :])
    units = torch.eye(size, dtype=torch.float64).reshape(size, 1, *plane)
    weights = call.target(**call.arguments | {argument: units}).reshape(size, -1)
    flat = call.reshape(call[argument], (math.prod(given) // size, size))
    result = call.op(
        "resample",
        flat,
        shape=(len(weights[0]) and math.prod(given) // size, len(weights[0])),
        weights=Places(weights.numpy()),
    )
    return [call.reshape(result, call.shape)]


class Slot(int):
    """The position of a tensor among the inputs of an operation."""


def _template(value: Any, given: list[int]) -> Any:
    """Return an argument with a `Slot` for each tensor."""
    if isinstance(value, Ref):
        return Slot(given.index(value))
    return tuple(_template(part, given) for part in value) if isinstance(value, (list, tuple)) else value


def add_as_it_is(call: Call) -> list[int]:
    """Add an operator that is computed where what it takes is known, and of which nothing is known elsewhere."""
    given = refs(call.arguments)
    template = tuple((name, _template(value, given)) for name, value in call.arguments.items())
    params: dict[str, Any] = {"call": call.target, "template": template}
    return list(call.graph.add(f"aten.{call.target._opname}", tuple(given), params, call.kinds, call.source))


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

ADDED = ("scatter_add", "scatter_reduce", "index_add", "index_reduce")
LARGEST_POOLS = tuple(f"{kind}max_pool{axes}d" for kind in ("", "adaptive_") for axes in (1, 2, 3))
UPSAMPLES = ("linear1d", "bilinear2d", "trilinear3d", "bicubic2d", *(f"nearest{axes}d" for axes in (1, 2, 3)))
POOLS = (*(f"{kind}avg_pool{axes}d" for kind in ("", "adaptive_") for axes in (1, 2, 3)), "_adaptive_avg_pool2d")
RESAMPLED = (
    *POOLS,
    "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
    *(f"upsample_{kind}" for kind in UPSAMPLES),
    *(f"_upsample_nearest_exact{k}d" for k in (1, 2, 3)),
)

MOVES: dict[str, Lowering] = {
    **dict.fromkeys(ADDED, _reduce_by_index),
    **dict.fromkeys((*LARGEST_POOLS, *(f"max_pool{axes}d_with_indices" for axes in (2, 3))), _pool_largest),
    **dict.fromkeys(RESAMPLED, _resample),
    **dict.fromkeys(PLACED, _move_to_known_places),
    **dict.fromkeys(RESHAPES, _reshape),
    **dict.fromkeys(PERMUTES, _permute),
    **dict.fromkeys(INDEXED, _move_by_index),
    **dict.fromkeys(CONSTANTS, _make_constant),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), lambda call: _expand_value(call, int(call["self"]))),
    "copy": lambda call: _expand_value(call, call.cast(call["src"], call.dtype)),
}
