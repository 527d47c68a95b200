"""The context of `convexmoe minimize --at`: a number, or a category, for each of its columns."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from convexmoe.errors import refuse

from .cells import to_label
from .design import Design
from .tables import list_labels, shorten

OWNER = "convexmoe minimize"
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?inf"
Vector = NDArray[np.float64]


def read_context(texts: Sequence[str], design: Design, middle: Sequence[float] | Vector = ()) -> Vector | None:
    """Return the context that options state, as the model has it; None for a model without one.

    Args:
        texts: of the options, with a number or a category for each column of the table that is a context.
        design: how the columns of the model come of them.
        middle: a number for each column of the model's context that an error names as an example; NaN where none is
            known.

    >>> design = Design(("area", "region", "season"), 1, {"region": ("north", "south")})
    >>> read_context(["season=2,region=south"], design)
    array([2., 1.])
    """
    owner, names = f"{OWNER} --at", design.contexts
    if texts and not names:
        refuse(owner, "a model with a context", "one without", "Leave it out; bounds of inputs are --box.")
    values: dict[str, float] = {}
    for name, value in (pair for text in texts for pair in _split(text, design)):
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
            rule, fix = f"columns of the context ({shorten(names)})", f"The closest is {close[0]!r}."
            refuse(owner, rule, repr(shorten([name])), fix)
        if name in values:
            refuse(owner, "one value a column", f"two for {name!r}", "Leave one of them out.")
        values[name] = _read_value(name, value, design)
    if missing := [name for name in names if name not in values]:
        known = dict(zip(design.names[design.in_dim :], np.nan_to_num(middle), strict=False))
        examples = []
        for name in missing[:3]:
            labels = design.categories.get(name, (f"{known.get(name, 0.0):.4g}",))
            examples.append(f"{name}={next((label for label in labels if ',' not in label), labels[0])}")
        fix = f"Add --at {','.join(examples)}, for example."
        rule = f"a value for each column of the context ({shorten(names)})"
        refuse(owner, rule, f"none for {shorten(missing)}", fix)
    cells = np.array([[*(0.0 for _ in range(design.in_dim)), *(values[name] for name in names)]])
    context = design.expand(cells)[0, design.in_dim :]
    return context if context.size else None


def _split(text: str, design: Design) -> list[tuple[str, str]]:
    """Return the columns and the values in a text: of one column, or of several between commas."""
    name, _, value = text.partition("=")
    if value.strip() in design.categories.get(name.strip(), ()) or text.rpartition("=")[0].strip() in design.contexts:
        parts = [text]
    else:
        parts = text.split(",")
    pairs = []
    for part in parts:
        name, mark, value = part.partition("=")
        if name.strip() not in design.contexts:
            name, mark, value = part.rpartition("=")
        if not mark:
            refuse(f"{OWNER} --at", "a column and a value, as season=2", repr(shorten([part])), "Write both.")
        pairs.append((name.strip(), value.strip()))
    return pairs


def _read_value(name: str, value: str, design: Design) -> float:
    """Return the number of a column of the context, or the place of its category; NaN for a missing cell."""
    owner, labels = f"{OWNER} --at", design.categories.get(name)
    if labels is not None:
        label = to_label(value)
        if label in labels:
            return float(labels.index(label))
        if not label and name in design.indicators:
            return math.nan
        close = difflib.get_close_matches(label, labels, n=1, cutoff=0.0)
        rule = f"a category of {name!r} that the model knows ({list_labels(labels)})"
        refuse(owner, rule, repr(shorten([value])), f"The closest is {name}={close[0]}.")
    if not re.fullmatch(NUMBER, value) or not math.isfinite(float(value)):
        refuse(owner, "a column and a number, as season=2", repr(shorten([f"{name}={value}"])), "Write both.")
    return float(value)
