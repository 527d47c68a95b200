"""What a hull says along one column: for the rows as they are, with all else at its median, at values of a context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..frameworks import Framework, of
from .style import (
    COLORS,
    FAINT,
    INK,
    LINES,
    Vector,
    column_of,
    limits_of,
    names_of,
    new_axes,
    place_legend,
    plain,
    rows_of,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEVELS = {"low": 0.1, "middle": 0.5, "high": 0.9}  # quantiles of a context
BAND = (0.1, 0.9)  # quantiles of the slices of single rows
_GRID, _SAMPLE, _TICKS = 60, 200, 200
_MOST_GROUPS = 6
_LOWERED = 3e4  # taken off the shifts of the other groups, in normalized units: a finite number of every dtype


@dataclass(frozen=True)
class Effect:
    """The predicted target along one column.

    Attributes:
        name: of the column; at: its values, `[G]`, from the least to the largest that is not far out.
        mean: over rows that are as they are but for this column (partial dependence; Friedman, "Greedy function
            approximation", 2001, section 8.2), `[G]`.
        low, high: the quantiles of `BAND` over the same rows, `[G]`.
        middle: with all other columns at their median, `[G]`.
        groups: the groups that win somewhere on `middle`, each moved until it touches `middle`, `[K, G]`: none lies
            above it, or below it where the hull is concave. At temperature 0 a group touches where it wins.
        ticks: values of the column in the rows, at most 200, `[M]`; beyond: how many rows lie far out.
    """

    name: str
    at: Vector
    mean: Vector
    low: Vector
    high: Vector
    middle: Vector
    groups: Vector
    ticks: Vector
    beyond: int

    @property
    def limits(self) -> tuple[float, float]:
        """What an axis of the target shows, with room below for the ticks; single groups may go beyond."""
        shown = np.concatenate([self.low, self.high, self.middle, self.mean])
        return _with_room(float(shown.min()), float(shown.max()))


@dataclass(frozen=True)
class Slices:
    """The predicted target along one column at three values of one context, all other columns at their median.

    Attributes:
        along, context: names of the column and of the context.
        at: values of the column, `[G]`.
        levels: of the context, `[3]`: its quantiles of `LEVELS`.
        value: predicted target, `[3, G]`.
    """

    along: str
    context: str
    at: Vector
    levels: Vector
    value: Vector


def plot_slices(
    model: Any,
    x: Any,
    context: Any = None,
    *,
    columns: Sequence[Any] | None = None,
    by: Any = None,
    names: Sequence[str] | None = None,
    target: str = "prediction",
    ax: Any = None,
) -> list[Axes]:
    """Draw what a hull says along each column, and return the axes, one a column.

    A line is the mean over the rows, each as it is but for this column; the band holds the middle 80 % of them. The
    dotted line has all other columns at their median, and the groups that win on it stand beneath, each moved until it
    touches (above, where the hull is concave).

    Args:
        model: a hull of either package, with one output.
        x, context: the rows that it was fitted to, `[N, in_dim]` and `[N, context_dim]`, in original units.
        columns: which, by name or place, those of the context after the inputs; None for all.
        by: a column of the context: lines at its quantiles 0.1, 0.5 and 0.9, all else at its median, and no band.
        names: of the inputs, then of the context; None for those of a data frame, or `x0`, `x1`, ...
        target: the name of what is predicted.
        ax: axes to draw on, one a column; None for new ones.

    Raises:
        TypeError: the model is no hull. ValueError: it has several outputs, or the rows are not its own.

    >>> import convexmoe_torch
    >>> [axes] = plot_slices(convexmoe_torch.VectorHull(2, petals=3, out_dim=1), np.eye(2), columns=["x1"])
    >>> axes.get_xlabel()
    'x1'
    """
    side, rows = of("plot_slices", model), rows_of("plot_slices", model, x, context)
    known = names_of("plot_slices", x, names, rows.shape[1])
    wanted = range(rows.shape[1]) if columns is None else columns
    places = [column_of("plot_slices", "columns", name, known) for name in wanted]
    level = None if by is None else column_of("plot_slices", "by", by, known)
    if level is not None and columns is None:
        places.remove(level)
    drawn = new_axes("plot_slices", ax, len(places))
    for axes, place in zip(drawn, places, strict=True):
        if level is None:
            draw_effect(axes, see_effect(side, model, known, rows, place), target)
        else:
            draw_slices(axes, see_slices(side, model, known, rows, place, level), target)
            place_legend(axes, ncols=3)
    if level is None and drawn:
        place_legend(drawn[0], ncols=2)
    if ax is None and drawn:
        limits_together(drawn)
    return drawn


def see_effect(framework: Framework, model: Any, names: Sequence[str], x: Vector, column: int) -> Effect:
    """Return the effect of a column; `x` is `[N, in_dim + context_dim]`, `names` has as many."""
    low, high = limits_of(x[:, column])
    at = np.linspace(low, high, _GRID)
    part = x if len(x) <= _SAMPLE else x[np.random.default_rng(0).choice(len(x), _SAMPLE, replace=False)]
    rows = np.repeat(part, _GRID, axis=0)
    rows[:, column] = np.tile(at, len(part))
    each = framework.predict(model, rows).reshape(len(part), _GRID)
    rows = np.tile(np.median(x, axis=0), (_GRID, 1))
    rows[:, column] = at
    middle = framework.predict(model, rows)
    winners, counts = np.unique(framework.winners(model, rows), return_counts=True)
    shown = winners[np.argsort(-counts, kind="stable")][:_MOST_GROUPS]
    alone = np.array([framework.predict(_only_group(framework, model, group), rows) for group in shown])
    gaps = middle - alone
    alone += (gaps.max if model.config.is_concave else gaps.min)(axis=1, keepdims=True)
    inside = x[(x[:, column] >= low) & (x[:, column] <= high), column]
    band_low, band_high = np.quantile(each, BAND, axis=0)
    ticks = np.quantile(inside, np.linspace(0, 1, min(_TICKS, len(inside))), method="nearest")
    mean, beyond = each.mean(axis=0), len(x) - len(inside)
    return Effect(str(names[column]), at, mean, band_low, band_high, middle, alone, ticks, beyond)


def _only_group(framework: Framework, model: Any, group: int) -> Any:
    """Return a hull in which one group stands alone: the shifts of all others are far below."""
    if model.config.petals == 1:
        return model
    lowered = framework.rows_for(model, _LOWERED * (np.arange(model.config.petals) != group))
    params = {**model.params, "shifts": model.params["shifts"] - lowered}
    if hasattr(type(model), "from_params"):
        return type(model).from_params(model.config, params)
    return type(model)(params, model.config)


def see_slices(framework: Framework, model: Any, names: Sequence[str], x: Vector, along: int, context: int) -> Slices:
    """Return the slices along a column at three values of a context; `x` is `[N, in_dim + context_dim]`."""
    at, levels = np.linspace(*limits_of(x[:, along]), _GRID), np.quantile(x[:, context], [*LEVELS.values()])
    rows = np.tile(np.median(x, axis=0), (len(LEVELS), _GRID, 1))
    rows[:, :, along] = at
    rows[:, :, context] = levels[:, None]
    value = framework.predict(model, rows.reshape(-1, x.shape[1])).reshape(len(LEVELS), _GRID)
    return Slices(str(names[along]), str(names[context]), at, levels, value)


def draw_effect(axes: Axes, effect: Effect, target: str) -> None:
    """Draw the mean line over its band, the line at the medians, the groups that it touches, ticks for the rows."""
    at = effect.at
    if (effect.high > effect.low).any():  # else it is the only column
        axes.fill_between(
            at, effect.low, effect.high, color=COLORS[0], alpha=0.18, linewidth=0, label="80% of the rows"
        )
        axes.plot(at, effect.middle, color=INK, linestyle=":", linewidth=1.3, label="others at their median", zorder=3)
    axes.plot(at, effect.mean, color=COLORS[0], linewidth=2.2, label="mean over the rows", zorder=3)
    tidy(axes)
    axes.set_ylim(*effect.limits)
    if len(effect.groups) > 1:
        for k, group in enumerate(effect.groups):
            label = None if k else "single groups, touching"
            axes.plot(at, group, color=FAINT, linewidth=0.6, linestyle="-", label=label, zorder=2)
    axes.plot(effect.ticks, np.full(len(effect.ticks), 0.012), "|", color=INK, alpha=0.35, markersize=7,
              transform=axes.get_xaxis_transform(), clip_on=True)  # fmt: skip
    beyond = f" ({effect.beyond:,} row{'s' * (effect.beyond > 1)} beyond)" if effect.beyond else ""
    axes.set(xlabel=plain(effect.name) + beyond, ylabel=plain(target))


def draw_slices(axes: Axes, part: Slices, target: str) -> None:
    """Draw what is predicted along a column at three values of a context."""
    levels = part.levels.tolist()
    for k, level in enumerate(levels):
        if level not in levels[:k]:
            words = ", ".join(word for word, other in zip(LEVELS, levels, strict=True) if other == level)
            style: Any = {"color": COLORS[k], "linestyle": LINES[k], "label": f"{words}: {level:.4g}"}
            axes.plot(part.at, part.value[k], linewidth=1.8, **style)
    tidy(axes)
    axes.set_ylim(*_with_room(float(part.value.min()), float(part.value.max())))
    axes.set(xlabel=plain(part.along), ylabel=plain(target))
    axes.set_title(f"at values of {plain(part.context)}", fontsize=9, pad=22)


def _with_room(low: float, high: float) -> tuple[float, float]:
    """Return limits with room below, for the ticks, and above."""
    room = (high - low) or abs(high) or 1.0
    return low - 0.1 * room, high + 0.06 * room


def limits_together(axes: Sequence[Axes]) -> None:
    """Give axes the same limits of y, so that what is steep looks steep."""
    limits: NDArray[np.float64] = np.array([panel.get_ylim() for panel in axes])
    for panel in axes:
        panel.set_ylim(limits[:, 0].min(), limits[:, 1].max())
