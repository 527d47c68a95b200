"""Functions whose bodies do not compose, recognized in a program by what it computes, never by a name.

Each is traced afresh at the shapes that the program has, and compared with it operation by operation (`graph.match`).
A package writes them out (`Forms`) and does not import those of our models: a fault in a model must not become a fault
in its proof.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from . import calculus, order
from .facts import Value, literal
from .graph import Graph, Operation, match
from .products import recognize_products, relative_entropy
from .walk import Atom

DEPTH = 14  # operations between the end of an atom and the reduction that tells its shapes

Kind = tuple[tuple[int, ...], str]
Apply = Callable[[list[Value]], Value]
Function = Callable[..., Any]


@dataclass(frozen=True)
class Forms:
    """The atoms as one package writes them.

    Args:
        trace: (function, kinds of its arguments) -> its graph.
        sum: the name of the operation that sums over axes.
        elementwise: functions of one array, each as name, law, function, and what is known of it.
        pairs: functions of two arrays, as `elementwise`.
        smooth_maximum: T log mean exp(g / T) over the last axis but one, of g and T, a value or a literal.
    """

    trace: Callable[[Function, tuple[Kind, ...]], Graph]
    sum: str
    elementwise: tuple[tuple[str, str, Function, Apply], ...]
    pairs: tuple[tuple[str, str, Function, Apply], ...]
    smooth_maximum: Function


Family = Callable[[Forms, Graph, int], Iterable[Atom]]


def recognize_atoms(
    forms: Forms, families: Mapping[str, tuple[Family, ...]], graph: Graph, operation: Operation, number: int
) -> Iterator[tuple[Atom, list[int]]]:
    """Yield the atoms that compute a value, each with the values it is applied to.

    Args:
        forms: the atoms as a package writes them.
        families: the last operation of an atom -> what it may be.
        graph: the program.
        operation: that gives the value.
        number: of the value.
    """
    if not graph.dtypes[number].startswith(("float", "bfloat")):
        return
    yield from recognize_products(graph, number)
    for family in families.get(operation.name, ()):
        for atom in family(forms, graph, number):
            arguments = match(forms.trace(atom.function, atom.kinds), graph, number)
            if arguments is not None:
                yield atom, arguments


# What is known of atoms, from what is known of their arguments.


def as_softplus(values: list[Value]) -> Value:
    """Return what is known of log(1 + exp(u))."""
    return order.softplus(values[0])


def as_log_add(values: list[Value]) -> Value:
    """Return what is known of log(exp(a) + exp(b))."""
    return order.log_add(*values)


def as_relative_entropy(values: list[Value]) -> Value:
    """Return what is known of u log(u / v), and of u log u, which are 0 where u is."""
    return relative_entropy(*values)


# Families of references; where those over axes sum is read off the reduction in the program.


def elementwise_atoms(forms: Forms, graph: Graph, number: int) -> Iterable[Atom]:
    """Yield the functions of one array, and of two."""
    kind = graph.shapes[number], graph.dtypes[number]
    for name, law, function, apply in forms.elementwise:
        yield Atom(name, law, function, (kind,), apply)
    scalar = (), graph.dtypes[number]
    for kinds in dict.fromkeys([(kind, kind), (kind, scalar), (scalar, kind)]):
        for name, law, function, apply in forms.pairs:
            yield Atom(name, law, function, kinds, apply)


def _sums_behind(forms: Forms, graph: Graph, number: int) -> list[Operation]:
    """Return the sums within `DEPTH` operations before a value."""
    sums: dict[int, Operation] = {}
    layer = {number}
    for _ in range(DEPTH):
        makers = {id(graph.makers[value]): graph.makers[value] for value in layer if value in graph.makers}
        sums |= {key: maker for key, maker in makers.items() if maker.name == forms.sum}
        layer = {value for maker in makers.values() for value in maker.inputs}
    return list(sums.values())


@lru_cache(maxsize=256)
def _with_temperature(smooth_maximum: Function, temperature: float) -> Function:
    """Return the smooth maximum at a literal temperature; the same function again, so that it is traced once."""
    return lambda g: smooth_maximum(g, temperature)


def smooth_maxima(forms: Forms, graph: Graph, number: int) -> Iterable[Atom]:
    """Yield the fusion of a hull: its temperature is a value of the program, or a literal by which it divides."""
    name, dtype = "smooth_maximum", graph.dtypes[number]
    wide = "float64" if dtype == "float64" else "float32"  # in which it is computed
    for reduction in _sums_behind(forms, graph, number):
        shape, axes = graph.shapes[reduction.inputs[0]], tuple(reduction.params["axes"])
        if len(shape) < 2 or axes != (len(shape) - 2,):
            continue

        def apply(values: list[Value], axis: int = axes[0], temperature: float | None = None) -> Value:
            T = values[1] if temperature is None else literal(temperature)
            return calculus.smooth_maximum(values[0], T, axis)

        for kind in itertools.product(((), (shape[-1],)), dict.fromkeys((dtype, wide))):
            yield Atom(name, name, forms.smooth_maximum, ((shape, dtype), kind), apply)
        for T in _divisors(graph, reduction):
            form = _with_temperature(forms.smooth_maximum, T)
            yield Atom(name, name, form, ((shape, dtype),), partial(apply, temperature=T))


def _divisors(graph: Graph, reduction: Operation) -> list[float]:
    """Return the literals by which values are divided just before a reduction."""
    divisors = []
    for value in graph.before(reduction.inputs[0]):
        if value in graph.makers and graph.makers[value].name == "div":
            array = graph.array(graph.makers[value].inputs[1])
            if array is not None and array.shape == () and array.dtype.kind == "f":
                divisors.append(float(array))
    return list(dict.fromkeys(divisors))[:4]
