"""What a fitted hull says along its most important input at a low, a middle and a high value of its contexts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..frameworks import Framework

Rows = NDArray[np.float64]
LEVELS = {"low": 0.1, "middle": 0.5, "high": 0.9}  # quantiles of a context
MOST = 3  # contexts that are shown
_GRID = 120


@dataclass(frozen=True)
class Slices:
    """The predicted target along one input at three values of one context, all other columns at their median.

    Attributes:
        along, context: names of the input and of the context.
        at: values of the input, `[G]`.
        levels: of the context, `[3]`: its quantiles of `LEVELS`.
        value: predicted target, `[3, G]`.
    """

    along: str
    context: str
    at: Rows
    levels: Rows
    value: Rows


def slice_contexts(
    framework: Framework, model: Any, names: tuple[str, ...], growth: Rows, x: Rows
) -> tuple[Slices, ...]:
    """Return slices along the input of the largest `growth`, for the contexts of the largest; none without a context.

    Args:
        names: `in_dim + context_dim` names; growth: as many, from `importance`.
        x: `[N, in_dim + context_dim]`, all rows: they give medians, ranges and quantiles.
    """
    D = model.config.in_dim
    along = int(np.argmax(growth[:D]))
    at = np.linspace(x[:, along].min(), x[:, along].max(), _GRID)
    rows = np.tile(np.median(x, axis=0), (len(LEVELS), _GRID, 1))
    rows[:, :, along] = at
    found = []
    for column in D + np.argsort(-growth[D:], kind="stable")[:MOST]:
        levels = np.quantile(x[:, column], [*LEVELS.values()])
        part = rows.copy()
        part[:, :, column] = levels[:, None]
        value = framework.predict(model, part.reshape(-1, x.shape[1])).reshape(len(LEVELS), _GRID)
        found.append(Slices(names[along], names[column], at, levels, value))
    return tuple(found)
