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

from .frameworks import LABELS
from .group_map import GroupMap
from .tables import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LossCurves", "Predictions", "draw_report", "print_results"]

# Okabe and Ito's palette, told apart under the common colour-vision deficiencies; the last is for "all other groups".
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
_OTHERS = "#BBBBBB"
_INK = "#222222"


@dataclass(frozen=True)
class LossCurves:
    """Mean squared error in standardised units while training.

    Attributes:
        step: `[K]`, steps at which it was taken.
        train: `[K]`.
        validation: `[K]`.
        best_step: the step whose weights were kept.
    """

    step: tuple[int, ...]
    train: tuple[float, ...]
    validation: tuple[float, ...]
    best_step: int


@dataclass(frozen=True)
class Predictions:
    """True and predicted targets of the test rows, in original units: `[N]` each."""

    target: str
    true: NDArray[np.float64]
    predicted: NDArray[np.float64]
    rmse: float


def draw_report(curves: LossCurves, predictions: Predictions, group_map: GroupMap, path: Path) -> None:
    """Write the three panels as a PNG: loss curves, predicted against true, which group wins where."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16.5, 5.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)  # no display, no global state
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.0, 0.95, 1.35))
    _draw_loss(left, curves)
    _draw_predictions(middle, predictions)
    _draw_groups(right, group_map, predictions.target)
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
        table.add_row(
            name,
            f"{metrics['parameters'][key]:,}",
            _figure(errors[key]),
            f"{errors[key] / errors['linear'] - 1:+.1%}" if errors["linear"] else "",
            style="bold" if key == "hull" else None,
        )
    console.print(table)
    convexity, parity = metrics["convexity"], metrics["parity"]
    found = "no violation" if convexity["violation"] is None else f"VIOLATED by {convexity['violation']:.2g}"
    training = (
        f"Trained {metrics['steps_run']} steps; kept the best on validation, step {metrics['best_step']}."
    )
    lines = [
        f"RMSE in units of {target}.",
        training,
        f"Convexity: {found} in {convexity['segments']:,} segments.",
    ]
    if parity is None:
        other = "PyTorch" if metrics["framework"] == "jax" else "JAX"
        lines.append(f'Parity: not checked, {other} is not installed (pip install "convexmoe[interop]").')
    else:
        lines.append(
            f"Parity: the saved file, read in {LABELS[parity['framework']]}, predicts the same "
            f"within {parity['max_difference']:.1e} of the largest value."
        )
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _figure(value: float) -> str:
    return f"{value:.2f}" if 0.1 <= value < 1000 else f"{value:.3g}"


def _draw_loss(axes: Axes, curves: LossCurves) -> None:
    axes.plot(curves.step, curves.train, color=_COLOURS[0], label="train", linewidth=1.4)
    axes.plot(
        curves.step, curves.validation, color=_COLOURS[5], label="validation", linewidth=1.8, linestyle="--"
    )
    axes.axvline(
        curves.best_step, color=_INK, linewidth=1.0, linestyle=":", label=f"kept: step {curves.best_step}"
    )
    axes.set_yscale("log")
    axes.set(title="Loss while training", xlabel="step", ylabel="mean squared error (standardised)")
    axes.grid(True, which="both", alpha=0.2)
    axes.legend(facecolor="white", framealpha=0.9, edgecolor="none")


def _draw_predictions(axes: Axes, predictions: Predictions) -> None:
    both = np.concatenate([predictions.true, predictions.predicted])
    margin = 0.04 * float(np.ptp(both)) or 1.0
    ends = (float(both.min()) - margin, float(both.max()) + margin)
    axes.plot(ends, ends, color=_INK, linewidth=1.0, linestyle=":", label="exact")
    axes.scatter(
        predictions.true,
        predictions.predicted,
        s=34,
        color=_COLOURS[0],
        edgecolor="white",
        linewidth=0.6,
        alpha=0.9,
        label=f"{len(predictions.true)} test rows",
    )
    target = _plain(predictions.target)
    axes.set(xlim=ends, ylim=ends, xlabel=f"true {target}", ylabel=f"predicted {target}")
    axes.set_title(f"Predicted against true (test RMSE {predictions.rmse:.3g})")
    axes.set_aspect("equal", adjustable="box")
    axes.grid(True, alpha=0.2)
    axes.legend(frameon=False, loc="upper left")


def _draw_groups(axes: Axes, group_map: GroupMap, target: str) -> None:
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    target, names = _plain(target), [_plain(name) for name in group_map.names]
    shares = Counter(group_map.group.ravel().tolist())
    on_points = Counter(group_map.point_group.tolist())
    order = sorted(
        shares.keys() | on_points.keys(), key=lambda group: (-shares[group], -on_points[group], group)
    )
    shown = order if len(order) <= len(_COLOURS) else order[: len(_COLOURS) - 1]
    colours = [_COLOURS[k] for k in range(len(shown))] + [_OTHERS]
    place = {group: k for k, group in enumerate(shown)}

    def index(groups: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.vectorize(lambda group: place.get(group, len(shown)), otypes=[np.int64])(groups)

    def draw_rows(up: NDArray[np.float64]) -> None:
        dots = [colours[k] for k in index(group_map.point_group)]
        axes.scatter(group_map.points[:, 0], up, s=30, color=dots, edgecolor=_INK, linewidth=0.8, zorder=3)

    if len(group_map.axes) == 2:
        across, up = group_map.axes
        axes.pcolormesh(
            across,
            up,
            index(group_map.group),
            cmap=ListedColormap(colours),
            vmin=-0.5,
            vmax=len(colours) - 0.5,
            shading="nearest",
            alpha=0.45,
            rasterized=True,
        )
        lines = axes.contour(across, up, group_map.value, levels=7, colors=_INK, linewidths=0.6, alpha=0.7)
        axes.clabel(lines, fontsize=8, fmt=lambda value: f"{value:.5g}")
        draw_rows(group_map.points[:, 1])
        axes.set(xlabel=names[0], ylabel=names[1])
        axes.set_title(
            f"Which group of petals wins where\n(lines: predicted {target}; other inputs at their median)"
        )
    else:
        (across,) = group_map.axes
        axes.scatter(across, group_map.value, c=[colours[k] for k in index(group_map.group)], s=9, zorder=2)
        draw_rows(group_map.point_value)
        axes.set(xlabel=names[0], ylabel=target)
        axes.set_title(f"Which group of petals wins where\n(curve: predicted {target}; points: test rows)")
    patches = [
        Patch(
            facecolor=colours[place[group]],
            edgecolor=_INK,
            label=_group_label(group, group_map.members[group], shares[group] / group_map.group.size),
        )
        for group in shown
    ]
    if len(shown) < len(order):
        rest = sum(shares[group] for group in order[len(shown) :]) / group_map.group.size
        patches.append(
            Patch(
                facecolor=_OTHERS,
                edgecolor=_INK,
                label=f"{len(order) - len(shown)} other groups: {_percent(rest)}",
            )
        )
    axes.legend(
        handles=patches,
        title="share of the map\n(points: test rows, in the\ncolour of their own group)",
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        frameon=False,
        fontsize=9,
        title_fontsize=9,
        alignment="left",
    )


def _group_label(group: int, members: tuple[int, ...], share: float) -> str:
    petals = f"petal {members[0]}" if len(members) == 1 else "petals " + " + ".join(map(str, members))
    return f"group {group} ({petals}): {_percent(share)}"


def _plain(name: str) -> str:
    """Return a column's name so that matplotlib draws it as it is: between two dollars it would read formulas."""
    return shorten([name]).replace("$", r"\$")


def _percent(share: float) -> str:
    return "under 1%" if 0 < share < 0.005 else f"{share:.0%}"
