"""The picture of a fitted hull, and its table for the terminal. Draws; computes nothing about the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import JustifyMethod

from convexmoe.files.atomic import write_whole
from convexmoe.training import History
from convexmoe.training.curvature import CONCAVE

from ..frameworks import LABELS
from .contradiction import explain_contradiction
from .function import LOSSES, SQUARED
from .group_map import GroupMap
from .output import say, tabulate
from .slices import LEVELS, Slices
from .tables import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, told apart under the common color-vision deficiencies; the last is for "all other groups".
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
_OTHERS = "#BBBBBB"
_INK = "#222222"
Vector = NDArray[np.float64]


def draw_report(
    metrics: dict[str, Any],
    history: History,
    predicted: Vector,
    group_map: GroupMap,
    path: Path,
    slices: Sequence[Slices] = (),
) -> str:
    """Write the panels as a PNG: loss curves, predicted against true, which group wins where, slices at contexts.

    Return what stands for names that no font can draw, "" where there are none.

    Args:
        metrics: what metrics.json holds.
        history: the losses of the fit.
        predicted: targets of all rows, each by a hull fitted without its fold, in original units, `[N]`.
        group_map: which group wins where; it has the true targets.
        path: of the file.
        slices: for each context shown, along one input; they are a second row.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns, target = [*metrics["data"]["columns"], *metrics["data"]["context"]], metrics["data"]["target"]
    shown = dict.fromkeys([*group_map.names, *(name for part in slices for name in (part.along, part.context))])
    places = {name: f"column {columns.index(name) + 1}" for name in shown} | {target: "target"}
    families, strange = _choose_fonts(map(_plain, places))
    numbered = {name: label for name, label in places.items() if strange & set(_plain(name))}
    labels = {name: numbered.get(name, _plain(name)) for name in places}
    below: list[Axes] = []
    with rc_context({"font.family": families}):
        figure = Figure(figsize=(16.5, 10.0 if slices else 5.4), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)  # no display, no global state
        upper: Any = figure
        if slices:
            halves: Any = figure.subfigures(2, 1, height_ratios=(5.4, 4.6))
            upper, below = halves[0], list(halves[1].subplots(1, len(slices), squeeze=False)[0])
        left, middle, right = upper.subplots(1, 3, width_ratios=(1.0, 0.95, 1.35))
        _draw_loss(left, history, metrics["best_step"], _training_loss(metrics))
        _draw_predictions(middle, labels[target], group_map.point_value, predicted, _shown_error(metrics))
        _draw_groups(right, group_map, labels, labels[target])
        for axes, part in zip(below, slices, strict=True):
            _draw_slices(axes, part, labels, labels[target])
        for axes in (left, middle, right, *below):
            axes.spines[["top", "right"]].set_visible(False)
        figure.supxlabel("\n".join(f"{label}: {_plain(ascii(name))}" for name, label in numbered.items()), fontsize=8)
        picture = BytesIO()
        figure.savefig(picture, format="png", metadata={"Software": None})
    write_whole(path, picture.getvalue())
    return ", ".join(f"{label} is {shorten([name])}" for name, label in numbered.items())


def print_results(metrics: dict[str, Any]) -> None:
    """Print what metrics.json holds: the test errors side by side, the convexity check, the parity."""
    target, error, key_of = metrics["data"]["target"], _error_name(metrics), _error_key(metrics)
    errors, rows, covers = metrics[key_of], [], metrics["coverage"]
    fitted, plane = metrics["curvature"]["fitted"], "linear regression" if error == "RMSE" else "linear, the same loss"
    for key, name in {"hull": f"{fitted} mixture", "linear": plane, "mlp": "MLP", "boosting": "boosted trees"}.items():
        if key not in errors:
            continue
        form = ".2f" if 0.1 <= errors[key] < 1000 else ".3g"
        figure = f"{errors[key]:{form}} ± {metrics[f'{key_of}_spread'][key]:{form}}"
        figure = "exact" if key in metrics["exact"] else figure
        covered = () if covers is None else (f"{covers[key]:.1%}",)
        size = metrics["parameters"].get(key)
        rows.append((name, "" if size is None else f"{size:,}", figure, _against(metrics, key), *covered))
    title = f"Test error: mean and deviation over {len(metrics['folds'])} folds of {metrics['rows']} rows"
    heads: dict[str, JustifyMethod] = {
        "model": "left",
        "parameters": "right",
        error: "right",
        "against linear": "right",
    }
    tabulate(heads if covers is None else heads | {"at or below": "right"}, rows, title)
    if covers is not None:
        say(f"At or below: the share of held-out rows whose {target} is; the level is {covers['level']:.1%}.")
    gap, parity = metrics["convexity"]["violation"], metrics["parity"]
    ahead = metrics["hull_ahead"]
    lead = f"ahead of {plane} in {ahead['linear']} folds"
    for key, name in (("mlp", "the MLP"), ("boosting", "boosted trees")):
        lead += f", of {name} in {ahead[key]}" if key in ahead else ""
    by = metrics["data"]["weights"]
    say(f"{error} in units of {target}{f', rows weighted by {by}' if by else ''}. The mixture is {lead}.")
    if metrics["interval_coverage"]:
        title = "Prediction intervals, measured on the folds"
        kinds: dict[str, JustifyMethod] = {"level": "right", "half-width": "right", "rows held out within it": "right"}
        parts = metrics["interval_coverage"].items()
        tabulate(
            kinds, [(f"{float(k):.0%}", f"{v['half_width']:.3g}", f"{v['coverage']:.1%}") for k, v in parts], title
        )
    kept = f"kept step {metrics['best_step']}, the best on rows held out"
    say(f"The saved model is fitted to all rows: {metrics['steps_run']} steps, {kept}.")
    if metrics["shape"] is not None:
        say(f"Shape, chosen on rows held out: {metrics['shape']}. The folds have it, too, at the usual rate.")
    if metrics["convexity_test"]:
        say(explain_contradiction(metrics["convexity_test"], fitted))
    outcome = "no violation" if gap is None else f"VIOLATED by {gap:.2g}"
    what = "Concavity" if fitted == CONCAVE else "Convexity"
    for_each = f" for each {shorten(metrics['data']['context'])}" if metrics["data"]["context"] else ""
    say(f"{what}{for_each}: {outcome} in {metrics['convexity']['segments']:,} segments.")
    if parity is None:
        other = "PyTorch" if metrics["framework"] == "jax" else "JAX"
        say(f'Parity: not checked, {other} is not installed (in a clone: pip install -e ".[interop]").')
    else:
        start = f"Parity: the saved file, read in {LABELS[parity['framework']]}, predicts the same"
        say(f"{start} within {parity['max_difference']:.1e} of the largest value.")


def _against(metrics: dict[str, Any], key: str) -> str:
    """Return a test error beside that of linear regression; in proportion to rounding it would say nothing."""
    if "linear" in metrics["exact"]:
        return "" if key in metrics["exact"] else "linear is exact"
    errors = metrics[_error_key(metrics)]
    ratio = errors[key] / errors["linear"]
    return f"{ratio - 1:+.1%}" if ratio < 10 else f"{ratio:.3g} times"


def _error_key(metrics: dict[str, Any]) -> str:
    """Return the name of the test errors by the loss that is minimized."""
    return "test_loss" if "test_loss" in metrics else "test_rmse"


def _error_name(metrics: dict[str, Any]) -> str:
    """Return what the test errors are called."""
    return LOSSES[metrics["plan"]["function"]["loss"]][2]


def _training_loss(metrics: dict[str, Any]) -> str:
    """Return what the losses of a fit are called."""
    loss = metrics["plan"]["function"]["loss"]
    return "mean squared error" if loss == SQUARED else f"mean loss: {loss}"


def _shown_error(metrics: dict[str, Any]) -> str:
    """Return in words the test error of the hull, and how many of the held-out targets a quantile covers."""
    covers, error = metrics["coverage"], metrics[_error_key(metrics)]["hull"]
    share = "" if covers is None else f"; {covers['hull']:.0%} at or below"
    return f"test {_error_name(metrics)} {error:.3g}{share}"


def _choose_fonts(names: Iterable[str]) -> tuple[list[str], set[str]]:
    """Return the families of fonts to draw names with, and the letters that none of them can draw."""
    from matplotlib import font_manager, rcParams

    get, letters = font_manager.get_font, {letter for name in names for letter in name}
    plain = get(font_manager.findfont(font_manager.FontProperties())).get_charmap()
    families, missing = list(rcParams["font.family"]), {letter for letter in letters if ord(letter) not in plain}
    for entry in sorted(font_manager.fontManager.ttflist, key=lambda entry: (entry.name, entry.fname)):
        usual = entry.style == "normal" and entry.weight in (400, "normal", "regular") and entry.stretch == "normal"
        if missing and usual and "Last Resort" not in entry.name:  # which has a box for each letter
            try:
                font = get(font_manager.findfont(entry.name))
                drawn = {letter for letter in missing if ord(letter) in font.get_charmap()}
                for letter in drawn:
                    font.load_char(ord(letter))
            except (OSError, RuntimeError):  # a damaged font, or one of colored pictures
                continue
            families, missing = families + [entry.name] * bool(drawn), missing - drawn
    return families, missing


def _draw_loss(axes: Axes, history: History, best_step: int, loss: str) -> None:
    axes.plot(history.step, history.train_loss, color=_COLORS[0], label="train", linewidth=1.4)
    axes.plot(history.step, history.validation_loss, "--", color=_COLORS[5], label="rows held out", linewidth=1.8)
    axes.axvline(best_step, color=_INK, linewidth=1.0, linestyle=":", label=f"kept: step {best_step}")
    axes.set_yscale("log")
    axes.set(title="Loss while training", xlabel="step", ylabel=f"{loss} (normalized)")
    axes.grid(True, which="both", alpha=0.2)
    axes.legend(facecolor="white", framealpha=0.9, edgecolor="none")


def _draw_predictions(axes: Axes, target: str, true: Vector, predicted: Vector, error: str) -> None:
    both = np.concatenate([true, predicted])
    margin = 0.04 * float(np.ptp(both)) or 1.0
    ends = (float(both.min()) - margin, float(both.max()) + margin)
    axes.plot(ends, ends, color=_INK, linewidth=1.0, linestyle=":", label="exact")
    dots = axes.scatter(true, predicted, s=34, color=_COLORS[0], alpha=0.9)
    dots.set(edgecolor="white", linewidth=0.6, label=f"{len(true)} rows, each tested in its fold")
    axes.set(xlim=ends, ylim=ends, xlabel=f"true {target}", ylabel=f"predicted {target}")
    axes.set_title(f"Predicted against true ({error})")
    axes.set_aspect("equal", adjustable="box")
    axes.grid(True, alpha=0.2)
    axes.legend(frameon=False, loc="upper left")


def _draw_groups(axes: Axes, group_map: GroupMap, labels: dict[str, str], target: str) -> None:
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    wins, on_points = (
        np.bincount(g.ravel(), minlength=len(group_map.members)) for g in (group_map.group, group_map.point_group)
    )
    order = [int(k) for k in np.lexsort((-on_points, -wins)) if wins[k] or on_points[k]]
    shown = order if len(order) <= len(_COLORS) else order[: len(_COLORS) - 1]  # those with a color of their own
    colors = np.array([*_COLORS[: len(shown)], _OTHERS])
    index = np.full(len(group_map.members), len(shown))
    index[shown] = np.arange(len(shown))
    title = "Which group of petals wins where\n"
    if len(group_map.axes) == 2:
        heights, ylabel = group_map.points[:, 1], labels[group_map.names[1]]
        areas = axes.pcolormesh(*group_map.axes, index[group_map.group], shading="nearest", alpha=0.45, rasterized=True)
        areas.set(cmap=ListedColormap(colors), clim=(-0.5, len(colors) - 0.5))
        lines = axes.contour(*group_map.axes, group_map.value, levels=7, colors=_INK, linewidths=0.6, alpha=0.7)
        axes.clabel(lines, fontsize=8, fmt=lambda value: f"{value:.5g}")
        title += f"(lines: predicted {target}; other inputs at their median)"
    else:
        heights, ylabel = group_map.point_value, target
        axes.scatter(group_map.axes[0], group_map.value, c=colors[index[group_map.group]], s=9, zorder=2)
        title += f"(curve: predicted {target}; points: the rows)"
    axes.set(xlabel=labels[group_map.names[0]], ylabel=ylabel)
    dots = colors[index[group_map.point_group]]
    axes.scatter(group_map.points[:, 0], heights, s=30, color=dots, edgecolor=_INK, linewidth=0.8, zorder=3)
    axes.set_title(title)

    def share(count: int) -> str:
        fraction = count / group_map.group.size
        return "under 1%" if 0 < fraction < 0.005 else f"{fraction:.0%}"

    shares = []
    for group in shown:
        members = group_map.members[group]
        petals = f"petal{'s' * (len(members) > 1)} {' + '.join(map(str, members))}"
        shares.append(f"group {group} ({petals}): {share(wins[group])}")
    if len(order) > len(shown):
        shares.append(f"{len(order) - len(shown)} other groups: {share(wins.sum() - wins[shown].sum())}")
    entries = zip(colors, shares, strict=False)
    patches = [Patch(facecolor=color, edgecolor=_INK, label=label) for color, label in entries]
    title = "share of the map\n(points: the rows, in the\ncolor of their own group)"
    legend = axes.legend(handles=patches, title=title, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    legend.set_alignment("left")
    for text in (legend.get_title(), *legend.get_texts()):
        text.set_fontsize(9)


def _draw_slices(axes: Axes, part: Slices, labels: dict[str, str], target: str) -> None:
    """Draw what is predicted along an input at three values of a context."""
    for word, level, values, color in zip(LEVELS, part.levels, part.value, _COLORS, strict=False):
        axes.plot(part.at, values, color=color, linewidth=1.8, label=f"{word}: {level:.4g}")
    axes.set(xlabel=labels[part.along], ylabel=f"predicted {target}")
    axes.set_title(f"Slices at values of {labels[part.context]}\n(quantiles 0.1, 0.5, 0.9; all else at its median)")
    axes.grid(True, alpha=0.2)
    axes.legend(title=labels[part.context], frameon=False)


def _plain(name: str) -> str:
    """Return a column's name so that matplotlib draws it as it is: between two dollars it would read formulas."""
    return shorten([name]).replace("$", r"\$")
