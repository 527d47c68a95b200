"""Functions whose bodies do not compose, recognised in a program by what it computes, never by a name.

Each is traced afresh at the shapes that the program has, and compared with it operation by operation (`graph.match`).
Those of our models are written out here and not imported: a fault in a model must not become a fault in its proof.
What PyTorch has as one operator, such as softplus, log-sum-exp and log-softmax, has a rule of its own (`rules.py`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from convexmoe.convexity import calculus, scalars
from convexmoe.convexity.facts import Value, known
from convexmoe.convexity.graph import Graph, Operation, match
from convexmoe.convexity.walk import Found

from .lowering.elementwise import Kind
from .order import stacked
from .trace import trace_reference

DEPTH = 14  # operations between the end of an atom and the reduction that tells its shapes


class Reference(NamedTuple):
    """A function to compare with, at given shapes.

    Args:
        name: of the atom.
        law: the name of its sentence.
        function: to be traced.
        kinds: shapes and dtypes of its arguments.
        apply: what is known of it, from what is known of its arguments.
    """

    name: str
    law: str
    function: Callable[..., Tensor]
    kinds: tuple[Kind, ...]
    apply: Callable[[list[Value]], Value]


def recognise(graph: Graph, operation: Operation, number: int) -> Iterator[Found]:
    """Yield the atoms that compute a value."""
    if not graph.dtypes[number].startswith(("float", "bfloat")):
        return
    for candidates in CANDIDATES.get(operation.name, ()):
        for reference in candidates(graph, number):
            given = match(_traced(reference.function, reference.kinds), graph, number)
            if given is not None:
                yield Found(reference.name, reference.law, tuple(given), reference.apply)


@lru_cache(maxsize=4096)
def _traced(function: Callable[..., Tensor], kinds: tuple[Kind, ...]) -> Graph:
    return trace_reference(function, *kinds)


# Elementwise atoms: function, how it is known, and which arguments may be scalars.


def _log_add(a: Tensor, b: Tensor) -> Tensor:
    top = torch.maximum(a, b)
    return top + torch.log1p(torch.exp(-torch.abs(a - b)))


def _relu(u: Tensor) -> Tensor:
    return torch.where(u > 0, u, 0.0)


def _relu_with_equality(u: Tensor) -> Tensor:
    return torch.where(u >= 0, u, 0.0)


def _huber_relu(u: Tensor) -> Tensor:
    bent = torch.relu(torch.clamp(u, max=1.0) + 1.0)
    return torch.where(u < 1.0, bent * bent * 0.25, u)


def _elu(u: Tensor) -> Tensor:
    return torch.where(u > 0, u, torch.expm1(torch.where(u > 0, 0.0, u)))


def _elu_with_overflow(u: Tensor) -> Tensor:
    return torch.where(u > 0, u, torch.expm1(u))


def _softplus_by_log1p(u: Tensor) -> Tensor:
    return torch.relu(u) + torch.log1p(torch.exp(-torch.abs(u)))


def _of_one(name: str) -> Callable[[list[Value]], Value]:
    return lambda values: scalars.apply(name, values[0])


def _two(values: list[Value]) -> Value:
    shape = np.broadcast_shapes(*(value.shape for value in values))
    return calculus.log_sum_exp(stacked([value.broadcast(shape) for value in values]), (0,))


def _with_zero(values: list[Value]) -> Value:
    return _two([values[0], known(np.zeros(values[0].shape))])


def _maximum_with_zero(values: list[Value]) -> Value:
    return calculus.maximum(values[0], known(np.zeros(values[0].shape)))


ELEMENTWISE: tuple[tuple[str, str, Callable[..., Tensor], Callable[[list[Value]], Value]], ...] = (
    ("huber_relu", "scalar", _huber_relu, _of_one("huber_relu")),
    ("elu", "scalar", _elu, _of_one("elu")),
    ("elu", "scalar", _elu_with_overflow, _of_one("elu")),
    ("relu", "maximum", _relu, _maximum_with_zero),
    ("relu", "maximum", _relu_with_equality, _maximum_with_zero),
    ("softplus", "log_sum_exp", _softplus_by_log1p, _with_zero),
)


def _elementwise(graph: Graph, number: int) -> Iterable[Reference]:
    kind = graph.shapes[number], graph.dtypes[number]
    for name, law, function, apply in ELEMENTWISE:
        yield Reference(name, law, function, (kind,), apply)
    scalar = (), graph.dtypes[number]
    for kinds in dict.fromkeys([(kind, kind), (kind, scalar), (scalar, kind)]):
        yield Reference("logaddexp", "log_sum_exp", _log_add, kinds, _two)


# Atoms over axes: where they sum is read off the reduction in the program.


def _reductions(graph: Graph, number: int) -> list[Operation]:
    """Return the sums within `DEPTH` operations before a value."""
    found: dict[int, Operation] = {}
    layer = {number}
    for _ in range(DEPTH):
        makers = {id(graph.makers[value]): graph.makers[value] for value in layer if value in graph.makers}
        found |= {key: maker for key, maker in makers.items() if maker.name == "sum"}
        layer = {value for maker in makers.values() for value in maker.inputs}
    return list(found.values())


@lru_cache(maxsize=256)
def _log_sum_exp_forms(axes: tuple[int, ...], keep: bool) -> tuple[Callable[[Tensor], Tensor], ...]:
    """Return ways of writing log sum exp over axes; they differ by the order of the last sum."""

    def log(a: Tensor, top: Tensor) -> Tensor:
        return torch.log(torch.sum(torch.exp(a - top), dim=axes, keepdim=keep))

    def top_first(a: Tensor) -> Tensor:
        top = torch.amax(a, dim=axes, keepdim=True)
        return (top if keep else torch.squeeze(top, axes)) + log(a, top)

    def sum_first(a: Tensor) -> Tensor:
        top = torch.amax(a, dim=axes, keepdim=True)
        return log(a, top) + (top if keep else torch.squeeze(top, axes))

    return top_first, sum_first


@lru_cache(maxsize=256)
def _log_sum_exp_of_all() -> tuple[Callable[[Tensor], Tensor], ...]:
    """Return ways of writing log sum exp over all elements, with a shift that is one number."""

    def top_first(a: Tensor) -> Tensor:
        top = torch.max(a)
        return top + torch.log(torch.sum(torch.exp(a - top)))

    def sum_first(a: Tensor) -> Tensor:
        top = torch.max(a)
        return torch.log(torch.sum(torch.exp(a - top))) + top

    return top_first, sum_first


def _log_sum_exps(graph: Graph, number: int) -> Iterable[Reference]:
    for reduction in _reductions(graph, number):
        given, axes = reduction.inputs[0], tuple(reduction.params["axes"])
        kind = graph.shapes[given], graph.dtypes[number]
        kept = tuple(1 if axis in axes else size for axis, size in enumerate(kind[0]))
        shape = graph.shapes[number]
        summed = tuple(size for axis, size in enumerate(kind[0]) if axis not in axes)
        if shape not in (kept, summed) or not axes:
            continue

        def apply(values: list[Value], axes: tuple[int, ...] = axes, shape: tuple[int, ...] = shape) -> Value:
            return calculus.log_sum_exp(values[0], axes).reshape(*shape)

        forms = _log_sum_exp_forms(axes, shape != summed)
        for form in forms if len(axes) < len(kind[0]) else (*forms, *_log_sum_exp_of_all()):
            yield Reference("logsumexp", "log_sum_exp", form, (kind,), apply)


@lru_cache(maxsize=256)
def _log_softmax_forms(axes: tuple[int, ...]) -> tuple[Callable[[Tensor], Tensor], ...]:
    """Return ways of writing log-softmax over axes."""

    def shifted(a: Tensor) -> Tensor:
        centred = a - torch.amax(a, dim=axes, keepdim=True)
        return centred - torch.log(torch.sum(torch.exp(centred), dim=axes, keepdim=True))

    return (shifted,)


def _log_softmaxes(graph: Graph, number: int) -> Iterable[Reference]:
    for reduction in _reductions(graph, number):
        axes = tuple(reduction.params["axes"])
        if graph.shapes[reduction.inputs[0]] == graph.shapes[number] and axes:
            kind = graph.shapes[number], graph.dtypes[number]

            def apply(values: list[Value], axes: tuple[int, ...] = axes) -> Value:
                return calculus.log_softmax(values[0], axes)

            for form in _log_softmax_forms(axes):
                yield Reference("log_softmax", "log_softmax", form, (kind,), apply)


def _smooth_maximum(g: Tensor, temperature: Tensor | float) -> Tensor:
    """T log mean exp(g / T) over the last axis but one; above T = 16 by way of expm1 and log1p."""
    wide = g.to(torch.promote_types(g.dtype, torch.float32))
    T = temperature.to(wide.dtype) if isinstance(temperature, Tensor) else temperature
    top = torch.amax(wide, dim=-2, keepdim=True)
    u = (wide - top) / T

    def steep() -> Tensor:
        return torch.log(torch.sum(torch.exp(u), dim=-2)) - math.log(u.shape[-2])

    def flat() -> Tensor:
        return torch.log1p(torch.mean(torch.expm1(u), dim=-2))

    if isinstance(temperature, float):
        mean = flat() if temperature > 16.0 else steep()
    else:
        mean = torch.where(temperature > 16.0, flat(), steep())
    return (top.squeeze(-2) + T * mean).to(g.dtype)


@lru_cache(maxsize=256)
def _smooth_form(temperature: float) -> Callable[[Tensor], Tensor]:
    """Return our smooth maximum at a temperature that is a literal of the program."""
    return lambda g: _smooth_maximum(g, temperature)


def _smooth_maxima(graph: Graph, number: int) -> Iterable[Reference]:
    """The fusion of a hull: its temperature is a value of the program, or a literal by which it divides."""
    for reduction in _reductions(graph, number):
        shape, axes = graph.shapes[reduction.inputs[0]], tuple(reduction.params["axes"])
        if len(shape) < 2 or axes != (len(shape) - 2,):
            continue
        dtype = graph.dtypes[number]
        [axis] = axes

        def learned(values: list[Value], axis: int = axis) -> Value:
            return calculus.smooth_maximum(values[0], values[1], axis)

        def given(values: list[Value], axis: int = axis, literal: float = 1.0) -> Value:
            return calculus.smooth_maximum(values[0], known(literal), axis)

        name = "smooth_maximum"
        wide = str(torch.promote_types(getattr(torch, dtype), torch.float32)).removeprefix("torch.")
        for kind in itertools.product(((), (shape[-1],)), dict.fromkeys((dtype, wide))):
            yield Reference(name, name, _smooth_maximum, ((shape, dtype), kind), learned)
        for literal in _divisors(graph, reduction):
            apply = partial(given, literal=literal)
            yield Reference(name, name, _smooth_form(literal), ((shape, dtype),), apply)


def _divisors(graph: Graph, reduction: Operation) -> list[float]:
    """Return the literals by which values are divided just before a reduction."""
    found = []
    for value in graph.before(reduction.inputs[0]):
        maker = graph.makers.get(value)
        if maker is not None and maker.name == "div":
            array = graph.array(maker.inputs[1])
            if array is not None and array.shape == () and array.dtype.kind == "f":
                found.append(float(array))
    return list(dict.fromkeys(found))[:4]


# The last operation of an atom -> what it may be.
CANDIDATES: dict[str, tuple[Callable[[Graph, int], Iterable[Reference]], ...]] = {
    "where": (_elementwise,),
    "add": (_elementwise, _log_sum_exps, _smooth_maxima),
    "sub": (_log_softmaxes,),
    "to": (_smooth_maxima,),
}
