"""Prediction intervals from the folds: their half-widths in a model's file, and how often they hold what was held out.

A width is a quantile of the errors of all folds; each was made by a model that did not learn from its row. The saved
model learned from all rows, that of a fold from four fifths: cross-conformal prediction (Vovk, Cross-conformal
predictors, Annals of Mathematics and Artificial Intelligence 74, 2015), whose coverage is measured here, not proved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convexmoe.errors import refuse
from convexmoe.training import conformal_width

PERCENTS = range(50, 100)  # the levels of a file
SHOWN = (0.5, 0.8, 0.9, 0.95)  # those whose coverage is measured
OWNER = "convexmoe predict --interval"
Array = NDArray[np.float64]


def interval_notes(residuals: Array) -> dict[str, Any]:
    """Return the note of a file: the half-width at each level, None where the rows are too few for it."""
    widths = [conformal_width(residuals, percent / 100) for percent in PERCENTS]
    return {"interval_widths": [width if math.isfinite(width) else None for width in widths]}


def measure_intervals(folds: Sequence[Array]) -> dict[str, dict[str, float]]:
    """Return by level the half-width, and the share of rows that lie in intervals made of the residuals of other folds.

    Args:
        folds: of each `[n]`, target - prediction by the model of the other folds; levels that they are too few for are
            left out.
    """
    found: dict[str, dict[str, float]] = {}
    for level in SHOWN:
        widths = [conformal_width(np.concatenate([*folds[:k], *folds[k + 1 :]]), level) for k in range(len(folds))]
        if all(map(math.isfinite, widths)):
            held = [np.abs(fold) <= width for fold, width in zip(folds, widths, strict=True)]
            coverage = float(np.concatenate(held).mean())
            found[f"{level:g}"] = {"coverage": coverage, "half_width": conformal_width(np.concatenate(folds), level)}
    return found


def check_interval(level: float | None) -> int | None:
    """Return a level in per cent after its check, None for none."""
    if level is None:
        return None
    percent = round(100 * level) if math.isfinite(level) else 0
    if percent not in PERCENTS or not math.isclose(100 * level, percent, rel_tol=1e-9):
        refuse(OWNER, "a level from 0.5 to 0.99 in whole per cent", f"{level:g}", "Try --interval 0.9.")
    return percent


def read_width(path: Path, notes: dict[str, Any], percent: int) -> float:
    """Return the half-width of a level, from the notes of a file.

    Raises:
        InputError: a file without it, or whose rows were too few for that level.
    """
    widths = notes.get("interval_widths")
    if not isinstance(widths, list) or len(widths) != len(PERCENTS):
        fix = "Fit the model anew with convexmoe fit, not to a quantile or an expectile; or leave --interval out."
        refuse(path, "a model with widths of intervals for --interval", "one without them", fix)
    width = widths[percent - PERCENTS[0]]
    if width is None:
        needed = math.ceil(percent / (100 - percent) - 1e-9)
        rule, fix = f"{needed} training rows or more for --interval {percent / 100:g}", "Ask for a lower level."
        refuse(path, rule, "fewer", fix)
    if type(width) not in (int, float) or not 0 <= width < math.inf:
        refuse(path, "widths of intervals >= 0 in the notes", f"{width!r:.40}", "Fit the model anew.")
    return float(width)
