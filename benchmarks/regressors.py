"""Regression without networks: by a quadratic program and by planes, for `quality.py`; ridge, for `tables.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

PENALTIES = np.logspace(-8, 4, 61)  # of ridge regression, over the rows
RESTARTS, SWEEPS, RIDGE = 5, 40, 1e-6


class Planes(NamedTuple):
    """`max_k slopes[k]' x + offsets[k]`."""

    slopes: np.ndarray
    offsets: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return `[N]` values at `[N, D]`."""
        return np.max(x @ self.slopes.T + self.offsets, axis=1)


def fit_planes(x: np.ndarray, y: np.ndarray, pieces: int, seed: int = 0) -> Planes:
    """Fit a maximum of planes by alternating assignment and least squares: the best of `RESTARTS` random starts.

    Source: Magnani and Boyd, Convex piecewise-linear fitting, Optimization and Engineering 10, 2009, section 3. Differs
    from the source: a ridge of `RIDGE`, and the best sweep is returned.

    Args:
        x, y: `[N, D]` and `[N]`.
        pieces: planes at most; those that are the maximum nowhere are dropped.
        seed: of the starts.
    """
    rng = np.random.default_rng(seed)
    design = np.column_stack([x, np.ones(len(x))])
    ridge = RIDGE * len(x) * np.eye(design.shape[1])
    best, least = np.empty((0, 0)), np.inf
    for _ in range(RESTARTS):
        centers = x[rng.choice(len(x), min(pieces, len(x)), replace=False)]
        squares = np.sum(centers**2, axis=1) - 2.0 * x @ centers.T
        cell = np.argmin(squares, axis=1)
        for _ in range(SWEEPS):
            parts = [(design[cell == k], y[cell == k]) for k in np.unique(cell)]
            planes = np.stack([np.linalg.solve(part.T @ part + ridge, part.T @ wanted) for part, wanted in parts])
            values = design @ planes.T
            error = float(np.mean((values.max(axis=1) - y) ** 2))
            if error < least:
                best, least = planes, error
            now = np.argmax(values, axis=1)
            if np.array_equal(now, cell):
                break
            cell = now
    return Planes(best[:, :-1], best[:, -1])


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
    the penalty is that of pystoned's `pCNLS`, which sums over the rows where ours takes means.
    """
    import clarabel
    from scipy import sparse

    rows, dim = x.shape  # unknown are values [N] and slopes [N, D], in this order
    at, touching = (part[~np.eye(rows, dtype=bool)] for part in np.indices((rows, rows)))
    pair, ones = np.arange(len(at)), np.ones(len(at))
    slopes = rows + touching[:, None] * dim + np.arange(dim)
    entries = np.concatenate([ones, -ones, (x[at] - x[touching]).ravel()])
    places = np.concatenate([pair, pair, np.repeat(pair, dim)]), np.concatenate([touching, at, slopes.ravel()])
    above = sparse.csc_matrix((entries, places), (len(at), rows + rows * dim))  # what a plane is over the values
    squares = sparse.diags_array(np.repeat([2 / rows, 2 * penalty / rows], [rows, rows * dim])).tocsc()
    linear = np.concatenate([-2 / rows * y, np.zeros(rows * dim)])
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    cone = [clarabel.NonnegativeConeT(len(at))]
    found = clarabel.DefaultSolver(squares, linear, above, np.zeros(len(at)), cone, settings).solve()
    if found.status not in (clarabel.SolverStatus.Solved, clarabel.SolverStatus.AlmostSolved):
        raise RuntimeError(f"fit_convex: expected Clarabel to solve the program; got {found.status}.")
    value, slope = np.split(np.array(found.x), [rows])
    slope = slope.reshape(rows, dim)
    return Planes(slope, value - np.sum(slope * x, axis=1))
