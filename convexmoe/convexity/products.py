"""Products whose curvature is that of the whole: powers of several values, and a value times logarithms."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from itertools import permutations
from typing import Any

import numpy as np

from . import calculus, facts
from .facts import CONCAVE, CONSTANT, CONVEX, REAL, ROOT_CONVEX, Array, Value
from .graph import Graph, Operation
from .walk import Atom

DEPTH = 8  # operations behind a product
RISES_FROM = 0.3679  # where u log u rises, from 1 / e on
EXPONENTS = {"mul": 1.0, "div": -1.0, "neg": 1.0, "sqrt": 0.5, "rsqrt": -0.5, "square": 2.0}  # of the last input
SIGNS = {"neg": (-1,), "add": (1, 1), "sub": (1, -1)}
MINUS = -1  # among the factors, which are values of a graph: the number -1

Power = tuple[Fraction, bool]  # an exponent, and whether it is a product of whole ones
ONE: Power = Fraction(1), True
UNIT = facts.literal(1.0)
OWN, OTHER, SHIFTED, LESS_ONE = "own", "other", "shifted", "other, of which 1 less is given"


def recognize_products(graph: Graph, number: int) -> Iterator[tuple[Atom, list[int]]]:
    """Yield what a value is as a product, each with the values it is made of."""
    factors: dict[int, Power] = {}
    for base, (power, whole) in _factors(graph, number, DEPTH):
        before = factors.get(base, (Fraction(0), True))
        factors[base] = before[0] + power, before[1] and whole
    minus, is_whole = factors.pop(MINUS, (Fraction(0), True))
    if number in factors or not is_whole:
        return
    turned, bases = minus % 2 == 1, list(factors)
    of_powers = partial(power_product, turned, list(factors.values()))
    yield Atom("product of powers", "powers", _factors, (), of_powers), bases
    for first, second in permutations([base for base in bases[:DEPTH] if factors[base] == ONE], 2):
        rest = [base for base in bases if base not in (first, second)]
        terms = list(_terms(graph, second, Fraction(1), DEPTH))
        kinds = [(_kind(graph, first, value, log), factor) for value, factor, log in terms]
        if any(kind for kind, _ in kinds):
            of_logarithms = partial(log_product, turned, [factors[base] for base in rest], kinds)
            inputs = [first, *rest, *(value for value, *_ in terms)]
            yield Atom("product with logarithms", "entropy", _terms, (), of_logarithms), inputs


def _maker(graph: Graph, number: int, depth: int) -> Operation:
    """Return the operation that gives a value, none of whole numbers, which may overflow, nor beyond the depth."""
    known = depth and number in graph.makers and graph.dtypes[number].startswith(("float", "bfloat"))
    return graph.makers[number] if known else Operation("", (), (number,), {})


def _number(graph: Graph, value: int) -> float:
    """Return a value that is one known number, NaN for others."""
    array = graph.array(value)
    return float(array.reshape(())) if array is not None and array.size == 1 and array.dtype.kind in "fiu" else math.nan


def _factors(graph: Graph, number: int, depth: int) -> list[tuple[int, Power]]:
    """Return values whose powers multiply to a value, each with its exponent."""
    made = _maker(graph, number, depth)
    exponent = _number(graph, made.inputs[1]) if made.name == "pow" else EXPONENTS.get(made.name, math.nan)
    exponent = float(made.params["y"]) if made.name == "integer_pow" else exponent
    if not math.isfinite(exponent):
        return [(number, ONE)]
    first = [(MINUS, ONE)] * (made.name == "neg")
    first += _factors(graph, made.inputs[0], depth - 1) if made.name in ("mul", "div") else []
    last = _factors(graph, made.inputs[0 if made.name == "pow" else -1], depth - 1)
    return [*first, *((base, (Fraction(exponent) * p, whole and exponent.is_integer())) for base, (p, whole) in last)]


def _mirror(value: Value, power: Fraction, whole: bool) -> tuple[Value, Array]:
    """Return a value, or its negative where it is <= 0 and the power is whole, and where that turns the power."""
    mirrored = value.nonpositive & (whole and power.denominator == 1)
    return facts.merge(mirrored, calculus.negate(value), value), mirrored & (power % 2 == 1)


def _curvature(turned: Any, convex: Array, concave: Array) -> Value:
    """Return a value of which only that is known, turned around where it is so, and only where it is a real number."""
    claim = facts.facts_where((CONVEX, np.where(turned, concave, convex)), (CONCAVE, np.where(turned, convex, concave)))
    return Value(np.full(claim.shape, -np.inf), np.full(claim.shape, np.inf), claim)


def power_product(turned: Any, powers: list[Power], values: list[Value]) -> Value:
    """Return the curvature of a product of powers, or of its negative, wherever it is a real number.

    For non-negative u it is convex in u where all exponents are <= 0, or all but one and their sum is >= 1, and concave
    where all are >= 0 and their sum is <= 1; it rises with u where the exponent is > 0, else it falls.
    """
    shape = np.broadcast_shapes(*(value.shape for value in values))
    convex, concave, rising, total = (np.full(shape, start) for start in (True, True, 0, Fraction(0)))
    for (power, whole), value in zip(powers, (value.broadcast(shape) for value in values), strict=True):
        u, turns = _mirror(value, power, whole)
        fixed, hollow = u.constant & u.nonnegative | (power == 0), u.nonnegative & u.has(CONCAVE)
        bent = (u.nonnegative & u.has(CONVEX)) | (u.root_is_convex & (whole and power % 2 == 0))
        turned, convex = turned ^ turns, convex & (fixed | (bent if power > 0 else hollow))
        concave = concave & (fixed | (hollow & (power > 0)))
        rising = rising + (~fixed & (power > 0))
        steeper = u.has(ROOT_CONVEX) & (power > 0)  # the square of a convex value
        total = total + ~fixed * power * (1 + steeper)
    return _curvature(turned, convex & ((rising == 0) | ((rising == 1) & (total >= 1))), concave & (total <= 1))


def _terms(graph: Graph, number: int, factor: Fraction, depth: int) -> Iterator[tuple[int, Fraction, str]]:
    """Yield the terms of a sum, each with its factor: values, and values whose "log" or "log1p" is meant."""
    made = _maker(graph, number, depth)
    for given, sign in zip(made.inputs, SIGNS.get(made.name, ()), strict=False):
        yield from _terms(graph, given, sign * factor, depth - 1)
    if made.name in ("log", "log2", "log10"):
        factors = _factors(graph, made.inputs[0], depth - 1)
        positive = all(base != MINUS for base, _ in factors)
        for base, (power, _) in factors if positive else [(made.inputs[0], ONE)]:
            yield base, factor * power / Fraction(math.log({"log2": 2, "log10": 10}.get(made.name, math.e))), "log"
    elif made.name == "log1p":
        yield made.inputs[0], factor, "log1p"
    elif made.name not in SIGNS:
        yield number, factor, ""


def _kind(graph: Graph, first: int, value: int, log: str) -> str:
    """Return what the logarithm of a value is beside the factor `first`: its own, one of a shift of it, or another."""
    if not log:
        return ""
    made, shift = _maker(graph, value, 1), _difference(graph, value, first) + (log == "log1p")
    bounds = log == "log" and made.name in ("max", "maximum") and any(_number(graph, at) > 0 for at in made.inputs)
    if shift == 0:
        return OWN
    return SHIFTED if shift > 0 or (bounds and first in made.inputs) else LESS_ONE if log == "log1p" else OTHER


def _difference(graph: Graph, value: int, other: int) -> Fraction | float:
    """Return the number by which a value is above another one, NaN where their terms show none."""
    number, rest = Fraction(0), dict[tuple[int, str], Fraction]()
    for given, sign in ((value, Fraction(1)), (other, Fraction(-1))):
        for term, factor, log in _terms(graph, given, sign, 3):
            known = math.nan if log else _number(graph, term)
            if math.isfinite(known):
                number += factor * Fraction(known)
            else:
                rest[term, log] = rest.get((term, log), Fraction(0)) + factor
    return math.nan if any(rest.values()) else number


def log_product(turned: Any, powers: list[Power], kinds: list[tuple[str, Fraction]], values: list[Value]) -> Value:
    """Return the curvature of u (sum c_k log w_k + constant) times constants, wherever that is a real number.

    For affine u >= 0, u log u is convex, and so is u log(u / w) in both (Boyd and Vandenberghe, Convex optimization,
    example 3.19), which falls in w; u log(u + c) and u log max(u, c) are convex for c > 0. From `RISES_FROM` on u may
    be convex.
    """
    shape = np.broadcast_shapes(*(value.shape for value in values))
    u, *others = (value.broadcast(shape) for value in values)
    allowed, total = np.full(shape, True), np.full(shape, Fraction(0))
    for value, power in zip(others, powers, strict=False):
        scale, turns = _mirror(value, *power)
        allowed, turned = allowed & scale.constant & scale.nonnegative, turned ^ turns
    concave = allowed & u.affine & u.nonnegative
    rising = u.has(CONVEX) & (u.lower >= RISES_FROM) & all(kind == OWN for kind, _ in kinds)
    convex = concave | (allowed & rising)
    for (kind, factor), w in zip(kinds, others[len(powers) :], strict=True):
        least = {OTHER: 0.0, LESS_ONE: -1.0}.get(kind, np.inf)
        fixed, hollow = w.constant, (w.lower >= least) & w.has(CONCAVE)
        if kind != OWN:
            convex = convex & (fixed | ((kind == SHIFTED) & (factor > 0)) | (hollow & (factor < 0)))
            concave = concave & (fixed | ((kind == SHIFTED) & (factor < 0)) | (hollow & (factor > 0)))
        total = total + ~fixed * factor * (kind in (OWN, OTHER, LESS_ONE))
    return _curvature(turned, convex & (total >= 0), concave & (total <= 0))


def relative_entropy(u: Value, v: Value = UNIT) -> Value:
    """Return u log(u / v), which is 0 where u is."""
    kinds = [(OWN, Fraction(1))] if v is UNIT else [(OWN, Fraction(1)), (OTHER, Fraction(-1))]
    shape = np.broadcast_shapes(u.shape, v.shape)
    u, v = u.broadcast(shape), v.broadcast(shape)
    claim = log_product(False, [], kinds, [u, u, v][: 1 + len(kinds)]).facts
    real = u.has(REAL) & u.nonnegative & v.has(REAL) & v.positive
    claim = claim | facts.facts_where((REAL, real), (CONSTANT, u.constant & v.constant))
    return facts.settle(np.full(shape, -np.inf), np.full(shape, np.inf), claim)
