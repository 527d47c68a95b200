"""The picture of a fitted hull, and its table for the terminal. Draws; computes nothing about the model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from convexmoe.training import History

from ..frameworks import LABELS
from .group_map import GroupMap
from .output import say
from .tables import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, told apart under the common color-vision deficiencies; the last is for "all other groups".
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
_OTHERS = "#BBBBBB"
_INK = "#222222"
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class _Legend:
    """The groups of a map that have a color of their own, the largest first, and how many have none.

    Attributes:
        shown: the groups.
        others: the number of the other groups.
        shares: the number of points of the grid that each group wins.
    """

    shown: tuple[int, ...]
    others: int
    shares: Counter[int]

    @property
    def colors(self) -> list[str]:
        """A color for each group shown, and one for all others."""
        return [*_COLORS[: len(self.shown)], _OTHERS]

    def indices(self, groups: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the index of the color of each group."""
        place = {group: k for k, group in enumerate(self.shown)}
        return np.vectorize(lambda group: place.get(group, len(self.shown)), otypes=[np.int64])(groups)

    def color(self, groups: NDArray[np.int64]) -> list[str]:
        """Return the color of each group."""
        return [self.colors[k] for k in self.indices(groups)]


def draw_report(
    metrics: dict[str, Any], history: History, true: Vector, predicted: Vector, group_map: GroupMap, path: Path
) -> None:
    """Write the three panels as a PNG: loss curves, predicted against true, which group wins where.

    Args:
        metrics: what metrics.json holds.
        history: the losses of the fit.
        true, predicted: targets of the test rows, in original units, `[N]` each.
        group_map: which group wins where.
        path: of the file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16.5, 5.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)  # no display, no global state
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.0, 0.95, 1.35))
    target = _plain(metrics["data"]["target"])
    _draw_loss(left, history, metrics["best_step"])
    _draw_predictions(middle, target, true, predicted, metrics["test_rmse"]["hull"])
    _draw_groups(right, group_map, target)
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png", metadata={"Software": None})


def print_results(metrics: dict[str, Any], console: Console) -> None:
    """Print what metrics.json holds: the test errors side by side, the convexity check, the parity."""
    target, errors = metrics["data"]["target"], metrics["test_rmse"]
    table = Table(title=f"Test error on {metrics['data']['rows']['test']} rows", title_justify="left")
    for heading in ("model", "parameters", "RMSE", "against linear"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    names = {"hull": "convex mixture", "linear": "linear regression", "mlp": "MLP"}
    for key, name in names.items():
        against = f"{errors[key] / errors['linear'] - 1:+.1%}" if errors["linear"] else ""
        row = (name, f"{metrics['parameters'][key]:,}", _figure(errors[key]), against)
        table.add_row(*row, style="bold" if key == "hull" else None)
    console.print(table)
    convexity, parity, best = metrics["convexity"], metrics["parity"], metrics["best_step"]
    gap = convexity["violation"]
    say(console, f"RMSE in units of {target}.")
    say(console, f"Trained {metrics['steps_run']} steps; kept the best on validation, step {best}.")
    outcome = "no violation" if gap is None else f"VIOLATED by {gap:.2g}"
    say(console, f"Convexity: {outcome} in {convexity['segments']:,} segments.")
    if parity is None:
        other = "PyTorch" if metrics["framework"] == "jax" else "JAX"
        say(console, f'Parity: not checked, {other} is not installed (pip install "convexmoe[interop]").')
    else:
        start = f"Parity: the saved file, read in {LABELS[parity['framework']]}, predicts the same"
        say(console, f"{start} within {parity['max_difference']:.1e} of the largest value.")


def _figure(value: float) -> str:
    return f"{value:.2f}" if 0.1 <= value < 1000 else f"{value:.3g}"


def _draw_loss(axes: Axes, history: History, best_step: int) -> None:
    steps = history.step
    axes.plot(steps, history.train_loss, color=_COLORS[0], label="train", linewidth=1.4)
    axes.plot(steps, history.validation_loss, "--", color=_COLORS[5], label="validation", linewidth=1.8)
    axes.axvline(best_step, color=_INK, linewidth=1.0, linestyle=":", label=f"kept: step {best_step}")
    axes.set_yscale("log")
    axes.set(title="Loss while training", xlabel="step", ylabel="mean squared error (normalized)")
    axes.grid(True, which="both", alpha=0.2)
    axes.legend(facecolor="white", framealpha=0.9, edgecolor="none")


def _draw_predictions(axes: Axes, target: str, true: Vector, predicted: Vector, rmse: float) -> None:
    both = np.concatenate([true, predicted])
    margin = 0.04 * float(np.ptp(both)) or 1.0
    ends = (float(both.min()) - margin, float(both.max()) + margin)
    axes.plot(ends, ends, color=_INK, linewidth=1.0, linestyle=":", label="exact")
    dots = axes.scatter(true, predicted, s=34, color=_COLORS[0], alpha=0.9)
    dots.set(edgecolor="white", linewidth=0.6, label=f"{len(true)} test rows")
    axes.set(xlim=ends, ylim=ends, xlabel=f"true {target}", ylabel=f"predicted {target}")
    axes.set_title(f"Predicted against true (test RMSE {rmse:.3g})")
    axes.set_aspect("equal", adjustable="box")
    axes.grid(True, alpha=0.2)
    axes.legend(frameon=False, loc="upper left")


def _draw_groups(axes: Axes, group_map: GroupMap, target: str) -> None:
    names = [_plain(name) for name in group_map.names]
    legend = _legend_of(group_map)
    heights = group_map.points[:, 1] if len(group_map.axes) == 2 else group_map.point_value
    title = "Which group of petals wins where\n"
    if len(group_map.axes) == 2:
        _draw_plane(axes, group_map, legend)
        axes.set(xlabel=names[0], ylabel=names[1])
        title += f"(lines: predicted {target}; other inputs at their median)"
    else:
        (across,) = group_map.axes
        axes.scatter(across, group_map.value, c=legend.color(group_map.group), s=9, zorder=2)
        axes.set(xlabel=names[0], ylabel=target)
        title += f"(curve: predicted {target}; points: test rows)"
    dots = legend.color(group_map.point_group)
    axes.scatter(group_map.points[:, 0], heights, s=30, color=dots, edgecolor=_INK, linewidth=0.8, zorder=3)
    axes.set_title(title)
    _draw_legend(axes, group_map, legend)


def _legend_of(group_map: GroupMap) -> _Legend:
    """Return which groups have a color of their own: those that win most of the map, then most of the points."""
    shares = Counter(group_map.group.ravel().tolist())
    on_points = Counter(group_map.point_group.tolist())
    order = sorted(shares.keys() | on_points.keys(), key=lambda group: (-shares[group], -on_points[group], group))
    shown = order if len(order) <= len(_COLORS) else order[: len(_COLORS) - 1]
    return _Legend(tuple(shown), len(order) - len(shown), shares)


def _draw_plane(axes: Axes, group_map: GroupMap, legend: _Legend) -> None:
    """Draw the groups over two inputs as areas, and the predictions as contour lines."""
    from matplotlib.colors import ListedColormap

    grid, indices = group_map.axes, legend.indices(group_map.group)
    areas = axes.pcolormesh(*grid, indices, shading="nearest", alpha=0.45, rasterized=True)
    areas.set(cmap=ListedColormap(legend.colors), clim=(-0.5, len(legend.colors) - 0.5))
    lines = axes.contour(*grid, group_map.value, levels=7, colors=_INK, linewidths=0.6, alpha=0.7)
    axes.clabel(lines, fontsize=8, fmt=lambda value: f"{value:.5g}")


def _draw_legend(axes: Axes, group_map: GroupMap, legend: _Legend) -> None:
    from matplotlib.patches import Patch

    def share(count: int) -> str:
        fraction = count / group_map.group.size
        return "under 1%" if 0 < fraction < 0.005 else f"{fraction:.0%}"

    labels = []
    for group in legend.shown:
        members = group_map.members[group]
        petals = f"petal{'s' * (len(members) > 1)} {' + '.join(map(str, members))}"
        labels.append(f"group {group} ({petals}): {share(legend.shares[group])}")
    if legend.others:
        rest = group_map.group.size - sum(legend.shares[group] for group in legend.shown)
        labels.append(f"{legend.others} other groups: {share(rest)}")
    colors = zip(legend.colors, labels, strict=False)
    axes.legend(
        handles=[Patch(facecolor=color, edgecolor=_INK, label=label) for color, label in colors],
        title="share of the map\n(points: test rows, in the\ncolor of their own group)",
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        frameon=False,
        fontsize=9,
        title_fontsize=9,
        alignment="left",
    )


def _plain(name: str) -> str:
    """Return a column's name so that matplotlib draws it as it is: between two dollars it would read formulas."""
    return shorten([name]).replace("$", r"\$")
