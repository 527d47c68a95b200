"""Functions on a stated domain with their verdicts, for both frameworks; `xp` is that of `convexity_table`.

A row whose verdict is "proved" or whose curvature is "concave" is attacked by a search in its domain as well.
"""

from typing import Any, NamedTuple

import numpy as np

from convexmoe import Box

INF = np.inf
NONNEGATIVE, POSITIVE = Box(0, INF), Box(0.1, INF)
UNIT, SOME, SIGNED, NEGATIVE = Box(0.01, 0.99), Box(0.1, 3.0), Box(-1, 1), Box(-2, -1)
TWO_SIGNS = Box([-2, 1, 0], [-1, 2, 0])
SCALES = np.array([0.5, 2.0, 3.0])


class DomainRow(NamedTuple):
    """A function of the table."""

    name: str
    verdict: str
    curvature: str
    function: Any
    domain: Box
    shape: tuple[int, ...] = (3,)


def guarded(xp, x):
    """x log x as it is written for its gradient: both branches are numbers at 0."""
    return xp.where(x > 0, x * xp.log(xp.where(x > 0, x, 1.0)), 0.0)


def guarded_by_integers(xp, x, below=0):
    """The same with numbers that are written as integers."""
    return xp.where(x > 0, x * xp.log(xp.where(x > 0, x, 1)), below)


def shifted(xp, x, outside, inside):
    """A log-sum-exp, where the two temperatures are equal."""
    return outside * xp.log(xp.sum(xp.exp((x - xp.max(x)) / inside))) + xp.max(x)


P, R, U = "proved", "refuted", "unknown"
CONVEX, AFFINE, CONCAVE, NONE = "convex", "affine", "concave", "unknown"

TABLE = [
    # powers and logarithms
    DomainRow("reciprocal", P, CONVEX, lambda xp, x: 1.0 / x, POSITIVE),
    DomainRow("reciprocal of what is negative", R, CONCAVE, lambda xp, x: 1.0 / x, NEGATIVE),
    DomainRow("reciprocal, 0 included", U, NONE, lambda xp, x: 1.0 / x, Box(0, 1)),
    DomainRow("reciprocal, 0 inside", R, NONE, lambda xp, x: x**-1, SIGNED),
    DomainRow("reciprocal of affine", P, CONVEX, lambda xp, x: 1.0 / (2.0 - x), SIGNED),
    DomainRow("reciprocal of a concave root", P, CONVEX, lambda xp, x: 1.0 / xp.sqrt(x), POSITIVE),
    DomainRow("reciprocal of a convex square", R, NONE, lambda xp, x: 1.0 / (x * x + 0.1), SIGNED),
    DomainRow("reciprocal of a positive square", P, CONVEX, lambda xp, x: 1.0 / (x * x), POSITIVE),
    DomainRow("barrier", P, CONVEX, lambda xp, x: -xp.log(x) - xp.log(1.0 - x), UNIT),
    DomainRow("logarithm", R, CONCAVE, lambda xp, x: xp.log(x), POSITIVE),
    DomainRow("logarithm, 0 included", U, NONE, lambda xp, x: -xp.log(x), NONNEGATIVE),
    DomainRow(
        "logarithm of a concave positive", P, CONVEX, lambda xp, x: -xp.log(xp.sqrt(x) + xp.log(x + 1.0)), POSITIVE
    ),
    DomainRow("exponential of a barrier", P, CONVEX, lambda xp, x: xp.exp(-xp.log(x)), POSITIVE),
    DomainRow("root", R, CONCAVE, lambda xp, x: xp.sqrt(x), NONNEGATIVE),
    DomainRow("negative root", P, CONVEX, lambda xp, x: -xp.sqrt(x), NONNEGATIVE),
    DomainRow("root of what may be negative", U, NONE, lambda xp, x: -xp.sqrt(x), Box(-0.01, 1)),
    DomainRow("cube", P, CONVEX, lambda xp, x: x**3, NONNEGATIVE),
    DomainRow("cube of what may be negative", R, NONE, lambda xp, x: x**3, SIGNED),
    DomainRow("cube of what is negative", R, CONCAVE, lambda xp, x: x**3, Box(-INF, 0)),
    DomainRow("cube, written out", P, CONVEX, lambda xp, x: x * x * x, NONNEGATIVE),
    DomainRow("cube, written out, negative", P, CONVEX, lambda xp, x: -x * x * x, Box(-INF, 0)),
    DomainRow("power above 1", P, CONVEX, lambda xp, x: x**1.5, NONNEGATIVE),
    DomainRow("power below 0", P, CONVEX, lambda xp, x: x**-2.5, POSITIVE),
    DomainRow("power in between", R, CONCAVE, lambda xp, x: x**0.25, NONNEGATIVE),
    DomainRow("square root times the value", P, CONVEX, lambda xp, x: x * xp.sqrt(x), NONNEGATIVE),
    DomainRow("value over its square root", R, CONCAVE, lambda xp, x: x / xp.sqrt(x), POSITIVE),
    DomainRow("times its absolute value", P, CONVEX, lambda xp, x: x * xp.abs(x), Box(0, 1)),
    DomainRow("times its absolute value, negative", R, CONCAVE, lambda xp, x: x * xp.abs(x), NEGATIVE),
    DomainRow("times its absolute value, signed", R, NONE, lambda xp, x: x * xp.abs(x), SIGNED),
    DomainRow("sum times a one-norm, negative", R, CONCAVE, lambda xp, x: xp.sum(x) * xp.sum(xp.abs(x)), NEGATIVE),
    DomainRow("times the root of its square, signed", R, NONE, lambda xp, x: x * xp.sqrt(x * x), SIGNED),
    DomainRow("square of an increasing convex", P, CONVEX, lambda xp, x: xp.exp(x) ** 2 + (x * x) ** 2, NONNEGATIVE),
    DomainRow("square of a signed convex", R, NONE, lambda xp, x: (x * x - 0.5) ** 2, SIGNED),
    DomainRow("square of a convex, positive there", P, CONVEX, lambda xp, x: (x * x - 0.5) ** 2, Box(1, 2)),
    DomainRow("hyperbolic tangent, negative", P, CONVEX, lambda xp, x: xp.tanh(x) + xp.sigmoid(x), Box(-INF, 0)),
    DomainRow("hyperbolic tangent", R, CONCAVE, lambda xp, x: xp.tanh(x) + xp.sigmoid(x), NONNEGATIVE),
    DomainRow("choice that the domain makes", P, CONVEX, lambda xp, x: xp.where(x > 0.05, x**2, -(x**2)), SOME),
    DomainRow("choice that it leaves open", R, NONE, lambda xp, x: xp.where(x > 0.2, x**2, -(x**2)), SOME),
    DomainRow("floor that does not step", P, "constant", lambda xp, x: xp.floor(x), Box(0.1, 0.9)),
    DomainRow("ceiling that steps at a face", U, NONE, lambda xp, x: xp.ceil(x), Box(0, 1)),
    DomainRow("one coordinate fixed", P, AFFINE, lambda xp, x: x[0] * x[1], Box([2, 0, 0], [2, 1, 1])),
    # several values
    DomainRow("square over linear", P, CONVEX, lambda xp, x: (x[0] - 7.0) ** 2 / x[1], POSITIVE),
    DomainRow("square over linear, signed", R, NONE, lambda xp, x: x[0] ** 2 / (x[1] + 0.5), SIGNED),
    DomainRow("squares over linear", P, CONVEX, lambda xp, x: xp.sum(x**2) / (x[0] + x[1]), POSITIVE),
    DomainRow("norm over root", P, CONVEX, lambda xp, x: xp.norm(x) ** 2 / xp.sqrt(x[0]), POSITIVE),
    DomainRow("product over linear", P, CONVEX, lambda xp, x: 0.5 * (x @ x) / x[2], POSITIVE),
    DomainRow("square over square", R, NONE, lambda xp, x: x[0] ** 2 / x[1] ** 2, SOME),
    DomainRow("square over convex", R, NONE, lambda xp, x: x[0] ** 2 / (x[1] ** 2 + 0.1), SOME),
    DomainRow("fourth power over cube", P, CONVEX, lambda xp, x: x[0] ** 4 / x[1] ** 3, POSITIVE),
    DomainRow("quotient", R, NONE, lambda xp, x: x[0] / x[1], SOME),
    DomainRow("perspective of a square, negative", R, CONCAVE, lambda xp, x: -x[0] * (x[0] / x[1]), SOME),
    DomainRow("reciprocal of a product", P, CONVEX, lambda xp, x: 1.0 / (x[0] * x[1]), POSITIVE),
    DomainRow("reciprocal of a product of signs", R, CONCAVE, lambda xp, x: 1.0 / (x[0] * x[1]), TWO_SIGNS),
    DomainRow("product", R, NONE, lambda xp, x: x[0] * x[1], NONNEGATIVE),
    DomainRow("geometric mean", R, CONCAVE, lambda xp, x: xp.sqrt(x[0] * x[1]), NONNEGATIVE),
    DomainRow("product of roots", P, CONVEX, lambda xp, x: -xp.sqrt(x[0]) * xp.sqrt(x[1]), NONNEGATIVE),
    DomainRow("powers of sum above 1", R, NONE, lambda xp, x: -(x[0] ** 0.75) * x[1] ** 0.5, NONNEGATIVE),
    DomainRow("odds", P, CONVEX, lambda xp, x: x / (1.0 - x), Box(0, 0.9)),
    DomainRow("saturation", R, CONCAVE, lambda xp, x: 3.0 * x / (2.0 + x), NONNEGATIVE),
    DomainRow("odds of another", R, NONE, lambda xp, x: x[0] / (1.0 - x[1]), UNIT),
    DomainRow("perspective of exp", P, CONVEX, lambda xp, x: x[2] * xp.exp(x[0] / x[2]), POSITIVE),
    DomainRow("perspective of log-sum-exp", P, CONVEX, lambda xp, x: x[2] * xp.logsumexp(x[:2] / x[2], 0), POSITIVE),
    DomainRow("multiple of a perspective", P, CONVEX, lambda xp, x: x[2] / 3 * xp.exp(3 * x[0] / x[2]), POSITIVE),
    DomainRow("perspective of -log", P, CONVEX, lambda xp, x: -2 * x[1] * xp.log(1 + x[0] / x[1]), POSITIVE),
    DomainRow("negative perspective of exp", R, CONCAVE, lambda xp, x: -2 * x[2] * xp.exp(x[0] / x[2]), POSITIVE),
    DomainRow("perspective by another", R, NONE, lambda xp, x: x[2] * xp.exp(x[0] / x[1]), SOME),
    DomainRow("harmonic mean", R, CONCAVE, lambda xp, x: 3.0 / xp.sum(1.0 / x), POSITIVE),
    DomainRow("power mean", P, CONVEX, lambda xp, x: -(xp.sum(xp.array(SCALES) * xp.sqrt(x)) ** 2), NONNEGATIVE),
    DomainRow("power mean, too steep", R, NONE, lambda xp, x: -(xp.sum(xp.sqrt(x)) ** 3), NONNEGATIVE),
    DomainRow("geometric mean of all", P, CONVEX, lambda xp, x: -(xp.prod(x) ** (1.0 / 3.0)), NONNEGATIVE),
    DomainRow("root of a product of all", R, NONE, lambda xp, x: -(xp.prod(x) ** 0.5), NONNEGATIVE),
    DomainRow("shift at a temperature", P, CONVEX, lambda xp, x: shifted(xp, x, 0.1, 0.1), Box(-INF, INF)),
    DomainRow("shift at another temperature", R, NONE, lambda xp, x: shifted(xp, x, 0.2, 0.1), Box(-INF, INF)),
    # entropies
    DomainRow("x log x", P, CONVEX, lambda xp, x: x * xp.log(x), POSITIVE),
    DomainRow("x log x, 0 included", U, NONE, lambda xp, x: x * xp.log(x), NONNEGATIVE),
    DomainRow("x log x, a number at 0", P, CONVEX, lambda xp, x: xp.xlogy(x, x), NONNEGATIVE),
    DomainRow("x log x, guarded", P, CONVEX, guarded, NONNEGATIVE),
    DomainRow("x log x, guarded by integers", P, CONVEX, guarded_by_integers, Box(0, 1)),
    DomainRow("x log x, another integer at 0", U, NONE, lambda xp, x: guarded_by_integers(xp, x, -1), Box(0, 1)),
    DomainRow("x log x by where", P, CONVEX, lambda xp, x: xp.where(x > 0, x * xp.log(x), 0.0), NONNEGATIVE),
    DomainRow("x log x, 0 below", R, NONE, guarded, SIGNED),
    DomainRow("entropy", R, CONCAVE, lambda xp, x: -xp.sum(x * xp.log(x)), POSITIVE),
    DomainRow("entropy of a library", R, CONCAVE, lambda xp, x: xp.sum(xp.entr(x)), NONNEGATIVE),
    DomainRow("binary entropy", P, CONVEX, lambda xp, x: x * xp.log(x) + (1.0 - x) * xp.log(1.0 - x), UNIT),
    DomainRow("binary entropy by log1p", P, CONVEX, lambda xp, x: x * xp.log(x) + (1.0 - x) * xp.log1p(-x), UNIT),
    DomainRow("times log1p of itself less 1", P, CONVEX, lambda xp, x: x * xp.log1p(x - 1), UNIT),
    DomainRow("times log1p of less than itself", R, NONE, lambda xp, x: (2.0 - x) * xp.log1p(-x), UNIT),
    DomainRow("times log1p of the other sign", R, NONE, lambda xp, x: (1.0 - x) * xp.log1p(x) - x, UNIT),
    DomainRow("weighted entropy", P, CONVEX, lambda xp, x: xp.array(SCALES) * x * xp.log(2.0 * x) / 3.0, POSITIVE),
    DomainRow("weights of two signs", R, NONE, lambda xp, x: xp.array([1.0, -1.0, 1.0]) * x * xp.log(x), POSITIVE),
    DomainRow("entropy less a value", P, CONVEX, lambda xp, x: x * (xp.log(x) - 1.0), POSITIVE),
    DomainRow("entropy with a shift", P, CONVEX, lambda xp, x: x * xp.log(x + 1e-8) + x * xp.log1p(x), NONNEGATIVE),
    DomainRow("entropy with a bound", P, CONVEX, lambda xp, x: x * xp.log(xp.maximum(x, xp.array(1e-3))), NONNEGATIVE),
    DomainRow("entropy in bits", P, CONVEX, lambda xp, x: x * xp.log2(x), POSITIVE),
    DomainRow("entropy of a convex value", P, CONVEX, lambda xp, x: (1.0 + x * x) * xp.log(1.0 + x * x), SIGNED),
    DomainRow("entropy of a small convex", R, NONE, lambda xp, x: (0.01 + x * x) * xp.log(0.01 + x * x), SIGNED),
    DomainRow("relative entropy", P, CONVEX, lambda xp, x: x[0] * xp.log(x[0] / x[1]), POSITIVE),
    DomainRow("relative entropy, by parts", P, CONVEX, lambda xp, x: x[0] * (xp.log(x[0]) - xp.log(x[1])), POSITIVE),
    DomainRow("relative entropy, turned", P, CONVEX, lambda xp, x: -x[0] * xp.log(x[1] / x[0]), POSITIVE),
    DomainRow("relative entropy to a concave", P, CONVEX, lambda xp, x: x[0] * xp.log(x[0] / xp.sqrt(x[1])), POSITIVE),
    DomainRow("relative entropy, by log1p", P, CONVEX, lambda xp, x: x[0] * (xp.log(x[0]) - xp.log1p(x[1])), POSITIVE),
    DomainRow("another's log1p", R, NONE, lambda xp, x: x[0] * (xp.log(x[0]) - xp.log1p(x[1] ** 2 * 9)), SOME),
    DomainRow("relative entropy to a convex", R, NONE, lambda xp, x: x[0] * xp.log(x[0] / x[1] ** 2), SOME),
    DomainRow("a value times another's logarithm", R, NONE, lambda xp, x: x[0] * xp.log(x[1]), SOME),
    DomainRow("cross entropy", P, CONVEX, lambda xp, x: -xp.sum(xp.array(SCALES) * xp.log(x)), POSITIVE),
    # the program itself makes the argument positive
    DomainRow("logarithm of softplus", P, CONVEX, lambda xp, x: -xp.log(xp.softplus(x)), Box(-INF, INF)),
    DomainRow("reciprocal of softplus", P, CONVEX, lambda xp, x: 1.0 / xp.softplus(x), Box(-INF, INF)),
]
