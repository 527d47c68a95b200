"""What is known of a value in the middle of a program, element by element, as a function of the chosen input.

An element is a function v of the chosen input x, and of whatever else is fixed while x moves. Of each we keep bounds
and a set of facts, which hold in exact arithmetic for every x and for every value of what is fixed:

    REAL         v is a real number everywhere: no NaN, no infinity
    NONZERO      v is nowhere 0
    CONVEX, CONCAVE    both: v is affine in x
    RISING, FALLING    in every coordinate of x; both: v does not depend on x
    LOG_CONVEX   v is 0 everywhere, or v > 0 and log v is convex
    LOG_CONCAVE  v is 0 everywhere, or v > 0 and log v is concave
    ROOT_CONVEX  v >= 0 and sqrt v is convex
    QUADRATIC    v is a polynomial of degree <= 2 in x

Without REAL nothing is claimed. Source of the composition rules: Grant, Boyd and Ye, Disciplined convex programming
(2006); Boyd and Vandenberghe, Convex optimization, sections 3.2 and 3.5.2 (log-convexity). ROOT_CONVEX is ours: it
makes every way of writing a Euclidean norm one rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

Array = np.ndarray

REAL, NONZERO, CONVEX, CONCAVE, RISING, FALLING = (1 << k for k in range(6))
LOG_CONVEX, LOG_CONCAVE, ROOT_CONVEX, QUADRATIC = (1 << k for k in range(6, 10))
AFFINE, CONSTANT = CONVEX | CONCAVE, RISING | FALLING
EVERY = (1 << 10) - 1
NARROW = 1e-6  # width of bounds that count as a number, relative to the largest
LARGEST_INTEGER = 2.0**53  # of those that float64 holds without gaps


@dataclass(frozen=True, eq=False)
class Value:
    """Bounds and facts, element by element.

    Args:
        lower: float64 `[*shape]`, -inf where there is no bound.
        upper: float64 `[*shape]`, inf where there is no bound.
        facts: uint16 `[*shape]`, the sum of the facts that hold.
    """

    lower: Array
    upper: Array
    facts: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the value."""
        return self.facts.shape

    @property
    def parts(self) -> tuple[Array, Array, Array]:
        """The three arrays."""
        return self.lower, self.upper, self.facts

    def map(self, change: Callable[[Array], Array]) -> Value:
        """Return the value whose three arrays are all changed alike: elements move."""
        return Value(*map(change, self.parts))

    def has(self, facts: int) -> Array:
        """Return where all of `facts` hold."""
        return (self.facts & facts) == facts

    @property
    def constant(self) -> Array:
        """Where the value does not depend on the chosen input."""
        return self.has(REAL | CONSTANT)

    @property
    def affine(self) -> Array:
        """Where the value is affine in the chosen input."""
        return self.has(AFFINE)

    @property
    def curved(self) -> Array:
        """Where the value is known to be convex or to be concave."""
        return (self.facts & AFFINE) != 0

    @property
    def known(self) -> Array:
        """Where the value is one known number."""
        return (self.lower == self.upper) & self.has(REAL)

    @property
    def zero(self) -> Array:
        """Where the value is 0."""
        return self.known & (self.lower == 0)

    @property
    def nonnegative(self) -> Array:
        """Where the value is >= 0."""
        return self.lower >= 0

    @property
    def nonpositive(self) -> Array:
        """Where the value is <= 0."""
        return self.upper <= 0

    @property
    def positive(self) -> Array:
        """Where the value is > 0."""
        return (self.lower >= 0) & self.has(NONZERO)

    @property
    def negative(self) -> Array:
        """Where the value is < 0."""
        return (self.upper <= 0) & self.has(NONZERO)

    @property
    def root_is_convex(self) -> Array:
        """Where the absolute value is convex."""
        return self.affine | (self.has(CONVEX) & self.nonnegative) | (self.has(CONCAVE) & self.nonpositive)

    def broadcast(self, shape: tuple[int, ...]) -> Value:
        """Return the value broadcast to a shape, without a copy."""
        if self.shape == shape:
            return self
        return self.map(lambda part: np.broadcast_to(part, shape))

    def reshape(self, *shape: int) -> Value:
        """Return the value in another shape of the same size."""
        return self.map(lambda part: part.reshape(shape))

    def take(self, index: Array) -> Value:
        """Return the elements at flat indices; an index below 0 gives an element of which nothing is known."""
        if not self.facts.size:
            return nothing(index.shape)
        elements = self.map(lambda part: part.reshape(-1)[np.maximum(index, 0)])
        return merge(index >= 0, elements, nothing(index.shape)) if (index < 0).any() else elements


def compact(value: Value) -> Value:
    """Return one element of a value whose elements are all alike and stored once."""
    if value.facts.size > 1 and not any(any(part.strides) for part in value.parts):
        return value.map(lambda part: part[(0,) * part.ndim])
    return value


def join(values: Iterable[Value], arrange: Callable[[list[Array]], Array]) -> Value:
    """Return one value of several whose arrays are put together by `arrange`, such as `np.stack`."""
    return Value(*(arrange(list(group)) for group in zip(*(value.parts for value in values), strict=True)))


def negate_facts(facts: Array) -> Array:
    """Return the facts of -v from those of v."""
    opposite = (facts & (CONVEX | RISING)) << 1 | (facts & (CONCAVE | FALLING)) >> 1
    return facts & (REAL | NONZERO | QUADRATIC) | opposite


def facts_where(*pairs: tuple[int, Any]) -> Array:
    """Return the sum of the facts, each where its condition, an array of truth values, holds."""
    return reduce(np.bitwise_or, (condition * np.uint16(fact) for fact, condition in pairs))


def settle(lower: Array, upper: Array, facts: Array) -> Value:
    """Return a value with all facts that follow from those given, and none without REAL."""
    real = (facts & REAL) != 0
    if not real.all():
        lower, upper = np.where(real, lower, -np.inf), np.where(real, upper, np.inf)
    above = lower >= 0
    facts = facts | facts_where((NONZERO, (lower > 0) | (upper < 0)), (CONSTANT, lower == upper))
    constant = (facts & CONSTANT) == CONSTANT
    facts = facts | facts_where((AFFINE, constant))
    positive_concave = (facts & (NONZERO | CONCAVE)) == (NONZERO | CONCAVE)  # so is its logarithm
    facts = facts | above * facts_where(
        (LOG_CONVEX | LOG_CONCAVE | ROOT_CONVEX, constant), (LOG_CONCAVE, positive_concave)
    )
    facts = facts | facts_where((ROOT_CONVEX, (facts & LOG_CONVEX) != 0), (QUADRATIC, (facts & AFFINE) == AFFINE))
    root_convex = (facts & ROOT_CONVEX) != 0
    facts = facts | facts_where((CONVEX, root_convex))
    if root_convex.any():
        lower = np.where(root_convex & real, np.maximum(lower, 0.0), lower)
    return Value(lower, upper, np.asarray(real * facts, np.uint16))


def literal(array: Any) -> Value:
    """Return the value of known numbers. Nothing is claimed of NaN; an infinity keeps its bounds, for `maximum`."""
    array = np.asarray(array)
    number = array.astype(np.float64)
    finite = np.isfinite(number)
    rounded = np.abs(number) >= LARGEST_INTEGER
    if array.dtype.kind in "iu" and rounded.any():
        low, high = (np.where(rounded, np.nextafter(number, end), number) for end in (-np.inf, np.inf))
        return settle(low, high, facts_where((REAL | CONSTANT, finite)))
    value = settle(number, number, facts_where((REAL, finite)))
    infinite = np.isinf(number)
    return merge(infinite, Value(number, number, value.facts), value) if infinite.any() else value


def nothing(shape: tuple[int, ...]) -> Value:
    """Return a value of which nothing is known."""
    low, high = (np.broadcast_to(bound, shape) for bound in (-np.inf, np.inf))
    return Value(low, high, np.zeros(shape, np.uint16))


def array_value(array: Array) -> Value:
    """Return the value of a known array; of an array that holds no real numbers nothing is known."""
    if array.dtype.kind in "fiubV":
        with suppress(TypeError, ValueError):
            return literal(array)
    return nothing(array.shape)


def uniform(shape: tuple[int, ...], facts: int, lower: Any = -np.inf, upper: Any = np.inf) -> Value:
    """Return a value whose elements are all alike, and stored once, but for bounds that are arrays."""
    return settle(np.asarray(lower), np.asarray(upper), np.asarray(facts, np.uint16)).broadcast(shape)


def parameter(shape: tuple[int, ...], lower: Any = -np.inf, upper: Any = np.inf) -> Value:
    """Return an unknown real number that does not depend on the chosen input."""
    return uniform(shape, REAL | CONSTANT, lower, upper)


def variable(shape: tuple[int, ...], lower: Any = -np.inf, upper: Any = np.inf) -> Value:
    """Return the chosen input itself."""
    return uniform(shape, REAL | AFFINE | RISING, lower, upper)


def merge(condition: Array, value: Value, other: Value) -> Value:
    """Return `value` where the condition holds and `other` elsewhere; the condition is known."""
    return join((value, other), lambda pair: np.where(condition, *pair))


def either(values: list[Value]) -> Value:
    """Return what holds of all values: the result of a choice among them that does not depend on the input."""
    lower, upper, facts = zip(*(value.parts for value in values), strict=True)
    return settle(reduce(np.minimum, lower), reduce(np.maximum, upper), reduce(np.bitwise_and, facts))


def either_over(value: Value, axes: tuple[int, ...]) -> Value:
    """Return what holds of all elements along `axes`, whose size becomes 1."""
    return settle(
        value.lower.min(axis=axes, keepdims=True, initial=np.inf),
        value.upper.max(axis=axes, keepdims=True, initial=-np.inf),
        np.bitwise_and.reduce(value.facts, axis=axes, keepdims=True),
    )


def mixture(values: list[Value]) -> Value:
    """Return what holds of a choice among values that depends on the input: bounds only."""
    value = either(values)
    return settle(value.lower, value.upper, value.facts & (REAL | NONZERO))


def is_narrow(value: Value) -> bool:
    """Return whether all elements are known numbers but for `NARROW` of the largest of them."""
    if not (value.constant.all() and value.facts.size and np.isfinite([value.lower, value.upper]).all()):
        return False
    return bool((value.upper - value.lower).max() <= NARROW * np.abs([value.lower, value.upper]).max())


def curvature_word(value: Value) -> str:
    """Return the curvature of a value in one word: that of its weakest element."""
    facts = int(np.bitwise_and.reduce(value.facts, axis=None)) if value.facts.size else EVERY
    if not facts & REAL:
        return "unknown"
    names = {"constant": CONSTANT, "affine": AFFINE, "convex": CONVEX, "concave": CONCAVE}
    return next((name for name, fact in names.items() if facts & fact == fact), "unknown")
