"""Operators of ATen that look along axes: sums, means, extremes, norms, order."""

from __future__ import annotations

import math
from functools import partial

from .elementwise import Call, Declined, Lowering, choose_above, truth


def axes_of(call: Call, value: int) -> tuple[int, ...]:
    """Return the axes >= 0 of a value in their order; None and an empty list mean all."""
    dims, rank = call.get("dim"), len(call.shape_of(value))
    dims = [dims] if isinstance(dims, int) else dims or range(rank)
    return tuple(sorted(dim % max(rank, 1) for dim in dims if rank))


def reduce_over(
    call: Call, name: str, value: int, axes: tuple[int, ...], keep: bool | None = None, dtype: str | None = None
) -> int:
    """Add a reduction over axes, which are kept with size 1 where the call says so, or `keep`."""
    shape = call.shape_of(value)
    rest = tuple(size for axis, size in enumerate(shape) if axis not in axes)
    result = call.op(name, value, shape=rest, dtype=dtype, axes=axes)
    with_axes = tuple(1 if k in axes else size for k, size in enumerate(shape))
    return call.reshape(result, with_axes) if (call.get("keepdim", False) if keep is None else keep) else result


def _reduction(name: str, call: Call) -> list[int]:
    """Over one axis, several, or all; a `dtype` is that of what comes in and what goes out."""
    value = int(call["self"])
    if call.get("dtype") is not None:
        value = call.cast(value, call.dtype)
    if name in ("any", "all"):
        value = truth(call, value)
    return [reduce_over(call, name, value, axes_of(call, value))]


def mean_of(call: Call, value: int, axes: tuple[int, ...], keep: bool | None = None) -> int:
    """Add a mean over axes."""
    count = math.prod(call.shape_of(value)[axis] for axis in axes)
    return call.op("div", reduce_over(call, "sum", value, axes, keep), call.number(count))


def _mean(call: Call) -> list[int]:
    value = call.cast(call["self"], call.dtype)
    return [mean_of(call, value, axes_of(call, value))]


def _variance(root: bool, call: Call) -> list[int]:
    value = int(call["self"])
    axes = axes_of(call, value)
    count = math.prod(call.shape_of(value)[axis] for axis in axes)
    freedom = count - call.get("correction", int(call.get("unbiased", True)))
    if freedom <= 0:
        raise Declined("no degree of freedom")
    centered = call.op("sub", value, mean_of(call, value, axes, True))
    total = reduce_over(call, "sum", call.op("mul", centered, centered), axes)
    result = call.op("div", total, call.number(freedom))
    return [call.op("sqrt", result) if root else result]


def _norm(call: Call) -> list[int]:
    value, order = call.cast(call["self"], call.dtype), call.get("ord", call.get("p", 2))
    axes = axes_of(call, value)
    if order == 2:
        return [call.op("sqrt", reduce_over(call, "sum", call.op("mul", value, value), axes))]
    size = call.op("abs", value)
    if order in (1, math.inf):
        return [reduce_over(call, "sum" if order == 1 else "amax", size, axes)]
    if not 0 < order < math.inf:
        raise Declined("another norm")
    total = reduce_over(call, "sum", call.op("pow", size, call.number(order, "float64")), axes)
    return [call.op("pow", total, call.number(1 / order, "float64"))]


def _distances(call: Call) -> list[int]:
    """Norms of the differences of the rows of two matrices."""
    one, two = (int(call[name]) for name in ("x1", "x2"))
    left, right = call.shape_of(one), call.shape_of(two)
    left, right = (*left[:-1], 1, left[-1]), (*right[:-2], 1, *right[-2:])
    difference = call.op("sub", call.reshape(one, left), call.reshape(two, right))
    of_rows = {"self": difference, "p": call["p"], "dim": len(call.shape)}
    return _norm(Call(call.graph, call.target, of_rows, call.kinds, call.source))


def _extreme(name: str, place: str, call: Call) -> list[int]:
    """max and min: of two tensors, of all elements, or along an axis with the places."""
    value = int(call["self"])
    if "other" in call.arguments:
        return [call.op({"amax": "maximum", "amin": "minimum"}[name], value, call["other"])]
    axes = axes_of(call, value)
    result = reduce_over(call, name, value, axes)
    return [result, reduce_over(call, place, value, axes, dtype="int64")] if "dim" in call.arguments else [result]


def _place(name: str, call: Call) -> list[int]:
    value = int(call["self"])
    if call.get("dim") is None:
        value = call.reshape(value, (math.prod(call.shape_of(value)),))
    return [call.reshape(reduce_over(call, name, value, axes_of(call, value)), call.shape)]


def _axis(call: Call) -> int:
    """Return the axis >= 0 of a call, the last where it names none; a number has none."""
    if not call.shape:
        raise Declined("one number")
    return call.get("dim", -1) % len(call.shape)


def _running(name: str, place: str | None, call: Call) -> list[int]:
    value, axis = call.cast(call["self"], call.dtype), _axis(call)
    result = call.op(name, value, axis=axis)
    return [result, call.op(place, value, axis=axis, dtype="int64")] if place else [result]


def _log_softmax(call: Call) -> list[int]:
    value = call.cast(call["self"], call.dtype)
    return [call.op("sub", value, reduce_over(call, "logsumexp", value, axes_of(call, value), True))]


def _softmax(call: Call) -> list[int]:
    """exp(u - max u) / sum, whose terms are positive."""
    value = call.cast(call["self"], call.dtype)
    axes = axes_of(call, value)
    powers = call.op("exp", call.op("sub", value, reduce_over(call, "amax", value, axes, True)))
    return [call.op("div", powers, reduce_over(call, "sum", powers, axes, True))]


def _sort(call: Call) -> list[int]:
    params = {"axis": _axis(call), "falling": bool(call.get("descending", False))}
    return list(call.graph.add("sort", (call["self"],), params, call.kinds, call.source))


def _topk(call: Call) -> list[int]:
    if not (call.get("sorted", True) and call.kinds[0][0] == call.kinds[1][0]):
        raise Declined("the largest in no order")
    params = {"axis": _axis(call), "falling": True}
    smallest = not call.get("largest", True)  # they are the largest of the negative
    value = call.op("neg", call["self"]) if smallest else call["self"]
    result, places = call.graph.add("topk", (value,), params, call.kinds, call.source)
    return [call.op("neg", result) if smallest else result, places]


def _huber(width: str, call: Call) -> list[int]:
    """d^2 / 2 up to the width delta of d = |a - b|, delta (d - delta / 2) from there, and their mean or sum.

    `smooth_l1_loss` divides both by the width.
    """
    delta = float(call.get(width, 1.0))
    distance = result = call.op("abs", call.op("sub", *call.values("self", "target"), dtype=call.dtype))
    if delta > 0:
        near = call.scaled(call.op("mul", distance, distance), 0.5)
        far = call.op("sub", distance, call.number(0.5 * delta))
        near = near if width == "delta" else call.op("div", near, call.number(delta))
        far = call.scaled(far, delta) if width == "delta" else far
        result = choose_above(call, distance, delta, far, near)
    axes, reduction = tuple(range(len(call.shape_of(result)))), call.get("reduction", 1)
    if reduction == 0:
        return [result]
    return [mean_of(call, result, axes) if reduction == 1 else reduce_over(call, "sum", result, axes)]


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
    for operation, name in (("mul", "weight"), ("add", "bias")):
        if call.get(name) is not None:
            result = call.op(operation, result, along(call[name]))
    return [result, *call.buffers()]


REDUCTIONS: dict[str, Lowering] = {
    **{name: partial(_reduction, name) for name in ("sum", "prod", "amax", "amin", "any", "all", "logsumexp")},
    "mean": _mean,
    "var": partial(_variance, False),
    "std": partial(_variance, True),
    "linalg_vector_norm": _norm,
    **dict.fromkeys(("cdist", "_cdist_forward"), _distances),
    "max": partial(_extreme, "amax", "argmax"),
    "min": partial(_extreme, "amin", "argmin"),
    **{name: partial(_place, name) for name in ("argmax", "argmin")},
    **{name: partial(_running, name, None) for name in ("cumsum", "cumprod", "logcumsumexp")},
    **{name: partial(_running, name, f"arg{name}") for name in ("cummax", "cummin")},
    **dict.fromkeys(("softmax", "_softmax"), _softmax),
    **dict.fromkeys(("log_softmax", "_log_softmax"), _log_softmax),
    "sort": _sort,
    "topk": _topk,
    **dict.fromkeys(("batch_norm", "native_batch_norm", "_native_batch_norm_legit_no_training"), _batch_norm),
    "huber_loss": partial(_huber, "delta"),
    "smooth_l1_loss": partial(_huber, "beta"),
}
