"""How facts and bounds go through sums, products, maxima and linear maps.

Every rule is a sentence of mathematics; `LAWS` says it in words, for the proof that a certificate prints.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import itemgetter

import numpy as np

from . import intervals, scalars
from .facts import (
    AFFINE,
    CONCAVE,
    CONSTANT,
    CONVEX,
    EVERY,
    FALLING,
    LOG_CONCAVE,
    LOG_CONVEX,
    NONZERO,
    QUADRATIC,
    REAL,
    RISING,
    ROOT_CONVEX,
    Array,
    Value,
    either,
    facts_where,
    join,
    literal,
    merge,
    mixture,
    negate_facts,
    settle,
)

LAWS = {
    "input": "the chosen input is affine in itself",
    "constant": "what does not depend on the input is constant",
    "moved": "elements are moved, not changed",
    "same": "the value itself",
    "sum": "a sum is convex where its terms are",
    "negative": "the negative of a concave value is convex",
    "product": "a constant factor keeps curvature or turns it by its sign, and the square of an affine value is convex",
    "quotient": "a quotient by a constant that is not 0 is a product",
    "fraction": "a / b = c + d / b for affine values and constants c and d",
    "perspective": "t f(u / t) is convex in t > 0 and u where f is, and concave where f is",
    "mean": "(sum of u ** p) ** q for p <= 1 and 0 < p q <= 1, and a product of n factors u to the power 1 / n, "
    "are concave and rise with u >= 0",
    "maximum": "a maximum is convex where its arguments are",
    "minimum": "a minimum is concave where its arguments are",
    "scalar": "a convex function of an affine value is convex, a rising one of a convex value, a falling one of a "
    "concave value",
    "power": "an even power of an affine value is convex, and so are powers of values of known sign",
    "powers": "a product of powers of values >= 0 is convex, or concave, by the signs and the sum of its exponents",
    "entropy": "u log u is convex for u >= 0, u log(u / w) in both, and so are u log(u + c) and u log max(u, c), c > 0",
    "root": "the root of a sum of squares of affine values, or of non-negative convex ones, is a norm",
    "logarithm": "a logarithm rises and is concave; that of exponentials of convex values, or of sums and products of "
    "such, is convex",
    "linear": "a linear map is a sum whose terms have constant factors",
    "factors": "factors and inverses of a known matrix are known; a solution is linear in the right side",
    "folded": "what depends on no input is a number, which is computed in float64",
    "choice": "a choice that does not depend on the input is convex where all its cases are",
    "pieces": "a continuous function of one number is convex where its pieces are, and its slope rises from one to the "
    "next",
    "comparison": "a comparison has bounds, but no curvature",
    "log_sum_exp": "log-sum-exp is convex and rises in each argument",
    "softplus": "log(1 + exp(u)) is convex and rises; from its threshold on the program gives u, the same number of "
    "its dtype",
    "smooth_maximum": "T log mean exp(g / T) is convex and rises in each g, for a constant T > 0",
    "quadratic": "a polynomial of degree 2 is convex where its Hessian is positive semidefinite",
    "form": "c + y' P y is a sum of squares for c >= 0 and P that is positive semidefinite, and its root is a norm",
    "norm": "the root of order p >= 1 of a sum of powers of order p of values whose sizes are convex is a norm; "
    "1 / p may be rounded",
    "ordered": "a sum of sorted convex values is convex where its weights rise with the order and are >= 0, "
    "or the values are affine",
    "order": "the largest of convex values is convex; the others are not",
    "loop": "what holds of the values before a loop, and is kept by every step, holds after it",
    "none": "no rule",
}


ROUNDED_LOG = 1e-5


def negate(value: Value) -> Value:
    """Return -v."""
    return settle(-value.upper, -value.lower, negate_facts(value.facts))


def add(a: Value, b: Value) -> Value:
    """Return a + b."""
    facts = a.facts & b.facts & ~np.uint16(NONZERO | LOG_CONCAVE)
    nonzero = ((a.nonnegative & b.nonnegative) | (a.nonpositive & b.nonpositive)) & (a.has(NONZERO) | b.has(NONZERO))
    facts = facts | facts_where((NONZERO, nonzero))
    total = settle(intervals.add_down(a.lower, b.lower), intervals.add_up(a.upper, b.upper), facts)
    a, b = a.broadcast(total.shape), b.broadcast(total.shape)
    only_a, only_b = (x | (_is_minus_infinity(one) & y.has(REAL)) for x, one, y in ((b.zero, a, b), (a.zero, b, a)))
    return merge(only_a, a, merge(only_b, b, total)) if only_a.any() or only_b.any() else total


def multiply(a: Value, b: Value) -> Value:
    """Return a * b, for two values that may both depend on the input."""
    a, b = (value.broadcast(np.broadcast_shapes(a.shape, b.shape)) for value in (a, b))
    lower, upper = intervals.multiply(a.lower, a.upper, b.lower, b.upper)
    facts = a.facts & b.facts & np.uint16(REAL | NONZERO | LOG_CONVEX | LOG_CONCAVE)
    facts = facts | _scale_facts(a, b) | _scale_facts(b, a)

    def grows(one: Value, other: Value, up: int, down: int) -> Array:
        """Where the change that `other` makes to the product has one sign."""
        return (one.nonnegative & other.has(up)) | (one.nonpositive & other.has(down)) | other.has(CONSTANT)

    rising = grows(a, b, RISING, FALLING) & grows(b, a, RISING, FALLING)
    falling = grows(a, b, FALLING, RISING) & grows(b, a, FALLING, RISING)
    facts = facts | facts_where((RISING, rising), (FALLING, falling), (QUADRATIC, a.affine & b.affine))
    return settle(lower, upper, facts)


def _scale_facts(factor: Value, value: Value) -> Array:
    """Return the facts of curvature of a product with a constant factor; no facts where the factor is not constant."""
    shaped = np.uint16(CONVEX | CONCAVE | LOG_CONVEX | ROOT_CONVEX | QUADRATIC)
    straight = np.where(value.affine, np.uint16(AFFINE), np.uint16(0)) | value.facts & np.uint16(QUADRATIC)
    facts = np.where(factor.nonnegative, value.facts & shaped, straight)
    facts = facts | np.where(factor.nonpositive, negate_facts(value.facts) & shaped, np.uint16(0))
    return np.where(factor.constant & value.has(REAL), facts, np.uint16(0)).astype(np.uint16)


def divide(a: Value, b: Value) -> Value:
    """Return a / b."""
    return multiply(a, scalars.power(b, -1.0))


def maximum(a: Value, b: Value) -> Value:
    """Return max(a, b); an argument that is nowhere above the other is ignored, and so is -inf."""
    a, b = (value.broadcast(np.broadcast_shapes(a.shape, b.shape)) for value in (a, b))
    facts = a.facts & b.facts & np.uint16(REAL | CONVEX | RISING | FALLING | LOG_CONVEX | ROOT_CONVEX)
    facts = facts | facts_where((NONZERO, a.positive | b.positive | (a.negative & b.negative)))
    largest = settle(np.maximum(a.lower, b.lower), np.maximum(a.upper, b.upper), facts)
    real = a.has(REAL) & b.has(REAL)
    only_a = ((b.upper <= a.lower) & real) | _is_minus_infinity(b)
    only_b = ((a.upper <= b.lower) & real) | _is_minus_infinity(a)
    if not (only_a.any() or only_b.any()):
        return largest
    return merge(only_a, a, merge(only_b, b, largest))


def _is_minus_infinity(value: Value) -> Array:
    return np.isneginf(value.upper) & (value.lower == value.upper)


def minimum(a: Value, b: Value) -> Value:
    """Return min(a, b)."""
    return _negate_extended(maximum(_negate_extended(a), _negate_extended(b)))


def _negate_extended(value: Value) -> Value:
    """Return -v, also of constants that are infinite."""
    infinite, negative = np.isinf(value.lower) & (value.lower == value.upper), negate(value)
    return merge(infinite, Value(-value.upper, -value.lower, negative.facts), negative) if infinite.any() else negative


def choose(which: Value, cases: list[Value]) -> Value:
    """Return cases[which], element by element."""
    shape = np.broadcast_shapes(which.shape, *(case.shape for case in cases))
    alike = all(case is cases[0] for case in cases)
    which, cases = which.broadcast(shape), [case.broadcast(shape) for case in cases]
    choice = either(cases) if alike else merge(which.constant, either(cases), mixture(cases))
    for index, case in enumerate(cases):
        choice = merge(which.known & (which.lower == index), case, choice)
    return choice


def sum_over(value: Value, axes: tuple[int, ...]) -> Value:
    """Return the sum over axes."""
    if not axes:
        return value
    facts = np.bitwise_and.reduce(value.facts, axis=axes) & ~np.uint16(NONZERO | LOG_CONCAVE)
    one_sign = value.nonnegative.all(axis=axes) | value.nonpositive.all(axis=axes)
    nonzero = one_sign & value.has(NONZERO).any(axis=axes)
    return settle(*intervals.total(value.lower, value.upper, axes), facts | facts_where((NONZERO, nonzero)))


def fold(value: Value, axes: tuple[int, ...], combine: Callable[[Value, Value], Value], start: float) -> Value:
    """Return the elements along axes combined two by two: a maximum or a minimum over axes."""
    others = [axis for axis in range(len(value.shape)) if axis not in axes]
    shape = [value.shape[axis] for axis in others]
    rows = value.map(lambda part: np.transpose(part, [*axes, *others]).reshape(-1, *shape))
    if not len(rows.facts):
        return literal(np.full(shape, start))
    while (count := len(rows.facts)) > 1:
        half = count // 2
        first, second, last = (
            rows.map(itemgetter(place)) for place in (slice(half), slice(half, 2 * half), slice(2 * half, count))
        )
        rows = join([combine(first, second), *[last] * (count % 2)], np.concatenate)
    return rows.map(lambda part: part[0])


def log_sum_exp(value: Value, axes: tuple[int, ...]) -> Value:
    """Return log sum exp over axes; a constant -inf, such as a mask puts, adds nothing."""
    absent = _is_minus_infinity(value)
    facts = np.where(absent, np.uint16(EVERY), value.facts)
    facts = np.bitwise_and.reduce(facts, axis=axes) & np.uint16(REAL | CONVEX | RISING | FALLING)
    facts = np.where(absent.all(axis=axes), np.uint16(0), facts)
    count = math.prod(value.shape[axis] for axis in axes)
    high = intervals.add_up(value.upper.max(axis=axes), np.nextafter(np.log(count), np.inf))
    return settle(value.lower.max(axis=axes), high, facts)


def smooth_maximum(value: Value, temperature: Value, axis: int) -> Value:
    """Return T log mean exp(v / T) over an axis: between the least and the largest, for a constant T > 0.

    A program rounds log P to its dtype, so that it may lie outside by `ROUNDED_LOG` T.
    """
    facts = np.bitwise_and.reduce(value.facts, axis=axis) & np.uint16(REAL | CONVEX | RISING | FALLING)
    allowed = temperature.constant & temperature.positive
    facts = np.where(allowed, facts, np.uint16(0)).astype(np.uint16)
    slack = ROUNDED_LOG * temperature.upper
    lower = intervals.add_down(value.lower.min(axis=axis), -slack)
    return settle(lower, intervals.add_up(value.upper.max(axis=axis), slack), facts)


Bilinear = Callable[[Array, Array], Array]


def linear(constant: Value, value: Value, product: Bilinear) -> Value:
    """Return a bilinear product, such as of matrices, with a factor that does not depend on the input.

    Each element is a sum of products of one element of each factor. `product` computes it for float32 arrays; on
    arrays of 0 and 1 it counts terms. Bounds are signs only.
    """
    zero = constant.zero
    above, below = constant.nonnegative & ~zero, constant.nonpositive & ~zero
    masks = (above, below, ~(zero | above | below), zero)

    def count(mask: Array, holds: Array) -> Array:
        """The number of terms with a factor in the mask and a value with the property."""
        return product(mask.astype(np.float32), holds.astype(np.float32))

    every = count(np.ones(constant.shape), np.ones(value.shape))
    real, never = value.has(REAL), np.zeros(value.shape, bool)

    def always(up: Array, down: Array, free: Array) -> Array:
        """Where the value has in all terms the property that goes with the sign of its factor."""
        pairs = zip(masks, (up & real, down & real, free & real, real), strict=True)
        return np.equal(sum((count(mask, holds) for mask, holds in pairs if mask.any() and holds.any()), 0.0), every)

    convex, concave = value.has(CONVEX), value.has(CONCAVE)
    rising, falling = value.has(RISING), value.has(FALLING)
    above_zero = always(value.nonnegative, value.nonpositive, value.zero)
    below_zero = always(value.nonpositive, value.nonnegative, value.zero)
    nonzero = count((above | below) & constant.has(NONZERO), value.has(NONZERO))
    facts = facts_where(
        (REAL, count(constant.has(REAL), real) == every),
        (CONVEX, always(convex, concave, convex & concave)),
        (CONCAVE, always(concave, convex, convex & concave)),
        (RISING, always(rising, falling, rising & falling)),
        (FALLING, always(falling, rising, rising & falling)),
        (LOG_CONVEX, always(value.has(LOG_CONVEX), never, value.zero)),
        (ROOT_CONVEX, always(value.has(ROOT_CONVEX), never, value.zero)),
        (QUADRATIC, always(*(value.has(QUADRATIC),) * 3)),
        (NONZERO, (above_zero | below_zero) & (nonzero > 0)),
    )
    return settle(np.where(above_zero, 0.0, -np.inf), np.where(below_zero, 0.0, np.inf), facts)


def multiply_elements(a: Value, b: Value, same: Array) -> Value:
    """Return a * b where `same` marks the products of an element with itself, which are squares."""
    product = multiply(a, b)
    return merge(same, scalars.power(a, 2.0), product) if same.any() else product
