"""Convex regressors that are not trained by gradients: for `quality.py`.

Letters: N rows, D in, K pieces.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Function = Callable[[np.ndarray], np.ndarray]
RESTARTS, SWEEPS = 5, 40


class Planes(NamedTuple):
    """`max_k slopes[k]' x + offsets[k]`."""

    slopes: np.ndarray
    offsets: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return `[N]` values at `[N, D]`."""
        return np.max(x @ self.slopes.T + self.offsets, axis=1)


def fit_planes(x: np.ndarray, y: np.ndarray, pieces: int, seed: int) -> Planes:
    """Fit a maximum of planes by alternating assignment and least squares: the best of `RESTARTS` random starts.

    Source: Magnani and Boyd, Convex piecewise-linear fitting, Optimization and Engineering 10, 2009, section 3.
    """
    rng = np.random.default_rng(seed)
    design = np.column_stack([x, np.ones(len(x))])
    ridge = 1e-6 * len(x) * np.eye(design.shape[1])
    best, least = None, np.inf
    for _ in range(RESTARTS):
        centres = x[rng.choice(len(x), min(pieces, len(x)), replace=False)]
        cell = np.argmin(((x[:, None] - centres) ** 2).sum(-1), axis=1)
        planes = np.zeros((pieces, design.shape[1]))
        for _ in range(SWEEPS):
            for k in np.unique(cell):
                rows = design[cell == k]
                planes[k] = np.linalg.solve(rows.T @ rows + ridge, rows.T @ y[cell == k])
            values = design @ planes[np.unique(cell)].T
            error = np.mean((values.max(axis=1) - y) ** 2)
            if error < least:
                kept = planes[np.unique(cell)]
                best, least = Planes(kept[:, :-1].copy(), kept[:, -1].copy()), error
            now = np.unique(cell)[np.argmax(values, axis=1)]
            if np.array_equal(now, cell):
                break
            cell = now
    assert best is not None
    return best


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
