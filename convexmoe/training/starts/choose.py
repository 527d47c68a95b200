"""Where a fit starts: a new hull brought near the data without a step of training."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...hull.config import HullConfig
from .additive import LEAST_ERROR, Sum, chosen_sum, with_sum, without_units
from .affine import Weights, calibrated, spread_rows
from .planes import with_planes

STARTS = "affine", "planes", "sums"
MOST_INTERACTION = 0.2
Values = Callable[[Weights, np.ndarray], np.ndarray]


def started(
    weights: Weights, config: HullConfig, x: np.ndarray, y: np.ndarray, start: str | None, values: Values
) -> Weights:
    """Return the weights to start from, in float64.

    Args:
        weights: every parameter of the given hull by dotted name.
        config: of the hull, without normalization.
        x, y: `[N, D]` and `[N, O]`, standardised.
        start: one of `STARTS`, as `fit` has it; None for "sums" where `is_sum`, "affine" elsewhere.
        values: gives the values `[N, O]` of a hull with such weights at x.
    """
    x, y = spread_rows(x, y)
    if start != "planes" and start != "affine":
        sums = chosen_sum(config, x, y)
        rest = without_units(weights, config, sums)
        found = with_sum(calibrated(rest, config, values(rest, x), x, y - sums(x)), config, sums)
        if start == "sums":
            return found
    if start == "planes":
        weights = {**weights, "shifts": np.zeros_like(weights["shifts"])}
    affine = calibrated(weights, config, values(weights, x), x, y)
    if start is None and is_sum(x, y - values(found, x), y - values(affine, x), sums):
        return found
    return with_planes(weights, affine, config, x, y) if start == "planes" else affine


def is_sum(x: np.ndarray, left: np.ndarray, left_by_affine: np.ndarray, sums: Sum) -> bool:
    """Return whether a sum of functions of one input leaves less than the affine start, and no interaction of inputs.

    "Less" by Akaike's criterion; the interaction is the share of what is left that products of two inputs explain.
    """
    if not len(sums.inputs):
        return False
    free = len(x) - x.shape[1] - 1
    by_sum, by_affine = (
        free * np.sum(np.log(np.mean(rest**2, axis=0) + LEAST_ERROR)) for rest in (left, left_by_affine)
    )
    better = by_sum + 2 * len(sums.inputs) * (2 + left.shape[1]) < by_affine
    return bool(better) and interaction(x, left) < MOST_INTERACTION


def interaction(x: np.ndarray, left: np.ndarray) -> float:
    """Return the share of the squares of `left` that products of two inputs explain, the mean over outputs.

    It is the sum of squared correlations with each product, less what chance gives: exact for independent inputs.
    """
    rows, dim = x.shape
    x, left = (part - part.mean(axis=0) for part in (x, left))
    square = x**2
    upper = np.triu_indices(dim, 1)
    norms = (square.T @ square)[upper] + np.finfo(float).tiny
    shares = []
    for rest in left.T:
        along = (x.T @ (rest[:, None] * x))[upper]
        shares.append(np.sum(along**2 / norms) / (np.sum(rest**2) + rows * LEAST_ERROR) - len(norms) / rows)
    return float(np.mean(shares))
