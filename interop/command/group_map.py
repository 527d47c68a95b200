"""Which inputs matter most to a fitted hull, and which of its groups wins where over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..frameworks import Framework

Rows = NDArray[np.float64]

_SHUFFLES = 4  # of the rows of each fold
_GRID = 120


@dataclass(frozen=True)
class GroupMap:
    """Which group of petals wins over one or two inputs, the other inputs at their median.

    Attributes:
        names: the inputs shown, the more important first.
        axes: grid values of each, `[G]`.
        group: winning group, `int[G]` for one input, `int[G, G]` for two (the second along axis 0).
        value: predicted target on the same grid.
        points: the rows in these inputs, `[N, 1 or 2]`.
        point_group: winning group of each row, `[N]`, its other inputs as they are.
        point_value: true target of each row, `[N]`.
        members: the petals of each group.
    """

    names: tuple[str, ...]
    axes: tuple[Rows, ...]
    group: NDArray[np.int64]
    value: Rows
    points: Rows
    point_group: NDArray[np.int64]
    point_value: Rows
    members: tuple[tuple[int, ...], ...]


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


def map_groups(framework: Framework, model: Any, names: tuple[str, ...], growth: Rows, x: Rows, y: Rows) -> GroupMap:
    """Return the map over the two inputs of the largest `growth` (one where there is but one).

    Args:
        names: `in_dim` names.
        growth: `[in_dim + context_dim]`, from `importance`.
        x, y: `[N, in_dim + context_dim]` and `[N]`, all rows: they give the medians and the ranges, and are shown as
            points. The context is at its median, too.
    """
    shown = np.argsort(-growth[: len(names)], kind="stable")[:2]
    low, high = x[:, shown].min(axis=0), x[:, shown].max(axis=0)
    edge = 0.03 * (high - low)  # so that no point is cut by the frame
    axes = tuple(np.linspace(a, b, _GRID) for a, b in zip(low - edge, high + edge, strict=True))
    grid = np.meshgrid(*axes)
    rows = np.tile(np.median(x, axis=0), (grid[0].size, 1))
    for column, values in zip(shown, grid, strict=True):
        rows[:, column] = values.ravel()
    petals = model.config.petals
    return GroupMap(
        names=tuple(names[column] for column in shown),
        axes=axes,
        group=framework.winners(model, rows).reshape(grid[0].shape),
        value=framework.predict(model, rows).reshape(grid[0].shape),
        points=x[:, shown],
        point_group=framework.winners(model, x),
        point_value=y,
        members=tuple((k, (k + 1) % petals)[: min(petals, model.config.group_size)] for k in range(petals)),
    )
