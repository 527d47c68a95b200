"""`convexmoe predict`: a prediction for each row of a table, from a saved model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from convexmoe.errors import refuse

from ..frameworks import choose
from .options import FrameworkOption
from .output import digits_of, emit, say, write_text
from .saved_model import read_model
from .tables import read_table, require_columns

MODEL_HELP = "A model.safetensors that `convexmoe fit` wrote."
DATA_HELP = "Table with the model's input columns; others are ignored."


def predict_rows(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)],
    data: Annotated[Path, typer.Argument(metavar="DATA.csv", help=DATA_HELP, show_default=False)],
    framework: FrameworkOption = None,
    out: Annotated[Path | None, typer.Option(help="CSV file to write.", show_default="the terminal")] = None,
) -> None:
    """Predict a row for each row of a table, from a saved model: a CSV with the column predicted_<target>."""
    side = choose(framework)
    with side.quiet():
        hull, columns, target = read_model(model, side)
    table = read_table(data)
    require_columns(table, columns, "convexmoe predict")
    if not table.rows:
        refuse(table.name, "at least one row under the header", "none", "Add rows.")
    inputs = table.numbers(columns, may_drop=False)
    with side.quiet():
        predictions = side.predict(hull, inputs)
    if not np.isfinite(predictions).all():
        line = table.lines[int(np.flatnonzero(~np.isfinite(predictions))[0])]
        rule, got = "inputs near those of the fitted table", f"values on line {line} that overflow"
        refuse(table.name, rule, got, "Correct that row.")
    units = hull.config.normalization
    digits = 9 if units is None else digits_of(units.output_mean[0], units.output_scale[0])
    heading, values = _cell(f"predicted_{target}"), [f"{value:.{digits}g}" for value in predictions]
    if out is None:
        emit("\n".join([heading, *values]))
        return
    for other in (data, model):
        if out.exists() and other.exists() and out.samefile(other):
            got, fix = f"{out}, which is an input", "Name another file."
            refuse("convexmoe predict --out", "a file of its own", got, fix)
    write_text(out, "\n".join([heading, *values, ""]))
    say(f"{len(predictions)} predictions written to {out}", error=True)


def _cell(text: str) -> str:
    """Return a cell of a CSV file."""
    quoted = text.replace('"', '""')
    return f'"{quoted}"' if any(mark in text for mark in ',"\r\n') else text
