"""The start of a fit at a sum of convex functions of one input each: units of the last layer read one input apiece.

Letters: N rows, D in, H hidden, K units of the sum, M candidates, P petals, O out.
It costs as much as some fifty least-squares problems of 3 K unknowns on N rows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ...hull.activations import ACTIVATIONS
from ...hull.config import HullConfig
from ...hull.parameters import positive_scale
from .affine import Weights, inverse_softplus, scale_softplus
from .planes import in_units

ROWS, ROWS_TIMES_INPUTS, LARGEST_TABLE, MOST_UNKNOWNS = 4_000, 200_000, 4_000_000, 600
SHARPNESS, MOST_SHARPNESS = (1.0, 2.5, 6.0, 15.0), 1000.0
MOST_KNOTS, OUTSIDE = 17, 0.02  # quantiles of an input; the share of rows beyond the outermost knots
ROWS_BEYOND, ROWS_A_UNIT = 3, 20  # fewer let units and plane cancel on all rows but one
ROUNDS, RISES, SWEEPS, ENOUGH = 6, 8, 25, 1e-4
DAMPING, LONGEST_STEP = 1e-2, 1.0
RIDGE, LEAST_ERROR, LEAST_HEIGHT = 1e-6, 1e-14, 1e-4
LITTLE = 1e-3  # what is left of the way from deeper units to those of the sum


class Sum(NamedTuple):
    """`sum_k heights[k] unit(sharpness[k] (x[inputs[k]] - knots[k])) + plane' (x, 1)`, for each output.

    Args:
        inputs, knots, sharpness: of each unit, `[K]`.
        heights: `[K, O]`, >= 0.
        plane: `[D + 1, O]`: slopes and, in the last row, offsets.
        activation: of the units.
    """

    inputs: np.ndarray
    knots: np.ndarray
    sharpness: np.ndarray
    heights: np.ndarray
    plane: np.ndarray
    activation: str

    def units(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the units at `[N, D]`, their derivatives, and the distances to the knots, each `[N, K]`."""
        distance_NK = x[:, self.inputs] - self.knots
        u_NK, act = self.sharpness * distance_NK, ACTIVATIONS[self.activation]
        return act.value(u_NK), act.slope(u_NK), distance_NK

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return `[N, O]` values at `[N, D]`."""
        return self.units(x)[0] @ self.heights + _design(x) @ self.plane


def _design(x: np.ndarray) -> np.ndarray:
    return np.column_stack([x, np.ones(len(x))])


def fit_sum(x: np.ndarray, y: np.ndarray, most: int, activation: str) -> Sum:
    """Fit a plane and `most` units at most: as many as Akaike's corrected criterion finds worth their numbers.

    Units are taken one by one where they lower the squares most; then knots, sharpness and heights move together by the
    method of Levenberg and Marquardt, the plane by least squares; and so on, for `ROUNDS`. Each unit has `ROWS_A_UNIT`
    rows or more, and each knot `ROWS_BEYOND` rows on either side.

    Source: Xu, Chen and Lafferty, Faithful variable screening for high-dimensional convex regression, Annals of
    Statistics 44, 2016, for sums of convex functions. Differs from the source: few smooth pieces with free knots.

    Args:
        x, y: `[N, D]` and `[N, O]`, about standard.
        most: units at most.
        activation: of the units.

    Returns:
        the sum; where there are no more rows than a plane has numbers, no unit and the plane 0.
    """
    (rows, dim), outputs = x.shape, y.shape[1]
    nothing = np.zeros(0, int), np.zeros(0), np.zeros(0), np.zeros((0, outputs)), np.zeros((dim + 1, outputs))
    if rows <= dim + 1:
        return Sum(*nothing, activation)
    X = _design(x)
    solve = np.linalg.solve(X.T @ X + RIDGE * rows * np.eye(dim + 1), X.T)
    best = Sum(*nothing, activation)._replace(plane=solve @ y)
    least = _criterion(y - best(x), 0, dim)
    most = min(most, max(1, MOST_UNKNOWNS // (2 + outputs)), (rows - dim - 1) // ROWS_A_UNIT)
    for _ in range(ROUNDS):
        more = _add_units(best, x, y, most)
        if len(more.inputs) == len(best.inputs):
            break
        more = _polish(more, x, y, solve)
        criterion = _criterion(y - more(x), len(more.inputs), dim)
        if criterion >= least:
            break
        best, least = more, criterion
    return best


def _criterion(residual: np.ndarray, count: int, dim: int) -> float:
    """Return Akaike's criterion, corrected for few rows, of the residual that `count` units leave.

    Each unit has a knot, a sharpness and one height per output. A plane of `dim` slopes takes `dim + 1` degrees of
    freedom from the rows.

    Source: Hurvich and Tsai, Regression and time series model selection in small samples, Biometrika 76, 1989.
    """
    outputs, free = residual.shape[1], len(residual) - dim - 1
    error = np.mean(residual**2, axis=0) + LEAST_ERROR
    numbers, values = count * (2 + outputs), free * outputs
    return float(free * np.sum(np.log(error)) + 2 * numbers * values / max(values - numbers - 1, 1))


def _add_units(given: Sum, x: np.ndarray, y: np.ndarray, most: int) -> Sum:
    """Return a sum with more units: each the candidate that lowers the squares of the residual most."""
    rows, dim = x.shape
    knots = min(MOST_KNOTS, max(3, LARGEST_TABLE // (len(SHARPNESS) * rows * dim)))
    knots_TD = np.quantile(x, np.linspace(OUTSIDE, 1.0 - OUTSIDE, knots), axis=0)
    parts = [ACTIVATIONS[given.activation].value(s * (x[:, None, :] - knots_TD)) for s in SHARPNESS]
    table_NM = np.concatenate([part.reshape(rows, -1) for part in parts], axis=1)
    basis = np.linalg.qr(_design(x))[0]
    table_NM -= basis @ (basis.T @ table_NM)
    norms = np.sqrt(np.sum(table_NM**2, axis=0)) + 1e-6 * math.sqrt(rows)
    table_NM /= norms
    residual = y - given(x)
    residual -= basis @ (basis.T @ residual)
    start = len(given.inputs)
    picked: list[int] = []
    heights: list[np.ndarray] = []
    criteria = [_criterion(residual, start, dim)]
    while start + len(picked) < most and len(picked) - np.argmin(criteria) < RISES:
        size_MO = np.maximum(table_NM.T @ residual, 0.0)
        squares = np.sum(residual**2, axis=0) + LEAST_ERROR * rows
        best = int(np.argmax(np.sum(size_MO**2 / squares, axis=1)))
        residual = residual - np.outer(table_NM[:, best], size_MO[best])
        picked.append(best)
        heights.append(size_MO[best] / norms[best])
        criteria.append(_criterion(residual, start + len(picked), dim))
    if not picked:
        return given
    count = max(1, int(np.argmin(criteria)))  # one that is not worth its numbers here may be once it has moved
    sharp, place = np.divmod(picked[:count], knots_TD.size)
    knot, column = np.divmod(place, dim)
    return given._replace(
        inputs=np.concatenate([given.inputs, column]),
        knots=np.concatenate([given.knots, knots_TD[knot, column]]),
        sharpness=np.concatenate([given.sharpness, np.array(SHARPNESS)[sharp]]),
        heights=np.concatenate([given.heights, heights[:count]]),
    )


def _polish(given: Sum, x: np.ndarray, y: np.ndarray, solve: np.ndarray) -> Sum:
    """Return the sum after at most `SWEEPS` steps on knots and the logarithms of sharpness and heights."""
    X, (count, outputs) = _design(x), given.heights.shape
    ends = np.sort(x, axis=0)[[ROWS_BEYOND, -1 - ROWS_BEYOND]][:, given.inputs]

    def evaluate(values: Sum) -> tuple[Sum, np.ndarray, np.ndarray, float]:
        F_NK, slope_NK, distance_NK = values.units(x)
        moves = np.concatenate([-slope_NK, slope_NK * distance_NK, F_NK], axis=1)
        moves -= X @ (solve @ moves)  # the plane follows
        residual = y - X @ (solve @ y) - moves[:, 2 * count :] @ values.heights
        return values, moves, residual, float(np.sum(residual**2))

    best, moves, residual, least = evaluate(given._replace(heights=given.heights + LEAST_HEIGHT))
    damping = DAMPING
    for _ in range(SWEEPS):
        square, slant = _normal_equations(best, moves.T @ moves, moves.T @ residual)
        scale = np.diag(square) + 1e-12 * np.trace(square)
        step = np.linalg.solve(square + damping * np.diag(scale), slant)
        step = np.clip(step, -LONGEST_STEP, LONGEST_STEP)
        trial = best._replace(
            knots=np.clip(best.knots + step[:count], *ends),
            sharpness=np.minimum(best.sharpness * np.exp(step[count : 2 * count]), MOST_SHARPNESS),
            heights=best.heights * np.exp(step[2 * count :].reshape(count, outputs)),
        )
        trial, *others, squares = evaluate(trial)
        if squares < least:
            done = least - squares < ENOUGH * squares
            best, (moves, residual), least = trial, others, squares
            damping = max(damping / 4.0, 1e-9)
            if done:
                break
        else:
            damping = damping * 8.0
            if damping > 1e6:
                break
    return best._replace(plane=solve @ (y - best.units(x)[0] @ best.heights))


def _normal_equations(sums: Sum, gram: np.ndarray, slant_KO: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return J'J and J'residual for knots, the logarithms of sharpness, and of heights (K, O).

    Args:
        sums: where they are taken.
        gram, slant_KO: products of -slope, slope times distance, and unit with each other and with the residual.
    """
    count, outputs = sums.heights.shape
    size = 2 * count + count * outputs
    square, slant = np.zeros((size, size)), np.zeros(size)
    for o, h in enumerate(sums.heights.T):
        factor = np.concatenate([h * sums.sharpness, h * sums.sharpness, h])
        at = np.concatenate([np.arange(2 * count), 2 * count + np.arange(count) * outputs + o])
        square[np.ix_(at, at)] += gram * np.outer(factor, factor)
        slant[at] += slant_KO[:, o] * factor
    return square, slant


def fit_additive(config: HullConfig, x: np.ndarray, y: np.ndarray) -> Sum:
    """Return the sum fitted to a hull's rows `[N, D]` and `[N, O]`, less its strong convexity, in their units."""
    y = y - 0.5 * config.strong_convexity * np.sum(x * x, axis=1, keepdims=True)
    (x, x_mean, x_unit), (y, y_mean, y_unit) = in_units(x), in_units(y)
    most = min(ROWS, max(1000, ROWS_TIMES_INPUTS // config.in_dim))
    if len(x) > most:
        rows = np.random.default_rng(0).choice(len(x), most, replace=False)
        x, y = x[rows], y[rows]
    sums = fit_sum(x, y, config.hidden_dim, config.activation)
    slopes = sums.plane[:-1] * y_unit / x_unit[:, None]
    return sums._replace(
        knots=x_mean[sums.inputs] + x_unit[sums.inputs] * sums.knots,
        sharpness=sums.sharpness / x_unit[sums.inputs],
        heights=sums.heights * y_unit,
        plane=np.vstack([slopes, sums.plane[-1] * y_unit + y_mean - x_mean @ slopes]),
    )


def place_units(weights: Weights, config: HullConfig, sums: Sum) -> Weights:
    """Return weights in which the first units of the last layer are those of the sum, at height zero."""
    new = {name: np.array(value, np.float64) for name, value in weights.items()}
    units, last = np.arange(len(sums.inputs)), f"trunk.{config.depth - 1}."
    act = ACTIVATIONS[config.activation]
    weight, bias = new[last + "weight"], new[last + "bias"]
    bias[..., units] = -sums.sharpness * sums.knots
    weight[..., units] = 0.0
    for k in units:
        weight[sums.inputs[k], ..., k] = sums.sharpness[k]
    if config.depth > 1:
        raw = new[last + "raw_weight"]
        raw[..., units] = scale_softplus(raw[..., units], LITTLE)
    elif config.gate:
        new["gate.weight"][:, units] = 0.0
        bias[..., units] -= (act.value(new["gate.bias"][units]) - act.mean) / act.deviation
    new["readout.raw_weight"][units] = inverse_softplus(np.zeros(()))
    return new


def add_sum(weights: Weights, config: HullConfig, sums: Sum) -> Weights:
    """Return the weights of `place_units` with the sum added: the heights of its units, and its plane."""
    new = dict(weights)
    act = ACTIVATIONS[config.activation]
    heights = sums.heights * act.deviation / positive_scale(config.hidden_dim)
    raw = new["readout.raw_weight"].copy()
    raw[: len(heights)] = inverse_softplus(heights)[:, None, :]
    new["readout.raw_weight"] = raw
    new["readout.weight"] = new["readout.weight"] + sums.plane[:-1, None, :]
    new["readout.bias"] = new["readout.bias"] + sums.plane[-1] + sums.heights.sum(axis=0) * act.mean
    return new
