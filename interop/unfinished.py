"""A run of `convexmoe fit` that is not done: two files in DIR/unfinished, from which either framework goes on."""

from __future__ import annotations

import hashlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .frameworks import Framework
from .saved import UNREADABLE
from .tables import InputError

__all__ = ["Keeper", "Unfinished", "fingerprint", "folder_of", "read"]

NOW, BEST = "now.safetensors", "best.safetensors"
EVERY = (
    10.0  # seconds between two writes: what a killed run loses at most, beside the steps up to an evaluation
)


@dataclass(frozen=True)
class Unfinished:
    """What the files say of a run.

    Attributes:
        plan: the options of the run, by name.
        target: the column to predict; drop: the columns left out.
        data: the fingerprint of its rows.
        parts: the framework and the first step of each part so far.
        state: the `FitState` of the framework that read it.
    """

    plan: dict[str, int]
    target: str
    drop: tuple[str, ...]
    data: str
    parts: tuple[dict[str, Any], ...]
    state: Any


def folder_of(directory: Path) -> Path:
    """Return where an unfinished run of a directory stands."""
    return directory / "unfinished"


def fingerprint(*arrays: np.ndarray) -> str:
    """Return a sha256 of arrays: shapes, dtypes, values."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype} {array.shape}\n".encode() + np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


class Keeper:
    """Writes where a fit stands, every `EVERY` seconds and when it is to pause; called at each evaluation."""

    def __init__(
        self,
        framework: Framework,
        folder: Path,
        notes: dict[str, Any],
        run: dict[str, Any],
        pause_at: int | None,
    ) -> None:
        self._framework, self._folder, self._notes, self._run = framework, folder, notes, run
        self._pause_at = pause_at
        self._state: Any = None
        self._written = time.monotonic()
        self.paused = False

    @property
    def step(self) -> int:
        """The step of the last evaluation."""
        return 0 if self._state is None else int(self._state.history.step[-1])

    def __call__(self, state: Any) -> bool:
        """Take note of a state; return whether the run is to pause here."""
        self._state = state
        self.paused = self._pause_at is not None and self.step >= self._pause_at
        if self.paused or time.monotonic() - self._written > EVERY:
            self.write()
        return self.paused

    def write(self) -> bool:
        """Write the last state, the best weights first: what is there is a whole run at each moment."""
        if self._state is None:
            return False
        self._folder.mkdir(parents=True, exist_ok=True)
        history = {name: list(losses) for name, losses in self._state.history._asdict().items()}
        run = self._run | {"history": history, "best_step": int(self._state.best_step)}
        package = self._framework.package
        package.save(self._state.best, self._folder / BEST, notes=self._notes)
        package.save(
            self._state.model,
            self._folder / NOW,
            notes=self._notes | {"fit": run},
            optimizer=self._state.optimizer,
        )
        self._written = time.monotonic()
        return True

    def remove(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self._folder, ignore_errors=True)


def read(directory: Path, framework: Framework) -> Unfinished:
    """Return the unfinished run of a directory, in the framework given.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    folder, package = folder_of(directory), framework.package
    if not (folder / NOW).is_file():
        raise InputError(
            f"convexmoe fit --resume: expected a directory with an unfinished run; {directory} has none. "
            "Name the one that convexmoe fit --pause-at, or an interrupted fit, told you."
        )
    try:
        run = package.read_notes(folder / NOW)["fit"]
        history = package.History(**{name: tuple(losses) for name, losses in run["history"].items()})
        state = package.FitState(
            model=package.load(folder / NOW),
            optimizer=package.read_optimizer(folder / NOW),
            history=history,
            best=package.load(folder / BEST),
            best_step=run["best_step"],
        )
        return Unfinished(
            plan=run["plan"],
            target=run["target"],
            drop=tuple(run["drop"]),
            data=run["data"],
            parts=tuple(run["parts"]),
            state=state,
        )
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(
            f"convexmoe fit --resume: expected an unfinished run in {folder}; got files that cannot be read as one "
            f"({reason}). Begin again with --out."
        ) from None
