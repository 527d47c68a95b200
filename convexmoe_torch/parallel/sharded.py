"""Sharded checkpoints by `torch.distributed.checkpoint`, in safetensors: each process writes its own, any mesh reads.

That library's usual format has a pickle in it (`.metadata`); its files of safetensors state their places themselves.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from hashlib import file_digest
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from convexmoe.errors import dtype_name, fail, same_keys, whole_number
from convexmoe.files.atomic import follow, make_staging, put_in_place
from convexmoe.files.hub import read_json
from convexmoe.files.optimizer import LARGEST_STEP
from convexmoe.files.schema import ANY, DAMAGED, OPTIMIZER, PREFIX, has_form
from convexmoe.parallel import SHARDED_FORMAT, check_description, check_step, choose_step

from ..files import optimizer as optimizers
from ..files.layers import parameters_of
from .checkpoint import describe, inside, one_count, together

Folder = str | os.PathLike[str]
STEP, DESCRIPTION = "step-", "description.json"
NO_ROOM = "Check the permissions of the folder and the room left."
OF_OPTIMIZER = {"rule": ("adam", "sgd"), "step": int}
FORM = {"files": {ANY: str}, "arrays": {ANY: [([int], str)]}, "optimizer": (None, OF_OPTIMIZER), "format": int}


def save_sharded(
    folder: Folder, step: int, model: nn.Module, optimizer: torch.optim.Optimizer | None = None, *, keep: int = 2
) -> None:
    """Write a sharded checkpoint: a folder of its own in `folder`, there whole or not at all.

    Every process calls it, on a folder that all of them see, and no process holds more than it has. Config, shapes and
    the sha256 of each shard stand beside them as JSON, with the version of the format.

    Args:
        folder: of all checkpoints of a run; it is made where it is missing.
        step: the steps taken, above those of every checkpoint in the folder.
        model: a hull or a hierarchy as it is, in `DistributedDataParallel`, after `fully_shard`, or of `place`.
        optimizer: Adam, AdamW or SGD with momentum, of the model's parameters.
        keep: how many checkpoints stay; older ones are removed once the new one is whole.

    Raises:
        ImportError: PyTorch is older than 2.9.
        OSError: it cannot be written; what was there before stays.
        RuntimeError: another process failed; the message names it, and says why.
        TypeError, ValueError: the step is not above the latest, the model is no such one, or the optimizer is another.
    """
    step = whole_number("save_sharded", "step", step, 0, LARGEST_STEP)
    keep = whole_number("save_sharded", "keep", keep, 1)
    writer, _ = _library("save_sharded")
    place, rank = follow(folder), _rank()
    content: dict[str, Any] = {}

    with ExitStack() as stack:

        def begin() -> tuple[str, int]:
            content["tensors"], content["own"] = _content("save_sharded", model, optimizer, Tensor.detach)
            check_step(step, latest_step(place), os.fspath(folder))
            with _written():
                place.mkdir(parents=True, exist_ok=True)
                staging = os.fspath(stack.enter_context(make_staging(place))) if rank == 0 else ""
            return staging, (content["own"]["optimizer"] or {}).get("step", 0)

        def measure() -> dict[str, str]:
            own = fresh.glob(f"shard-{rank + 1:05d}-*")
            return {file.name: _digest(file) for file in own}

        def finish() -> None:
            if rank == 0:
                with _written():
                    (fresh / DESCRIPTION).write_text(json.dumps(description, sort_keys=True))
                    put_in_place(fresh, place / f"{STEP}{step}")
                    for old in _steps(place)[:-keep]:
                        put_in_place(place / f"{STEP}{old}", fresh.parent / str(old))  # it goes with the staging

        begun = together("save_sharded", begin)
        fresh, description = Path(begun[0][0]) / "new", content["own"]
        if optimizer is not None:
            description["optimizer"]["step"] = one_count([count for _, count in begun])
        with _failures("save_sharded", "a place that can be written", NO_ROOM, OSError):
            dcp.save(content["tensors"], storage_writer=writer(fresh, save_distributed=True))
        shards = together("save_sharded", measure)
        description["files"] = {name: digest for files in shards for name, digest in files.items()}
        together("save_sharded", finish)


def restore_sharded(
    folder: Folder, model: nn.Module, optimizer: torch.optim.Optimizer | None = None, step: int | None = None
) -> int:
    """Fill a model, and an optimizer, from a sharded checkpoint, bit for bit; return the step of it.

    Every process calls it and reads its own part, whatever the number of processes that wrote it.

    Args:
        folder: what `save_sharded` was given.
        model: as for `save_sharded`: built with the config that was saved, and wrapped or divided in any way; where
            anything is wrong, it stays as it is.
        optimizer: that of the model's parameters, whose moments and count the checkpoint has.
        step: of the checkpoint; None means the latest that is whole.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ImportError, RuntimeError, TypeError: as of `save_sharded`.
        ValueError: the model has another config, or a shard is missing or damaged.
    """
    _, reader = _library("restore_sharded")
    place = follow(folder)
    content: dict[str, Any] = {}

    def begin() -> None:
        content["tensors"], own = _content("restore_sharded", model, optimizer, _unfilled)
        content["step"] = choose_step(_steps(place), step, os.fspath(folder))
        content["path"] = place / f"{STEP}{content['step']}"
        stored = content["stored"] = _description(content["path"])
        check_description(stored, own, os.fspath(folder))
        of_arrays = ({n: (tuple(s), d) for n, (s, d) in part["arrays"].items()} for part in (own, stored))
        same_keys("restore_sharded", *of_arrays)
        rules = [part["optimizer"] and part["optimizer"]["rule"] for part in (own, stored)]
        if rules[0] not in (None, rules[1]):
            fix = "Pass the optimizer that it was saved with, or none."
            fail("restore_sharded", "optimizer", f"a checkpoint with the state of {rules[0]}", repr(rules[1]), fix)

    together("restore_sharded", begin)
    tensors, stored = content["tensors"], content["stored"]
    with _failures("restore_sharded", "whole shards", DAMAGED, ValueError):
        dcp.load(tensors, storage_reader=reader(content["path"]))
    inner = inside("restore_sharded", model)
    parameters = parameters_of(inner)
    if optimizer is not None:
        rule, count = stored["optimizer"]["rule"], stored["optimizer"]["step"]
        names = optimizers.MOMENTS[rule]
        moments = {m: {name: tensors[f"{OPTIMIZER}{m}/{name}"] for name in parameters} for m in names}
        optimizers.restore(optimizer, inner, optimizers.OptimizerState(rule, count, moments))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[PREFIX + name])
    return int(content["step"])


def latest_step(folder: Folder) -> int | None:
    """Return the step of the latest whole checkpoint in a folder, None where there is none."""
    return max(_steps(follow(folder)), default=None)


def _content(
    owner: str, model: nn.Module, optimizer: torch.optim.Optimizer | None, take: Callable[[Tensor], Tensor]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what a process has of a model and an optimizer, by name, and the description of the whole."""
    inner = inside(owner, model)
    parameters = parameters_of(inner)
    tensors = {PREFIX + name: take(value) for name, value in parameters.items()}
    state = None if optimizer is None else optimizers.state_of(optimizer, inner, None, take)
    for moment, values in {} if state is None else state.moments.items():
        tensors |= {f"{OPTIMIZER}{moment}/{name}": value for name, value in values.items()}
    whole = getattr(inner, "whole", parameters).items()
    description = describe(inner) | {
        "format": SHARDED_FORMAT,
        "arrays": {name: [list(value.shape), dtype_name(value.dtype)] for name, value in whole},
        "optimizer": None if state is None else {"rule": state.rule, "step": state.step},
    }
    return tensors, description


def _unfilled(value: Tensor) -> Tensor:
    """Return a tensor like another, of NaN: what is not read is seen."""
    return torch.full_like(value, torch.nan)


def _description(checkpoint: Path) -> dict[str, Any]:
    """Return the description of a checkpoint, all of whose shards are there, byte for byte.

    Each process reads some of them; together they read all.

    Raises:
        ValueError: a shard is missing, or another, or the description is damaged.
    """
    description, names = read_json(checkpoint / DESCRIPTION), {file.name for file in checkpoint.iterdir()}
    if has_form(description.get("format"), int) and description["format"] != SHARDED_FORMAT:
        return description  # which is refused for it
    wrong = [] if has_form(description, FORM) else [DESCRIPTION]
    if not wrong:
        files, size = description["files"], distributed.get_world_size() if distributed.is_initialized() else 1
        wrong = sorted((names - {DESCRIPTION}) ^ files.keys())
        own = sorted(names & files.keys())[_rank() :: size]
        wrong += [name for name in own if _digest(checkpoint / name) != files[name]]
    if wrong:
        rule = "the shards that were written, whole"
        fail("restore_sharded", "folder", rule, f"others in {os.fspath(checkpoint)!r}: {wrong[:8]}", DAMAGED)
    return description


def _steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in a folder, ascending."""
    names = (file.parent.name.removeprefix(STEP) for file in folder.glob(f"{STEP}*/{DESCRIPTION}"))
    return sorted(int(name) for name in names if name.isdecimal() and str(int(name)) == name)


def _library(owner: str) -> tuple[Any, Any]:
    """Return the classes that write and read shards in safetensors."""
    writer, reader = (getattr(dcp, f"HuggingFaceStorage{part}", None) for part in ("Writer", "Reader"))
    if writer is None or "save_distributed" not in signature(writer).parameters:
        raise ImportError(f"convexmoe_torch.parallel.{owner} needs PyTorch 2.9: pip install -U torch")
    return writer, reader


@contextmanager
def _failures(owner: str, rule: str, fix: str, kind: type[Exception]) -> Iterator[None]:
    """Raise an error of the kind for what went wrong on the first process where something did.

    Interrupts, and what the library warns a process alone of, are passed on, and over.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            yield
    except CheckpointException as error:  # it is no Exception
        cause, _ = next(iter(error.failures.values()))
        if not isinstance(cause, Exception) or (isinstance(cause, (MemoryError, OSError)) and kind is not OSError):
            raise cause from None
        fail(owner, "folder", rule, f"{type(cause).__name__}: {cause}"[:400], fix, kind)


@contextmanager
def _written() -> Iterator[None]:
    """Say of an error of the system what it means for a checkpoint."""
    try:
        yield
    except OSError as error:
        fail(
            "save_sharded",
            "folder",
            "a place that can be written",
            f"{type(error).__name__}: {error}",
            NO_ROOM,
            OSError,
        )


def _digest(file: Path) -> str:
    """Return the sha256 of a file."""
    with open(file, "rb") as stream:
        return file_digest(stream, "sha256").hexdigest()


def _rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0
