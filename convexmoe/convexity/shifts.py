"""Log-sum-exp with a shift, however it is written: log sum b exp(a - m) + m is the same for every m.

What depends on m is followed from m to the value: it has k m as a term, or exp(k m) as a factor. Where neither is left
at the end the value is that for m = 0, of which the rules know the curvature.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .facts import REAL, Array, Value, literal
from .graph import Operation

if TYPE_CHECKING:
    from .walk import Walk

FLOATS = ("float", "bfloat")
DEPTH = 16  # operations between the end and the difference with the shift
SUMS, LARGEST = ("reduce_sum", "sum"), ("reduce_max", "amax")


class Tie(NamedTuple):
    """How a value depends on the shift m.

    Args:
        is_factor: exp(degree m) is a factor; else degree m is a term.
        degree: 0 for a value that does not depend on m.
        at: the place in m for each element, counted from 1; of the shape of the value.
    """

    is_factor: bool
    degree: Fraction
    at: Array


class Untied(Exception):
    """A value depends on the shift in another way."""


def recognize_shift(walk: Walk, number: int) -> Value | None:
    """Return what is known of a value that a shift leaves as it is; None for others."""
    graph = walk.graph
    for shift in _shifts(walk, number):
        places = 1 + np.arange(walk.values[shift].facts.size).reshape(graph.shapes[shift])
        ties, between = {shift: Tie(False, Fraction(1), places)}, graph.before(number, shift.__eq__)
        try:
            for operation in graph.operations:
                if between.intersection(operation.outputs) - {shift} and any(k in ties for k in operation.inputs):
                    ties |= dict.fromkeys(operation.outputs, _tie(walk, operation, ties))
        except Untied:
            continue
        if number in ties and ties[number].degree == 0:
            given = {k: value for k, value in walk.values.items() if k not in ties}
            given[shift] = literal(np.zeros(graph.shapes[shift]))
            value = walk.evaluate_again(number, given, in_pieces=False)
            if (value.curved & ~walk.values[number].curved).any():
                return value
    return None


def _shifts(walk: Walk, number: int) -> Iterator[int]:
    """Yield the terms of sums and differences before a value, as far as the next with a curvature."""
    makers, seen, layer = walk.graph.makers, dict[int, Operation](), {number}
    for _ in range(DEPTH):
        new = {k: makers[k] for k in layer - seen.keys() if k in makers}
        seen |= new
        layer = {k for maker in new.values() for k in maker.inputs if not walk.values[k].curved.all()}
    if {"log", "exp"} <= {made.name for made in seen.values()}:
        seen |= {k: makers[k] for made in seen.values() for k in made.inputs if k in makers}
        terms = (k for made in seen.values() if made.name in ("add", "sub") for k in made.inputs)
        for shift in dict.fromkeys(source_of(walk, k, ("neg",)) for k in terms):
            if walk.values[shift].has(REAL).all() and not walk.values[shift].constant.all():
                yield shift


def source_of(walk: Walk, number: int, names: tuple[str, ...] = ()) -> int:
    """Return the value of which another is a copy in another shape, or what operations of some names change."""
    made = walk.graph.makers.get(number)
    if made is None or not (made.name in names or _is_copy(walk, made)):
        return number
    return source_of(walk, made.inputs[0], names)


def _is_copy(walk: Walk, operation: Operation) -> bool:
    """Return whether an operation gives all elements of what it takes, and no others."""
    numbers = (*operation.inputs, *operation.outputs)
    floats = all(walk.graph.dtypes[k].startswith(FLOATS) for k in numbers)
    if len(numbers) != 2 or not floats or law_of(walk, operation) not in ("moved", "same"):
        return False
    places = 1 + np.arange(walk.values[numbers[0]].facts.size).reshape(walk.graph.shapes[numbers[0]])
    [moved] = walk.rules[operation.name].apply(walk, operation, [literal(places)])
    return bool(moved.known.all()) and np.array_equal(np.unique(moved.lower), places.reshape(-1))


def law_of(walk: Walk, operation: Operation) -> str:
    """Return the name of the law of an operation, "" for one without a rule."""
    return walk.rules[operation.name].law if operation.name in walk.rules else ""


def _tie(walk: Walk, operation: Operation, ties: dict[int, Tie]) -> Tie:
    """Return how the result of an operation depends on the shift."""
    name, shape = operation.name, walk.graph.shapes[operation.outputs[0]]
    given = [ties.get(k, Tie(False, Fraction(0), np.zeros(walk.graph.shapes[k], int))) for k in operation.inputs]
    tied = [tie for tie in given if tie.degree]
    if not tied:
        return Tie(False, Fraction(0), np.zeros(shape, int))
    first = tied[0]
    if len(operation.outputs) > 1 or not walk.graph.dtypes[operation.outputs[0]].startswith(FLOATS):
        raise Untied
    if law_of(walk, operation) in ("moved", "same"):
        return first._replace(at=_move(walk, operation, given))
    if name in (*SUMS, *LARGEST):  # over elements with the same place in the shift
        axes = operation.params["axes"]
        most, many = first.at.max(axis=axes, initial=0), name in SUMS and not first.is_factor
        if (first.at.min(axis=axes, initial=2**62) != most).any() or (name in LARGEST and first.is_factor):
            raise Untied
        return first._replace(degree=first.degree * (first.at.size // max(most.size, 1) if many else 1), at=most)
    if name in ("dot", "dot_general") and len(tied) == 1 and first.is_factor and (first.at == first.at.flat[0]).all():
        return first._replace(at=np.full(shape, first.at.flat[0]))
    places = np.broadcast_arrays(*(tie.at for tie in tied))
    if len({tie.is_factor for tie in tied}) > 1 or any((at != places[0]).any() for at in places):
        raise Untied
    return Tie(*_degree(walk, operation, given, first.is_factor), np.broadcast_to(places[0], shape))


def _move(walk: Walk, operation: Operation, given: list[Tie]) -> Array:
    """Return the places in the shift of elements that are moved, all of one value, to known places."""
    whole = all(walk.graph.dtypes[k].startswith(("int", "uint")) for k in operation.inputs[1:])
    if not (given[0].degree and whole) or any(tie.degree for tie in given[1:]):
        raise Untied
    inputs = [literal(given[0].at), *(walk.values[k] for k in operation.inputs[1:])]
    [moved] = walk.rules[operation.name].apply(walk, operation, inputs)
    if not (moved.known & (moved.lower > 0)).all():
        raise Untied
    return moved.lower.astype(int)


def _degree(walk: Walk, operation: Operation, given: list[Tie], is_factor: bool) -> tuple[bool, Fraction]:
    """Return the kind of the tie of the result of an elementwise operation, and its degree."""
    name, degrees, values = operation.name, [tie.degree for tie in given], [walk.values[k] for k in operation.inputs]
    sign = -1 if name in ("sub", "div") else 1
    if name in (("mul", "div") if is_factor else ("add", "add_any", "sub")):
        return is_factor, degrees[0] + sign * degrees[1]
    if name == "neg":
        return is_factor, degrees[0] * (1 if is_factor else -1)
    if name == ("log" if is_factor else "exp"):
        return not is_factor, degrees[0]
    if name in ("abs", "sign") and is_factor:  # exp is positive
        return True, degrees[0] * (name == "abs")
    if name in ("mul", "div") and 0 in degrees:
        factor = values[degrees.index(Fraction(0))]
        number = factor.lower.flat[0]
        if (factor.known & (factor.lower == number)).all() and number != 0 and (name == "mul" or not degrees[1]):
            return False, sum(degrees, Fraction(0)) * Fraction(float(number)) ** sign
    if name in ("select_n", "where") and not degrees[0]:
        cases = zip(values[1:], degrees[1:], strict=True)
        alike = {degree for value, degree in cases if degree or not (is_factor and value.zero.all())}
        if len(alike) == 1:
            return is_factor, alike.pop()
    raise Untied
