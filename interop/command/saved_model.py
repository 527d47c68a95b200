"""A model read back from the file that `convexmoe fit` wrote, with the names of its columns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convexmoe.errors import InputError, refuse

from ..frameworks import Framework

FIX = "Name a model.safetensors that convexmoe fit wrote."

# What reading a damaged or a hostile file may raise: the last three for nesting, numbers and sizes beyond all measure.
UNREADABLE = (OSError, ValueError, TypeError, LookupError, RecursionError, OverflowError, MemoryError)


@dataclass(frozen=True)
class SavedModel:
    """A hull and what its numbers mean.

    Attributes:
        framework: the one that runs it.
        model: the hull, one output.
        columns: names of the inputs, `in_dim` of them, in the model's order.
        target: name of what it predicts.
    """

    framework: Framework
    model: Any
    columns: tuple[str, ...]
    target: str

    def predict(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return predictions, `[N]`, for rows `[N, in_dim]`, both in original units."""
        return self.framework.predict(self.model, x)


def reason_of(error: BaseException) -> str:
    """Return the message of an error in one line, or its kind where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def notes_of(columns: tuple[str, ...], target: str, x: NDArray[np.float64] | None = None) -> dict[str, Any]:
    """Return the notes that `read_model` expects in the file, with the ranges of the training rows `x`."""
    notes: dict[str, Any] = {"columns": list(columns), "target": target}
    if x is not None:
        notes["ranges"] = [[float(column.min()), float(column.max())] for column in x.T]
    return notes


def read_model(path: Path, framework: Framework) -> SavedModel:
    """Return the model in a file, in the framework given.

    Raises:
        InputError: no file there, not a hull, more than one output, no column names, or float64 where JAX has it
            switched off.
    """
    model, notes = read_hull(path, framework)
    if model.config.out_dim != 1:
        refuse(path, "a model with out_dim=1", f"out_dim={model.config.out_dim}", FIX)
    columns, target = notes.get("columns"), notes.get("target")
    if not (
        isinstance(columns, list)
        and all(isinstance(name, str) for name in [*columns, target])
        and len(columns) == model.config.in_dim
    ):
        refuse(path, "a model with its column names", "one without them", FIX)
    return SavedModel(framework, model, tuple(columns), str(target))


def read_hull(path: Path, framework: Framework) -> tuple[Any, dict[str, Any]]:
    """Return the hull in a file, whoever saved it, and its notes.

    Raises:
        InputError: no file there, not a hull, or float64 where JAX has it switched off.
    """
    if not path.exists():
        raise InputError(f"{path}: expected a model; found no such file. Check the path.")
    if path.is_dir():
        refuse(path, "a model", "a directory", "Name the model.safetensors in it.")
    try:
        model, notes = framework.package.load(path), framework.package.read_notes(path)
    except UNREADABLE as error:
        reason = reason_of(error)
        if "jax_enable_x64" in reason:
            fix = "Set JAX_ENABLE_X64=1 in the environment."
            refuse(path, "a dtype that JAX has switched on", "a model in float64", fix)
        reason = reason if len(reason) <= 160 else reason[:157] + "..."
        refuse(path, "a model", f"a file that cannot be read as one ({reason})", FIX)
    if not isinstance(model, framework.package.VectorHull):
        refuse(path, "a VectorHull", f"a {type(model).__name__}", FIX)
    return model, notes
