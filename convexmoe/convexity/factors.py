"""Factors and inverses of matrices that depend on no input: in rational numbers, then enclosed in float64."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import partial
from operator import itemgetter

import numpy as np

from . import calculus, facts, scalars
from .contraction import Axes, contract
from .facts import Array, Value
from .intervals import round_fraction

LARGEST_EXACT = 32  # rows of a matrix that is factored in rational numbers


def eliminate(matrix: Value, pivots: bool) -> tuple[Array, Array]:
    """Return L - 1 + U as rational numbers, and the order of the rows, by Gaussian elimination.

    Args:
        matrix: `[n, n]`, known.
        pivots: the largest entry of each column comes first.

    Raises:
        ValueError: it is not known, large, or singular.
    """
    n = matrix.shape[-1]
    if matrix.shape != (n, n) or n > LARGEST_EXACT or not matrix.known.all():
        raise ValueError(f"a matrix {matrix.shape} that is not known, or has more than {LARGEST_EXACT} rows")
    order = np.arange(n)
    both = np.array(list(map(Fraction, matrix.lower.reshape(-1).tolist())), object).reshape(n, n)
    for k in range(n):
        first = k + int(np.argmax(np.abs(both[k:, k]))) if pivots else k
        both[[k, first]], order[[k, first]] = both[[first, k]], order[[first, k]]
        if both[k, k] == 0:
            raise ValueError("a singular matrix")
        both[k + 1 :, k] /= both[k, k]
        both[k + 1 :, k + 1 :] -= np.outer(both[k + 1 :, k], both[k, k + 1 :])
    return both, order


def enclose(numbers: Array) -> Value:
    """Return what is known of rational numbers."""
    low, high = (np.vectorize(partial(round_fraction, end=end), otypes=[float])(numbers) for end in (-np.inf, np.inf))
    return facts.settle(low, high, np.full(numbers.shape, facts.REAL | facts.CONSTANT, np.uint16))


def cholesky(matrix: Value) -> Value:
    """Return the lower triangular L with L L^T = matrix, of which the lower triangle is looked at."""
    lower = matrix.map(np.tril)
    symmetric = facts.merge(np.tri(len(lower.facts)) > 0, lower, lower.map(np.transpose))
    both, _ = eliminate(symmetric, pivots=False)
    if min(np.diag(both)) < 0:
        raise ValueError("a matrix that is not positive definite")
    unit = enclose(np.tril(both, -1) + np.eye(len(both), dtype=int))
    return calculus.multiply(unit, scalars.apply("sqrt", enclose(np.diag(both))))


def invert_triangular(matrix: Value, lower: bool, unit: bool = False) -> Value:
    """Return the inverse of a triangular matrix `[n, n]`, whose other half is not looked at."""
    eye = facts.literal(np.eye(len(matrix.facts)))
    if not lower:
        return invert_triangular(matrix.map(np.transpose), True, unit).map(np.transpose)
    rows: list[Value] = []
    for k in range(len(matrix.facts)):
        row, factors = (part.map(itemgetter(k)) for part in (eye, matrix))
        if rows:
            done = contract(factors.map(itemgetter(slice(k))), facts.join(rows, np.stack), Axes((0,), (0,)))
            row = calculus.add(row, calculus.negate(done))
        rows.append(row if unit else calculus.divide(row, factors.map(itemgetter(k))))
    return facts.join(rows, np.stack)


def determinant(matrix: Value) -> Value:
    """Return the determinant of a known matrix `[n, n]`."""
    both, order = eliminate(matrix, pivots=True)
    sign = round(float(np.linalg.det(np.eye(len(both))[order])))
    return enclose(np.array(sign * math.prod(np.diag(both)), object))


def invert(matrix: Value) -> Value:
    """Return the inverse of a known matrix `[n, n]`."""
    both, order = eliminate(matrix, pivots=True)
    factors = enclose(both)
    inverse = contract(invert_triangular(factors, False), invert_triangular(factors, True, True), Axes((1,), (0,)))
    return inverse.map(lambda part: part[:, np.argsort(order)])
