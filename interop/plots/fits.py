"""How well a fit predicts, and how it came about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from convexmoe.errors import fail
from convexmoe.hull.rows import as_numbers
from convexmoe.training import History

from .style import COLORS, INK, limits_of, new_axes, place_legend, plain, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FEW = 2000  # dots beyond which they get smaller and fainter


def plot_residuals(true: Any, predicted: Any, *, target: str = "target", ax: Any = None) -> Axes:
    """Draw true minus predicted against predicted, and return the axes.

    A row far from all others is a triangle at the edge, and counted: it shrinks nothing.

    Args:
        true, predicted: `[N]`, best of rows that the model was not fitted to.
        target: the name of what is predicted.
        ax: axes to draw on; None for new ones.

    Raises:
        ValueError: two different numbers of rows, none, or a value that is not finite.

    >>> plot_residuals([1.0, 2.0, 4.0], [1.5, 2.0, 3.0], target="price").get_xlabel()
    'predicted price'
    """
    y, p = (as_numbers("plot_residuals", *part).ravel() for part in (("true", true), ("predicted", predicted)))
    if len(y) != len(p) or not len(y):
        fix = "Pass one prediction a row."
        fail("plot_residuals", "predicted", f"as many numbers as true has, {len(y)}", f"{len(p)}", fix)
    if not (np.isfinite(y).all() and np.isfinite(p).all()):
        fail("plot_residuals", "true", "finite numbers", "NaN or infinity", "Leave these rows out.")
    [axes] = new_axes("plot_residuals", ax)
    residual = y - p
    low, high = limits_of(residual)
    left, right = limits_of(p)
    outer = max(abs(low), abs(high)) or 1.0
    wide = (right - left) or 1.0
    far = (np.abs(residual) > outer) | (p < left) | (p > right)
    size, faint = (16, 0.6) if len(y) <= _FEW else (5, 0.25)
    axes.axhline(0.0, color=INK, linewidth=1.0)
    axes.scatter(p[~far], residual[~far], s=size, color=COLORS[0], alpha=faint, linewidths=0, label="a row")
    if far.any():
        edge = np.clip(p[far], left - 0.03 * wide, right + 0.03 * wide), np.clip(residual[far], -outer, outer)
        label = f"far out, at the edge: {far.sum():,}"
        axes.scatter(*edge, s=34, color=COLORS[5], marker="^", edgecolor=INK, linewidth=0.6, label=label, zorder=3)
    spread = float(np.sqrt(np.mean(residual[~far] ** 2))) if (~far).any() else 0.0
    for side in (-spread, spread):
        axes.axhline(side, color=INK, linewidth=0.9, linestyle="--", label="root mean square" if side < 0 else None)
    axes.set(xlim=(left - 0.06 * wide, right + 0.06 * wide), ylim=(-1.12 * outer, 1.12 * outer))
    tidy(axes)
    axes.set(xlabel=f"predicted {plain(target)}", ylabel="true - predicted")
    place_legend(axes, ncols=3, handletextpad=0.3, columnspacing=1.0)
    return axes


def plot_history(history: History, *, best_step: int | None = None, loss: str = "loss", ax: Any = None) -> Axes:
    """Draw the losses of a fit against its steps, and return the axes.

    Args:
        history: `fit(...).history`.
        best_step: `fit(...).best_step`, marked where it is given.
        loss: the name of the loss.
        ax: axes to draw on; None for new ones.

    Raises:
        TypeError: no history. ValueError: one without an evaluation.

    >>> plot_history(History((0, 10), (1.0, 0.3), (1.1, 0.4)), best_step=10).get_ylabel()
    'loss'
    """
    if not isinstance(history, History):
        fix = "Pass fit(...).history."
        fail("plot_history", "history", "a History", type(history).__name__, fix, TypeError)
    if not history.step:
        fail("plot_history", "history", "at least one evaluation", "none", "Pass that of a fit that took steps.")
    [axes] = new_axes("plot_history", ax)
    axes.plot(history.step, history.train_loss, color=COLORS[0], linewidth=1.4, label="training")
    if history.validation_loss:
        axes.plot(history.step, history.validation_loss, "--", color=COLORS[5], linewidth=1.8, label="held out")
    if best_step is not None:
        axes.axvline(best_step, color=INK, linewidth=1.0, linestyle=":", label=f"kept: step {best_step:,}")
    losses = (*history.train_loss, *history.validation_loss)
    if 0 < 10 * min(losses) < max(losses):
        axes.set_yscale("log")
    tidy(axes)
    axes.set(xlabel="step", ylabel=plain(loss, 40))
    place_legend(axes, ncols=3, handletextpad=0.4, columnspacing=1.0)
    return axes
