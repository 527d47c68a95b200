"""Functions of one real number: where each is convex, concave, rising and falling."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from . import facts
from .facts import Array, Value, facts_where, negate_facts, settle
from .intervals import widen

Region = tuple[float, float] | None

EVERYWHERE: Region = (-np.inf, np.inf)
ABOVE: Region = (0.0, np.inf)
BELOW: Region = (-np.inf, 0.0)


class Scalar(NamedTuple):
    """A function of one real number.

    Args:
        convex: an interval on which it is convex, with its ends; None where there is none.
        concave: as `convex`.
        rising: as `convex`.
        falling: as `convex`.
        value: the function in numpy, for bounds of a monotone function; None where it has `range` alone.
        range: bounds of all its values.
        domain: where it is a real number; its lower end belongs to it only where `closed`.
        nonzero: it has no zero.
    """

    convex: Region = None
    concave: Region = None
    rising: Region = None
    falling: Region = None
    value: Callable[[Array], Array] | None = None
    range: tuple[float, float] = (-np.inf, np.inf)
    domain: tuple[float, float] = (-np.inf, np.inf)
    closed: bool = True
    nonzero: bool = False


SCALARS = {
    "exp": Scalar(EVERYWHERE, None, EVERYWHERE, None, np.exp, (0.0, np.inf), nonzero=True),
    "exp2": Scalar(EVERYWHERE, None, EVERYWHERE, None, np.exp2, (0.0, np.inf), nonzero=True),
    "expm1": Scalar(EVERYWHERE, None, EVERYWHERE, None, np.expm1, (-1.0, np.inf)),
    "log": Scalar(None, ABOVE, ABOVE, None, np.log, domain=(0.0, np.inf), closed=False),
    "log1p": Scalar(None, (-1.0, np.inf), (-1.0, np.inf), None, np.log1p, domain=(-1.0, np.inf), closed=False),
    "sqrt": Scalar(None, ABOVE, ABOVE, None, np.sqrt, (0.0, np.inf), (0.0, np.inf)),
    "cbrt": Scalar(BELOW, ABOVE, EVERYWHERE, None, np.cbrt),
    "logistic": Scalar(BELOW, ABOVE, EVERYWHERE, None, lambda u: 1.0 / (1.0 + np.exp(-u)), (0.0, 1.0), nonzero=True),
    "tanh": Scalar(BELOW, ABOVE, EVERYWHERE, None, np.tanh, (-1.0, 1.0)),
    "erf": Scalar(BELOW, ABOVE, EVERYWHERE, None, None, (-1.0, 1.0)),
    "erfc": Scalar(ABOVE, BELOW, None, EVERYWHERE, None, (0.0, 2.0), nonzero=True),
    "atan": Scalar(BELOW, ABOVE, EVERYWHERE, None, np.arctan, (-1.6, 1.6)),
    "asinh": Scalar(BELOW, ABOVE, EVERYWHERE, None, np.arcsinh),
    "sinh": Scalar(ABOVE, BELOW, EVERYWHERE, None, np.sinh),
    "cosh": Scalar(EVERYWHERE, None, ABOVE, BELOW, None, (1.0, np.inf)),
    "sin": Scalar(range=(-1.0, 1.0)),
    "cos": Scalar(range=(-1.0, 1.0)),
    "abs": Scalar(EVERYWHERE, None, ABOVE, BELOW, None, (0.0, np.inf)),
    "lgamma": Scalar(ABOVE, None, domain=(0.0, np.inf), closed=False),
    "digamma": Scalar(None, ABOVE, ABOVE, None, domain=(0.0, np.inf), closed=False),
    "sign": Scalar(None, None, EVERYWHERE, None, np.sign, (-1.0, 1.0)),
    "floor": Scalar(None, None, EVERYWHERE, None, np.floor),
    "ceil": Scalar(None, None, EVERYWHERE, None, np.ceil),
    "round": Scalar(None, None, EVERYWHERE),
}
EXACT = {"sign", "floor", "ceil"}
EXACT_AT = {"exp": 0.0, "exp2": 0.0, "log": 1.0}  # there numpy gives the very number
ZERO_AT_ZERO = {"expm1", "log1p", "sqrt", "cbrt", "tanh", "atan", "asinh", "sinh"}
KEEPS_NONZERO = {*ZERO_AT_ZERO, "erf", "abs", "sign"}
# Facts of f(v) about logarithms and roots, each with the fact of v from which it follows.
IMPLIED = {
    **dict.fromkeys(("exp", "exp2"), ((facts.LOG_CONVEX, facts.CONVEX), (facts.LOG_CONCAVE, facts.CONCAVE))),
    "logistic": ((facts.LOG_CONCAVE, facts.CONCAVE),),  # the logarithm of the logistic function is concave, and rises
    "sqrt": (
        (facts.CONVEX, facts.ROOT_CONVEX),
        (facts.ROOT_CONVEX | facts.LOG_CONVEX, facts.LOG_CONVEX),
        (facts.LOG_CONCAVE, facts.LOG_CONCAVE),
    ),
    "log": ((facts.CONVEX, facts.LOG_CONVEX), (facts.CONCAVE, facts.LOG_CONCAVE)),
    "log1p": ((facts.CONVEX, facts.LOG_CONVEX),),  # 1 + v is log-convex where v is
}


def inside(value: Value, region: Region) -> Array:
    """Return where all of a value lies in a region."""
    if region is None:
        return np.zeros(value.shape, bool)
    return (value.lower >= region[0]) & (value.upper <= region[1])


def compose(value: Value, convex: Array, concave: Array, rising: Array, falling: Array) -> Array:
    """Return the facts of f(v), without REAL, for an f that is so on the range of v.

    f(v) is convex where f is convex and v affine, f moreover rising and v convex, or falling and v concave.
    """
    up = value.affine | (rising & value.has(facts.CONVEX)) | (falling & value.has(facts.CONCAVE))
    down = value.affine | (rising & value.has(facts.CONCAVE)) | (falling & value.has(facts.CONVEX))
    return facts_where(
        (facts.CONVEX, convex & up),
        (facts.CONCAVE, concave & down),
        (facts.RISING, (rising & value.has(facts.RISING)) | (falling & value.has(facts.FALLING))),
        (facts.FALLING, (rising & value.has(facts.FALLING)) | (falling & value.has(facts.RISING))),
        (facts.CONSTANT, value.constant),
    )


def apply(name: str, value: Value) -> Value:
    """Return f(v) for the function of that name."""
    scalar = SCALARS[name]
    rising, falling = inside(value, scalar.rising), inside(value, scalar.falling)
    claim = compose(value, inside(value, scalar.convex), inside(value, scalar.concave), rising, falling)
    low, high = scalar.domain
    real = value.has(facts.REAL) & (value.lower >= low) & (value.upper <= high)
    if not scalar.closed:
        real &= (value.lower > low) | (value.positive if low == 0.0 else False)
    nonzero = (real & np.asarray(scalar.nonzero)) | (value.has(facts.NONZERO) & (name in KEEPS_NONZERO))
    claim |= facts_where((facts.REAL, real), (facts.NONZERO, nonzero))
    if name == "cosh":  # the logarithm of cosh is convex, and rises and falls with it
        claim |= np.where(claim & np.uint16(facts.CONVEX), np.uint16(facts.LOG_CONVEX), np.uint16(0))
    for fact, given in IMPLIED.get(name, ()):
        claim |= facts_where((fact, value.has(given)))
    lower, upper = _bounds(name, scalar, value)
    if name == "abs":  # of one sign: the value itself, or its negative, with all their facts
        claim |= np.where(value.nonnegative, value.facts, 0) | np.where(value.nonpositive, negate_facts(value.facts), 0)
    result = settle(lower, upper, claim)
    absent = np.isneginf(value.upper) & (value.lower == value.upper)  # a constant, such as a mask puts
    if name in ("exp", "exp2") and absent.any():
        return facts.merge(absent, facts.literal(np.zeros(value.shape)), result)
    return result


def _bounds(name: str, scalar: Scalar, value: Value) -> tuple[Array, Array]:
    """Return bounds of f(v)."""
    low, high = (np.broadcast_to(bound, value.shape) for bound in scalar.range)
    if name == "abs":
        least = np.maximum(0.0, np.maximum(value.lower, -value.upper))
        return least, np.maximum(np.abs(value.lower), np.abs(value.upper))
    if name == "erf":  # numpy has no erf: only its sign is known
        return np.where(value.nonnegative, 0.0, low), np.where(value.nonpositive, 0.0, high)
    if scalar.value is None:
        return low, high
    with np.errstate(all="ignore"):
        lower, upper = scalar.value(value.lower), scalar.value(value.upper)
    lower, upper = np.where(np.isnan(lower), -np.inf, lower), np.where(np.isnan(upper), np.inf, upper)
    exact = EXACT_AT.get(name, np.nan)
    if name not in EXACT:
        (low_exact, high_exact), (lower, upper) = (lower, upper), widen(lower, upper)
        lower = np.where(value.lower == exact, low_exact, lower)
        upper = np.where(value.upper == exact, high_exact, upper)
    if name in ZERO_AT_ZERO:  # they keep zeros and signs
        lower, upper = np.where(value.lower == 0, 0.0, lower), np.where(value.upper == 0, 0.0, upper)
        lower = np.where(value.nonnegative, np.maximum(lower, 0.0), lower)
        upper = np.where(value.nonpositive, np.minimum(upper, 0.0), upper)
    return np.maximum(lower, low), np.minimum(upper, high)


def power(value: Value, exponent: float) -> Value:
    """Return v^p for a known p."""
    p = float(exponent)
    if p == 0.0:
        one = np.ones(value.shape)
        return settle(one, one, facts_where((facts.REAL, value.has(facts.REAL))))
    if p == 1.0:
        return value
    whole = p == int(p)
    even = whole and int(p) % 2 == 0
    above = value.positive if p < 0 else value.nonnegative
    below = (value.negative if p < 0 else value.nonpositive) & whole
    real = value.has(facts.REAL) & (above | below | (value.has(facts.NONZERO) & whole) | (whole and p > 0))
    # To the left of 0 an even power mirrors its right side, an odd one turns it around the origin.
    steep = p < 0 or p > 1
    convex = (above & steep) | (below & even) | (even and p > 0)
    concave = (above & (not steep)) | (below & (not even))
    rising = (above & (p > 0)) | (below & even & (p < 0)) | (whole and not even and p > 0)
    falling = (above & (p < 0)) | (below & even & (p > 0)) | (below & (not even) & (p < 0))
    claim = compose(value, convex & real, concave & real, rising & real, falling & real)
    log_convex, log_concave = value.has(facts.LOG_CONVEX), value.has(facts.LOG_CONCAVE)
    if p < 0:
        log_convex, log_concave = log_concave & value.positive, log_convex & value.positive
    rooted = (value.has(facts.ROOT_CONVEX) & (p >= 1)) | (value.root_is_convex & (above | even) & (p >= 2))
    claim |= facts_where(
        (facts.REAL, real),
        (facts.NONZERO, value.has(facts.NONZERO)),
        (facts.LOG_CONVEX, log_convex),
        (facts.LOG_CONCAVE, log_concave),
        (facts.ROOT_CONVEX, rooted),
        (facts.CONVEX, value.has(facts.ROOT_CONVEX) & (p >= 0.5)),
        (facts.QUADRATIC, value.affine & (p == 2.0)),
    )
    return settle(*_power_bounds(value, p, even), claim)


def _power_bounds(value: Value, p: float, even: bool) -> tuple[Array, Array]:
    """Return bounds of v^p: an end that is 0, and the squares of small whole numbers, are exact."""
    left = value.lower + 0.0  # a pole at a lower end 0 goes up, at an upper end 0 down
    right = np.where((value.upper == 0) & (value.lower < 0), -0.0, value.upper)
    base = np.stack([left, right])
    with np.errstate(all="ignore"):
        ends = np.power(base, p)
        exact = (p == 2.0) & (np.abs(base) < 2.0**26) & (np.rint(base) == base)
    exact |= ((base == 0) & (p > 0)) | ((p == -1.0) & (np.frexp(np.abs(base))[0] == 0.5))  # of powers of 2
    low, high = widen(np.where(np.isnan(ends), -np.inf, ends), np.where(np.isnan(ends), np.inf, ends))
    low, high = np.where(exact, ends, low), np.where(exact, ends, high)
    crosses = (value.lower < 0) & (value.upper > 0)
    lower = np.where(crosses & (even or p < 0), -np.inf, low.min(axis=0))
    upper = np.where(crosses & (p < 0), np.inf, high.max(axis=0))
    if even:
        return np.maximum(lower, 0.0), upper
    lower = np.where(value.nonnegative, np.maximum(lower, 0.0), lower)
    return lower, np.where(value.nonpositive, np.minimum(upper, 0.0), upper)
