"""Whether a symmetric matrix is positive semidefinite, decided with rational numbers: no rounding, no tolerance."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

LARGEST_ORDER = 64  # of a matrix that is decided exactly


def is_semidefinite(lower: np.ndarray, upper: np.ndarray) -> bool:
    """Return True where every symmetric matrix between two, (n, n), is positive semidefinite; False where unsure.

    A symmetric matrix E is positive semidefinite when the sum of the absolute values of each row is added to its
    diagonal, so that those between two are where the middle less the sums of the distances, row by row, is.

    >>> one = np.ones((2, 2))
    >>> is_semidefinite(one, one), is_semidefinite(-one, -one)
    (True, False)
    """
    if not (np.isfinite(lower).all() and np.isfinite(upper).all()):
        return False
    rows = np.any([part.any(axis=axis) for part in (lower, upper) for axis in (0, 1)], axis=0)  # others are 0
    lower, upper = (part[np.ix_(rows, rows)] for part in (lower, upper))
    if not (np.diag(upper) > 0).all():
        return not rows.any()
    return _is_definite(lower, upper) or (len(lower) <= LARGEST_ORDER and _eliminates(_least(lower, upper)))


def _is_definite(lower: np.ndarray, upper: np.ndarray) -> bool:
    """Return whether a Cholesky factorization succeeds on what is left of a matrix without its possible errors.

    Source: Rump, Verification of positive definiteness (2006): where it succeeds on A - c, with c above the error of
    the factorization, (n + 2) / (1 - (n + 2) eps) eps tr A, the matrix A is positive semidefinite.
    """
    middle = (lower + upper + lower.T + upper.T) / 4
    reach = np.maximum(np.maximum(upper - middle, middle - lower), 0) + 2.0**-50 * np.abs(middle)
    error = np.maximum(reach.sum(axis=0), reach.sum(axis=1)) + 2.0**-50 * len(lower) * np.diag(middle).sum()
    try:
        np.linalg.cholesky(middle - np.diag(2.0 * error))
    except np.linalg.LinAlgError:
        return False
    return True


def _least(lower: np.ndarray, upper: np.ndarray) -> list[list[int]]:
    """Return the middle of two matrices less the sums of the distances, row by row, times a power of 2."""
    parts = [Fraction(float(x)) for part in (lower, lower.T, upper, upper.T) for x in part.flat]
    low, low_T, high, high_T = np.array(parts, object).reshape(4, *lower.shape)
    middle = (low + low_T + high + high_T) / 4
    reach = np.maximum(np.maximum(high - middle, middle - low), 0)
    rows = [max(pair) for pair in zip(reach.sum(axis=0), reach.sum(axis=1), strict=True)]
    least = middle - np.diag(np.array(rows, object))
    scale = max(x.denominator for x in least.flat)  # all are powers of 2
    return [[int(x * scale) for x in row] for row in least]


def _eliminates(matrix: list[list[int]]) -> bool:
    """Return whether symmetric elimination meets no negative pivot, and no zero pivot in a row that is not zero.

    Without fractions (Bareiss 1968): each entry is a minor of the matrix, and its sign that of the entry of Gauss.
    """
    last = 1
    while matrix:
        (pivot, *row), *rest = matrix
        if pivot < 0 or (pivot == 0 and any(row)):
            return False
        matrix = [below[1:] for below in rest]
        if pivot > 0:
            pairs = zip(row, matrix, strict=True)
            matrix = [
                [(pivot * x - head * y) // last for x, y in zip(below, row, strict=True)] for head, below in pairs
            ]
            last = pivot
    return True
