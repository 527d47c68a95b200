"""Convex regression without networks, for `quality.py`: a quadratic program, and a maximum of planes."""

from __future__ import annotations

import numpy as np
from convexmoe.training.starts.planes import Planes


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
