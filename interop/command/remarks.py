"""What `convexmoe fit` says of a table, a line each, and goes on: ids, duplicates, a small test part."""

from __future__ import annotations

import math
import re
import shlex
from typing import TYPE_CHECKING

import numpy as np

from .tables import shorten

if TYPE_CHECKING:
    from .experiment import Dataset

FEW = 30  # rows: the RMSE of fewer is off by 13 % and more
_ID = re.compile(r"(?i:(.*[_ .-])?(id|uuid|guid)|index|unnamed: ?\d+|row([_ .-]?(no|nr|num|number))?)|.*[a-z0-9]I[dD]")


def remarks(data: Dataset) -> list[str]:
    """Return what should be known of the numbers before the results are believed."""
    lines, x = [], data.x
    whole = (x == np.round(x)).all(axis=0)
    is_id = [
        bool(_ID.fullmatch(name)) or (whole[k] and len(np.unique(x[:, k])) == len(x))
        for k, name in enumerate(data.columns)
    ]
    if any(is_id):
        ids = [name for name, found in zip(data.columns, is_id, strict=True) if found]
        drops = " ".join(f"--drop {shlex.quote(name)}" for name in ids[:8])
        lines.append(f"Perhaps an id, by its name or its whole numbers, all different: {shorten(ids)}. If so: {drops}.")
    kept = x if all(is_id) else x[:, ~np.array(is_id)]
    rows = [row.tobytes() for row in np.column_stack([kept, data.y]) + 0.0]  # -0 is 0
    train = {rows[n] for n in data.train}
    twice = {name: sum(rows[n] in train for n in getattr(data, name)) for name in ("validation", "test")}
    if any(twice.values()):
        places = (
            f"{twice['validation']} rows to validate and {twice['test']} to test stand among those to train as well"
        )
        lines.append(f"Duplicates: {places}, so that the errors flatter. Remove the copies.")
    if len(data.test) < FEW:
        error = f"{len(data.test)} rows to test: the errors are uncertain by {1 / math.sqrt(2 * len(data.test)):.0%}"
        lines.append(f"Only {error} or more. Compare several --seed.")
    return lines
