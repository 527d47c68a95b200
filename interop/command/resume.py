"""A run of `convexmoe fit` that is not done: files in DIR/unfinished, from which either framework goes on.

`now.safetensors` has the weights of the last evaluation, Adam's moments, the losses and the options of the run, and
names by their sha256 the files of the best weights so far, and of the weights and moments of each copy that holds rows
out: what is there is one run at each moment, even if it is killed.
"""

from __future__ import annotations

import json
import math
import shlex
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from convexmoe.errors import InputError, refuse
from convexmoe.files import inspect
from convexmoe.files.atomic import make_staging, put_in_place
from convexmoe.files.schema import demand, has_form
from convexmoe.training import Fold, History, Position
from convexmoe.training.curvature import CONCAVE, CONVEX, NEITHER, Curvature

from ..frameworks import Framework
from .function import NOTHING, Function
from .saved_model import UNREADABLE, reason_of

FOLDER, NOW = "unfinished", "now.safetensors"  # in the directory of a run
EVERY = 10.0  # seconds between two writes
# Of the options of a run: least, most, usual.
LIMITS = {"petals": (1, 1024, 8), "depth": (1, 32, 1), "steps": (1, 10**7, 2000), "seed": (0, 2**31 - 1, 0)}


@dataclass(frozen=True)
class Plan:
    """What to fit, and how: the options of `convexmoe fit`; `curvature` is "auto" until the rows are compared."""

    petals: int
    depth: int
    steps: int
    seed: int
    curvature: str
    function: Function = NOTHING


@dataclass(frozen=True)
class RunRecord:
    """What a run is, as its file says it.

    Attributes:
        plan: the options of the run.
        target: the column to predict; drop: the columns left out.
        table: the name of the table; data: the fingerprint of its rows and columns.
        parts: the framework and the first step of each part so far.
        curvature: what the rows say of it; None where they were not asked.
    """

    plan: Plan
    target: str
    drop: tuple[str, ...]
    table: str
    data: str
    parts: tuple[dict[str, Any], ...]
    curvature: Curvature | None


@dataclass(frozen=True)
class Unfinished:
    """A run that goes on: its record, and the `FitState` of the framework that read it."""

    record: RunRecord
    state: Any


def exists(directory: Path) -> bool:
    """Return whether a directory has an unfinished run."""
    return (directory / FOLDER / NOW).is_file()


def check_folder(directory: Path, resumes: bool) -> None:
    """Check that a directory has an unfinished run of its own if one goes on, and none if one begins."""
    folder = directory / FOLDER
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        refuse("convexmoe fit", f"a folder of its own for the run at {folder}", "a link or a file", "Remove it.")
    if exists(directory) and not resumes:
        fix = f"Go on with --resume {shlex.quote(str(directory))}, or remove {folder}."
        refuse("convexmoe fit --out", "a directory without an unfinished run", str(directory), fix)
    if resumes and not exists(directory):
        refuse("convexmoe fit --resume", f"an unfinished run in {folder}", "one that is done", "Begin again.")


def remove(directory: Path) -> None:
    """Remove the unfinished run of a directory."""
    shutil.rmtree(directory / FOLDER, ignore_errors=True)


def file_of(folder: Path, kind: str, sha256: str) -> Path:
    """Return the file of the best weights, or of a copy that holds rows out, with a sha256."""
    return folder / f"{kind}-{sha256[:16]}.safetensors"


@dataclass
class Keeper:
    """Writes where a fit stands, every `EVERY` seconds and when it is to pause; called at each evaluation.

    Attributes:
        framework: the one that fits; folder: where to.
        notes: of the model; record: of the run.
        pause_at: the step to pause at, or None; paused: whether it is reached.
        state: the last `FitState`, or None; start_time, write_time: when it began, and when it wrote last.
    """

    framework: Framework
    folder: Path
    notes: dict[str, Any]
    record: RunRecord
    pause_at: int | None
    paused: bool = False
    state: Any = None
    start_time: float = field(default_factory=time.monotonic)
    write_time: float = -math.inf

    @property
    def step(self) -> int:
        """The step of the last evaluation."""
        return 0 if self.state is None else self.state.history.last_step

    def __call__(self, state: Any) -> bool:
        """Take note of a state; return whether the run is to pause here."""
        self.state = state
        self.paused = self.pause_at is not None and self.step >= self.pause_at
        if self.paused or time.monotonic() - self.write_time > EVERY:
            self.write()
        return self.paused

    def write(self) -> None:
        """Write the last state, if there is one."""
        state, save = self.state, self.framework.package.save
        if state is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with make_staging(self.folder) as staging:
            save(state.best, staging / "best", notes=self.notes)
            for fold, (model, optimizer) in enumerate(state.folds):
                save(model, staging / f"{fold}", notes=self.notes, optimizer=optimizer)
            best, *folds = (inspect(staging / name).sha256 for name in ("best", *map(str, range(len(state.folds)))))
            where = {"history": state.history._asdict(), "best_step": int(state.best_step), "rows": state.rows}
            where["position"] = state.position and state.position._asdict()
            record = asdict(self.record) | where | {"best": best, "folds": folds}
            notes = self.notes | {"fit": json.loads(json.dumps(record))}
            save(state.model, staging / NOW, notes=notes, optimizer=state.optimizer)
            kept = {file_of(self.folder, "best", best): "best"}
            kept |= {file_of(self.folder, "fold", sha256): str(fold) for fold, sha256 in enumerate(folds)}
            for path, name in kept.items():  # the names are new each time
                put_in_place(staging / name, path, like=self.folder / NOW)
            put_in_place(staging / NOW, self.folder / NOW)
        for old in (*self.folder.glob("best-*.safetensors"), *self.folder.glob("fold-*.safetensors")):
            if old not in kept:
                old.unlink()
        self.write_time = time.monotonic()

    def write_where_long(self) -> None:
        """Write the last state of a run of which much would be lost."""
        if time.monotonic() - self.start_time > EVERY:
            self.write()


def read(directory: Path, framework: Framework) -> Unfinished:
    """Return the unfinished run of a directory, in the framework given.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    folder, package = directory / FOLDER, framework.package
    if not exists(directory):
        raise InputError(
            f"convexmoe fit --resume: expected a directory with an unfinished run; {directory} has none. "
            "Name the one that convexmoe fit --pause-at, or an interrupted fit, told you."
        )
    try:
        run = package.read_notes(folder / NOW).get("fit")
        _check_description(run)
        best, *folds = _files(folder, run)
        state = package.FitState(
            model=package.load(folder / NOW),
            optimizer=package.read_optimizer(folder / NOW),
            history=History(**{name: tuple(losses) for name, losses in run["history"].items()}),
            best=package.load(best),
            best_step=run["best_step"],
            folds=tuple(Fold(package.load(path), package.read_optimizer(path)) for path in folds),
            rows=run["rows"],
            position=run.get("position") and Position(**run["position"]),
        )
        _check_state(state, run["plan"], package)
    except InputError:
        raise
    except UNREADABLE as error:
        got = f"files that cannot be read as one ({reason_of(error)[:160]})"
        refuse("convexmoe fit --resume", f"an unfinished run in {folder}", got, "Begin again with --out.")
    lists = tuple(run["parts"]), run["curvature"] and Curvature(*run["curvature"])
    plan, drop = Plan(**run["plan"] | {"function": _function_of(run["plan"])}), tuple(run["drop"])
    return Unfinished(RunRecord(plan, run["target"], drop, run["table"], run["data"], *lists), state)


def _function_of(plan: dict[str, Any]) -> Function:
    """Return what the options of a run say of the function; those of earlier versions said nothing."""
    return Function.from_json(plan["function"]) if "function" in plan else NOTHING


def _files(folder: Path, run: dict[str, Any]) -> list[Path]:
    """Return the files that the description of a run names, the best weights first, after a check of their content."""
    named = [("best", run["best"]), *(("fold", sha256) for sha256 in run["folds"])]
    paths = [file_of(folder, kind, sha256) for kind, sha256 in named]
    for path, (_, sha256) in zip(paths, named, strict=True):
        demand(inspect(path).sha256 == sha256, f"{path.name} is not of this run")
    return paths


FORM: dict[str, Any] = {
    **dict.fromkeys(("target", "table", "data", "best", "rows"), str),
    "plan": {**dict.fromkeys(LIMITS, int), "curvature": (CONVEX, CONCAVE)},
    "history": {"step": [int], "train_loss": [float], "validation_loss": [float]},
    **{"drop": [str], "folds": [str], "best_step": int, "parts": [{"framework": str, "from_step": int}]},
    "curvature": (None, list),
    "position": (None, {"passes": int, "block": int, "used": int, "place": (None, dict)}),
}


def _check_description(run: Any) -> None:
    """Check the description of a run in its file: a ValueError for any other."""
    known = isinstance(run, dict) and {*run, "position"} == {*FORM}  # earlier versions wrote none
    demand(known and has_form({"position": None} | run, FORM), "its description has other fields")
    plan, history, steps = run["plan"], run["history"], run["history"]["step"]
    demand(plan.keys() <= {*LIMITS, "curvature", "function"}, "plan has other fields")
    _function_of(plan)
    *errors, shown = (NEITHER,) if run["curvature"] is None else Curvature(*run["curvature"])
    demand(has_form(errors, [float]) and shown in (CONVEX, CONCAVE, NEITHER), "its curvature is none")
    for name, (least, most, _) in LIMITS.items():
        demand(least <= plan[name] <= most, f"{name} is no whole number from {least} to {most}")
    demand(len({*map(len, history.values())}) == 1, "history has lists of unequal length")
    rising = steps and steps[0] == 0 and sorted(set(steps)) == steps and steps[-1] <= plan["steps"]
    demand(rising, "the steps of its history do not rise from 0 up to those of the plan")
    demand(run["best_step"] in steps, "best_step is none of its steps")
    names = all(set(name) <= set("0123456789abcdef") for name in (run["best"], *run["folds"]))
    demand(names, "its best or its folds have no such names")


def _check_state(state: Any, plan: dict[str, int], package: Any) -> None:
    """Check that the files of a run are of one model, one step and one kind."""
    models = (state.model, state.best, *(fold.model for fold in state.folds))
    hulls = all(isinstance(model, package.VectorHull) for model in models)
    demand(hulls, "there is another model than a VectorHull")
    config = state.model.config
    planned = (config.petals, config.depth) == (plan["petals"], plan["depth"])
    demand(planned and all(model.config == config for model in models), "its models have other configs than its plan")
    for optimizer in (state.optimizer, *(fold.optimizer for fold in state.folds)):
        demand(optimizer is not None and optimizer.rule == "adam", "it has not the state of Adam")
        demand(optimizer.step == state.history.last_step, "its optimizer and its history are at different steps")
    single = all(str(model.params["shifts"].dtype).endswith("float32") for model in models)
    demand(single, "its weights are not float32")
