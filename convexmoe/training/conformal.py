"""Half-widths of prediction intervals, from errors of models on rows that they did not learn from."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np

from ..errors import describe, fail
from ..hull.rows import as_numbers, check_finite


def conformal_width(residuals: Any, level: float) -> float:
    """Return the half-width w of intervals `prediction ± w` that hold a new target with a probability of `level`.

    It is the ceil((n + 1) level)-th of the n sizes of residuals; infinite where n is too few for that.

    Source: Lei, G'Sell, Rinaldo, Tibshirani and Wasserman, Distribution-free predictive inference for regression, JASA
    113, 2018, algorithm 2 (split conformal).
    Guarantee: for rows that are exchangeable, and residuals of a model on rows that it did not learn from, the new
    target is held with a probability of `level` at least, on average over draws (`tests/test_conformal.py`).

    Args:
        residuals: `[n]`, target - prediction of rows held out, in any unit; the width has that unit.
        level: between 0 and 1.

    Raises:
        TypeError, ValueError: no numbers, or a level that is not between 0 and 1.

    >>> conformal_width([0.5, -1.0, 2.0, -3.0], 0.8), conformal_width([0.5, -1.0], 0.9)
    (3.0, inf)
    """
    sizes = np.abs(as_numbers("conformal_width", "residuals", residuals))
    if sizes.ndim != 1 or not sizes.size:
        fail("conformal_width", "residuals", "[rows], at least one", describe(sizes), "Pass one number a row.")
    check_finite("conformal_width", "residuals", sizes, "Remove that row.")
    if isinstance(level, bool) or not isinstance(level, Real) or not 0 < level < 1:
        fail("conformal_width", "level", "a number between 0 and 1", describe(level), "Pass 0.9, for example.")
    # What is whole but for rounding, as (19 + 1) 0.9, is not rounded up.
    rank = math.ceil((len(sizes) + 1) * float(level) * (1.0 - 1e-12))
    return math.inf if rank > len(sizes) else float(np.partition(sizes, rank - 1)[rank - 1])
