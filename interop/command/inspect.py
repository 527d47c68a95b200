"""`convexmoe inspect`: what a saved model is."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from convexmoe.files import inspect
from convexmoe.files.format import read

from .output import conclude, say, tabulate
from .saved_model import explain_function, explain_sign

FILE_HELP = "A file that `save` or `convexmoe fit` wrote."


def inspect_file(file: Annotated[Path, typer.Argument(metavar="FILE", help=FILE_HELP)]) -> None:
    """Show what a saved model is: config, names, shapes, dtypes, sizes. Exit code 1 where its sha256 does not hold."""
    inspection, intact = inspect(file), False
    with suppress(ValueError):
        intact = bool(read(file, None))
    if conclude(json.loads(inspection.to_json()) | {"intact": intact}):
        raise typer.Exit(int(not intact))
    say(f"{inspection.path}: {inspection.kind}, schema {inspection.schema}")
    outcome = "as computed" if intact else "but the content has ANOTHER: fetch the file again or save the model anew"
    say(f"sha256 of the content {inspection.sha256}, {outcome}")
    say(f"config {json.dumps(inspection.config, ensure_ascii=False)}")
    long = {"leverage": dict, "interval_widths": list}  # more numbers than a reader wants
    shorter = {name: "..." for name, kind in long.items() if isinstance(inspection.notes.get(name), kind)}
    say(f"notes {json.dumps(inspection.notes | shorter, ensure_ascii=False)}")
    of_hull = explain_function(inspection.config, inspection.notes) if inspection.kind == "VectorHull" else []
    for line in (*of_hull, *explain_sign(inspection.notes)):
        say(line)
    rows = [(t.name, t.dtype, "x".join(map(str, t.shape)) or "-", f"{t.bytes:,}") for t in inspection.parameters]
    tabulate({"name": "left", "dtype": "left", "shape": "right", "bytes": "right"}, rows)
    total = sum(tensor.bytes for tensor in inspection.parameters)
    say(f"{inspection.num_parameters:,} parameters, {total:,} bytes")
    if inspection.optimizer is not None:
        moments = sum(tensor.bytes for tensor in inspection.tensors) - total
        rule, step = inspection.optimizer["rule"], inspection.optimizer["step"]
        say(f"optimizer {rule} after {step:,} steps, {moments:,} bytes")
    raise typer.Exit(int(not intact))
