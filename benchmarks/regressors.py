<<<<<<< HEAD
"""Convex regression without networks, for `quality.py`: a quadratic program, and a maximum of planes."""
=======
"""Convex regression by a quadratic program, for `quality.py`; ridge regression, for `tables.py`."""
>>>>>>> tables

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from convexmoe.training.starts.planes import Planes

PENALTIES = np.logspace(-8, 4, 61)  # of ridge regression, over the rows


def fit_ridge(x: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return ridge regression on standardized columns, its penalty chosen by leave-one-out; `[N, D]` -> `[N]`.

    The error of a row that is left out is its residual over 1 - h, h the diagonal of the matrix from y to predictions.

    Source: Allen, The relationship between variable selection and data augmentation and a method for prediction,
    Technometrics 16, 1974. Differs from the source: columns are standardized once, on all rows.
    """
    mean, offset = x.mean(axis=0), y.mean()
    scale = np.where(np.ptp(x, axis=0) > 0, x.std(axis=0), np.inf)  # a constant column has no effect
    U, s, Vt = np.linalg.svd((x - mean) / scale, full_matrices=False)
    inner = U.T @ (y - offset)
    errors = []
    for penalty in PENALTIES * len(x):
        shrink = s**2 / (s**2 + penalty)
        left_out = (y - offset - U @ (shrink * inner)) / (1 - 1 / len(x) - U**2 @ shrink)
        errors.append(np.mean(left_out**2))
    penalty = len(x) * PENALTIES[np.argmin(errors)]
    slopes = Vt.T @ (s / (s**2 + penalty) * inner) / scale
    return lambda rows: (rows - mean) @ slopes + offset


def fit_convex(x: np.ndarray, y: np.ndarray, penalty: float) -> Planes:
    """Return the convex function of least squares, with `penalty` on its squared slopes: a QP with N^2 constraints.

    Source: Kuosmanen, Representation theorem for convex nonparametric least squares, Econometrics Journal 11, 2008;
    the penalty on slopes is ours, of the usual kind (cvxreg's documentation has one like it).
    """
    import cvxpy as cp

    rows, dim = x.shape
    value, slope = cp.Variable(rows), cp.Variable((rows, dim))
    gaps = []
    for j in range(rows):
        gaps.append(value >= value[j] + (x - x[j]) @ slope[j])
    loss = cp.sum_squares(value - y) / rows + penalty * cp.sum_squares(slope) / rows
    cp.Problem(cp.Minimize(loss), gaps).solve(solver=cp.CLARABEL)
    return Planes(slope.value, value.value - np.sum(slope.value * x, axis=1))
