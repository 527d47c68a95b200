"""`convexmoe verify`: a saved model in both frameworks, or two saved models, compared quantity by quantity."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from convexmoe.errors import InputError
from convexmoe.files import Inspection, inspect

from .. import frameworks
from .options import check_whole_number
from .output import conclude, say, tabulate
from .saved_model import precision_of, read_any

EXPLANATION = (
    "Errors are relative to the largest value; one ulp: the noise, what moving every weight by one unit in the last "
    "place makes of the quantity; the bound is four times that, or a few units of rounding."
)


def verify_files(
    first: Annotated[Path, typer.Argument(metavar="A", help="A saved model; it runs in JAX.")],
    second: Annotated[
        Path | None, typer.Argument(metavar="[B]", help="Another one; it runs in PyTorch.", show_default="A itself")
    ] = None,
    rows: Annotated[int, typer.Option(help="Random rows to compare on.")] = 16,
    steps: Annotated[int, typer.Option(help="Steps of Adam whose losses are compared.")] = 20,
    seed: Annotated[int, typer.Option(help="Of the rows and routes.")] = 0,
) -> None:
    """Compare a saved model in JAX and in PyTorch: outputs, gradients, Hessians, a short run. Exit code 1 on a miss."""
    check_whole_number("verify", "rows", rows, 1, 10**4, 16)
    check_whole_number("verify", "steps", steps, 0, 10**4, 20)
    check_whole_number("verify", "seed", seed, 0, 2**31 - 1, 0)
    missing = [label for name, label in frameworks.LABELS.items() if name not in frameworks.installed()]
    if missing:
        frameworks.not_installed("convexmoe verify", "JAX and PyTorch", missing[0], "interop")
    from ..parity import check_parity

    second = first if second is None else second
    inspection, other = inspect(first), inspect(second)
    if (inspection.kind, inspection.config) != (other.kind, other.config):
        raise InputError(
            f"convexmoe verify: expected two models of one config; {first} and {second} differ. "
            "Compare them with convexmoe inspect."
        )
    with precision_of(inspection, frameworks.get("jax")):
        pairs = zip(frameworks.LABELS, (first, second), strict=True)
        models = [read_any(path, frameworks.get(name))[0] for name, path in pairs]
        x, beside = draw_inputs(inspection, rows, seed)
        report = check_parity(models[0], models[1], x, **beside, steps=steps, floor=True)
    if not conclude(json.loads(report.to_json())):
        done = report.comparisons
        lines = [(c.name, f"{c.error:.1e}", f"{c.bound:.0e}", f"{c.floor:.1e}", "ok" if c.ok else "MISS") for c in done]
        tabulate({"quantity": "left", "error": "right", "bound": "right", "one ulp": "right", "": "left"}, lines)
        say(f"JAX and PyTorch in {report.dtype}: {'parity' if report.ok else 'MISS'}. {EXPLANATION}")
    if not report.ok:
        raise typer.Exit(1)


def draw_inputs(inspection: Inspection, rows: int, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Return normal rows, in the units of the model, and by name a context, or random routes for a hierarchy."""
    draw, config = np.random.default_rng(seed), inspection.config
    if inspection.kind == "VectorHull":
        x, units = draw.normal(size=(rows, config["in_dim"])), config["normalization"] or {}
        x = x * units.get("input_scale", 1.0) + units.get("input_mean", 0.0)
        if not config.get("context_dim"):
            return x, {}
        context = draw.normal(size=(rows, config["context_dim"]))
        return x, {"context": context * units.get("context_scale", 1.0) + units.get("context_mean", 0.0)}
    hierarchy = config["hierarchy"]
    levels = {level["name"]: len(level["experts"]) for level in hierarchy["levels"] if level["enabled"]}
    routes = {name: draw.integers(0, count, rows).astype(np.int32) for name, count in levels.items()}
    return draw.normal(size=(rows, hierarchy["hidden_size"])), {"routing": routes}
