"""The start of a fit at a maximum of planes: every plane on petals of its own, with units that hardly count yet.

Letters: N rows, D in, K planes, P petals, O out.
It costs as much as K least-squares problems of D unknowns, some hundred times.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...hull.config import LEARNED, LEAST_TEMPERATURE, HullConfig
from .affine import Weights, inverse_softplus, scale_softplus

ROWS, SMOOTHING_ROWS = 5_000, 2_000
RESTARTS, SWEEPS, RIDGE, LEAST_ERROR = 5, 40, 1e-6, 1e-14
LITTLE = 1e-3  # what is left of units and of the given planes, for petals that share a plane to part
CONSTANT = 1e-10
TEMPERATURES = np.geomspace(1.01 * LEAST_TEMPERATURE, 1.0, 25)


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


def choose_planes(x: np.ndarray, y: np.ndarray, most: int) -> Planes:
    """Return 1, 2, 4, ... planes, `most` at most: as many as Schwarz's criterion finds worth their parameters.

    Several planes have 2 (D + 1) rows each in the mean, or more; the search ends where the criterion has risen twice.

    Source: Schwarz, Estimating the dimension of a model, Annals of Statistics 6, 1978.
    """
    rows, dim = x.shape
    candidates: list[Planes] = []
    criteria: list[float] = []
    for size in [1, *[2**k for k in range(1, most.bit_length()) if 2 ** (k + 1) * (dim + 1) <= rows]]:
        planes = fit_planes(x, y, size)
        error = float(np.mean((planes(x) - y) ** 2)) + LEAST_ERROR
        candidates.append(planes)
        criteria.append(rows * np.log(error) + len(planes.offsets) * (dim + 1) * np.log(rows))
        if len(criteria) - np.argmin(criteria) > 2:
            break
    return candidates[int(np.argmin(criteria))]


def start_at_planes(weights: Weights, affine: Weights, config: HullConfig, x: np.ndarray, y: np.ndarray) -> Weights:
    """Return the weights of a hull whose outputs are nearly maxima of planes fitted to `y`.

    Each plane has `group_size` neighboring petals or more, so that one group at least is that plane alone, and the
    means of two planes beside it lie below their maximum. A learned temperature is the one that fits best; a large
    fixed one smooths the planes away. An output for which
    one plane is chosen has the start of `affine`.

    Args:
        weights: every parameter by dotted name, shifts zero.
        affine: the same, after `calibrate`.
        config: the hull they belong to.
        x, y: `[N, D]` and `[N, O]`.
    """
    new = {name: np.array(value, np.float64) for name, value in affine.items()}
    given = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    y = y - 0.5 * config.strong_convexity * np.sum(x * x, axis=1, keepdims=True)
    (x, x_mean, x_unit), (y, y_mean, y_unit) = in_units(x), in_units(y)
    if len(x) > ROWS:
        rows = np.random.default_rng(0).choice(len(x), ROWS, replace=False)
        x, y = x[rows], y[rows]
    size = max(1.0, float(np.max(np.abs(x_mean) + x_unit)))
    for o in range(config.out_dim):
        planes = choose_planes(x, y[:, o], config.petals // config.group_size)
        if len(planes.offsets) == 1:
            continue
        of_petal = np.arange(config.petals) * len(planes.offsets) // config.petals
        slopes = LITTLE * given["readout.weight"][:, :, o] + planes.slopes[of_petal].T
        f_NP = x[:SMOOTHING_ROWS] @ slopes + planes.offsets[of_petal]
        g_NP = f_NP if config.group_size == 1 else 0.5 * (f_NP + np.roll(f_NP, -1, axis=1))
        allowed = TEMPERATURES if config.temperature == LEARNED else np.array([config.temperature]) / y_unit[o]
        residuals = [y[:SMOOTHING_ROWS, o] - smooth_maximum(g_NP, T) for T in allowed]
        at = int(np.argmin([residual.var() for residual in residuals]))
        slopes = slopes * (y_unit[o] / x_unit[:, None])
        offsets = y_unit[o] * (planes.offsets[of_petal] + residuals[at].mean())
        new["readout.weight"][:, :, o] = slopes
        new["readout.bias"][:, o] = offsets + y_mean[o] - x_mean @ slopes
        raw = given["readout.raw_weight"][:, :, o]
        new["readout.raw_weight"][:, :, o] = scale_softplus(raw, LITTLE * y_unit[o] / size)
        if config.temperature == LEARNED:
            T = y_unit[o] * allowed[at]
            new["raw_temperature"][o] = inverse_softplus(T - LEAST_TEMPERATURE)
    return new


def in_units(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the columns less a mean, over a power of two: about standard; normalized ones stay as they are."""
    deviation = values.std(axis=0)
    constant = deviation <= CONSTANT * np.abs(values).max(axis=0)  # but for rounding
    unit = np.exp2(np.round(np.log2(np.where(constant, 1.0, deviation))))
    mean = unit * np.round(values.mean(axis=0) / unit)
    return (values - mean) / unit, mean, unit


def smooth_maximum(g_NP: np.ndarray, temperature: float) -> np.ndarray:
    """Return `T (log sum_i exp(g_i / T) - log P)`, the maximum at T = 0, (N,)."""
    top = g_NP.max(axis=1)
    if temperature == 0.0:
        return top
    return top + temperature * np.log(np.mean(np.exp((g_NP - top[:, None]) / temperature), axis=1))
