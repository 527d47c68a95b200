"""`convexmoe certify`: the proof that a saved model is convex, written beside it with the sha256 of the model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from rich.console import Console

from convexmoe.errors import InputError, refuse
from convexmoe.files import inspect
from convexmoe.files.atomic import write_whole

from ..frameworks import Framework, choose
from .options import FrameworkOption, HullArgument
from .output import say
from .saved_model import UNREADABLE, reason_of

STRENGTH_HELP = "structural (any parameters) or numeric (these)."


class Certified(NamedTuple):
    """What `certify` did.

    Args:
        certificate: of the package that proved it.
        path: of the JSON file.
        sha256: of the model's file, which the proof is of.
    """

    certificate: Any
    path: Path
    sha256: str


def certify_file(
    model: HullArgument,
    framework: FrameworkOption = None,
    strength: Annotated[str | None, typer.Option(help=STRENGTH_HELP, show_default="the first that proves it")] = None,
    proof: Annotated[bool, typer.Option("--proof", help="Print the proof as a tree.")] = False,
) -> None:
    """Prove that a saved hull is convex; writes MODEL.certificate.json beside it. Exit code 1 without a proof."""
    side = choose(framework)
    if strength not in (None, "structural", "numeric"):
        rule, fix = "structural or numeric", "Leave it out for both."
        refuse("convexmoe certify --strength", rule, repr(strength), fix)
    with side.quiet():
        certified = certify(model, side, strength)
    show(certified, Console(), proof)
    if certified.certificate.verdict != "proved":
        raise typer.Exit(1)


def certify(model: Path, framework: Framework, strength: str | None = None) -> Certified:
    """Certify the hull in a file and write `<name>.certificate.json` beside it.

    Args:
        model: a neutral file of a hull.
        framework: whose program is proved.
        strength: "structural", "numeric" or None, as for `certify` of the packages.

    Raises:
        InputError: no such file, no hull, or it cannot be read.
    """
    inspection = inspect(model)
    if inspection.kind != "VectorHull":
        got = f"a {inspection.kind}, whose routes choose among experts"
        refuse(model, "a VectorHull", got, "Certify the experts, each on its own.")
    with framework.precision(any(tensor.dtype == "F64" for tensor in inspection.tensors)):
        try:
            hull = framework.package.load(model)
        except UNREADABLE as error:
            raise InputError(f"{model}: expected a model; {reason_of(error)[:200]}") from None
        digest = hashlib.sha256(model.read_bytes()).hexdigest()
        units = inspection.config["normalization"]  # the example: a row in the units of the model
        x = np.zeros((1, hull.config.in_dim)) if units is None else np.asarray([units["input_mean"]], float)
        certificate = framework.package.certify(hull, framework.rows_for(hull, x), strength=strength)
    record = json.loads(certificate.to_json())
    source = {"file": model.name, "kind": inspection.kind, "sha256": digest, "framework": framework.name}
    text = json.dumps(record | {"model": source}, indent=1, sort_keys=True, allow_nan=False) + "\n"
    target = model.with_name(model.name.removesuffix(".safetensors") + ".certificate.json")
    write_whole(target, text.encode())
    return Certified(certificate, target, digest)


def show(certified: Certified, console: Console, proof: bool) -> None:
    """Print the verdict, and the proof as a tree where that is asked for."""
    lines = str(certified.certificate).splitlines()
    for line in lines if proof else lines[: 1 + len(certified.certificate.outputs)]:
        say(console, line)
    say(console, f"sha256 of the model's file {certified.sha256}")
    say(console, f"Written to {certified.path}")
