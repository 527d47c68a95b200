"""A model read back from the file that `convexmoe fit` wrote, with the names of its columns."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from convexmoe.errors import refuse
from convexmoe.files import Inspection
from convexmoe.files.format import infinite
from convexmoe.files.inspect import OF_DIRECTORIES
from convexmoe.files.schema import has_form
from convexmoe.training.curvature import CONCAVE, CONVEX

from ..frameworks import Framework
from .design import Design, read_design
from .function import Function
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


def notes_of(
    columns: tuple[str, ...],
    target: str,
    x: Array | None = None,
    y: Array | None = None,
    function: Function | None = None,
    design: Design | None = None,
) -> dict[str, Any]:
    """Return the notes that `read_model` expects in the file, with those of the training rows and their targets.

    Args:
        columns: names of the inputs, then those of the context; target: of what is predicted.
        x, y: the rows in these columns and their targets, or None.
        function: what was said of the function: its context, and the column of weights.
        design: how the columns come of those of a table; None for columns of numbers.
    """
    width = 0 if function is None else len(function.context)
    in_dim = len(columns) - width if design is None else design.in_dim
    notes: dict[str, Any] = {"columns": list(columns[:in_dim]), "target": target}
    notes |= {"context": list(columns[in_dim:])} if columns[in_dim:] else {}
    notes |= {} if design is None else design.notes()
    if function is not None:
        notes |= {"weights": function.weights} if function.weights is not None else {}
    return notes | ({} if x is None else notes_of_rows(x, y))


def as_target(path: Path, model: Any, notes: dict[str, Any]) -> Any:
    """Return the hull in a file as a function of its target: earlier versions wrote minus a concave one, and noted it.

    Raises:
        InputError: a note that they did not write.
    """
    noted = notes.get("curvature", CONVEX)
    if noted not in (CONVEX, CONCAVE):
        refuse(path, "convex or concave as the curvature in its notes", shorten([repr(noted)]), FIX)
    if noted == CONVEX or model.config.is_concave:
        return model
    return type(model).from_params(model.config.negate(), model.params)


def explain_sign(notes: dict[str, Any]) -> list[str]:
    """Return a sentence that says of what a hull of an earlier version is the negative; none where it is not."""
    name = shorten([notes.get("target", "the target")])
    return [f"The hull in the file is minus {name}, which is concave."] if notes.get("curvature") == CONCAVE else []


def explain_function(config: dict[str, Any], notes: dict[str, Any]) -> list[str]:
    """Return in a sentence what a hull is known to be, from its config and its notes."""
    in_dim, signs = config["in_dim"], config.get("monotone") or ()
    inputs = columns_of(notes, in_dim) or tuple(f"x{k}" for k in range(in_dim))
    concave = config.get("curvature", CONVEX) == CONCAVE
    words = [CONCAVE if concave else CONVEX]
    for verb, wanted in (("rises in", 1), ("falls in", -1)):
        if names := [name for name, sign in zip(inputs, signs, strict=False) if sign == wanted]:
            words.append(f"{verb} {shorten(names)}")
    words += [f"{'<=' if concave else '>='} 0"] if config.get("nonnegative") else []
    known: list[str] = []
    if width := config.get("context_dim", 0):
        contexts = columns_of(notes, width, "context") or tuple(f"c{k}" for k in range(width))
        design = read_design(notes, (*inputs, *contexts), in_dim)
        shown = contexts if design is None else design.contexts
        words += [f"for every value of {shorten(shown)}"] if shown else []
        known = [] if design is None else design.explain()
    return [f"The function of {shorten(inputs)}: {', '.join(words)}.", *known]


def design_of(path: Path, notes: dict[str, Any], columns: tuple[str, ...], in_dim: int) -> Design:
    """Return how the columns of the model in a file come of those of a table.

    Raises:
        InputError: notes that do not tell it.
    """
    design = read_design(notes, columns, in_dim)
    if design is None:
        refuse(path, "a model with its column names", "notes of other columns as its design", FIX)
    return design


def read_model(path: Path, framework: Framework) -> tuple[Any, tuple[str, ...], str, dict[str, Any]]:
    """Return the hull of one output in a file, the names of its columns and of what it predicts, and all notes.

    Columns are the inputs, and after them those of the context.

    Raises:
        InputError: as `read_hull`; more than one output, no column names.
    """
    model, notes = read_hull(path, framework)
    if model.config.out_dim != 1:
        refuse(path, "a model with out_dim=1", f"out_dim={model.config.out_dim}", FIX)
    columns, target = columns_of(notes, model.config.in_dim), notes.get("target")
    contexts = columns_of(notes, model.config.context_dim, "context") if model.config.context_dim else ()
    if columns is None or contexts is None or {*columns} & {*contexts} or not isinstance(target, str):
        refuse(path, "a model with its column names", "one without them", FIX)
    return as_target(path, model, notes), (*columns, *contexts), target, notes


def columns_of(notes: dict[str, Any], width: int, kind: str = "columns") -> tuple[str, ...] | None:
    """Return the names of the inputs, or of the context, that the notes of a file hold, None where they hold none."""
    names: Any = notes.get(kind)
    return tuple(names) if has_form(names, [str]) and len({*names}) == len(names) == width else None


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
