"""`convexmoe inspect`: what a saved model is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from convexmoe.files import inspect

from .options import JsonOption
from .output import say

FILE_HELP = "A file that `save` or `convexmoe fit` wrote."


def inspect_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help=FILE_HELP)], as_json: JsonOption = False
) -> None:
    """Show what a saved model is: config, names, shapes, dtypes, sizes. Reads no weights and needs no framework."""
    inspection = inspect(file)
    if as_json:
        typer.echo(inspection.to_json())
        return
    console = Console()
    say(console, f"{inspection.path}: {inspection.kind}, schema {inspection.schema}")
    say(console, f"sha256 of the content {inspection.sha256}")
    say(console, f"config {json.dumps(inspection.config)}")
    say(console, f"notes {json.dumps(inspection.notes)}")
    table = Table("name", "dtype", "shape", "bytes", title_justify="left")
    for column in table.columns[2:]:
        column.justify = "right"
    for tensor in inspection.parameters:
        table.add_row(tensor.name, tensor.dtype, "x".join(map(str, tensor.shape)) or "-", f"{tensor.bytes:,}")
    console.print(table, markup=False)
    total = sum(tensor.bytes for tensor in inspection.parameters)
    say(console, f"{inspection.num_parameters:,} parameters, {total:,} bytes")
    if inspection.optimizer is not None:
        moments = sum(tensor.bytes for tensor in inspection.tensors) - total
        rule, step = inspection.optimizer["rule"], inspection.optimizer["step"]
        say(console, f"optimizer {rule} after {step:,} steps, {moments:,} bytes")
