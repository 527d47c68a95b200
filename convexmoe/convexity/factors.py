"""Factors and inverses of matrices that depend on no input: in rational numbers, then enclosed in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from operator import itemgetter

import numpy as np

from . import calculus, facts, scalars
from .contraction import Axes, contract
from .facts import Array, Value
from .intervals import round_fraction

# How far what is computed of known numbers in float64 may be from what it stands for, relative to the largest of both;
# at least ten times what noise of this size in the inputs changes, more than rounding does, whatever the condition is.
NOISE = 1e-13
MARGIN = 1e-7
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


def compute(
    function: Callable[[list[Array]], list[Array]], inputs: list[Value], dtypes: list[str], of_matrices: bool
) -> list[Value]:
    """Return what is known of what a function of known numbers gives, computed in float64, or raise ValueError.

    Args:
        function: of arrays, floats as float64.
        inputs: numbers, or next to them; where the results are whole numbers alone, they are exactly known.
        dtypes: of the inputs in the program.
        of_matrices: the size of the inputs says nothing of the error, as in an inverse.
    """
    kinds = (dtype if dtype.startswith(("int", "uint", "bool")) else "float64" for dtype in dtypes)
    arrays = [((x.lower + x.upper) / 2).astype(kind) for x, kind in zip(inputs, kinds, strict=True)]
    rng, is_float = np.random.default_rng(0), [part.dtype.kind == "f" for part in arrays]
    noisy = [x * (1 + NOISE * rng.uniform(-1, 1, x.shape)) if f else x for x, f in zip(arrays, is_float, strict=True)]
    size, values = max(float(np.abs(part).max(initial=0.0)) for part in arrays) * (not of_matrices), []
    results = [list(map(np.asarray, function(given))) for given in (arrays, noisy)]
    for part, other in zip(*results, strict=True):
        whole = part.dtype.kind in "iub" and (len(results[0]) > 1 or all(x.known.all() for x in inputs))
        if not (whole or part.dtype == np.float64) or not np.isfinite([part, other]).all():
            raise ValueError("no numbers")
        one, two = part.astype(np.float64), other.astype(np.float64)
        slack = max(MARGIN * max(size, np.abs(one).max(initial=0.0)), 10 * np.abs(one - two).max(initial=0.0))
        if whole and (one != two).any():
            raise ValueError("places that rounding decides")
        bounds = (one - slack * (not whole), one + slack * (not whole))
        values.append(facts.settle(*bounds, np.full(part.shape, facts.REAL | facts.CONSTANT, np.uint16)))
    return values


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
