"""Operators of ATen that look along axes: sums, means, extremes, norms, order."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from .elementwise import Call, Declined, Lowering, truth


def axes_of(dims: Any, rank: int) -> tuple[int, ...]:
    """Return axes >= 0 in their order; None and an empty list mean all."""
    if isinstance(dims, int):
        dims = [dims]
    if not dims:
        return tuple(range(rank))
    return tuple(sorted(dim % max(rank, 1) for dim in dims if rank))


def reduce_over(call: Call, name: str, value: int, axes: tuple[int, ...], keep: bool, dtype: str | None = None) -> int:
    """Add a reduction over axes."""
    shape = call.shape_of(value)
    rest = tuple(size for axis, size in enumerate(shape) if axis not in axes)
    result = call.op(name, value, shape=rest, dtype=dtype, axes=axes)
    with_axes = tuple(1 if k in axes else size for k, size in enumerate(shape))
    return call.reshape(result, with_axes) if keep else result


def _reduction(name: str, call: Call) -> list[int]:
    """Over one axis, several, or all; a `dtype` is that of what comes in and what goes out."""
    value = int(call["self"])
    if call.get("dtype") is not None:
        value = call.cast(value, call.dtype)
    if name in ("any", "all"):
        value = truth(call, value)
    axes = axes_of(call.get("dim"), len(call.shape_of(value)))
    return [reduce_over(call, name, value, axes, call.get("keepdim", False))]


def mean_of(call: Call, value: int, axes: tuple[int, ...], keep: bool) -> int:
    """Add a mean over axes."""
    count = math.prod(call.shape_of(value)[axis] for axis in axes)
    return call.op("div", reduce_over(call, "sum", value, axes, keep), call.number(count))


def _mean(call: Call) -> list[int]:
    value = call.cast(call["self"], call.dtype)
    axes = axes_of(call.get("dim"), len(call.shape_of(value)))
    return [mean_of(call, value, axes, call.get("keepdim", False))]


def _variance(root: bool, call: Call) -> list[int]:
    value = int(call["self"])
    axes = axes_of(call.get("dim"), len(call.shape_of(value)))
    count = math.prod(call.shape_of(value)[axis] for axis in axes)
    unbiased = 1 if call.get("unbiased", True) else 0
    freedom = count - call.get("correction", unbiased)
    if freedom <= 0:
        raise Declined("no degree of freedom")
    centered = call.op("sub", value, mean_of(call, value, axes, True))
    total = reduce_over(call, "sum", call.op("mul", centered, centered), axes, call.get("keepdim", False))
    result = call.op("div", total, call.number(freedom))
    return [call.op("sqrt", result) if root else result]


def _norm(call: Call) -> list[int]:
    value, order = call.cast(call["self"], call.dtype), call.get("ord", call.get("p", 2))
    axes, keep = axes_of(call.get("dim"), len(call.shape_of(value))), call.get("keepdim", False)
    if order == 2:
        return [call.op("sqrt", reduce_over(call, "sum", call.op("mul", value, value), axes, keep))]
    size = call.op("abs", value)
    if order == 1:
        return [reduce_over(call, "sum", size, axes, keep)]
    if order == math.inf:
        return [reduce_over(call, "amax", size, axes, keep)]
    raise Declined("another norm")


def _extreme(name: str, place: str, call: Call) -> list[int]:
    """max and min: of two tensors, of all elements, or along an axis with the places."""
    value = int(call["self"])
    if "other" in call.arguments:
        return [call.op({"amax": "maximum", "amin": "minimum"}[name], value, call["other"])]
    axes = axes_of(call.get("dim"), len(call.shape_of(value)))
    keep = call.get("keepdim", False)
    result = reduce_over(call, name, value, axes, keep)
    if "dim" not in call.arguments:
        return [result]
    return [result, reduce_over(call, place, value, axes, keep, "int64")]


def _place(name: str, call: Call) -> list[int]:
    value, dim = int(call["self"]), call.get("dim")
    if dim is None:
        value, dim = call.reshape(value, (math.prod(call.shape_of(value)),)), 0
    axes = axes_of(dim, len(call.shape_of(value)))
    result = reduce_over(call, name, value, axes, call.get("keepdim", False))
    return [call.reshape(result, call.shape)]


def _running(name: str, place: str | None, call: Call) -> list[int]:
    value = call.cast(call["self"], call.dtype)
    rank = len(call.shape_of(value))
    if rank == 0:
        raise Declined("one number")
    result = call.op(name, value, axis=call["dim"] % rank)
    if place is None:
        return [result]
    return [result, call.op(place, value, axis=call["dim"] % rank, dtype="int64")]


def _log_softmax(call: Call) -> list[int]:
    value = call.cast(call["self"], call.dtype)
    return [call.op("log_softmax", value, axes=axes_of(call["dim"], len(call.shape)))]


def _softmax(call: Call) -> list[int]:
    """exp(u - max u) / sum, whose terms are positive."""
    value = call.cast(call["self"], call.dtype)
    axes = axes_of(call["dim"], len(call.shape))
    powers = call.op("exp", call.op("sub", value, reduce_over(call, "amax", value, axes, True)))
    return [call.op("div", powers, reduce_over(call, "sum", powers, axes, True))]


def _sort(call: Call) -> list[int]:
    value = int(call["self"])
    rank = len(call.shape_of(value))
    if rank == 0:
        raise Declined("one number")
    params = {"axis": call.get("dim", -1) % rank, "falling": bool(call.get("descending", False))}
    return list(call.graph.add("sort", (value,), params, call.kinds, call.source))


def _topk(call: Call) -> list[int]:
    value, rank = int(call["self"]), len(call.shape)
    if rank == 0 or not (call.get("sorted", True) and call.kinds[0][0] == call.kinds[1][0]):
        raise Declined("the largest in no order")
    params = {"axis": call.get("dim", -1) % rank, "falling": True}
    smallest = not call.get("largest", True)  # they are the largest of the negative
    value = call.op("neg", value) if smallest else value
    result, places = call.graph.add("topk", (value,), params, call.kinds, call.source)
    return [call.op("neg", result) if smallest else result, places]


def _huber(width: str, call: Call) -> list[int]:
    """delta^2 huber((a - b) / delta), and the mean or the sum of it."""
    a, b = call.values("self", "target")
    delta = float(call.get(width, 1.0))
    if not delta > 0:
        raise Declined("a width of 0")
    difference = call.op("sub", a, b, dtype=call.dtype)
    if delta != 1:
        difference = call.op("div", difference, call.number(delta))
    result = call.op("huber", difference)
    scale = delta**2 if width == "delta" else delta
    result = result if delta == 1 else call.op("mul", result, call.number(scale))
    axes = tuple(range(len(call.shape_of(result))))
    if call.get("reduction", 1) == 1:
        return [mean_of(call, result, axes, False)]
    return [reduce_over(call, "sum", result, axes, False) if call["reduction"] == 2 else result]


def _batch_norm(call: Call) -> list[int]:
    """(x - mean) / sqrt(variance + eps) weight + bias with frozen statistics; those of the batch go another way."""
    value, rank = int(call["input"]), len(call.shape)
    mean, variance = call.get("running_mean"), call.get("running_var")
    if call.get("training", False) or mean is None or variance is None:
        raise Declined("statistics of the batch")

    def along(given: int) -> int:
        return call.reshape(int(given), [call.shape[1] if axis == 1 else 1 for axis in range(rank)])

    scale = call.op("pow", call.op("add", along(variance), call.number(call["eps"])), call.number(-0.5))
    result = call.op("mul", call.op("sub", value, along(mean)), scale)
    if call.get("weight") is not None:
        result = call.op("mul", result, along(call["weight"]))
    if call.get("bias") is not None:
        result = call.op("add", result, along(call["bias"]))
    return [result, *call.buffers()]


REDUCTIONS: dict[str, Lowering] = {
    "sum": partial(_reduction, "sum"),
    "prod": partial(_reduction, "prod"),
    "amax": partial(_reduction, "amax"),
    "amin": partial(_reduction, "amin"),
    "any": partial(_reduction, "any"),
    "all": partial(_reduction, "all"),
    "logsumexp": partial(_reduction, "logsumexp"),
    "mean": _mean,
    "var": partial(_variance, False),
    "std": partial(_variance, True),
    "linalg_vector_norm": _norm,
    "max": partial(_extreme, "amax", "argmax"),
    "min": partial(_extreme, "amin", "argmin"),
    "argmax": partial(_place, "argmax"),
    "argmin": partial(_place, "argmin"),
    "cumsum": partial(_running, "cumsum", None),
    "cumprod": partial(_running, "cumprod", None),
    "logcumsumexp": partial(_running, "logcumsumexp", None),
    "cummax": partial(_running, "cummax", "argcummax"),
    "cummin": partial(_running, "cummin", "argcummin"),
    "softmax": _softmax,
    "_softmax": _softmax,
    "log_softmax": _log_softmax,
    "_log_softmax": _log_softmax,
    "sort": _sort,
    "topk": _topk,
    **dict.fromkeys(("batch_norm", "native_batch_norm"), _batch_norm),
    "_native_batch_norm_legit_no_training": _batch_norm,
    "huber_loss": partial(_huber, "delta"),
    "smooth_l1_loss": partial(_huber, "beta"),
}
