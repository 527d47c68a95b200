"""A run of `convexmoe fit` that is not done: two files in DIR/unfinished, from which either framework goes on.

`now.safetensors` has the weights of the last evaluation, Adam's moments, the losses and the options of the run, and
names the file of the best weights so far by its sha256: what is there is one run at each moment, even if it is killed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .frameworks import Framework
from .inspection import inspect
from .saved import UNREADABLE
from .tables import InputError

__all__ = ["LIMITS", "Keeper", "Unfinished", "fingerprint", "folder_of", "is_there", "read", "remove"]

NOW = "now.safetensors"
EVERY = 10.0  # seconds between two writes
LIMITS = {
    "petals": (1, 1024),
    "depth": (1, 32),
    "steps": (1, 10**7),
    "seed": (0, 2**31 - 1),
}  # of the options


@dataclass(frozen=True)
class Unfinished:
    """What the files say of a run.

    Attributes:
        plan: the options of the run, by name.
        target: the column to predict; drop: the columns left out.
        table: the name of the table; data: the fingerprint of its rows and columns.
        parts: the framework and the first step of each part so far.
        state: the `FitState` of the framework that read it.
    """

    plan: dict[str, int]
    target: str
    drop: tuple[str, ...]
    table: str
    data: str
    parts: tuple[dict[str, Any], ...]
    state: Any


def folder_of(directory: Path) -> Path:
    """Return where an unfinished run of a directory stands."""
    return directory / "unfinished"


def fingerprint(names: tuple[str, ...], *arrays: np.ndarray) -> str:
    """Return a sha256 of names and of arrays: shapes, dtypes, values."""
    total = hashlib.sha256(json.dumps(names).encode())
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
        self._begun = time.monotonic()
        self._state: Any = None
        self._written = float("-inf")
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
        """Write the last state; return whether there is one."""
        if self._state is None:
            return False
        self._folder.mkdir(parents=True, exist_ok=True)
        package, state = self._framework.package, self._state
        fresh = self._folder / "new.safetensors"
        package.save(state.best, fresh, notes=self._notes)
        best = inspect(fresh).sha256
        os.replace(fresh, best_file(self._folder, best))
        history = {name: list(losses) for name, losses in state.history._asdict().items()}
        run = self._run | {"history": history, "best_step": int(state.best_step), "best": best}
        package.save(
            state.model, self._folder / NOW, notes=self._notes | {"fit": run}, optimizer=state.optimizer
        )
        for old in self._folder.glob("best-*.safetensors"):
            if old != best_file(self._folder, best):
                old.unlink()
        self._written = time.monotonic()
        return True

    def write_where_long(self) -> None:
        """Write the last state of a run of which much would be lost."""
        if time.monotonic() - self._begun > EVERY:
            self.write()


def remove(directory: Path) -> None:
    """Remove the unfinished run of a directory, and the directory where nothing else is in it."""
    shutil.rmtree(folder_of(directory), ignore_errors=True)
    with suppress(OSError):
        directory.rmdir()


def best_file(folder: Path, sha256: str) -> Path:
    """Return the file of the best weights with a sha256."""
    return folder / f"best-{sha256[:16]}.safetensors"


def is_there(directory: Path) -> bool:
    """Return whether a directory has an unfinished run."""
    return (folder_of(directory) / NOW).is_file()


def read(directory: Path, framework: Framework) -> Unfinished:
    """Return the unfinished run of a directory, in the framework given.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    folder, package = folder_of(directory), framework.package
    if not is_there(directory):
        raise InputError(
            f"convexmoe fit --resume: expected a directory with an unfinished run; {directory} has none. "
            "Name the one that convexmoe fit --pause-at, or an interrupted fit, told you."
        )
    try:
        run = _checked(package.read_notes(folder / NOW).get("fit"))
        best = best_file(folder, run["best"])
        if inspect(best).sha256 != run["best"]:
            raise ValueError(f"{best.name} is not of this run")
        history = package.History(**{name: tuple(losses) for name, losses in run["history"].items()})
        state = package.FitState(
            model=package.load(folder / NOW),
            optimizer=package.read_optimizer(folder / NOW),
            history=history,
            best=package.load(best),
            best_step=run["best_step"],
        )
        _check_state(state, run["plan"], package)
    except InputError:
        raise
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(
            f"convexmoe fit --resume: expected an unfinished run in {folder}; got files that cannot be read as one "
            f"({reason}). Begin again with --out."
        ) from None
    texts = {name: run[name] for name in ("target", "table", "data")}
    return Unfinished(
        plan=run["plan"], drop=tuple(run["drop"]), parts=tuple(run["parts"]), state=state, **texts
    )


def _checked(run: Any) -> dict[str, Any]:
    """Return the description of a run after its checks: a ValueError for any other."""
    kinds = {
        **dict.fromkeys(("target", "table", "data", "best"), str),
        **dict.fromkeys(("plan", "history"), dict),
        **dict.fromkeys(("drop", "parts"), list),
        "best_step": int,
    }
    if not isinstance(run, dict) or set(run) != set(kinds):
        raise ValueError("its description has other fields")
    for name, kind in kinds.items():
        if type(run[name]) is not kind:
            raise ValueError(f"{name} is no {kind.__name__}")
    plan, history = run["plan"], run["history"]
    if set(plan) != set(LIMITS):
        raise ValueError("plan has other fields")
    for name, (least, most) in LIMITS.items():
        if type(plan[name]) is not int or not least <= plan[name] <= most:
            raise ValueError(f"{name} is no whole number from {least} to {most}")
    lengths = {name: len(losses) for name, losses in history.items() if isinstance(losses, list)}
    if set(lengths) != {"step", "train_loss", "validation_loss"} or len(set(lengths.values())) != 1:
        raise ValueError("history has other fields, or lists of unequal length")
    numbers = [*history["train_loss"], *history["validation_loss"]]
    steps = history["step"]
    if not all(type(number) is float for number in numbers) or not all(type(step) is int for step in steps):
        raise ValueError("history has what are no numbers")
    if not steps or steps[0] != 0 or sorted(set(steps)) != steps or steps[-1] > plan["steps"]:
        raise ValueError("the steps of its history do not rise from 0 up to those of the plan")
    if run["best_step"] not in steps:
        raise ValueError("best_step is none of its steps")
    if not all(type(name) is str for name in run["drop"]):
        raise ValueError("drop has what are no names")
    if not all(isinstance(part, dict) and set(part) == {"framework", "from_step"} for part in run["parts"]):
        raise ValueError("parts has other fields")
    return run


def _check_state(state: Any, plan: dict[str, int], package: Any) -> None:
    """Check that the files of a run are of one model, one step and one kind."""
    if not all(isinstance(model, package.VectorHull) for model in (state.model, state.best)):
        raise ValueError("there is another model than a VectorHull")
    config = state.model.config
    if config != state.best.config or (config.petals, config.depth) != (plan["petals"], plan["depth"]):
        raise ValueError("its models have other configs than its plan")
    if state.optimizer is None or state.optimizer.rule != "adam":
        raise ValueError("it has not the state of Adam")
    if state.optimizer.step != state.history.step[-1]:
        raise ValueError("its optimizer and its history are at different steps")
    for model in (state.model, state.best):
        if not str(model.params["shifts"].dtype).endswith("float32"):
            raise ValueError("its weights are not float32")
