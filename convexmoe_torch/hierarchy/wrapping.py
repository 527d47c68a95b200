"""What wraps a hierarchy or its experts and goes wrong in silence: collectives of experts, reentrant checkpoints."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
from torch import Tensor, distributed, nn

from convexmoe import hierarchy as core
from convexmoe.errors import fail

REENTRANT = (
    "{name} returned what has no gradient, though its parameters are trained: a checkpoint with use_reentrant=True, or "
    "torch.no_grad, drops the gradients of what returns no tensor. Pass use_reentrant=False."
)


def check_collectives(level: core.HierarchyLevelConfig, experts: list[nn.Module], rows: int) -> None:
    """Refuse experts that talk to other ranks by themselves, unless every rank calls them: a level's only expert.

    Ranks that route differently call different experts, and their collectives would pair up wrongly, or wait forever.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or (len(experts) == 1 and rows > 0):
        return
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel  # slow to import

    kinds = (FSDPModule, FullyShardedDataParallel, nn.parallel.DistributedDataParallel)
    for name, expert in zip(level.expert_names, experts, strict=True):
        for module in expert.modules():
            if isinstance(module, kinds) and _count_ranks(module) > 1:
                rule = "an expert without FSDP or DDP of its own, as each rank calls the experts of its own rows"
                fix = "Wrap the whole hierarchy instead: fully_shard(model), or DistributedDataParallel(model)."
                fail(core.OWNER, f"{level.name}.{name}", rule, type(module).__name__, fix)


def _count_ranks(module: Any) -> int:
    """Return how many ranks a wrapped module talks to."""
    sizes = [parameter.device_mesh.size() for parameter in module.parameters() if hasattr(parameter, "device_mesh")]
    return max(sizes, default=0) or distributed.get_world_size(getattr(module, "process_group", None))


def warn_of_lost_gradients(name: str, expert: nn.Module, hidden: Tensor) -> None:
    """Warn where an expert's output has no gradient and its parameters are trained."""
    if torch.is_grad_enabled() and not hidden.requires_grad and any(p.requires_grad for p in expert.parameters()):
        warnings.warn(REENTRANT.format(name=f"The expert {name}"), stacklevel=2)


def warn_inside_a_checkpoint(model: nn.Module) -> None:
    """Warn where a whole hierarchy is called by a reentrant checkpoint, which records nothing of it."""
    if torch.is_grad_enabled() or not model.training:
        return
    frame: Any = sys._getframe()
    while frame is not None and frame.f_code.co_filename != torch.utils.checkpoint.__file__:
        frame = frame.f_back
    if frame is not None:
        warnings.warn(REENTRANT.format(name=core.OWNER), stacklevel=2)
