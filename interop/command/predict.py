"""`convexmoe predict`: a prediction for each row of a table, from a saved model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from convexmoe.errors import refuse

from ..frameworks import choose
from .design import INDICATOR, MEAN, Design, Rows
from .intervals import check_interval, read_width
from .leverage import Outside, outside, read_ranges
from .options import DecimalOption, EncodingOption, FrameworkOption, SepOption, SheetOption, check_table_options
from .output import conclude, digits_of, emit, say, write_text
from .saved_model import design_of, read_model
from .tables import Table, read_table, require_columns, shorten

OWNER = "convexmoe predict"
MODEL_HELP = "A model.safetensors that `convexmoe fit` wrote."
MISSING_HELP = "mean or indicator: fill in the mean of the training rows, and say so to a model that has learned it."
FLAG_HELP = "Add a column `outside`: the columns out of the range of training, or `combination`."
INTERVAL_HELP = "Add lower_ and upper_ columns that hold such a share of new targets, as 0.9."
DATA_HELP = "Table with the model's columns, those of its context too; others are ignored."


def predict_rows(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)],
    data: Annotated[Path, typer.Argument(metavar="DATA.csv", help=DATA_HELP, show_default=False)],
    framework: FrameworkOption = None,
    out: Annotated[Path | None, typer.Option(help="CSV file to write.", show_default="the terminal")] = None,
    flag: Annotated[bool, typer.Option("--flag", help=FLAG_HELP)] = False,
    interval: Annotated[float | None, typer.Option(help=INTERVAL_HELP, show_default=False)] = None,
    missing: Annotated[str | None, typer.Option(help=MISSING_HELP, show_default="they are refused")] = None,
    sep: SepOption = None,
    decimal: DecimalOption = None,
    encoding: EncodingOption = None,
    sheet: SheetOption = None,
) -> None:
    """Predict a row for each row of a table, from a saved model: a CSV with the column predicted_<target>."""
    if missing not in (None, MEAN, INDICATOR):
        fix = "A row in is a row out: try --missing mean."
        refuse(f"{OWNER} --missing", "mean or indicator", repr(missing), fix)
    percent = check_interval(interval)
    side, options = choose(framework), check_table_options(OWNER, sep, decimal, encoding, sheet)
    with side.quiet():
        hull, columns, target, notes = read_model(model, side)
    design = design_of(model, notes, columns, hull.config.in_dim)
    if flag and np.isnan(read_ranges(notes, "ranges", (len(columns), 2))).any():
        rule, fix = "a model with the ranges of its training rows", "Leave --flag out, or fit the model anew."
        refuse(model, rule, "one without them", fix)
    width = None if percent is None else read_width(model, notes, percent)
    units, table = hull.config.normalization, read_table(data, options)
    if missing and units is None:
        refuse(model, "a model with the means of its training rows", "one without them", "Fill in the missing cells.")
    inputs, gaps, remarks = read_inputs(table, design, missing)
    if gaps:
        inputs = np.where(np.isnan(inputs), np.asarray(units.input_mean + units.context_mean), inputs)
        remarks += (f"Missing cells, filled with means of the training rows: {gaps}.",)
    with side.quiet():
        predictions = side.predict(hull, inputs)
    if not np.isfinite(predictions).all():
        where = table.place(int(np.isfinite(predictions).argmin()))
        rule, got = "inputs near those of the fitted table", f"values on {where} that overflow"
        refuse(table.name, rule, got, "Correct that row.")
    for remark in remarks:
        say(remark, error=True)
    digits = 9 if units is None else digits_of(units.output_mean[0], units.output_scale[0])
    printed = {f"predicted_{target}": predictions}
    if width is not None:
        printed |= {f"lower_{target}": predictions - width, f"upper_{target}": predictions + width}
    lines = [",".join(map(_cell, printed))]
    lines += [",".join(f"{value:.{digits}g}" for value in row) for row in zip(*printed.values(), strict=True)]
    place = outside(notes, inputs)
    if flag:
        names = [";".join(compress(columns, row)) for row in place.beyond]
        marks = [name or "combination" * far for name, far in zip(names, place.combined.tolist(), strict=True)]
        lines = [f"{line},{_cell(mark)}" for line, mark in zip(lines, ["outside", *marks], strict=True)]
    if out is not None:
        for other in (data, model):
            if out.exists() and other.exists() and out.samefile(other):
                got, fix = f"{out}, which is an input", "Name another file."
                refuse("convexmoe predict --out", "a file of its own", got, fix)
        write_text(out, "\n".join([*lines, ""]))
        say(f"{len(predictions)} predictions written to {out}", error=True)
    result = {"target": target, "rows": len(predictions), "out": out, "rows_outside": place.rows.sum()}
    if out is None:
        result |= dict(zip(("predictions", "lower", "upper"), printed.values(), strict=False))
    if not conclude(result | ({"outside": marks} if flag else {})) and out is None:
        emit("\n".join(lines))
    _count_outside(place, columns)


def read_inputs(table: Table, design: Design, missing: str | None) -> tuple[Rows, str, tuple[str, ...]]:
    """Return the rows of a table as a model has them, NaN for numbers that are missing; where these are; remarks.

    Raises:
        InputError: no such columns, no rows, a cell that the model cannot take.
    """
    names = design.columns
    require_columns(table, names, OWNER)
    if missing == INDICATOR and not design.indicators:
        rule, fix = "a model that was fitted with it", "Use --missing mean."
        refuse(f"{OWNER} --missing indicator", rule, "one that was not", fix)
    may_miss = missing is not None
    values, gaps, remarks = table.numbers(names, keep=names, may_miss=may_miss, categories=design.categories)
    if not len(values):
        refuse(table.name, "at least one row under the header", "none", "Add rows.")
    if gaps:
        design.check_gaps(values, table, f"{OWNER} --missing", strict=missing == INDICATOR)
    return design.expand(values), gaps, remarks


def _count_outside(place: Outside, columns: Sequence[str]) -> None:
    """Say in a line how many rows lie outside the training rows, where any do."""
    names = [name for name, beyond in zip(columns, place.beyond.T, strict=True) if beyond.any()]
    beyond = place.beyond.sum(axis=1) > 0
    combined = place.combined & ~beyond
    kinds = [f"{beyond.sum()} out of their range in {shorten(names)}"] if names else []
    kinds += [f"{combined.sum()} in combination"] if combined.any() else []
    if kinds:
        say(f"Outside the training rows: {place.rows.sum()} of {len(beyond)}, {', '.join(kinds)}.", error=True)


def _cell(text: str) -> str:
    """Return a cell of a CSV file."""
    quoted = text.replace('"', '""')
    return f'"{quoted}"' if any(mark in text for mark in ',"\r\n') else text
