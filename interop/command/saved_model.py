"""A model read back from the file that `convexmoe fit` wrote, with the names of its columns."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from convexmoe.errors import refuse
from convexmoe.files import Inspection
from convexmoe.files.format import infinite
from convexmoe.files.inspect import OF_DIRECTORIES
from convexmoe.training.curvature import CONCAVE, CONVEX

from ..frameworks import Framework
from .leverage import Array, notes_of_rows
from .tables import shorten

FIX = "Name a model.safetensors that convexmoe fit wrote."

# What reading a damaged or a hostile file may raise: the last three for nesting, numbers and sizes beyond all measure.
UNREADABLE = (OSError, ValueError, TypeError, LookupError, RecursionError, OverflowError, MemoryError)


def reason_of(error: BaseException) -> str:
    """Return the message of an error in one line, or its kind where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def precision_of(inspection: Inspection, framework: Framework) -> AbstractContextManager[Any]:
    """Return a context of a framework in which a file can be read in its own dtype."""
    return framework.precision(any(tensor.dtype == "F64" for tensor in inspection.tensors))


def notes_of(columns: tuple[str, ...], target: str, x: Array | None = None, y: Array | None = None) -> dict[str, Any]:
    """Return the notes that `read_model` expects in the file, with those of the training rows `x` and their targets."""
    return {"columns": list(columns), "target": target} | ({} if x is None else notes_of_rows(x, y))


def sign_of(path: Path, notes: dict[str, Any]) -> float:
    """Return what turns values of the hull in a file into those of the target: -1.0 where that is concave, else 1.0."""
    value = notes.get("curvature", CONVEX)
    if value not in (CONVEX, CONCAVE):
        refuse(path, "convex or concave as the curvature in its notes", shorten([repr(value)]), FIX)
    return -1.0 if value == CONCAVE else 1.0


def explain_sign(notes: dict[str, Any]) -> list[str]:
    """Return a sentence that says of what a hull is the negative; none where it is not."""
    name = shorten([notes.get("target", "the target")])
    return [f"The hull in the file is minus {name}, which is concave."] if notes.get("curvature") == CONCAVE else []


def read_model(path: Path, framework: Framework) -> tuple[Any, tuple[str, ...], str, dict[str, Any]]:
    """Return the hull of one output in a file, the names of its inputs and of what it predicts, and all notes.

    Raises:
        InputError: as `read_hull`; more than one output, no column names.
    """
    model, notes = read_hull(path, framework)
    if model.config.out_dim != 1:
        refuse(path, "a model with out_dim=1", f"out_dim={model.config.out_dim}", FIX)
    columns, target = columns_of(notes, model.config.in_dim), notes.get("target")
    if columns is None or not isinstance(target, str):
        refuse(path, "a model with its column names", "one without them", FIX)
    return model, columns, target, notes


def columns_of(notes: dict[str, Any], in_dim: int) -> tuple[str, ...] | None:
    """Return the names of the inputs that the notes of a file hold, None where they hold none."""
    names = notes.get("columns")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    if len(set(names)) == len(names) == in_dim:
        return tuple(names)
    return None


def read_hull(path: Path, framework: Framework) -> tuple[Any, dict[str, Any]]:
    """Return the hull in a file, whoever saved it, and its notes. Errors as in `read_any`; no other model is taken."""
    model, notes = read_any(path, framework)
    if not isinstance(model, framework.package.VectorHull):
        refuse(path, "a VectorHull", f"a {type(model).__name__}", FIX)
    return model, notes


def read_any(path: Path, framework: Framework) -> tuple[Any, dict[str, Any]]:
    """Return the model in a file, whoever saved it, and its notes.

    Raises:
        InputError: no file there, one that cannot be read, weights that are not finite, or float64 where JAX has it
            switched off.
    """
    if not path.exists():
        refuse(path, "a model", "no such file", "Check the path.")
    if path.is_dir():
        refuse(path, "a model", "a directory", OF_DIRECTORIES)
    try:
        model, notes = framework.package.load(path), framework.package.read_notes(path)
    except UNREADABLE as error:
        reason = reason_of(error)
        if "jax_enable_x64" in reason:
            rule, fix = "a dtype that JAX has switched on", "Set JAX_ENABLE_X64=1 in the environment."
            refuse(path, rule, "a model in float64", fix)
        refuse(path, "a model", f"a file that cannot be read as one ({shorten([reason], width=160)})", FIX)
    arrays = framework.package.files.models.content_of(model)[1]
    if bad := infinite(arrays):
        refuse(path, "finite weights to compute with", f"NaN or infinity in {shorten(bad)}", "Fit the model anew.")
    return model, notes
