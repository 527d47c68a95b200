"""Which columns matter most to a fitted hull: by how much it errs more where one is shuffled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..frameworks import Framework

Rows = NDArray[np.float64]

_SHUFFLES = 4  # of the rows of each fold


def rmse(predicted: Rows, true: Rows, weight: Rows | None = None) -> float:
    """Return the root of the mean squared difference of two `[N]`, rows weighted where weights `[N]` are given.

    >>> rmse(np.array([3.0, 5.0]), np.array([0.0, 2.0]))
    3.0
    """
    squares = (predicted - true) ** 2
    return float(np.sqrt(np.mean(squares) if weight is None else np.average(squares, weights=weight)))


def importance(
    framework: Framework,
    model: Any,
    x: Rows,
    y: Rows,
    seed: int,
    error: Callable[[Rows, Rows], float] = rmse,
    groups: Sequence[Any] | None = None,
) -> Rows:
    """Return by how much the error grows when one column is shuffled, `[D]`: the mean of some shuffles.

    Source: permutation importance (Breiman, "Random Forests", 2001, section 10).

    Args:
        x: `[N, D]`, rows that the model was not trained on, D = in_dim + context_dim.
        y: `[N]`.
        seed: of the shuffles.
        error: of predictions and targets.
        groups: places of columns that are shuffled together, the growth is one a group; None for each on its own.
    """
    groups = range(x.shape[1]) if groups is None else groups
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(x)) for _ in range(_SHUFFLES)]
    growth = np.empty(len(groups))
    exact = error(framework.predict(model, x), y)
    for k, columns in enumerate(groups):
        shuffled, errors = x.copy(), []
        for order in orders:
            shuffled[:, columns] = x[order][:, columns]
            errors.append(error(framework.predict(model, shuffled), y))
        growth[k] = np.mean(errors) - exact
    return growth
