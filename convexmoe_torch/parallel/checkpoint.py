"""Checkpoints of a model that many processes hold: the neutral file, whole, whatever wraps or divides the model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from convexmoe.errors import dtype_name, fail, same_keys
from convexmoe.files import steps_taken
from convexmoe.files.format import read
from convexmoe.files.schema import PREFIX
from convexmoe.parallel import EXPERT, check_same_model

from ..files import optimizer as optimizers
from ..files.layers import MODELS, from_numpy, neutral_arrays, parameters_of, recipes_of, unwrap
from ..files.models import read_optimizer, write
from .mesh import PlacedHierarchy

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
    inner = inside("save", model)
    weights = _collect(inner, {name: from_numpy(value) for name, value in neutral_arrays(inner).items()})
    state = None if optimizer is None else optimizers.optimizer_state(optimizer, inner, step=step)
    if state is not None:
        taken = one_count(together("save", partial(getattr, state, "step")))
        state = state._replace(step=taken, moments={m: _collect(inner, values) for m, values in state.moments.items()})
    try:
        if distributed.get_rank() == 0:
            write(path, describe(inner), {PREFIX + n: optimizers.to_numpy(v) for n, v in weights.items()}, notes, state)
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
    inner = inside("restore", model)
    header, arrays = read(path, PREFIX)
    check_same_model("restore", header, describe(inner), os.fspath(path))
    parameters = parameters_of(inner)
    expected, got = (
        {name: (tuple(value.shape), dtype_name(value.dtype)) for name, value in values.items()}
        for values in (getattr(inner, "whole", parameters), {key.removeprefix(PREFIX): v for key, v in arrays.items()})
    )
    same_keys("restore", expected, got)
    state = None if optimizer is None else read_optimizer(path)
    if optimizer is not None and state is None:
        fix = "Write it with save(model, path, optimizer=...)."
        fail("restore", "path", "a file with an optimizer", repr(os.fspath(path)), fix)
    if optimizer is not None and state is not None:
        own = {m: {n: _divide(v[n], p) for n, p in parameters.items()} for m, v in state.moments.items()}
        optimizers.restore(optimizer, inner, state._replace(moments=own))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(_divide(from_numpy(arrays[PREFIX + name]), parameter))


def together(owner: str, work: Callable[[], Any]) -> list[Any]:
    """Return what `work` returns on each process, plain values; where it fails on one, all raise."""
    value, error = None, None
    try:
        value = work()
    except Exception as caught:
        error = caught
    told = [(value, error and f"{type(error).__name__}: {error}")]
    if distributed.is_initialized():
        own, told = told[0], [(None, None)] * distributed.get_world_size()
        distributed.all_gather_object(told, own)
    if error is not None:
        raise error
    for rank, (_, said) in enumerate(told):
        if said:
            raise RuntimeError(f"{owner}: expected success on all processes; got on process {rank} {said}")
    return [one for one, _ in told]


def one_count(steps: Sequence[int]) -> int:
    """Return the steps that an optimizer has taken, of its counts on each process: 0 where it has nothing to train."""
    return steps_taken({count for count in steps if count}, None, "Begin with a fresh state on all processes.")


def inside(owner: str, model: nn.Module) -> Any:
    """Return the hull or the hierarchy of a model, with the parameters that it keeps.

    After `fully_shard` a forward pass leaves others in their place, gathered ones, which are thrown away later.
    """
    inner = unwrap(model)
    if not isinstance(inner, MODELS):
        rule, fix = "a VectorHull or a HierarchicalCELMoE", "Pass such a model, as it is or wrapped."
        fail(owner, "model", rule, type(inner).__name__, fix, TypeError)
    for module in inner.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    return inner


def describe(model: Any) -> dict[str, Any]:
    """Return kind and config of a model, as `content_of` does of one that is whole."""
    config = json.loads(model.config.to_json())
    if isinstance(model, MODELS[0]):
        return {"kind": MODELS[0].__name__, "config": config}
    recipes = model.recipes if isinstance(model, PlacedHierarchy) else recipes_of(model)
    return {"kind": MODELS[1].__name__, "config": {"hierarchy": config, **recipes}}


def _collect(model: Any, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return one tensor for each parameter of the whole model, given those for the parameters of this process."""
    if not isinstance(model, PlacedHierarchy):
        return own
    group, device = model.mesh.get_group(EXPERT), model.mesh.device_type
    tensors = dict(own)
    for name, like in model.whole.items():
        owner = model.owners.get(".".join(name.split(".")[:3]))  # names of levels and experts have no dots
        if owner is not None:
            tensor = own[name].to(device) if name in own else torch.empty_like(like, device=device)
            distributed.broadcast(tensor, group=group, group_src=owner)
            tensors[name] = tensor
    return tensors


def _divide(value: Tensor, parameter: Tensor) -> Tensor:
    """Return what this process has of a value: divided as its parameter is."""
    value = value.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements)
