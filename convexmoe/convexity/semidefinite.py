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
    low = [[Fraction(float(x)) for x in row] for row in lower]
    high = [[Fraction(float(x)) for x in row] for row in upper]
    middle = [[(low[i][j] + high[i][j] + low[j][i] + high[j][i]) / 4 for j in range(n)] for i in range(n)]
    reach = [
        [max(high[i][j] - middle[i][j], middle[i][j] - low[i][j], Fraction(0)) for j in range(n)] for i in range(n)
    ]
    across = [max(sum(reach[i]), sum(row[i] for row in reach)) for i in range(n)]
    radius = max(across, default=Fraction(0))
    for i in range(n):
        middle[i][i] -= radius
    return _eliminates(middle)


def _eliminates(matrix: list[list[Fraction]]) -> bool:
    """Return whether symmetric elimination meets no negative pivot, and no zero pivot in a row that is not zero."""
    n = len(matrix)
    for k in range(n):
        pivot = matrix[k][k]
        if pivot < 0 or (pivot == 0 and any(matrix[k][j] != 0 for j in range(k + 1, n))):
            return False
        if pivot == 0:
            continue
        for i in range(k + 1, n):
            factor = matrix[i][k] / pivot
            if factor:
                for j in range(k + 1, n):
                    matrix[i][j] -= factor * matrix[k][j]
    return True
