"""Sharded checkpoints by `torch.distributed.checkpoint`, in safetensors: each process writes its own, any mesh reads.

That library's usual format has a pickle in it (`.metadata`); its files of safetensors state their places themselves.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from convexmoe.errors import dtype_name, fail, same_keys, whole_number
from convexmoe.files.atomic import follow, make_staging, put_in_place
from convexmoe.files.schema import DAMAGED, OPTIMIZER, PREFIX, UNFIT
from convexmoe.parallel import SHARDED_FORMAT, check_description, check_step, choose_step

from ..files import optimizer as optimizers
from ..files.layers import parameters_of
from .checkpoint import describe, inside

Folder = str | os.PathLike[str]
DESCRIPTION, NO_ROOM = "description.json", "Check the permissions of the folder and the room left."


def save_sharded(
    folder: Folder, step: int, model: nn.Module, optimizer: torch.optim.Optimizer | None = None, *, keep: int = 2
) -> None:
    """Write a sharded checkpoint: a folder of its own in `folder`, there whole or not at all.

    Every process calls it, on a folder that all of them see, and no process holds more than it has. Config, shapes and
    the sizes of the shards stand beside them as JSON, with the version of the format.

    Args:
        folder: of all checkpoints of a run; it is made where it is missing.
        step: the steps taken, above those of every checkpoint in the folder.
        model: a hull or a hierarchy as it is, in `DistributedDataParallel`, after `fully_shard`, or of `place`.
        optimizer: Adam, AdamW or SGD with momentum, of the model's parameters.
        keep: how many checkpoints stay; older ones are removed once the new one is whole.

    Raises:
        ImportError: PyTorch is older than 2.9.
        OSError: it cannot be written; what was there before stays.
        TypeError, ValueError: the step is not above the latest, the model is no such one, or the optimizer is another.
    """
    step, keep = whole_number("save_sharded", "step", step, 0), whole_number("save_sharded", "keep", keep, 1)
    writer, _ = _library("save_sharded")
    tensors, description = _content("save_sharded", model, optimizer, Tensor.detach)
    place, first = follow(folder), _rank() == 0
    place.mkdir(parents=True, exist_ok=True)
    check_step(step, latest_step(place), os.fspath(folder))
    try:
        with make_staging(place) if first else nullcontext(place) as staging:
            fresh = Path(_share(os.fspath(staging / "new")))
            try:
                with _without_warning():
                    dcp.save(tensors, storage_writer=writer(fresh, save_distributed=True))
            except CheckpointException as error:  # it is no Exception
                _refuse("save_sharded", "a place that can be written", error, NO_ROOM, OSError)
            if first:
                description["files"] = {file.name: file.stat().st_size for file in sorted(fresh.iterdir())}
                (fresh / DESCRIPTION).write_text(json.dumps(description, sort_keys=True))
                put_in_place(fresh, place / str(step))
                for old in _steps(place)[:-keep]:
                    put_in_place(place / str(old), staging / str(old))  # it goes with the staging
    finally:
        if distributed.is_initialized():
            distributed.barrier()  # whoever goes on finds it


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
        ImportError, TypeError: as of `save_sharded`.
        ValueError: the model has another config, or a shard is missing or damaged.
    """
    _, reader = _library("restore_sharded")
    tensors, own = _content("restore_sharded", model, optimizer, torch.empty_like)
    place = follow(folder)
    chosen = choose_step(_steps(place), step, os.fspath(folder))
    stored = _description(place / str(chosen))
    check_description(stored, own, os.fspath(folder))
    same_keys(
        "restore_sharded", *({n: (tuple(s), d) for n, (s, d) in part["arrays"].items()} for part in (own, stored))
    )
    rule = own["optimizer"] and own["optimizer"]["rule"]
    if rule is not None and (stored["optimizer"] or {}).get("rule") != rule:
        fix = "Pass the optimizer that it was saved with, or none."
        fail("restore_sharded", "optimizer", f"a checkpoint with the state of {rule}", repr(stored["optimizer"]), fix)
    try:
        with _without_warning():
            dcp.load(tensors, storage_reader=reader(place / str(chosen)))
    except CheckpointException as error:
        _refuse("restore_sharded", "whole shards", error, DAMAGED, ValueError)
    inner = inside("restore_sharded", model)
    parameters = parameters_of(inner)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[PREFIX + name])
    if optimizer is not None:
        names = optimizers.MOMENTS[rule]
        moments = {m: {name: tensors[f"{OPTIMIZER}{m}/{name}"] for name in parameters} for m in names}
        state = optimizers.OptimizerState(rule, stored["optimizer"]["step"], moments)
        optimizers.restore(optimizer, inner, state)
    return chosen


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


def _description(checkpoint: Path) -> dict[str, Any]:
    """Return the description of a checkpoint, all of whose shards are there and of their size.

    Raises:
        ValueError: a shard is missing or cut off, or the description is damaged.
    """
    found = {file.name: file.stat().st_size for file in checkpoint.iterdir() if file.name != DESCRIPTION}
    try:
        description: dict[str, Any] = json.loads((checkpoint / DESCRIPTION).read_bytes())
        wrong = sorted(
            name for name in found | description["files"] if found.get(name) != description["files"].get(name)
        )
        _ = [(list(shape), str(dtype)) for shape, dtype in description["arrays"].values()]
        _ = description["optimizer"] and int(description["optimizer"]["step"])
    except UNFIT:
        wrong = [DESCRIPTION]
    if wrong:
        rule = "the shards that were written, whole"
        fail("restore_sharded", "folder", rule, f"others in {os.fspath(checkpoint)!r}: {wrong[:8]}", DAMAGED)
    return description


def _steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in a folder, ascending."""
    files = folder.glob(f"*/{DESCRIPTION}")
    return sorted(int(name) for file in files if (name := file.parent.name).isdecimal() and str(int(name)) == name)


def _library(owner: str) -> tuple[Any, Any]:
    """Return the classes that write and read shards in safetensors."""
    writer, reader = (getattr(dcp, f"HuggingFaceStorage{part}", None) for part in ("Writer", "Reader"))
    if writer is None or "save_distributed" not in signature(writer).parameters:
        raise ImportError(f"convexmoe_torch.parallel.{owner} needs PyTorch 2.9: pip install -U torch")
    return writer, reader


def _refuse(owner: str, rule: str, error: CheckpointException, fix: str, kind: type[Exception]) -> None:
    """Raise an error of the kind that says what went wrong on the first process where something did."""
    cause, _ = next(iter(error.failures.values()))
    fail(owner, "folder", rule, f"{type(cause).__name__}: {cause}"[:400], fix, kind)


@contextmanager
def _without_warning() -> Iterator[None]:
    """Pass over the warning that a process alone gets: it is as welcome."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def _share(text: str) -> str:
    """Return the text of the first process, on all of them."""
    texts = [text]
    if distributed.is_initialized():
        distributed.broadcast_object_list(texts, src=0)
    return texts[0]
