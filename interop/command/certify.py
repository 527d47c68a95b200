"""`convexmoe certify`: the proof that a saved model is convex, written beside it with the sha256 of the model."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated

import numpy as np
import typer

from convexmoe.errors import printable, refuse
from convexmoe.files import inspect
from convexmoe.files.atomic import write_whole

from ..frameworks import choose
from .options import FrameworkOption, HullArgument
from .output import conclude, say
from .saved_model import explain_function, explain_sign, precision_of, read_hull

STRENGTH_HELP = "structural (any parameters) or numeric (these)."


def certify_file(
    model: HullArgument,
    framework: FrameworkOption = None,
    strength: Annotated[str | None, typer.Option(help=STRENGTH_HELP, show_default="the first that proves it")] = None,
    proof: Annotated[bool, typer.Option("--proof", help="Print the proof as a tree.")] = False,
) -> None:
    """Prove that a saved hull is convex, or concave; writes MODEL.certificate.json beside it. Exit 1 if not proved."""
    side = choose(framework)
    if strength not in (None, "structural", "numeric"):
        rule, fix = "structural or numeric", "Leave it out for both."
        refuse("convexmoe certify --strength", rule, repr(strength), fix)
    inspection = inspect(model)
    if inspection.kind != "VectorHull":
        got = f"a {inspection.kind}, whose routes choose among experts"
        refuse(model, "a VectorHull", got, "Certify the experts, each on its own.")
    with side.quiet(), precision_of(inspection, side):
        hull, _ = read_hull(model, side)
        digest = hashlib.sha256(model.read_bytes()).hexdigest()
        units = inspection.config["normalization"] or {}  # the example: a row in the units of the model
        sizes = {"input_mean": hull.config.in_dim, "context_mean": hull.config.context_dim}
        example = [np.asarray([units.get(name) or [0.0] * size], float) for name, size in sizes.items() if size]
        certificate = side.package.certify(
            hull, tuple(side.rows_for(hull, part) for part in example), strength=strength
        )
    record = json.loads(certificate.to_json())
    source = {"file": printable(model.name), "kind": inspection.kind, "sha256": digest, "framework": side.name}
    text = json.dumps(record | {"model": source}, indent=1, sort_keys=True, allow_nan=False) + "\n"
    target = model.with_name(model.name.removesuffix(".safetensors") + ".certificate.json")
    write_whole(target, text.encode())
    if conclude(record | {"model": source, "certificate": target}):
        raise typer.Exit(int(certificate.verdict != "proved"))
    lines = str(certificate).splitlines()
    shown = lines if proof else lines[: 1 + len(certificate.outputs)]  # the verdict alone, or the tree below it as well
    shown += (*explain_function(inspection.config, inspection.notes), *explain_sign(inspection.notes))
    for line in [*shown, f"sha256 of the model's file {digest}", f"Written to {target}"]:
        say(line)
    if certificate.verdict != "proved":
        raise typer.Exit(1)
