"""Checkpoints of a model that many processes hold: the neutral file, whole, whatever wraps or divides the model.

The format of `torch.distributed.checkpoint` has a pickle in it (`.metadata`); there is none here.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from convexmoe.errors import dtype_name, fail, same_keys
from convexmoe.files import OptimizerState
from convexmoe.files.format import read
from convexmoe.files.schema import PREFIX
from convexmoe.parallel import EXPERT

from ..files import optimizer as optimizers
from ..files.layers import MODELS, from_numpy, neutral_arrays, parameters_of, recipes_of
from ..files.models import read_optimizer, write
from .mesh import Origin, PlacedHierarchy

Path = str | os.PathLike[str]


def save(
    model: nn.Module,
    path: Path,
    *,
    notes: dict[str, Any] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    step: int | None = None,
) -> None:
    """Write a model that many processes hold to one neutral file; every process calls it, the first one writes.

    The file is what `convexmoe_torch.save` writes of the whole model, and is read by both packages. It is written
    beside `path` and renamed: what was there stays whole until then. The first process holds the whole model in memory.

    Args:
        model: a hull or a hierarchy as it is, in `DistributedDataParallel`, after `fully_shard`, or of `place`.
        path: the file, on the first process.
        notes, optimizer, step: as of `convexmoe_torch.save`.

    Raises:
        OSError, TypeError, ValueError: as of `convexmoe_torch.save`, some on the first process alone.
    """
    inner = _unwrap(model)
    header = _describe(inner)
    arrays = _collect(inner, neutral_arrays(inner))
    state = None if optimizer is None else optimizers.optimizer_state(optimizer, inner, step=step)
    if state is not None:
        moments = {
            moment: _collect(inner, {name: optimizers.to_numpy(value) for name, value in values.items()})
            for moment, values in state.moments.items()
        }
        state = state._replace(moments={m: {n: from_numpy(v) for n, v in a.items()} for m, a in moments.items()})
    try:
        if distributed.get_rank() == 0:
            write(path, header, {PREFIX + name: value for name, value in arrays.items()}, notes, state)
    finally:
        distributed.barrier()  # whoever goes on finds the file


def restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Fill a model, and an optimizer, from a neutral file: every process reads it, and keeps its own part.

    The file may have been written by any number of processes, or by `save` of either package.

    Args:
        path: the file.
        model: as for `save`: built with the config of the file, and wrapped or divided in any way.
        optimizer: that of the model's parameters, whose moments and step the file has.

    Raises:
        FileNotFoundError, ValueError: as of `convexmoe_torch.load`, or the model has another config, or other weights.
    """
    inner = _unwrap(model)
    header, arrays = read(path, PREFIX)
    described = _describe(inner)
    for key in ("kind", "config"):
        if header[key] != described[key]:
            fix = "Build the model with the config that it was saved with."
            fail("restore", "model", f"the model of {os.fspath(path)!r}", f"another {key}", fix)
    values = {key.removeprefix(PREFIX): from_numpy(value) for key, value in arrays.items()}
    whole = {name: origin.value for name, origin in _origins(inner).items()}
    same_keys("restore", _keys(whole), _keys(values))
    parameters = parameters_of(inner)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(_divide(values[name], parameter))
    if optimizer is not None:
        state = read_optimizer(path)
        if state is None:
            fix = "Write it with save(model, path, optimizer=...)."
            fail("restore", "path", "a file with an optimizer", repr(os.fspath(path)), fix)
        own = {m: {n: _divide(v[n], p) for n, p in parameters.items()} for m, v in state.moments.items()}
        optimizers.restore(optimizer, inner, OptimizerState(state.rule, state.step, own))


def _unwrap(model: nn.Module) -> Any:
    """Return the hull or the hierarchy of a model."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    if not isinstance(inner, MODELS):
        rule, fix = "a VectorHull or a HierarchicalCELMoE", "Pass such a model, as it is or wrapped."
        fail("save", "model", rule, type(inner).__name__, fix, TypeError)
    return inner


def _describe(model: Any) -> dict[str, Any]:
    """Return kind and config of a model, as `content_of` does of one that is whole."""
    config = json.loads(model.config.to_json())
    if isinstance(model, MODELS[0]):
        return {"kind": MODELS[0].__name__, "config": config}
    recipes = model.recipes if isinstance(model, PlacedHierarchy) else recipes_of(model)
    return {"kind": MODELS[1].__name__, "config": {"hierarchy": config, **recipes}}


def _origins(model: Any) -> dict[str, Origin]:
    """Return neutral name -> where the parameter is."""
    if isinstance(model, PlacedHierarchy):
        return model.whole
    return {name: Origin(None, value) for name, value in parameters_of(model).items()}


def _keys(values: dict[str, Tensor]) -> dict[str, tuple]:
    return {name: (tuple(value.shape), dtype_name(value.dtype)) for name, value in values.items()}


def _collect(model: Any, own: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays of all processes along `expert`, of the same names, of those of this one."""
    if not isinstance(model, PlacedHierarchy):
        return own
    group, device = model.mesh.get_group(EXPERT), model.mesh.device_type
    arrays = {}
    for name, (owner, value) in model.whole.items():
        if owner is None:
            arrays[name] = own[name]
            continue
        tensor = (
            from_numpy(own[name]).to(device)
            if name in own
            else torch.empty(value.shape, dtype=value.dtype, device=device)
        )
        distributed.broadcast(tensor, group=group, group_src=owner)
        arrays[name] = optimizers.to_numpy(tensor)
    return arrays


def _divide(value: Tensor, parameter: Tensor) -> Tensor:
    """Return what this process has of a value: divided as its parameter is."""
    value = value.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements)
