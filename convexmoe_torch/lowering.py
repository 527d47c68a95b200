"""Operators of ATen in terms of the few operations that have rules.

An operator that is neither here nor has a rule is written out by PyTorch's own decompositions; what remains after
that has no rule and proves nothing. Numbers are taken in the dtype in which PyTorch computes with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from .contraction import Axes
from .graph import Graph

Kind = tuple[tuple[int, ...], str]


class Declined(Exception):
    """This form of an operator is not written here."""


class Ref(int):
    """The number of a value of the graph, among the arguments of an operator."""


class Call:
    """One call of an operator, and where its operations go.

    Args:
        graph: to which operations are added.
        target: the operator.
        arguments: by name of its schema, tensors as `Ref`.
        kinds: shapes and dtypes of what it gives.
        source: file, line and function.
    """

    def __init__(
        self, graph: Graph, target: Any, arguments: dict[str, Any], kinds: list[Kind], source: str
    ) -> None:
        self.graph, self.target, self.arguments = graph, target, arguments
        self.kinds, self.source = kinds, source

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return an argument, or the default where this overload has none of the name."""
        value = self.arguments.get(name)
        return default if value is None else value

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the first output."""
        return self.kinds[0][0]

    @property
    def dtype(self) -> str:
        """The dtype of the first output."""
        return self.kinds[0][1]

    def shape_of(self, value: int) -> tuple[int, ...]:
        """The shape of a value."""
        return self.graph.shapes[value]

    def working_dtype(self) -> str:
        """The dtype in which numbers among the arguments are taken: that of the tensors and the numbers together."""
        dtype = torch.bool
        for given in self.arguments.values():
            if isinstance(given, Ref):
                dtype = torch.promote_types(dtype, getattr(torch, self.graph.dtypes[given]))
        for given in self.arguments.values():
            if isinstance(given, (bool, int, float)) and not isinstance(given, Ref):
                dtype = torch.result_type(torch.empty((1,), dtype=dtype, device="meta"), given)
        return str(dtype).removeprefix("torch.")

    def value(self, given: Any, dtype: str | None = None) -> int:
        """Return the number of an argument, of a plain number too."""
        if isinstance(given, Ref):
            return int(given)
        if not isinstance(given, (bool, int, float)):
            raise Declined(f"an argument {given!r}")
        dtype = dtype or self.working_dtype()
        return self.graph.constant(
            np.asarray(given, {"bfloat16": "float32", "float16": "float32"}.get(dtype, dtype))
        )

    def values(self, *names: str) -> list[int]:
        """Return the numbers of arguments; a plain number has the dtype in which PyTorch computes."""
        dtype = self.dtype if self.dtype.startswith(("float", "bfloat")) else self.working_dtype()
        return [self.value(self[name], dtype) for name in names]

    def op(
        self,
        name: str,
        *inputs: int,
        shape: tuple[int, ...] | None = None,
        dtype: str | None = None,
        **params: Any,
    ) -> int:
        """Add an operation; without a shape it works element by element."""
        if shape is None:
            shape = np.broadcast_shapes(*(self.shape_of(value) for value in inputs))
        kind = (tuple(shape), dtype or self.dtype)
        return self.graph.add(name, tuple(inputs), params, [kind], self.source)[0]

    def number(self, number: float, dtype: str | None = None) -> int:
        """Return a number as a value."""
        return self.value(number, dtype or self.dtype)

    def reshaped(self, value: int, shape: Sequence[int]) -> int:
        """Return a value in another shape; a chain of these is one."""
        shape = tuple(shape)
        maker = self.graph.makers.get(value)
        if maker is not None and maker.name == "reshape":
            value = maker.inputs[0]
        if self.shape_of(value) == shape:
            return value
        return self.op("reshape", value, shape=shape, dtype=self.graph.dtypes[value], new_shape=shape)

    def cast(self, value: int, dtype: str) -> int:
        """Return a value in another dtype."""
        if self.graph.dtypes[value] == dtype:
            return value
        return self.op("to", value, dtype=dtype, new_dtype=dtype)


Lowering = Callable[[Call], "list[int]"]


def axes_of(dims: Any, rank: int) -> tuple[int, ...]:
    """Return axes >= 0 in their order; None and an empty list mean all."""
    if isinstance(dims, int):
        dims = [dims]
    if not dims:
        return tuple(range(rank))
    return tuple(sorted(dim % max(rank, 1) for dim in dims if rank))


def reduced(
    call: Call, name: str, value: int, axes: tuple[int, ...], keep: bool, dtype: str | None = None
) -> int:
    """Add a reduction over axes."""
    shape = call.shape_of(value)
    rest = tuple(size for axis, size in enumerate(shape) if axis not in axes)
    found = call.op(name, value, shape=rest, dtype=dtype, axes=axes)
    return (
        call.reshaped(found, tuple(1 if k in axes else size for k, size in enumerate(shape)))
        if keep
        else found
    )


def _arithmetic(name: str) -> Lowering:
    """Two arguments, of which one may be a number; truth values are no numbers here."""

    def lower(call: Call) -> list[int]:
        if call.dtype == "bool":
            raise Declined("arithmetic of truth values")
        a, b = call.values("self", "other")
        alpha = call.get("alpha", 1)
        if alpha != 1:
            b = call.op("mul", b, call.number(alpha))
        return [call.op(name, a, b)]

    return lower


def _reversed_sub(call: Call) -> list[int]:
    a, b = call.values("self", "other")
    alpha = call.get("alpha", 1)
    a = a if alpha == 1 else call.op("mul", a, call.number(alpha))
    return [call.op("sub", b, a)]


def _div(call: Call) -> list[int]:
    quotient = call.op("div", *call.values("self", "other"))
    mode = call.get("rounding_mode")
    if mode is None:
        return [quotient]
    if mode == "floor":
        return [call.op("floor", quotient)]
    raise Declined("a quotient cut towards 0")


def _two(name: str) -> Lowering:
    return lambda call: [call.op(name, *call.values("self", "other"))]


def _one(name: str) -> Lowering:
    """One tensor, and nothing else."""

    def lower(call: Call) -> list[int]:
        if len(call.arguments) > 1:
            raise Declined("more arguments")
        return [call.op(name, call["self"])]

    return lower


def _same(call: Call) -> list[int]:
    return [int(call["self"])]


def _cast(call: Call) -> list[int]:
    return [call.cast(call["self"], call.dtype)]


def _pow(call: Call) -> list[int]:
    return [call.op("pow", *call.values("self", "exponent"))]


def _square(call: Call) -> list[int]:
    return [call.op("mul", call["self"], call["self"])]


def _to_power(exponent: float) -> Lowering:
    return lambda call: [call.op("pow", call["self"], call.number(exponent))]


def _relu(call: Call) -> list[int]:
    return [call.op("maximum", call["self"], call.number(0))]


def _clamp(low: str, high: str) -> Lowering:
    """The lower bound first: where they cross, the upper one counts."""

    def lower(call: Call) -> list[int]:
        value = int(call["self"])
        for name, operation in ((low, "maximum"), (high, "minimum")):
            if name and call.get(name) is not None:
                value = call.op(operation, value, call.value(call[name], call.dtype))
        return [value]

    return lower


def _where(call: Call) -> list[int]:
    a, b = (call.value(call[name], call.dtype) for name in ("self", "other"))
    return [call.op("where", call["condition"], a, b)]


def _masked_fill(call: Call) -> list[int]:
    return [call.op("where", call["mask"], call.value(call["value"], call.dtype), call["self"])]


def _reduction(name: str) -> Lowering:
    """Over one axis, several, or all; a `dtype` is that of what comes in and what goes out."""

    def lower(call: Call) -> list[int]:
        value = int(call["self"])
        if call.get("dtype") is not None:
            value = call.cast(value, call.dtype)
        axes = axes_of(call.get("dim"), len(call.shape_of(value)))
        return [reduced(call, name, value, axes, call.get("keepdim", False))]

    return lower


def mean_of(call: Call, value: int, axes: tuple[int, ...], keep: bool) -> int:
    """Add a mean over axes."""
    count = math.prod(call.shape_of(value)[axis] for axis in axes)
    return call.op("div", reduced(call, "sum", value, axes, keep), call.number(count))


def _mean(call: Call) -> list[int]:
    value = call.cast(call["self"], call.dtype)
    axes = axes_of(call.get("dim"), len(call.shape_of(value)))
    return [mean_of(call, value, axes, call.get("keepdim", False))]


def _variance(root: bool) -> Lowering:
    def lower(call: Call) -> list[int]:
        value = int(call["self"])
        axes = axes_of(call.get("dim"), len(call.shape_of(value)))
        count = math.prod(call.shape_of(value)[axis] for axis in axes)
        unbiased = 1 if call.get("unbiased", True) else 0
        freedom = count - call.get("correction", unbiased)
        if freedom <= 0:
            raise Declined("no degree of freedom")
        centred = call.op("sub", value, mean_of(call, value, axes, True))
        total = reduced(call, "sum", call.op("mul", centred, centred), axes, call.get("keepdim", False))
        found = call.op("div", total, call.number(freedom))
        return [call.op("sqrt", found) if root else found]

    return lower


def _norm(call: Call) -> list[int]:
    value, order = call.cast(call["self"], call.dtype), call.get("ord", call.get("p", 2))
    axes, keep = axes_of(call.get("dim"), len(call.shape_of(value))), call.get("keepdim", False)
    if order == 2:
        return [call.op("sqrt", reduced(call, "sum", call.op("mul", value, value), axes, keep))]
    size = call.op("abs", value)
    if order == 1:
        return [reduced(call, "sum", size, axes, keep)]
    if order == math.inf:
        return [reduced(call, "amax", size, axes, keep)]
    raise Declined("another norm")


def _extreme(name: str, place: str) -> Lowering:
    """max and min: of two tensors, of all elements, or along an axis with the places."""

    def lower(call: Call) -> list[int]:
        value = int(call["self"])
        if "other" in call.arguments:
            return [call.op({"amax": "maximum", "amin": "minimum"}[name], value, call["other"])]
        axes = axes_of(call.get("dim"), len(call.shape_of(value)))
        keep = call.get("keepdim", False)
        found = reduced(call, name, value, axes, keep)
        if "dim" not in call.arguments:
            return [found]
        return [found, reduced(call, place, value, axes, keep, "int64")]

    return lower


def _place(name: str) -> Lowering:
    def lower(call: Call) -> list[int]:
        value, dim = int(call["self"]), call.get("dim")
        if dim is None:
            value, dim = call.reshaped(value, (math.prod(call.shape_of(value)),)), 0
        axes = axes_of(dim, len(call.shape_of(value)))
        found = reduced(call, name, value, axes, call.get("keepdim", False))
        return [call.reshaped(found, call.shape)]

    return lower


def _running(name: str, place: str | None = None) -> Lowering:
    def lower(call: Call) -> list[int]:
        value = call.cast(call["self"], call.dtype)
        rank = len(call.shape_of(value))
        if rank == 0:
            raise Declined("one number")
        found = call.op(name, value, axis=call["dim"] % rank)
        if place is None:
            return [found]
        return [found, call.op(place, value, axis=call["dim"] % rank, dtype="int64")]

    return lower


def _log_softmax(call: Call) -> list[int]:
    value = call.cast(call["self"], call.dtype)
    return [call.op("log_softmax", value, axes=axes_of(call["dim"], len(call.shape)))]


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
    params = {"axis": call.get("dim", -1) % rank, "falling": bool(call.get("largest", True))}
    return list(call.graph.add("topk", (value,), params, call.kinds, call.source))


def _softplus(call: Call) -> list[int]:
    return [call.op("softplus", call["self"], beta=float(call["beta"]), threshold=float(call["threshold"]))]


def _elu(call: Call) -> list[int]:
    params = {name: float(call.get(name, 1)) for name in ("alpha", "scale", "input_scale")}
    return [call.op("elu", call["self"], **params)]


def _celu(call: Call) -> list[int]:
    """alpha elu(u / alpha)."""
    alpha, value = float(call.get("alpha", 1)), int(call["self"])
    if not alpha > 0:
        raise Declined("alpha <= 0")
    value = value if alpha == 1 else call.op("div", value, call.number(alpha))
    found = call.op("elu", value, alpha=1.0, scale=1.0, input_scale=1.0)
    return [found if alpha == 1 else call.op("mul", found, call.number(alpha))]


def _leaky_relu(call: Call) -> list[int]:
    slope = call.get("negative_slope", 0.01)
    value = int(call["self"])
    scaled = call.op("mul", value, call.number(slope))
    return [call.op("maximum" if slope <= 1 else "minimum", value, scaled)]


def _huber(width: str) -> Lowering:
    """delta^2 huber((a - b) / delta), and the mean or the sum of it."""

    def lower(call: Call) -> list[int]:
        a, b = call.values("self", "target")
        delta = float(call.get(width, 1.0))
        if not delta > 0:
            raise Declined("a width of 0")
        difference = call.op("sub", a, b, dtype=call.dtype)
        if delta != 1:
            difference = call.op("div", difference, call.number(delta))
        found = call.op("huber", difference)
        scale = delta**2 if width == "delta" else delta
        found = found if delta == 1 else call.op("mul", found, call.number(scale))
        axes = tuple(range(len(call.shape_of(found))))
        if call.get("reduction", 1) == 1:
            return [mean_of(call, found, axes, False)]
        return [reduced(call, "sum", found, axes, False) if call["reduction"] == 2 else found]

    return lower


def _log_sigmoid(call: Call) -> list[int]:
    found = call.op("log", call.op("sigmoid", call["self"]))
    # What the operator keeps for its derivative: nothing is known of it.
    return [found, *(call.graph.add("buffer", (), {}, [kind], call.source)[0] for kind in call.kinds[1:])]


def dotted(call: Call, left: int, right: int, axes: Axes) -> int:
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
        return dotted(call, left, right, Axes((len(one) - 1,), (max(len(two) - 2, 0),)))
    if len(one) == len(two) and one[:-2] == two[:-2]:
        batch = tuple(range(len(one) - 2))
        return dotted(call, left, right, Axes((len(one) - 1,), (len(two) - 2,), batch, batch))
    raise Declined("batches that are broadcast")


def _product(left: str, right: str) -> Lowering:
    return lambda call: [product(call, call[left], call[right])]


def _added_product(start: str, left: str, right: str) -> Lowering:
    """beta start + alpha left @ right."""

    def lower(call: Call) -> list[int]:
        found, first = product(call, call[left], call[right]), int(call[start])
        alpha, beta = call.get("alpha", 1), call.get("beta", 1)
        found = found if alpha == 1 else call.op("mul", found, call.number(alpha))
        first = first if beta == 1 else call.op("mul", first, call.number(beta))
        return [call.op("add", first, found)]

    return lower


def _linear(call: Call) -> list[int]:
    left, right = int(call["input"]), int(call["weight"])
    found = dotted(call, left, right, Axes((len(call.shape_of(left)) - 1,), (len(call.shape_of(right)) - 1,)))
    return [found if call.get("bias") is None else call.op("add", found, call["bias"])]


def _outer(call: Call) -> list[int]:
    left, right = (int(call[name]) for name in ("self", "vec2"))
    return [call.op("mul", call.reshaped(left, (*call.shape_of(left), 1)), right)]


def _einsum(call: Call) -> list[int]:
    """Two factors, each letter once in each, and no letter that only one of them has and the result has not."""
    equation, tensors = call["equation"].replace(" ", ""), call["tensors"]
    given, arrow, wanted = equation.partition("->")
    terms = given.split(",")
    if not arrow or len(terms) != 2 or "." in equation or any(len(set(t)) < len(t) for t in (*terms, wanted)):
        raise Declined("another form of einsum")
    left, right = terms
    both = [letter for letter in left if letter in right]
    if any(letter not in right + wanted for letter in left) or any(
        letter not in left + wanted for letter in right
    ):
        raise Declined("a letter that is summed alone")
    batch, summed = ([c for c in both if (c in wanted) == kept] for kept in (True, False))
    axes = Axes(
        tuple(map(left.index, summed)),
        tuple(map(right.index, summed)),
        tuple(map(left.index, batch)),
        tuple(map(right.index, batch)),
    )
    found = dotted(call, *map(int, tensors), axes)
    order = batch + [c for c in left if c not in both] + [c for c in right if c not in both]
    dims = tuple(order.index(letter) for letter in wanted)
    if dims == tuple(range(len(dims))):
        return [found]
    return [call.op("permute", found, shape=call.shape, dims=dims)]


def _convolution(call: Call) -> list[int]:
    names = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")
    params = {name: tuple(v) if isinstance(v := call[name], (list, tuple)) else v for name in names}
    found = call.op("convolution", call["input"], call["weight"], shape=call.shape, **params)
    if call.get("bias") is None:
        return [found]
    width = (-1, *(1 for _ in call.shape[2:]))
    bias = call.reshaped(call["bias"], tuple(call.shape_of(call["bias"])[0] if k < 0 else k for k in width))
    return [call.op("add", found, bias)]


UNARY = (
    "exp",
    "exp2",
    "expm1",
    "log",
    "log1p",
    "sqrt",
    "tanh",
    "erf",
    "erfc",
    "atan",
    "asinh",
    "sinh",
    "cosh",
    "sin",
    "cos",
    "abs",
    "lgamma",
    "digamma",
    "sigmoid",
    "floor",
    "ceil",
    "round",
    "neg",
    "log2",
    "log10",
    "logical_not",
    "bitwise_not",
    "isfinite",
)
BINARY = (
    "maximum",
    "minimum",
    "logaddexp",
    "lt",
    "le",
    "gt",
    "ge",
    "eq",
    "ne",
    "logical_and",
    "logical_or",
    "bitwise_and",
    "bitwise_or",
)
SAME = ("contiguous", "clone", "detach", "alias", "lift_fresh", "lift_fresh_copy", "positive")

# Other names of operators, which `torch.export` keeps.
ALIASES = {
    "absolute": "abs",
    "arcsinh": "asinh",
    "arctan": "atan",
    "clip": "clamp",
    "divide": "div",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "multiply": "mul",
    "negative": "neg",
    "not_equal": "ne",
    "special_erf": "erf",
    "special_erfc": "erfc",
    "special_exp2": "exp2",
    "special_expit": "sigmoid",
    "special_expm1": "expm1",
    "special_log1p": "log1p",
    "special_log_softmax": "log_softmax",
    "special_logsumexp": "logsumexp",
    "subtract": "sub",
}

LOWERINGS: dict[str, Lowering] = {
    **{name: _one(name) for name in UNARY},
    **{name: _two(name) for name in BINARY},
    **dict.fromkeys(SAME, _same),
    **dict.fromkeys(("to", "_to_copy", "type_as"), _cast),
    **{name: _arithmetic(name) for name in ("add", "sub", "mul")},
    "sign": _one("sign"),
    "sgn": _one("sign"),
    "rsub": _reversed_sub,
    "div": _div,
    "true_divide": _div,
    "pow": _pow,
    "square": _square,
    "reciprocal": _to_power(-1.0),
    "rsqrt": _to_power(-0.5),
    "relu": _relu,
    "clamp": _clamp("min", "max"),
    "clamp_min": _clamp("min", ""),
    "clamp_max": _clamp("", "max"),
    "hardtanh": _clamp("min_val", "max_val"),
    "where": _where,
    "masked_fill": _masked_fill,
    "sum": _reduction("sum"),
    "prod": _reduction("prod"),
    "amax": _reduction("amax"),
    "amin": _reduction("amin"),
    "any": _reduction("any"),
    "all": _reduction("all"),
    "logsumexp": _reduction("logsumexp"),
    "mean": _mean,
    "var": _variance(False),
    "std": _variance(True),
    "linalg_vector_norm": _norm,
    "max": _extreme("amax", "argmax"),
    "min": _extreme("amin", "argmin"),
    "argmax": _place("argmax"),
    "argmin": _place("argmin"),
    "cumsum": _running("cumsum"),
    "cumprod": _running("cumprod"),
    "logcumsumexp": _running("logcumsumexp"),
    "cummax": _running("cummax", "argcummax"),
    "cummin": _running("cummin", "argcummin"),
    "log_softmax": _log_softmax,
    "_log_softmax": _log_softmax,
    "log_sigmoid": _log_sigmoid,
    "log_sigmoid_forward": _log_sigmoid,
    "sort": _sort,
    "topk": _topk,
    "softplus": _softplus,
    "elu": _elu,
    "celu": _celu,
    "leaky_relu": _leaky_relu,
    "huber_loss": _huber("delta"),
    "smooth_l1_loss": _huber("beta"),
    "mm": _product("self", "mat2"),
    "bmm": _product("self", "mat2"),
    "mv": _product("self", "vec"),
    "dot": _product("self", "tensor"),
    "matmul": _product("self", "other"),
    "addmm": _added_product("self", "mat1", "mat2"),
    "baddbmm": _added_product("self", "batch1", "batch2"),
    "addmv": _added_product("self", "mat", "vec"),
    "linear": _linear,
    "outer": _outer,
    "einsum": _einsum,
    "convolution": _convolution,
}

LOWERINGS |= {alias: LOWERINGS[name] for alias, name in ALIASES.items()}
