"""One of two processes that train a hierarchy together; prints what it found as JSON. Run by test_distributed.py.

python ranks.py RANK FILE      FILE: for the rendezvous
"""

import json
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from convexmoe_torch import (
    CELMoEConfig,
    CELMoEOutput,
    ExpertConfig,
    ExpertModule,
    ExpertResult,
    HierarchicalCELMoE,
    HierarchyLevelConfig,
    LinearExpert,
)

ROWS, WIDTH, STEPS = 7, 5, 3
MODES: dict[str, dict[str, bool]] = {
    "plain": {},
    "static_graph": {"static_graph": True},
    "find_unused": {"find_unused_parameters": True},
}


class Tanh(ExpertModule):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, batch):
        hidden = torch.tanh(self.linear(batch.hidden))
        return ExpertResult(hidden, {"size": hidden.square().mean()}, {"largest": hidden.amax(1)})


@dataclass
class Unregistered:
    """A record that PyTorch takes for a leaf."""

    output: CELMoEOutput


class Hiding(nn.Module):
    """Control: a module whose forward returns such a record."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs):
        return Unregistered(self.model(*inputs))


def build() -> HierarchicalCELMoE:
    torch.manual_seed(0)
    names = {"core": ("core",), "family": ("a", "b", "c"), "language": ("x", "y", "z")}
    levels = [HierarchyLevelConfig(level, [ExpertConfig(n) for n in experts]) for level, experts in names.items()]
    config = CELMoEConfig(WIDTH, levels, fusion_dropout=0.0)
    return HierarchicalCELMoE(config, lambda level, *_: Tanh() if level == "family" else LinearExpert(WIDTH))


def batch_of(step: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Rows of both processes, one after the other: none of "c", and only "c" and none of "y"."""
    draw = np.random.default_rng(step)
    x, y = (torch.from_numpy(draw.normal(size=(2 * ROWS, WIDTH)).astype(np.float32)) for _ in range(2))
    family = np.concatenate([draw.integers(0, 2, ROWS), np.full(ROWS, 2)])
    language = np.concatenate([draw.integers(0, 3, ROWS), 2 * draw.integers(0, 2, ROWS)])
    return x, y, {"family": torch.from_numpy(family), "language": torch.from_numpy(language)}


def gradients(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, routes: dict[str, torch.Tensor]
) -> list[torch.Tensor]:
    model.zero_grad()
    output = model(x, routes)
    output = output.output if isinstance(output, Unregistered) else output
    (output.fused_hidden - y).square().mean().backward()
    found: list[Any] = [parameter.grad for parameter in model.parameters()]
    return [grad.full_tensor() if hasattr(grad, "full_tensor") else grad for grad in found]


def compare(rank: int) -> dict[str, float]:
    """How far each wrapped hierarchy's gradients are from those of one process with all rows, at the worst step."""
    models: dict[str, nn.Module] = {name: DistributedDataParallel(build(), **mode) for name, mode in MODES.items()}
    models["control"] = DistributedDataParallel(Hiding(build()), static_graph=True)
    mesh = init_device_mesh("cpu", (2,))
    models["sharded"] = fully_shard(build(), mesh=mesh)
    core = build()
    fully_shard(core.level_modules["core"]["core"], mesh=mesh)  # all rows of all processes are its own
    models["sharded_core"] = fully_shard(core, mesh=mesh)
    single, own = build(), slice(rank * ROWS, (rank + 1) * ROWS)
    worst = dict.fromkeys(models, 0.0)
    for step in range(STEPS):
        x, y, routes = batch_of(step)
        wanted = gradients(single, x, y, routes)
        for name, model in models.items():
            found = gradients(model, x[own], y[own], {level: part[own] for level, part in routes.items()})
            largest = max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True))
            worst[name] = max(worst[name], largest)
    return worst


def refusals() -> dict[str, str]:
    """What is said of experts that talk to the other process by themselves."""
    mesh, said = init_device_mesh("cpu", (2,)), {}
    x, _, routes = batch_of(0)
    for name in ("experts", "one", "inside", "group", "replicas", "alone"):
        model = build()
        experts: Any = model.level_modules["family"]
        if name == "experts":
            for expert in experts.values():
                fully_shard(expert, mesh=mesh)
        elif name == "one":
            fully_shard(experts["b"], mesh=mesh)
            fully_shard(model, mesh=mesh)
        elif name == "inside":
            fully_shard(experts["c"].linear, mesh=mesh)
        elif name == "group":
            fully_shard(list(experts.values()), mesh=mesh)
        elif name == "replicas":
            experts["a"] = DistributedDataParallel(experts["a"])
        else:  # a mesh of one process has nobody to wait for
            meshes = init_device_mesh("cpu", (2, 1), mesh_dim_names=("other", "self"))
            fully_shard(experts["a"], mesh=meshes["self"])
        try:
            model(x, routes)
            said[name] = "taken"
        except ValueError as error:
            said[name] = str(error)
    return said


if __name__ == "__main__":
    rank, file = int(sys.argv[1]), sys.argv[2]
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    found = {"differences": compare(rank), "refusals": refusals()}
    distributed.barrier()
    distributed.destroy_process_group()
    print(json.dumps(found))
