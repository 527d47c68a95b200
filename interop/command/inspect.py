"""`convexmoe inspect`: what a saved model is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from convexmoe.files import inspect

from .options import JsonOption
from .output import emit, say, tabulate

FILE_HELP = "A file that `save` or `convexmoe fit` wrote."


def inspect_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help=FILE_HELP)], as_json: JsonOption = False
) -> None:
    """Show what a saved model is: config, names, shapes, dtypes, sizes. Reads no weights and needs no framework."""
    inspection = inspect(file)
    if as_json:
        emit(inspection.to_json())
        return
    say(f"{inspection.path}: {inspection.kind}, schema {inspection.schema}")
    say(f"sha256 of the content {inspection.sha256}")
    say(f"config {json.dumps(inspection.config)}")
    say(f"notes {json.dumps(inspection.notes)}")
    rows = [(t.name, t.dtype, "x".join(map(str, t.shape)) or "-", f"{t.bytes:,}") for t in inspection.parameters]
    tabulate({"name": "left", "dtype": "left", "shape": "right", "bytes": "right"}, rows)
    total = sum(tensor.bytes for tensor in inspection.parameters)
    say(f"{inspection.num_parameters:,} parameters, {total:,} bytes")
    if inspection.optimizer is not None:
        moments = sum(tensor.bytes for tensor in inspection.tensors) - total
        rule, step = inspection.optimizer["rule"], inspection.optimizer["step"]
        say(f"optimizer {rule} after {step:,} steps, {moments:,} bytes")
