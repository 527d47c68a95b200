"""Which start a fit takes, and the weights there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...hull.config import HullConfig
from .additive import LEAST_ERROR, Sum, add_sum, fit_additive, place_units
from .affine import Weights, calibrate, spread_rows
from .planes import start_at_planes

STARTS = "affine", "planes", "sums"
MOST_INTERACTION = 0.2
Values = Callable[[Weights, np.ndarray], np.ndarray]


def choose_start(
    weights: Weights, config: HullConfig, x: np.ndarray, y: np.ndarray, start: str | None, values: Values
) -> Weights:
    """Return the weights to start from, in float64.

    Args:
        weights: every parameter of the given hull by dotted name.
        config: of the hull, without normalization.
        x, y: `[N, D]` and `[N, O]`, normalized.
        start: one of `STARTS`, as `fit` has it; None for "sums" where `is_sum`, "affine" elsewhere.
        values: gives the values `[N, O]` of a hull with such weights at x.
    """
    x, y = spread_rows(x, y)
    if start not in ("planes", "affine"):
        sums = fit_additive(config, x, y)
        bare = place_units(weights, config, sums)
        with_sum = add_sum(calibrate(bare, config, values(bare, x), x, y - sums(x)), config, sums)
        if start == "sums":
            return with_sum
    if start == "planes":
        weights = {**weights, "shifts": np.zeros_like(weights["shifts"])}
    affine = calibrate(weights, config, values(weights, x), x, y)
    if start is None and is_sum(x, y - values(with_sum, x), y - values(affine, x), sums):
        return with_sum
    return start_at_planes(weights, affine, config, x, y) if start == "planes" else affine


def is_sum(x: np.ndarray, residual: np.ndarray, residual_of_affine: np.ndarray, sums: Sum) -> bool:
    """Return whether a sum of functions of one input leaves less than the affine start, and no interaction of inputs.

    "Less" by Akaike's criterion; the interaction is the share of the residual that products of two inputs explain.
    """
    if not len(sums.inputs):
        return False
    free = len(x) - x.shape[1] - 1
    of_sum, of_affine = (
        free * np.sum(np.log(np.mean(left**2, axis=0) + LEAST_ERROR)) for left in (residual, residual_of_affine)
    )
    better = of_sum + 2 * len(sums.inputs) * (2 + residual.shape[1]) < of_affine
    return bool(better) and interaction(x, residual) < MOST_INTERACTION


def interaction(x: np.ndarray, residual: np.ndarray) -> float:
    """Return the share of the squares of a residual that products of two inputs explain, the mean over outputs.

    It is the sum of squared correlations with each product, less what chance gives: exact for independent inputs.
    """
    rows, dim = x.shape
    x, residual = (part - part.mean(axis=0) for part in (x, residual))
    square = x**2
    upper = np.triu_indices(dim, 1)
    norms = (square.T @ square)[upper] + np.finfo(float).tiny
    shares = []
    for column in residual.T:
        along = (x.T @ (column[:, None] * x))[upper]
        explained = np.sum(along**2 / norms) / (np.sum(column**2) + rows * LEAST_ERROR)
        shares.append(explained - len(norms) / rows)
    return float(np.mean(shares))
