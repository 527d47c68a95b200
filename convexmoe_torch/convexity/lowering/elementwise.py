"""Operators of ATen in terms of the few operations that have rules.

An operator that is neither here nor has a rule is written out by PyTorch's own decompositions; what remains after
that has no rule and proves nothing. Numbers are taken in the dtype in which PyTorch computes with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import numpy as np
import torch

from convexmoe.convexity import Graph, Kind, rules, scalars


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

    def __init__(self, graph: Graph, target: Any, arguments: dict[str, Any], kinds: list[Kind], source: str) -> None:
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
        given = list(self.arguments.values())
        dtypes = (getattr(torch, self.graph.dtypes[part]) for part in given if isinstance(part, Ref))
        dtype = reduce(torch.promote_types, dtypes, torch.bool)
        for part in given:
            if isinstance(part, (bool, int, float)) and not isinstance(part, Ref):
                dtype = torch.result_type(torch.empty((1,), dtype=dtype, device="meta"), part)
        return str(dtype).removeprefix("torch.")

    def value(self, given: Any, dtype: str | None = None) -> int:
        """Return the number of an argument, of a plain number too."""
        if isinstance(given, Ref):
            return int(given)
        if not isinstance(given, (bool, int, float)):
            raise Declined(f"an argument {given!r}")
        dtype = dtype or self.working_dtype()
        return self.graph.constant(np.asarray(given, {"bfloat16": "float32", "float16": "float32"}.get(dtype, dtype)))

    def values(self, *names: str) -> list[int]:
        """Return the numbers of arguments; a plain number has the dtype in which PyTorch computes."""
        dtype = self.dtype if self.dtype.startswith(("float", "bfloat")) else self.working_dtype()
        return [self.value(self[name], dtype) for name in names]

    def op(
        self, name: str, *inputs: int, shape: tuple[int, ...] | None = None, dtype: str | None = None, **params: Any
    ) -> int:
        """Add an operation; without a shape it works element by element."""
        if shape is None:
            shape = np.broadcast_shapes(*(self.shape_of(value) for value in inputs))
        return self.graph.add(name, inputs, params, [(tuple(shape), dtype or self.dtype)], self.source)[0]

    def buffers(self) -> list[int]:
        """Return the other outputs, which the operator stores for its derivative: nothing is known of them."""
        return [self.graph.add("buffer", (), {}, [kind], self.source)[0] for kind in self.kinds[1:]]

    def number(self, number: float, dtype: str | None = None) -> int:
        """Return a number as a value."""
        return self.value(number, dtype or self.dtype)

    def scaled(self, value: int, factor: float) -> int:
        """Return a value times a number."""
        return value if factor == 1 else self.op("mul", value, self.number(factor))

    def reshape(self, value: int, shape: Sequence[int]) -> int:
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


def _arithmetic(name: str, call: Call) -> list[int]:
    """Two arguments, of which one may be a number; truth values are no numbers here."""
    a, b = call.values("self", "other")
    if call.dtype == "bool":  # of truth values the sum is `or`, the product `and`
        return [call.op({"add": "logical_or", "mul": "logical_and"}[name], truth(call, a), truth(call, b))]
    made = call.graph.makers
    names = [made[k].name if k in made else "" for k in (a, b)]
    if name == "mul" and names == ["sign", "maximum"]:  # sign(u) relu(|u|), as in pools of order p, is u
        (size, bound), (given,) = made[b].inputs, made[a].inputs
        zero = call.graph.array(bound)
        if (
            size in made
            and (made[size].name, made[size].inputs) == ("abs", (given,))
            and zero is not None
            and not zero.any()
        ):
            return [given]
    return [call.op(name, a, call.scaled(b, call.get("alpha", 1)))]


def _rsub(call: Call) -> list[int]:
    a, b = call.values("self", "other")
    return [call.op("sub", b, call.scaled(a, call.get("alpha", 1)))]


def _div(call: Call) -> list[int]:
    mode, quotient = call.get("rounding_mode"), call.op("div", *call.values("self", "other"))
    if mode == "trunc":
        raise Declined("a quotient cut towards 0")
    return [call.op("floor", quotient) if mode else quotient]


def _two(name: str) -> Lowering:
    return lambda call: [call.op(name, *call.values("self", "other"))]


def _truth(name: str, call: Call) -> list[int]:
    """Of truth values, which a number is where it is not 0."""
    return [call.op(name, *(truth(call, call[key]) for key in call.arguments))]


def truth(call: Call, value: int) -> int:
    """Return where a value is not 0."""
    dtype = call.graph.dtypes[value]
    return int(value) if dtype == "bool" else call.op("ne", value, call.number(0, dtype), dtype="bool")


def _one(name: str, call: Call) -> list[int]:
    """One tensor, and nothing else."""
    if len(call.arguments) > 1:
        raise Declined("more arguments")
    return [call.op(name, call["self"])]


def _to_power(exponent: float) -> Lowering:
    return lambda call: [call.op("pow", call["self"], call.number(exponent))]


def _clamp(low: str, high: str, call: Call) -> list[int]:
    """The lower bound first: where they cross, the upper one counts."""
    value = int(call["self"])
    for name, operation in ((low, "maximum"), (high, "minimum")):
        if name and call.get(name) is not None:
            value = call.op(operation, value, call.value(call[name], call.dtype))
    return [value]


def _choose(condition: str, if_true: str, if_false: str, call: Call) -> list[int]:
    cases = (call.value(call[name], call.dtype) for name in (if_true, if_false))
    return [call.op("where", call[condition], *cases)]


def _with_numbers(operation: str, names: tuple[str, ...], call: Call) -> list[int]:
    """One tensor, and numbers that are parameters of the operation, 1 where the operator has none of the name."""
    params: dict[str, Any] = {name: float(call.get(name, 1)) for name in names}
    return [call.op(operation, call["self"], **params)]


def _elu(call: Call) -> list[int]:
    """s u above 0, s a (exp(b u) - 1) below; celu has b = 1 / a."""
    alpha, scale, value = call.get("alpha", 1), call.get("scale", 1), int(call["self"])
    is_celu = "input_scale" not in call.arguments
    if is_celu and not alpha > 0:
        raise Declined("alpha <= 0")
    inner = call.op("div", value, call.number(alpha)) if is_celu else call.scaled(value, call["input_scale"])
    below = call.scaled(call.scaled(call.op("expm1", inner), alpha), scale)
    return [choose_above(call, value, 0.0, call.scaled(value, scale), below)]


def choose_above(call: Call, value: int, number: float, above: int, below: int) -> int:
    """Add a choice by whether a value is above a number."""
    return call.op("where", call.op("gt", value, call.number(number), dtype="bool"), above, below)


def _leaky_relu(call: Call) -> list[int]:
    value = int(call["self"])
    return [choose_above(call, value, 0.0, value, call.op("mul", value, call.number(call.get("negative_slope", 0.01))))]


def _xlogy(call: Call) -> list[int]:
    """u log v, 0 where u is; of one value with itself an operation of its own."""
    a, b = call.values("self", "other")
    return [call.op("xlogx", a) if a == b else call.op("mul", a, call.op("log", b))]


def _log_sigmoid(call: Call) -> list[int]:
    return [call.op("log", call.op("sigmoid", call["self"])), *call.buffers()]


# Those of `scalars` that ATen has under the same name.
SCALAR_OPERATIONS = tuple(name for name in scalars.SCALARS if name not in ("cbrt", "logistic"))
UNARY = (*SCALAR_OPERATIONS, "sigmoid", "neg", "log2", "log10", "bitwise_not", "isfinite")
BINARY = (*rules.COMPARISONS, "maximum", "minimum", "logaddexp", "bitwise_and", "bitwise_or")
SAME = ("contiguous", "clone", "detach", "alias", "lift_fresh", "lift_fresh_copy", "positive")

ELEMENTWISE: dict[str, Lowering] = {
    **{name: partial(_one, name) for name in UNARY},
    **{name: _two(name) for name in BINARY},
    **dict.fromkeys(SAME, lambda call: [int(call["self"])]),
    **dict.fromkeys(("to", "_to_copy", "type_as"), lambda call: [call.cast(call["self"], call.dtype)]),
    **{name: partial(_arithmetic, name) for name in ("add", "sub", "mul")},
    **{name: partial(_truth, name) for name in ("logical_and", "logical_or", "logical_not")},
    "sgn": partial(_one, "sign"),
    "rsub": _rsub,
    **dict.fromkeys(("div", "true_divide"), _div),
    "pow": lambda call: [call.op("pow", *call.values("self", "exponent"))],
    "square": lambda call: [call.op("mul", call["self"], call["self"])],
    "reciprocal": _to_power(-1.0),
    "rsqrt": _to_power(-0.5),
    "relu": lambda call: [call.op("maximum", call["self"], call.number(0))],
    "clamp": partial(_clamp, "min", "max"),
    "clamp_min": partial(_clamp, "min", ""),
    "clamp_max": partial(_clamp, "", "max"),
    "hardtanh": partial(_clamp, "min_val", "max_val"),
    "where": partial(_choose, "condition", "self", "other"),
    "masked_fill": partial(_choose, "mask", "value", "self"),
    **dict.fromkeys(("log_sigmoid", "log_sigmoid_forward"), _log_sigmoid),
    "softplus": partial(_with_numbers, "softplus", ("beta", "threshold")),
    "xlogy": _xlogy,
    "special_entr": lambda call: [call.op("neg", call.op("xlogx", call["self"]))],
    **dict.fromkeys(("elu", "celu"), _elu),
    "leaky_relu": _leaky_relu,
}
