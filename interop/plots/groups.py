"""Which group of petals wins where, over two inputs of a hull."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..frameworks import Framework, of
from .style import (
    COLORS,
    HATCHES,
    INK,
    MARKERS,
    OTHERS,
    Vector,
    column_of,
    in_digits,
    limits_of,
    names_of,
    new_axes,
    plain,
    rows_of,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GRID, _POINTS = 120, 200


@dataclass(frozen=True)
class GroupMap:
    """Which group of petals wins over one or two inputs, the other inputs at their median.

    Attributes:
        names: the inputs shown, the more important first.
        axes: grid values of each, `[G]`.
        group: winning group, `int[G]` for one input, `int[G, G]` for two (the second along axis 0).
        value: predicted target on the same grid.
        points: rows in these inputs, `[N, 1 or 2]`.
        point_group: winning group of each row, `[N]`, its other inputs as they are.
        point_value: predicted target of each row, `[N]`.
        members: the petals of each group.
    """

    names: tuple[str, ...]
    axes: tuple[Vector, ...]
    group: NDArray[np.int64]
    value: Vector
    points: Vector
    point_group: NDArray[np.int64]
    point_value: Vector
    members: tuple[tuple[int, ...], ...]


def plot_groups(
    model: Any,
    x: Any,
    context: Any = None,
    *,
    columns: Sequence[Any] | None = None,
    names: Sequence[str] | None = None,
    target: str = "prediction",
    ax: Any = None,
) -> Axes:
    """Draw which group of petals wins where over two inputs, the rows as markers, and return the axes.

    Args:
        model: a hull of either package, with one output.
        x, context: the rows that it was fitted to, `[N, in_dim]` and `[N, context_dim]`, in original units.
        columns: one or two inputs, by name or place; None for the first two.
        names: of the inputs, then of the context; None for those of a data frame, or `x0`, `x1`, ...
        target: the name of what is predicted, whose values are the lines.
        ax: axes to draw on; None for new ones.

    Raises:
        TypeError: the model is no hull. ValueError: it has several outputs, or the rows are not its own.

    >>> import convexmoe_torch
    >>> plot_groups(convexmoe_torch.VectorHull(2, petals=3, out_dim=1), np.eye(2)).get_xlabel()
    'x0'
    """
    side, rows = of("plot_groups", model), rows_of("plot_groups", model, x, context)
    known = names_of("plot_groups", x, names, rows.shape[1])
    inputs = known[: model.config.in_dim]
    wanted = inputs[:2] if columns is None else columns
    places = [column_of("plot_groups", "columns", name, inputs) for name in wanted]
    [axes] = new_axes("plot_groups", ax, min(len(places), 1))
    draw_groups(axes, map_groups(side, model, known, rows, places[:2]), target)
    return axes


def map_groups(framework: Framework, model: Any, names: Sequence[str], x: Vector, columns: Sequence[int]) -> GroupMap:
    """Return the map over one or two inputs.

    Args:
        names: of the columns of `x`, `[N, in_dim + context_dim]`: the rows give the medians and the ranges, and are
            shown as points. The context is at its median, too.
        columns: the places of the inputs.
    """
    shown = np.asarray(columns, np.int64)
    low, high = np.array([limits_of(x[:, column]) for column in shown]).T
    edge = 0.03 * (high - low)  # so that no point is cut by the frame
    axes = tuple(np.linspace(a, b, _GRID) for a, b in zip(low - edge, high + edge, strict=True))
    grid = np.meshgrid(*axes)
    rows = np.tile(np.median(x, axis=0), (grid[0].size, 1))
    for column, values in zip(shown, grid, strict=True):
        rows[:, column] = values.ravel()
    near = x[((x[:, shown] >= low) & (x[:, shown] <= high)).all(axis=1)]
    near = near[np.linspace(0, len(near) - 1, min(len(near), _POINTS)).astype(int)]
    petals = model.config.petals
    return GroupMap(
        names=tuple(str(names[column]) for column in shown),
        axes=axes,
        group=framework.winners(model, rows).reshape(grid[0].shape),
        value=framework.predict(model, rows).reshape(grid[0].shape),
        points=near[:, shown],
        point_group=framework.winners(model, near),
        point_value=framework.predict(model, near),
        members=tuple((k, (k + 1) % petals)[: min(petals, model.config.group_size)] for k in range(petals)),
    )


def draw_groups(axes: Axes, group_map: GroupMap, target: str) -> None:
    """Draw the areas of the groups, lines of equal prediction, and the rows; the shares stand right of the axes."""
    shares = np.bincount(group_map.group.ravel(), minlength=len(group_map.members)) / group_map.group.size
    on_points = np.bincount(group_map.point_group, minlength=len(group_map.members))
    order = [int(k) for k in np.lexsort((-on_points, -shares)) if shares[k] or on_points[k]]
    shown = order if len(order) <= len(COLORS) else order[: len(COLORS) - 1]  # those with a color of their own
    styles: list[Any] = [*zip(COLORS, HATCHES, MARKERS, strict=True)]
    styles = [*styles[: len(shown)], (OTHERS, "", ".")]
    index = np.full(len(group_map.members), len(shown))
    index[shown] = np.arange(len(shown))
    if len(group_map.axes) == 2:
        _draw_areas(axes, group_map, index, styles)
        heights, ylabel = group_map.points[:, 1], plain(group_map.names[1])
    else:
        for k, (color, _, _) in enumerate(styles):
            mine = np.where(index[group_map.group] == k, group_map.value, np.nan)
            axes.plot(group_map.axes[0], mine, color=color, linewidth=4, zorder=2)
        heights, ylabel = group_map.point_value, plain(target)
    for k, (color, _, marker) in enumerate(styles):
        mine = index[group_map.point_group] == k
        dots = axes.scatter(group_map.points[mine, 0], heights[mine], s=14, color=color, marker=marker, zorder=3)
        dots.set(edgecolor=INK, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    if len(group_map.axes) == 1:
        tidy(axes)
    axes.set(xlabel=plain(group_map.names[0]), ylabel=ylabel)
    _list_groups(axes, group_map, shown, shares, styles, len(order) - len(shown))


def _draw_areas(axes: Axes, group_map: GroupMap, index: NDArray[np.int64], styles: list[Any]) -> None:
    """Draw where each group wins, hatched, and lines of equal prediction."""
    from matplotlib import rc_context

    area = index[group_map.group]
    with rc_context({"hatch.linewidth": 0.35}):
        for k, (color, hatch, _) in enumerate(styles):
            if (area == k).any():
                fill: Any = {"colors": [color], "hatches": [hatch], "alpha": 0.4}
                axes.contourf(*group_map.axes, (area == k).astype(float), levels=(0.5, 1.5), **fill)
    if np.ptp(group_map.value) > 0:
        lines = axes.contour(*group_map.axes, group_map.value, levels=6, colors=INK, linewidths=0.6, alpha=0.8)
        for text in axes.clabel(lines, fontsize=7, fmt=in_digits, zorder=4):
            text.set_bbox({"facecolor": "white", "alpha": 0.75, "pad": 0.6, "edgecolor": "none"})
            place = axes.transAxes.inverted().transform(axes.transData.transform(text.get_position()))
            text.set_visible(bool(((place > 0.06) & (place < 0.94)).all()))  # none is cut by the frame


def _list_groups(
    axes: Axes, group_map: GroupMap, shown: list[int], shares: Vector, styles: list[Any], others: int
) -> None:
    """List the groups, their petals and their shares right of the axes."""
    from matplotlib.patches import Patch

    def percent(share: float) -> str:
        return "under 1%" if 0 < share < 0.005 else f"{share:.0%}"

    labels = [f"{'+'.join(map(str, group_map.members[k]))}: {percent(shares[k])}" for k in shown]
    if others:
        labels.append(f"{others} others: {percent(1 - shares[shown].sum())}")
    entries = zip(styles, labels, strict=False)
    patches = [Patch(facecolor=c, edgecolor=INK, hatch=h, alpha=0.6, label=text) for (c, h, _), text in entries]
    legend = axes.legend(handles=patches, title="petals, share\nof the area", loc="upper left", frameon=False)
    legend.set_bbox_to_anchor((1.0, 1.02))
    legend.set_alignment("left")
    for text in (legend.get_title(), *legend.get_texts()):
        text.set_fontsize(8)
