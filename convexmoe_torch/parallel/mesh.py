"""A mesh of processes, and a hierarchy whose experts are divided over it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from convexmoe import hierarchy as core
from convexmoe.errors import fail
from convexmoe.parallel import AXES, DATA, EXPERT, axis_sizes

from ..files.layers import OURS, recipes_of
from ..hierarchy import HierarchicalCELMoE
from ..hierarchy.dispatch import connect
from ..hierarchy.named import NamedModules
from .rows import count_rows, gather_rows, return_rows, share_losses


def make_mesh(data: int | None = None, expert: int = 1) -> DeviceMesh:
    """Return a mesh of all processes with the axes `data` and `expert`.

    Args:
        data: size of the axis that divides the rows alone; None means all that `expert` leaves.
        expert: size of the axis that divides experts, and the rows as well; its neighbors are consecutive ranks.

    Raises:
        RuntimeError: there is no process group.
        TypeError, ValueError: a size is no whole number, or `data * expert` is not the number of processes.

    >>> distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    >>> make_mesh().mesh_dim_names
    ('data', 'expert')
    >>> distributed.destroy_process_group()
    """
    if not distributed.is_initialized():
        fix = "Start by torchrun, and call torch.distributed.init_process_group() first."
        fail("make_mesh", "data", "processes that know each other", "no process group", fix, RuntimeError)
    sizes = axis_sizes(data, expert, distributed.get_world_size(), "processes")
    device = "cuda" if "nccl" in str(distributed.get_backend_config()) else "cpu"
    return init_device_mesh(device, sizes, mesh_dim_names=AXES)


def place(model: HierarchicalCELMoE, mesh: DeviceMesh) -> PlacedHierarchy:
    """Return a hierarchy of which this process keeps the experts that are its own; every process calls it.

    Of the E experts of a level the process at place r of the n along `expert` keeps those from `r * E // n` to
    `(r + 1) * E // n`. All parameters become those of the first process, so that seeds may differ.

    Args:
        model: the whole model, on this process's device; what is kept is not copied.
        mesh: as `make_mesh` returns it.

    Raises:
        TypeError: it is no hierarchy.
        ValueError: the mesh has other axes, or two experts share a parameter.
    """
    if isinstance(model, PlacedHierarchy):
        fix = "Place the whole model again: load it, or restore into it."
        fail("place", "model", f"a whole {core.OWNER}", "one that is placed", fix, TypeError)
    if not isinstance(model, HierarchicalCELMoE):
        fix = "Divide a hull's rows, or its parameters: DistributedDataParallel(model), or fully_shard(model)."
        fail("place", "model", f"a {core.OWNER}", type(model).__name__, fix, TypeError)
    if getattr(mesh, "mesh_dim_names", None) != AXES:
        got = f"the axes {list(getattr(mesh, 'mesh_dim_names', None) or ())}"
        fail("place", "mesh", f"a mesh with the axes {list(AXES)}", got, "Make it with make_mesh(data=, expert=).")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            distributed.broadcast(tensor.detach(), src=0)
    return PlacedHierarchy(model, mesh)


class PlacedHierarchy(HierarchicalCELMoE):
    """What `place` returns: it is called as the hierarchy is, by all processes, each with rows of its own.

    In every level the rows of the processes along `expert` are all-gathered, each process runs its own experts on
    theirs, and a reduce-scatter hands every process its rows back. Processes may have different numbers of rows, or
    none; whether `hidden` and the context require gradients, the structure of the context, and what is `Shared` must be
    the same on all. A level returns the dtype that it gets. Losses of experts are of the rows of all, and every process
    has all of them; `aux` is of the process's own experts alone. It runs in eager mode.

    Guarantee: values and gradients are those of one process with all rows (tests/torch/test_parallel.py).

    Args:
        model: the whole hierarchy.
        mesh: the mesh.
    """

    saved_by = "convexmoe_torch.parallel.save"
    forward = torch.compiler.disable(HierarchicalCELMoE.forward)  # Dynamo does not trace groups of processes

    def __init__(self, model: HierarchicalCELMoE, mesh: DeviceMesh) -> None:
        nn.Module.__init__(self)
        self.config, self.fusion, self.mesh, self.recipes = model.config, model.fusion, mesh, recipes_of(model)
        place, size = mesh.get_local_rank(EXPERT), mesh[EXPERT].size()
        self.owners: dict[str, int] = {}  # "level_modules.level.expert" -> the place along `expert`
        self._ranges: list[range] = []  # of the own experts of each level
        self._may_have_losses: list[bool] = []
        parts = {} if model.fusion is None else {"fusion": model.fusion}
        levels = {}
        for level in model.levels:
            experts: Any = model.level_modules[level.name]
            ends = [r * len(experts) // size for r in range(size + 1)]
            for index, (name, expert) in enumerate(experts.items()):
                parts[part := f"level_modules.{level.name}.{name}"] = expert
                self.owners[part] = bisect_right(ends, index) - 1
            self._ranges.append(own := range(ends[place], ends[place + 1]))
            levels[level.name] = NamedModules({level.expert_names[i]: experts[level.expert_names[i]] for i in own})
            self._may_have_losses.append(any(type(expert) not in OURS.values() for expert in experts.values()))
        named = {f"{part}.{name}": p for part, module in parts.items() for name, p in module.named_parameters()}
        if len({id(parameter) for parameter in named.values()}) < len(named):
            rule, fix = "experts and a fusion without a parameter in common", "Give each its own, or use DDP."
            fail("place", "model", rule, "some that share one", fix)
        self.whole = {name: p.detach().to("meta") for name, p in named.items()}  # shapes and dtypes, without storage
        self.level_modules = NamedModules(levels)
        # DistributedDataParallel, which would average what are different experts, finds nothing and says so
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_parameters()]
        self.train(model.training)

    def __init_subclass__(cls) -> None:
        """Refuse the class that `fully_shard` makes, which would divide what are different experts."""
        fix = "Shard what is around it, or the whole hierarchy without place."
        fail("place", "model", "a placed model without FSDP", cls.__name__, fix, TypeError)

    def _own_level(self, index: int) -> core.HierarchyLevelConfig:
        level = self.levels[index]
        experts = [level.expert_configs[expert] for expert in self._ranges[index]]
        return replace(level, experts=experts, fallback_expert=None)

    def _run_levels(self, hidden: Tensor, routes: Mapping[str, Any], given: Any) -> core.CELMoEOutput:
        in_ddp = nn.parallel.DistributedDataParallel._get_active_ddp_module() is not None
        if in_ddp or any(isinstance(p, DTensor) for p in self.parameters()):
            got = "one within DistributedDataParallel or fully_shard, which mix up the experts of processes"
            fix = "Build it anew, wrap what is around it, and call average_gradients(model) after backward."
            fail(core.OWNER, "model", "a placed model by itself", got, fix, TypeError)
        return super()._run_levels(hidden, routes, (given, count_rows(hidden, self.mesh.get_group(EXPERT))))

    def _run_level(
        self, index: int, hidden: Tensor, routes: Any, valid: Tensor | None, given: Any
    ) -> tuple[Tensor, core.LevelOutput]:
        level, own, group = self.levels[index], self._ranges[index], self.mesh.get_group(EXPERT)
        batch, most = given
        arrays = [hidden, routes.to(hidden.device, torch.int64, copy=True)]
        core.map_leaves((batch.context, batch.mask), lambda x: arrays.extend([x] if core.is_array(x) else []))
        everyone, places, *rest = gathered = gather_rows(arrays, most, group)
        parts = iter(rest)
        context, mask = core.map_leaves((batch.context, batch.mask), lambda x: next(parts) if core.is_array(x) else x)
        if len(own):
            places = torch.where((places >= own.start) & (places < own.stop), places - own.start, -1)
            batch = core.ExpertBatch(everyone, context, mask, batch.state)
            total, output = super()._run_level(index, everyone, places, None, batch)
            losses, aux = dict(output.losses), output.aux
        else:
            total, losses, aux = everyone.new_zeros((*everyone.shape[:-1], self.config.width_of(level))), {}, {}
        anchor = torch.zeros((), requires_grad=True)  # backward runs on every process, whatever its experts used
        total = connect(total.to(hidden.dtype), [anchor, *gathered])
        if self._may_have_losses[index]:
            losses = share_losses(losses, total, group)
        total = return_rows(total, len(hidden), group)
        return total, core.LevelOutput(level.name, total, arrays[1], losses, aux, level.expert_names)


def average_gradients(model: PlacedHierarchy) -> None:
    """Make every gradient that of the mean over the losses of all processes; call it after `backward`, on all of them.

    A parameter that has no gradient on some process counts there as one with zeros; one that requires none is left out.

    Args:
        model: as `place` returned it.

    Raises:
        TypeError: it is another model.
    """
    if not isinstance(model, PlacedHierarchy):
        fail("average_gradients", "model", "a model that place returned", type(model).__name__, "Place it.", TypeError)
    own = set(model.level_modules.parameters())
    for axes, parameters in (((DATA,), own), (AXES, set(model.parameters()) - own)):
        trained = [p for p in model.parameters() if p in parameters and p.requires_grad]
        for dtype in dict.fromkeys(p.dtype for p in trained):
            alike = [p for p in trained if p.dtype == dtype]
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in alike])
            for axis in axes:
                distributed.all_reduce(flat, group=model.mesh.get_group(axis))
            for p, part in zip(alike, (flat / model.mesh.size()).split([p.numel() for p in alike]), strict=True):
                p.grad = part.reshape(p.shape)
