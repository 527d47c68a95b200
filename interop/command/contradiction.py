"""What the rows of a table say against the curvature of the function that is fitted to them."""

from __future__ import annotations

from typing import Any

import numpy as np

from convexmoe.training import convexity_test

from .dataset import Dataset
from .function import LEVEL_LOSSES
from .output import terminal

LEVEL = 0.05  # a p-value up to it is called a contradiction


def ask_rows(data: Dataset, curvature: str, seed: int) -> dict[str, Any] | None:
    """Return what `convexity_test` says of the rows that count; None where a level is fitted, as it is about means."""
    if data.function.loss in LEVEL_LOSSES:
        return None
    counted = np.arange(len(data.y)) if data.weight is None else np.flatnonzero(data.weight)
    (columns, y), D = data.rows(counted), len(data.inputs)
    context = columns[:, D:] if data.context_dim else None
    with terminal().status(f"Asking whether the rows contradict a {curvature} function"):
        found = convexity_test(columns[:, :D], y, context, curvature=curvature, seed=seed)
    return found._asdict() | {"at": dict(zip(data.inputs, found.at, strict=False))}


def explain_contradiction(found: dict[str, Any], curvature: str) -> str:
    """Return in a sentence what `ask_rows` found."""
    if not found["at"]:
        return f"No rows lie between enough others to contradict a {curvature} function."
    p_value = f"p = {found['p_value']:.2g}"
    if found["p_value"] > LEVEL:
        return f"The rows do not contradict a {curvature} function ({p_value})."
    place = ", ".join(f"{name} {value:.4g}" for name, value in [*found["at"].items()][:6])
    return f"The rows contradict a {curvature} function ({p_value}), most around {place}."
