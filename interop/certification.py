"""`convexmoe certify`: the proof that a saved model is convex, written beside it with the sha256 of the model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from convexmoe.files.atomic import write_whole

from .frameworks import Framework
from .inspection import inspect
from .saved import UNREADABLE
from .tables import InputError


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


def certify(model: Path, framework: Framework, strength: str | None = None) -> Certified:
    """Certify the hull in a file and write `<name>.certificate.json` beside it.

    Args:
        model: a neutral file of a hull.
        framework: whose program is proved.
        strength: "structural", "numeric" or None, as for `certify` of the packages.

    Raises:
        InputError: no such file, no hull, or it cannot be read.
    """
    found = inspect(model)
    if found.kind != "VectorHull":
        raise InputError(
            f"{model}: expected a VectorHull; got a {found.kind}, whose routes choose among experts. "
            "Certify the experts, each on its own."
        )
    target = model.with_name(model.name.removesuffix(".safetensors") + ".certificate.json")
    wide = any(tensor.dtype == "F64" for tensor in found.tensors)
    with framework.precision(wide):
        try:
            hull = framework.package.load(model)
        except UNREADABLE as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError(f"{model}: expected a model; {reason}") from None
        digest = hashlib.sha256(model.read_bytes()).hexdigest()
        certificate = framework.package.certify(
            hull, framework.array(_example(found.config), hull), strength=strength
        )
    record = json.loads(certificate.to_json())
    record["model"] = {
        "file": model.name,
        "kind": found.kind,
        "sha256": digest,
        "framework": framework.name,
    }
    text = json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_whole(target, text.encode())
    return Certified(certificate, target, digest)


def _example(config: dict[str, Any]) -> np.ndarray:
    """Return a row in the units of the model: the mean of its inputs, or zeros."""
    units = config["normalization"]
    return np.zeros((1, config["in_dim"])) if units is None else np.asarray([units["input_mean"]], np.float64)


def show(done: Certified, console: Console, proof: bool) -> None:
    """Print the verdict, and the proof as a tree where that is asked for."""
    lines = str(done.certificate).splitlines()
    for line in lines if proof else lines[: 1 + len(done.certificate.outputs)]:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    console.print(f"sha256 of the model's file {done.sha256}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"Written to {done.path}", soft_wrap=True, highlight=False, markup=False)
