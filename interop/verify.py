"""`convexmoe verify`: a saved model in both frameworks, or two saved models, compared quantity by quantity."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable

from .inspection import Inspection, inspect
from .parity import ParityReport, check_parity
from .saved import UNREADABLE
from .tables import InputError


def verify(first: Path, second: Path, *, rows: int, steps: int, seed: int) -> ParityReport:
    """Return the parity of `first`, run in JAX, and `second`, run in PyTorch, on random rows.

    Args:
        first, second: neutral files of models with one config and dtype; the same file for the parity of one model.
        rows, steps, seed: of the input, of the trajectory, of the draw.

    Raises:
        InputError: a file that cannot be read, two configs, a hierarchy with experts of the user's own.
    """
    import jax

    import convexmoe_jax
    import convexmoe_torch

    found = [inspect(path) for path in (first, second)]
    if (found[0].kind, found[0].config) != (found[1].kind, found[1].config):
        raise InputError(
            f"convexmoe verify: expected two models of one config; {first} and {second} differ. "
            "Compare them with convexmoe inspect."
        )
    wide = any(tensor.dtype == "F64" for tensor in found[0].tensors)
    with jax.enable_x64(True) if wide else nullcontext():
        models = []
        for package, path in ((convexmoe_jax, first), (convexmoe_torch, second)):
            try:
                models.append(package.load(path))
            except UNREADABLE as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise InputError(f"{path}: expected a model that can be built; {reason}") from None
        x, routing = inputs_of(found[0], rows, seed)
        return check_parity(models[0], models[1], x, routing=routing, steps=steps, floor=True)


def inputs_of(found: Inspection, rows: int, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray] | None]:
    """Return normal rows, in the units of the model, and random routes for a hierarchy."""
    draw = np.random.default_rng(seed)
    if found.kind == "VectorHull":
        x = draw.normal(size=(rows, found.config["in_dim"]))
        units: Any = found.config["normalization"]
        return (x if units is None else x * units["input_scale"] + units["input_mean"]), None
    hierarchy = found.config["hierarchy"]
    levels = {level["name"]: len(level["experts"]) for level in hierarchy["levels"] if level["enabled"]}
    routes = {name: draw.integers(0, count, rows).astype(np.int32) for name, count in levels.items()}
    return draw.normal(size=(rows, hierarchy["hidden_size"])), routes


def show(report: ParityReport, console: Console) -> None:
    """Print a report as a table."""
    table = RichTable("quantity", "error", "bound", "one ulp", "")
    for column in table.columns[1:4]:
        column.justify = "right"
    for c in report.comparisons:
        table.add_row(c.name, f"{c.error:.1e}", f"{c.bound:.0e}", f"{c.floor:.1e}", "ok" if c.ok else "MISS")
    console.print(table, markup=False)
    console.print(
        f"JAX and PyTorch in {report.dtype}: {'parity' if report.ok else 'MISS'}. Errors are relative to the largest "
        "value; one ulp: what moving every weight by one unit in the last place makes of the quantity.",
        highlight=False,
        markup=False,
    )
