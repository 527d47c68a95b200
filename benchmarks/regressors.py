"""Regression without networks: by a quadratic program and by planes, for `quality.py`; ridge, for `tables.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

PENALTIES = np.logspace(-8, 4, 61)  # of ridge regression, over the rows
RESTARTS, SWEEPS, RIDGE = 5, 40, 1e-6
BROKEN, WORST = 1e-5, 5  # of constraints of convex least squares: by how much, and how many are added


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

    A plane touches each row's value and lies below those of the others. Constraints are added where they are broken,
    until none is by more than `BROKEN` of the deviation of y.

    Source: Kuosmanen, Representation theorem for convex nonparametric least squares, Econometrics Journal 11, 2008; the
    penalty is that of pystoned's `pCNLS`, which sums over the rows where ours takes means. Lee, Johnson, Moreno-Centeno
    and Kuosmanen, A more efficient algorithm for convex nonparametric least squares, European Journal of Operational
    Research 227, 2013. Differs from the source: which constraints are there at first, and which are added.
    """
    rows, most = len(x), min(WORST, len(x))
    asked = np.zeros((rows, rows), dtype=bool)  # [row, plane]
    distances = np.sum(x**2, axis=1) - 2.0 * x @ x.T  # [plane, row], up to a constant of the plane
    near = np.argsort(distances, axis=1)[:, : x.shape[1] + 2]
    asked[near.ravel(), np.repeat(np.arange(rows), near.shape[1])] = True
    while True:
        np.fill_diagonal(asked, False)
        value, slope = least_squares_below(x, y, penalty, *np.nonzero(asked))
        planes = Planes(slope, value - np.sum(slope * x, axis=1))
        over = x @ slope.T + planes.offsets - value[:, None]
        over[asked] = -np.inf  # as low as the solver has brought them
        broken = over > BROKEN * y.std()
        if not broken.any():
            return planes
        for axis in (0, 1):  # the worst rows of each plane, and the worst planes at each row
            worst = np.argpartition(over, -most, axis=axis).take(range(-most, 0), axis=axis)
            chosen = np.zeros_like(asked)
            np.put_along_axis(chosen, worst, True, axis=axis)
            asked |= chosen & broken


def least_squares_below(
    x: np.ndarray, y: np.ndarray, penalty: float, at: np.ndarray, touching: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return values `[N]` and slopes `[N, D]` of planes, each below the values at some rows.

    Args:
        x, y, penalty: as in `fit_convex`.
        at, touching: `[M]`, the rows, and the planes that are below their values; a plane has the number of its row.
    """
    import clarabel
    from scipy import sparse

    (rows, dim), pairs = x.shape, len(at)
    slopes = rows + touching[:, None] * dim + np.arange(dim)  # unknown are values, then slopes
    entries = np.concatenate([np.ones(pairs), -np.ones(pairs), (x[at] - x[touching]).ravel()])
    pair = np.arange(pairs)
    places = np.concatenate([pair, pair, np.repeat(pair, dim)]), np.concatenate([touching, at, slopes.ravel()])
    above = sparse.csc_matrix((entries, places), (pairs, rows + rows * dim))
    squares = sparse.diags_array(np.repeat([2 / rows, 2 * penalty / rows], [rows, rows * dim])).tocsc()
    linear = np.concatenate([-2 / rows * y, np.zeros(rows * dim)])
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    cone = [clarabel.NonnegativeConeT(pairs)]
    found = clarabel.DefaultSolver(squares, linear, above, np.zeros(pairs), cone, settings).solve()
    if found.status not in (clarabel.SolverStatus.Solved, clarabel.SolverStatus.AlmostSolved):
        raise RuntimeError(f"fit_convex: expected Clarabel to solve the program; got {found.status}.")
    value, slope = np.split(np.array(found.x), [rows])
    return value, slope.reshape(rows, dim)
