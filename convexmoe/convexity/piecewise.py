"""Functions of one number that are written in pieces: leaky relu, elu, Huber, a choice by where the number lies.

Between two neighboring kinks every comparison has one outcome and every maximum one argument, so that the rules see a
program without choices. Values and slopes at the kinks are rational numbers, or expressions that can be compared for
equality alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import facts, scalars
from .facts import Value, compact
from .graph import Operation
from .intervals import round_fraction

if TYPE_CHECKING:
    from .walk import Walk

LARGEST_CHAIN, LARGEST_PIECES, LARGEST_KINDS = 60, 32, 64
LARGEST_NUMBER = 4096  # bits of a rational number; powers of powers have no end

Number = Any  # a `Fraction`, or a tuple: an expression
ZERO, ONE, HALF, QUARTER = Fraction(0), Fraction(1), Fraction(1, 2), Fraction(1, 4)
BENT = ("bent",)


class Jet(NamedTuple):
    """A value at a point, its slope there, and its second derivative."""

    value: Number
    slope: Number = Fraction(0)
    bend: Number = Fraction(0)


class Undecided(Exception):
    """A value, a slope or an order that is not known."""


def _rational(number: Number) -> Fraction:
    if not isinstance(number, Fraction):
        raise Undecided
    return number


def _short(number: Fraction) -> Fraction:
    if number.numerator.bit_length() + number.denominator.bit_length() > LARGEST_NUMBER:
        raise Undecided
    return number


def _plus(a: Number, b: Number) -> Number:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return _short(a + b)
    return b if a == 0 else a if b == 0 else ("+", a, b)


def _times(a: Number, b: Number) -> Number:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return _short(a * b)
    return Fraction(0) if 0 in (a, b) else b if a == 1 else a if b == 1 else ("*", a, b)


def _add(a: Jet, b: Jet, sign: int = 1) -> Jet:
    return Jet(*(_plus(x, _times(Fraction(sign), y)) for x, y in zip(a, b, strict=True)))


def _multiply(a: Jet, b: Jet) -> Jet:
    slope = _plus(_times(a.slope, b.value), _times(a.value, b.slope))
    bends = _plus(_times(a.bend, b.value), _times(a.value, b.bend))
    return Jet(_times(a.value, b.value), slope, _plus(bends, _times(Fraction(2), _times(a.slope, b.slope))))


def _power(base: Jet, exponent: Fraction) -> Jet:
    """base ** exponent; from the right at 0."""
    at, whole = _rational(base.value), exponent.denominator == 1 and abs(exponent) <= 16
    if exponent == 2:
        return _multiply(base, base)
    if at == 0 and exponent > 1:
        return Jet(ZERO, ZERO, BENT)
    if exponent == 1 or not (at > 0 or (whole and at < 0)):
        return base if exponent == 1 else _undecided()
    value, steep = (_short(at ** int(p)) if whole or at == 1 else ("power", at, p) for p in (exponent, exponent - 1))
    bend = ZERO if base.slope == base.bend == 0 else BENT
    return Jet(value, _times(_times(exponent, steep), base.slope), bend)


def _undecided(*_: Any) -> Any:
    raise Undecided


def _logarithm(u: Jet, shift: int = 0) -> Jet:
    at = _rational(_plus(u.value, Fraction(shift)))
    if at <= 0:
        raise Undecided
    return Jet(("log", at) if at != 1 else ZERO, _times(1 / at, u.slope), BENT)


def _smooth(name: Any, value: Number, slope: Number) -> Callable[[Jet], Jet]:
    """Return the jet of a smooth function from its value and its slope at 0."""

    def function(u: Jet) -> Jet:
        at = Jet(value, slope) if u.value == 0 else Jet((name, u.value), ("slope", name, u.value))
        return Jet(at.value, _times(at.slope, u.slope), BENT)

    return function


SMOOTH: dict[str, Callable[..., Jet]] = {
    **dict.fromkeys(("add", "add_any"), _add),
    **dict.fromkeys(("convert_element_type", "to", "copy"), lambda a: a),
    "sub": lambda a, b: _add(a, b, -1),
    "neg": lambda a: _add(Jet(Fraction(0)), a, -1),
    "mul": _multiply,
    "div": lambda a, b: _multiply(a, _power(b, Fraction(-1))),
    "square": lambda a: _power(a, Fraction(2)),
    "pow": lambda a, b: _power(a, _rational(b.value)) if b.slope == 0 else _undecided(),
    "sqrt": lambda a: _power(a, HALF),
    "log": _logarithm,
    "log1p": lambda a: _logarithm(a, 1),
    **{name: _smooth(name, ZERO, ONE) for name in ("expm1", "tanh", "sinh", "asinh", "atan", "sin")},
    **{name: _smooth(name, HALF, QUARTER) for name in ("logistic", "sigmoid")},
    **{name: _smooth(name, ONE, slope) for name, slope in (("exp", ONE), ("cosh", ZERO), ("cos", ZERO))},
}
# What chooses by the sign of a difference d, or of the value itself.
CHOICES: dict[str, Callable[..., int]] = {
    "lt": lambda d: d < 0,
    "le": lambda d: d <= 0,
    "gt": lambda d: d > 0,
    "ge": lambda d: d >= 0,
    "eq": lambda d: d == 0,
    "ne": lambda d: d != 0,
    **dict.fromkeys(("max", "maximum", "abs"), lambda d: d < 0),
    **dict.fromkeys(("min", "minimum"), lambda d: d > 0),
    "sign": lambda d: (d > 0) - (d < 0),
}
FLOATS, OF_INTEGERS = ("float", "bfloat"), ("add", "sub", "mul", "neg", "convert_element_type", "to")
EXTREMES = ("max", "maximum", "min", "minimum")
LOGIC: dict[str, Callable[..., Fraction]] = {
    **dict.fromkeys(("and", "logical_and", "bitwise_and"), min),
    **dict.fromkeys(("or", "logical_or", "bitwise_or"), max),
    **dict.fromkeys(("not", "logical_not", "bitwise_not"), lambda a: 1 - a),
}


class Kink(Exception):
    """A choice has another outcome on the two sides of a number."""


class Piece(NamedTuple):
    """An interval on which every choice has one outcome.

    Args:
        high: its upper end.
        choices: the outcomes, by the number of the value.
        value: what is known of the result.
    """

    high: Number
    choices: dict[int, int]
    value: Value


class Chain(NamedTuple):
    """A value as a function of one other value, element by element.

    Args:
        walk: that has come to the value.
        source: the number of the other value.
        operations: between the two, in their order.
        constants: what they take else: a number for each, or what is known of it.
    """

    walk: Walk
    source: int
    operations: list[Operation]
    constants: dict[int, Fraction | Value]

    def pieces(self, low: Number, high: Number, most: int = LARGEST_PIECES) -> list[Piece]:
        """Return the pieces between two numbers, in their order."""
        try:
            return [self._piece(low, high)]
        except Kink as kink:
            if most == 1:
                raise Undecided from None
            first = self.pieces(low, kink.args[0], most - 1)
            return first + self.pieces(kink.args[0], high, most - len(first))

    def _piece(self, low: Number, high: Number) -> Piece:
        """Return an interval as one piece, or raise one of its kinks."""
        graph, at = self.walk.graph, _inside(low, high)
        part = type(self.walk)(graph, self.walk.rules, in_pieces=False)
        jets, choices = self._start(at), {}

        def straighten(number: int) -> None:
            """Put in the exact bounds of an affine value."""
            value, slope, _ = jets[number]
            lower, upper = sorted(value if slope == 0 else value + slope * (end - at) for end in (low, high))
            claim = facts.REAL | facts.AFFINE | (slope >= 0) * facts.RISING | (slope <= 0) * facts.FALLING
            bounds = round_fraction(lower, -inf), round_fraction(upper, inf)
            part.values[number] = facts.uniform(graph.shapes[number], claim, *bounds)

        for number in jets:
            constant = self.constants.get(number)
            if isinstance(constant, Value):
                part.values[number] = constant.broadcast(graph.shapes[number])
            else:
                straighten(number)
        for operation in self.operations:
            part.step(operation)
            name, [number], inputs = operation.name, operation.outputs, operation.inputs
            if name in CHOICES:
                straight = all(part.values[k].affine.all() for k in inputs)
                if straight or (len(inputs) == 2 and inputs[0] == inputs[1]):
                    choices[number] = choice = _choose(name, _difference(operation, jets), at, low, high)
                    known = part.values[inputs[choice]] if name in EXTREMES else facts.literal(float(choice))
                    if name != "abs":
                        part.values[number] = known.broadcast(graph.shapes[number])
                elif name not in (*EXTREMES, "abs"):
                    raise Undecided
            try:
                jets[number] = self._apply(operation, jets, choices)
            except Undecided:  # no choice may depend on it
                jets[number] = Jet(BENT, BENT, BENT)
            rational, value = all(isinstance(entry, Fraction) for entry in jets[number]), part.values[number]
            if rational and value.has(facts.REAL | facts.AFFINE).all():
                straighten(number)
            elif rational and value.has(facts.REAL | facts.QUADRATIC).all():
                bent = facts.CONVEX if jets[number].bend >= 0 else facts.CONCAVE
                part.values[number] = facts.settle(value.lower, value.upper, value.facts | np.uint16(bent))
        return Piece(high, choices, part.values[number])

    def _start(self, at: Fraction) -> dict[int, Jet]:
        constants = self.constants.items()
        given = {k: Jet(("constant", k) if isinstance(known, Value) else known) for k, known in constants}
        return given | {self.source: Jet(at, ONE)}

    def at(self, point: Fraction, choices: dict[int, int] | None) -> Jet:
        """Return value and slope at a point, on the side where choices have these outcomes; None for the value."""
        jets = self._start(point)
        for operation in self.operations:
            jets[operation.outputs[0]] = self._apply(operation, jets, choices)
        return jets[operation.outputs[0]]

    def _apply(self, operation: Operation, jets: dict[int, Jet], choices: dict[int, int] | None) -> Jet:
        """Return the value and the slope that an operation gives; whole numbers that do not fit their dtype wrap."""
        jet, dtype = self._compute(operation, jets, choices), self.walk.graph.dtypes[operation.outputs[0]]
        if dtype.startswith(("int", "uint")):
            limits = np.iinfo(dtype)
            if jet.slope != 0 or not limits.min <= _rational(jet.value) <= limits.max:
                raise Undecided
        return jet

    def _compute(self, operation: Operation, jets: dict[int, Jet], choices: dict[int, int] | None) -> Jet:
        name, [number], given = operation.name, operation.outputs, [jets[k] for k in operation.inputs]
        dtype = self.walk.graph.dtypes[number]
        if name in CHOICES:
            difference = _difference(operation, jets)
            choice = (choices or {}).get(number)
            if choice is None:
                choice = int(CHOICES[name](_rational(difference.value)))
                if choices is not None and difference.value == 0 and difference.slope != 0:
                    raise Undecided
            if name in EXTREMES:
                return given[choice]
            return _add(Jet(ZERO), given[0], -1 if choice else 1) if name == "abs" else Jet(Fraction(choice))
        if name in ("select_n", "where"):
            which = int(_rational(given[0].value))
            return given[1 + which] if name == "select_n" else given[2 - which]
        if name in LOGIC and dtype == "bool":
            return Jet(LOGIC[name](*(_rational(jet.value) for jet in given)))
        if name == "integer_pow":
            return _power(given[0], Fraction(operation.params["y"]))
        if name == "softplus":
            expression = name, operation.params["beta"]
            return _smooth(expression, (expression, ZERO), HALF)(*given)
        if name in ("is_finite", "isfinite"):
            return Jet(ONE)
        of_floats = any(self.walk.graph.dtypes[k].startswith(FLOATS) for k in operation.inputs)
        if dtype.startswith(FLOATS) or (name in OF_INTEGERS and dtype != "bool" and not of_floats):
            return SMOOTH.get(name, _undecided)(*given)
        raise Undecided

    def claim(self, low: Number, high: Number) -> Value:
        """Return what is known of the value as a function of the source between two numbers, as one element."""
        pieces = self.pieces(low, high)
        every = facts.either([piece.value.map(lambda part: part.reshape(-1)[0]) for piece in pieces])
        convex = concave = True
        ends = [piece.high for piece in pieces]
        for point, before, after in zip([low, *ends], [pieces[0], *pieces], [*pieces, pieces[-1]], strict=True):
            if abs(point) == inf:
                continue
            left, right = (self.at(point, piece.choices) for piece in (before, after))
            if not left.value == right.value == self.at(point, None).value:
                raise Undecided
            if left.slope != right.slope:
                rises = _rational(left.slope) < _rational(right.slope)
                convex, concave = convex and rises, concave and not rises
        keeps = facts.REAL | facts.NONZERO | facts.CONSTANT | convex * facts.CONVEX | concave * facts.CONCAVE
        return facts.settle(every.lower, every.upper, every.facts & np.uint16(keeps))


def _inside(low: Number, high: Number) -> Fraction:
    """Return a number between two."""
    if low == -inf:
        return Fraction(0) if high == inf else high - 1
    return low + 1 if high == inf else (low + high) / 2


def _difference(operation: Operation, jets: dict[int, Jet]) -> Jet:
    """Return that of the two values that a choice compares."""
    first, *second = (jets[k] for k in operation.inputs)
    if second and operation.inputs[0] == operation.inputs[1]:
        return Jet(ZERO)
    return _add(first, second[0], -1) if second else first


def _choose(name: str, difference: Jet, at: Fraction, low: Number, high: Number) -> int:
    """Return the outcome of a choice on an interval, or raise the kink in it."""
    value, slope = map(_rational, difference[:2])
    if slope != 0 and low < at - value / slope < high:
        raise Kink(at - value / slope)
    return int(CHOICES[name](value))


def _chains(walk: Walk, number: int) -> Iterator[tuple[int, list[Operation]]]:
    """Yield the values, nearest first, of which a value is a function element by element, and the operations."""
    operations: list[Operation] = []
    moving = {number}
    while moving and len(operations) < LARGEST_CHAIN:
        latest = max(moving)
        if len(moving) == 1 and operations and walk.values[latest].curved.all():
            yield latest, operations[::-1]
        operation = walk.graph.makers.get(latest)
        if operation is None or not getattr(walk.rules.get(operation.name), "elementwise", False):
            return
        operations.append(operation)
        moving = (moving - {latest}) | {k for k in operation.inputs if not walk.values[k].constant.all()}


def recognize_pieces(walk: Walk, number: int) -> tuple[int, Value] | None:
    """Return what is known of a value in pieces, and the number of the value of which it is a function."""
    for source, operations in _chains(walk, number):
        if any(operation.name in CHOICES for operation in operations):
            value = _by_kinds(walk, number, source, operations)
            if value is not None and (value.curved & ~walk.values[number].curved).any():
                return source, value
    return None


def _by_kinds(walk: Walk, number: int, source: int, operations: list[Operation]) -> Value | None:
    """Return what is known of a value, whose elements are looked at once for each choice of the constants."""
    shape, made = walk.graph.shapes[number], {k for operation in operations for k in operation.outputs}
    constants = sorted({k for operation in operations for k in operation.inputs} - made - {source})
    known = {k: compact(walk.values[k]) for k in constants if walk.values[k].known.all()}
    unknown = {k: facts.either_over(walk.values[k].reshape(-1), (0,)).reshape() for k in constants if k not in known}
    inner = walk.values[source]
    signs = [np.where(inner.nonnegative, 0.0, -np.inf), np.where(inner.nonpositive, 0.0, np.inf)]
    columns = [*signs, *(value.lower for value in known.values())]
    if all(np.all(column == column.flat[0]) for column in columns):
        columns = [column.flat[0] for column in columns]
    table = np.stack([np.ravel(column) for column in np.broadcast_arrays(*columns)], axis=1)
    kinds, which = np.unique(table, axis=0, return_inverse=True)
    if len(kinds) > LARGEST_KINDS:
        return None
    claims = []
    for low, high, *numbers in kinds.tolist():
        chain = Chain(walk, source, operations, unknown | dict(zip(known, map(Fraction, numbers), strict=True)))
        try:
            claims.append(chain.claim(*(end if abs(end) == inf else ZERO for end in (low, high))))
        except (Undecided, OverflowError):
            claims.append(facts.nothing(()))
    function = facts.join(claims, np.stack).take(which.reshape(-1))
    function = function.reshape(*np.broadcast_shapes(*map(np.shape, columns))).broadcast(shape)
    holds = map(function.has, (facts.CONVEX, facts.CONCAVE, facts.RISING, facts.FALLING))
    inner = inner.broadcast(shape)
    claim = scalars.compose(inner, *holds) | function.facts & inner.facts & np.uint16(facts.REAL)
    return facts.settle(function.lower, function.upper, claim | function.facts & np.uint16(facts.NONZERO))
