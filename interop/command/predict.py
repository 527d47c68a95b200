"""`convexmoe predict`: a prediction for each row of a table, from a saved model."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from convexmoe.errors import refuse

from ..frameworks import choose
from .options import DecimalOption, EncodingOption, FrameworkOption, SepOption, check_table_options
from .output import digits_of, emit, say, write_text
from .saved_model import read_model
from .tables import read_table, require_columns

MODEL_HELP = "A model.safetensors that `convexmoe fit` wrote."
MISSING_HELP = "mean fills missing cells with the mean of the training rows."
DATA_HELP = "Table with the model's input columns; others are ignored."


def predict_rows(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)],
    data: Annotated[Path, typer.Argument(metavar="DATA.csv", help=DATA_HELP, show_default=False)],
    framework: FrameworkOption = None,
    out: Annotated[Path | None, typer.Option(help="CSV file to write.", show_default="the terminal")] = None,
    missing: Annotated[str | None, typer.Option(help=MISSING_HELP, show_default="they are refused")] = None,
    sep: SepOption = None,
    decimal: DecimalOption = None,
    encoding: EncodingOption = None,
) -> None:
    """Predict a row for each row of a table, from a saved model: a CSV with the column predicted_<target>."""
    if missing not in (None, "mean"):
        fix = "A row in is a row out: try --missing mean."
        refuse("convexmoe predict --missing", "mean", repr(missing), fix)
    side, options = choose(framework), check_table_options(sep, decimal, encoding)
    with side.quiet():
        hull, columns, target = read_model(model, side)
    units, table = hull.config.normalization, read_table(data, options)
    if missing and units is None:
        refuse(model, "a model with the means of its training rows", "one without them", "Fill in the missing cells.")
    require_columns(table, columns, "convexmoe predict")
    inputs, gaps, remarks = table.numbers(columns, keep=columns, may_miss=missing is not None)
    if not len(inputs):
        refuse(table.name, "at least one row under the header", "none", "Add rows.")
    if gaps:
        inputs = np.where(np.isnan(inputs), np.asarray(units.input_mean), inputs)
        remarks += (f"Missing cells, filled with means of the training rows: {gaps}.",)
    with side.quiet():
        predictions = side.predict(hull, inputs)
    if not np.isfinite(predictions).all():
        line = next(islice(table.rows(), int(np.isfinite(predictions).argmin()), None))[0]
        rule, got = "inputs near those of the fitted table", f"values on line {line} that overflow"
        refuse(table.name, rule, got, "Correct that row.")
    for remark in remarks:
        say(remark, error=True)
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
