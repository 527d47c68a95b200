"""Where the rows of a hierarchy went, and what its losses are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from convexmoe.errors import fail
from convexmoe.hierarchy.losses import LossBundle
from convexmoe.hierarchy.records import CELMoEOutput

from .style import COLORS, FAINT, HATCHES, INK, LINES, MARKERS, new_axes, place_legend, plain, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_BARS = 12  # experts of a level, or losses
_MOST_LINES = len(COLORS) - 1


def plot_routes(output: CELMoEOutput, *, ax: Any = None) -> Axes:
    """Draw how many rows each expert of each level had, and return the axes.

    Args:
        output: of a hierarchy of either package.
        ax: axes to draw on; None for new ones.

    Raises:
        TypeError: no output of a hierarchy.

    >>> from convexmoe.hierarchy.records import LevelOutput
    >>> level = LevelOutput("region", None, np.array([0, 1, 1]), {}, {}, ("north", "south"))
    >>> axes = plot_routes(CELMoEOutput({"region": level}, None, {}, {}))
    >>> [float(bar.get_width()) for bar in axes.patches]
    [1.0, 2.0]
    """
    if not isinstance(output, CELMoEOutput):
        got, fix = type(output).__name__, "Pass what the hierarchy returned."
        fail("plot_routes", "output", "a CELMoEOutput", got, fix, TypeError)
    [axes] = new_axes("plot_routes", ax)
    place, places, labels = 0.0, list[float](), list[str]()
    most = 1
    for k, level in enumerate(output.levels.values()):
        counts = np.bincount(np.asarray(level.routes.tolist(), np.int64), minlength=len(level.expert_names))
        named = {name: int(count) for name, count in zip(level.expert_names, counts, strict=False)}
        if len(named) > _MOST_BARS:
            order = sorted(named, key=lambda name: -named[name])
            rest = order[_MOST_BARS - 1 :]
            kept = {name: named[name] for name in order[: _MOST_BARS - 1]}
            named = kept | {f"{len(rest)} others": sum(named[name] for name in rest)}
        style: Any = {"color": COLORS[k % len(COLORS)], "hatch": HATCHES[k % len(HATCHES)], "edgecolor": INK}
        at = place + np.arange(len(named))
        axes.barh(at, [float(count) for count in named.values()], height=0.78, linewidth=0.6, **style)
        for y, count in zip(at, named.values(), strict=True):
            text = f" {count:,} ({count / max(len(level.routes), 1):.0%})"
            axes.text(count, y, text, va="center", fontsize=8)
        axes.text(0.0, place - 0.8, plain(level.name), fontsize=9, fontweight="bold", va="center")
        most = max(most, *named.values())
        places, labels, place = [*places, *at], [*labels, *map(plain, named)], place + len(named) + 1.3
    axes.set_yticks(places, labels, fontsize=8)
    axes.set(xlim=(0, 1.25 * most), ylim=(place - 0.9, -1.2), xlabel="rows")
    tidy(axes)
    axes.grid(False, axis="y")
    return axes


def plot_losses(losses: Any, *, ax: Any = None) -> Axes:
    """Draw the weighted losses of a hierarchy, as bars, or step by step as lines, and return the axes.

    Args:
        losses: a `LossBundle`, or an output of a hierarchy for the losses of its experts; or a list of either, one a
            step.
        ax: axes to draw on; None for new ones.

    Raises:
        TypeError: something else. ValueError: an empty list.

    >>> output = CELMoEOutput({}, None, {"region.north.fit": np.float64(0.5)}, {}, (("region.north.fit", 2.0),))
    >>> [float(bar.get_width()) for bar in plot_losses(output).patches]
    [1.0]
    """
    steps = list(losses) if isinstance(losses, Sequence) else [losses]
    if not steps:
        fail("plot_losses", "losses", "at least one step", "an empty list", "Pass what the steps computed.")
    values = [_weighted(step) for step in steps]
    last = values[-1]
    names = sorted({name for step in values for name in step}, key=lambda name: -abs(last.get(name, 0.0)))
    [axes] = new_axes("plot_losses", ax)
    if isinstance(losses, Sequence):
        shown = names[:_MOST_LINES]
        for k, name in enumerate(shown):
            line: Any = {"color": COLORS[k], "linestyle": LINES[k], "marker": MARKERS[k], "label": plain(name, 40)}
            known = [step.get(name, np.nan) for step in values]
            axes.plot(known, markevery=max(len(steps) // 10, 1), markersize=4, linewidth=1.4, **line)
        rest = [sum(step.values()) for step in values]
        axes.plot(
            rest, color=INK, linewidth=2.0, label="total" + f", of {len(names)} losses" * (len(names) > len(shown))
        )
        axes.set(xlabel="step", ylabel="weight × loss")
        tidy(axes)
        place_legend(axes, ncols=2)
        return axes
    shown = names[:_MOST_BARS]
    axes.barh(range(len(shown)), [last[name] for name in shown], height=0.7, color=COLORS[0], edgecolor=INK)
    for y, name in enumerate(shown):
        inside = max(last[name], 0.0)
        axes.text(inside, y, f" {last[name]:.3g}", va="center", fontsize=8)
    axes.set_yticks(range(len(shown)), [plain(name, 40) for name in shown], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.axvline(0.0, color=FAINT, linewidth=0.8)
    more = f" ({len(names) - len(shown)} smaller ones not shown)" if len(names) > len(shown) else ""
    axes.set_xlabel(f"weight × loss, in all {sum(last.values()):.4g}{more}")
    tidy(axes)
    axes.grid(False, axis="y")
    return axes


def _weighted(losses: Any) -> dict[str, float]:
    """Return the losses of a step by name, each times its weight."""
    if isinstance(losses, CELMoEOutput):
        factors = losses.loss_weights
        return {name: factors.get(name, 1.0) * float(value) for name, value in losses.losses.items()}
    if isinstance(losses, LossBundle):
        known: Mapping[str, float] = losses.as_dict()
        ending = ".weighted"
        return {name.removesuffix(ending): value for name, value in known.items() if name.endswith(ending)}
    rule, fix = "a LossBundle or a CELMoEOutput, or a list of them", "Pass what compute or the hierarchy returned."
    fail("plot_losses", "losses", rule, type(losses).__name__, fix, TypeError)
