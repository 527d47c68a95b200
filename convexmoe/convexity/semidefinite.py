"""Whether a symmetric matrix is positive semidefinite, decided with rational numbers: no rounding, no tolerance."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

LARGEST_ORDER = 24


def is_semidefinite(lower: np.ndarray, upper: np.ndarray) -> bool:
    """Return True where every symmetric matrix between two, (n, n), is positive semidefinite; False where unsure.

    A matrix within r of A, row by row in the sum of absolute values, has no eigenvalue below that of A minus r.

    >>> one = np.ones((2, 2))
    >>> is_semidefinite(one, one), is_semidefinite(-one, -one)
    (True, False)
    """
    n = len(lower)
    if n > LARGEST_ORDER or not (np.isfinite(lower).all() and np.isfinite(upper).all()):
        return False
    low, high = (np.array([Fraction(float(x)) for x in part.flat], object).reshape(n, n) for part in (lower, upper))
    middle = (low + high + low.T + high.T) / 4
    reach = np.maximum(np.maximum(high - middle, middle - low), 0)
    radius = max([*reach.sum(axis=0), *reach.sum(axis=1), Fraction(0)])
    return _eliminates(middle - radius * np.eye(n, dtype=object))


def _eliminates(matrix: np.ndarray) -> bool:
    """Return whether symmetric elimination meets no negative pivot, and no zero pivot in a row that is not zero."""
    for k in range(len(matrix)):
        pivot, row = matrix[k, k], matrix[k, k + 1 :]
        if pivot < 0 or (pivot == 0 and any(row)):
            return False
        if pivot > 0:
            matrix[k + 1 :, k + 1 :] -= np.outer(row / pivot, row)
    return True
