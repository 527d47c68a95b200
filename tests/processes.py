"""Processes that train together, forked once PyTorch is imported; run by tests/torch/test_parallel.py.

python processes.py FOLDER      prints as JSON what each check of each group of processes found
"""

import functools
import json
import os
import sys
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from convexmoe_torch import (
    CELMoEConfig,
    ExpertConfig,
    ExpertModule,
    ExpertResult,
    HierarchicalCELMoE,
    HierarchyLevelConfig,
    HullExpert,
    LinearExpert,
    LossBundle,
    MLPExpert,
    Shared,
    VectorHull,
    load,
    load_optimizer,
    parallel,
    save,
)
from convexmoe_torch.files.layers import parameters_of
from convexmoe_torch.parallel import mesh as placing
from convexmoe_torch.parallel import rows as crossing

WIDTH, ROWS, CONTEXT = 5, 6, 3
DOUBLE = torch.float64


def run_together(number: int, folder: Path, work: Any) -> list[Any]:
    """What `work(rank)` returns on each of some processes, which are a process group."""
    folder.mkdir()

    def start(rank: int) -> None:
        torch.set_num_threads(1)
        address = f"file://{folder}/rendezvous"
        wait = timedelta(seconds=60)
        distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=number, timeout=wait)
        (folder / f"{rank}.json").write_text(json.dumps(work(rank)))
        distributed.barrier()
        distributed.destroy_process_group()

    children = []
    for rank in range(number):
        child = os.fork()
        if child == 0:
            try:
                start(rank)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    ends = [os.waitpid(child, 0)[1] for child in children]
    assert ends == [0] * number, ends
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(number)]


class OwnExpert(ExpertModule):
    """An expert of no known kind, with a loss, that uses context and mask."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH + CONTEXT, WIDTH, dtype=DOUBLE)

    def forward(self, batch):
        x = torch.cat([batch.hidden, batch.context["own"]], dim=1)
        hidden = torch.tanh(self.linear(x) * batch.context["all"]) * batch.mask[:, None]
        return ExpertResult(hidden, {"size": hidden.square().mean()}, {"rows": len(hidden)})


def build(seed: int = 0) -> HierarchicalCELMoE:
    """Levels of linear experts, of own ones, of MLPs, of one hull."""
    torch.manual_seed(seed)
    names = {"linear": "abcde", "own": "fgh", "mlp": "ijkl", "hull": "m"}
    levels = [HierarchyLevelConfig(level, [ExpertConfig(n) for n in experts]) for level, experts in names.items()]
    kinds = {
        "linear": lambda: LinearExpert(WIDTH, dtype=DOUBLE),
        "own": OwnExpert,
        "mlp": lambda: MLPExpert(WIDTH, 7, dtype=DOUBLE),
        "hull": lambda: HullExpert(VectorHull(WIDTH, petals=3, hidden_dim=4, out_dim=WIDTH, dtype=DOUBLE)),
    }
    model = HierarchicalCELMoE(CELMoEConfig(WIDTH, levels, fusion_dropout=0.0), lambda level, *_: kinds[level]())
    return model.to(DOUBLE)


def routings() -> dict[str, Any]:
    """Name -> (rows of each of four processes, the draw of routes among `number` experts for `count` rows)."""
    even = [ROWS] * 4
    return {
        "uniform": (even, lambda draw, number, count: draw.integers(0, number, count)),
        "zipf": (even, lambda draw, number, count: np.minimum(draw.zipf(1.5, count), number) - 1),
        "all_to_one": (even, lambda draw, number, count: np.full(count, number - 1)),
        "empty_experts": (even, lambda draw, number, count: draw.integers(0, 2, count) * (number - 1)),
        "no_rows": ([0] * 4, lambda draw, number, count: np.zeros(count, int)),
        "odd_counts": ([5, 1, 7, 3], lambda draw, number, count: draw.integers(0, number, count)),
        "rank_without_rows": ([4, 0, 7, 0], lambda draw, number, count: draw.integers(0, number, count)),
    }


def batch_of(model: HierarchicalCELMoE, name: str) -> tuple[dict[str, Any], list[int]]:
    counts, routes_of = routings()[name]
    draw, total = np.random.default_rng(3), sum(counts)
    values = {key: torch.from_numpy(draw.normal(size=(total, w))) for key, w in (("x", WIDTH), ("y", WIDTH), ("c", CONTEXT))}
    values["mask"] = torch.from_numpy(draw.integers(0, 2, total) + 0.5)
    routes = {lv.name: torch.from_numpy(routes_of(draw, len(lv.experts), total)) for lv in model.levels}
    return {**values, "routes": routes}, counts


def step(model: nn.Module, batch: dict[str, Any], rows: slice, scale: float) -> dict[str, torch.Tensor]:
    """Outputs and gradients at some rows, of a loss that is a sum over rows, and losses of experts."""
    model.zero_grad()
    x, c = (batch[key][rows].clone().requires_grad_() for key in ("x", "c"))
    context = {"own": c, "all": Shared(torch.tensor(1.5, dtype=DOUBLE)), "name": "text"}
    routes = {level: part[rows] for level, part in batch["routes"].items()}
    output = model(x, routes, context, batch["mask"][rows])
    assert all(part.hidden.shape == x.shape for part in output.levels.values())
    assert all(torch.equal(part.routes, routes[level]) for level, part in output.levels.items())
    loss = (output.fused_hidden - batch["y"][rows]).square().sum() * scale
    loss = loss + sum(output.losses.values())
    loss.backward()
    if isinstance(model, parallel.PlacedHierarchy):
        parallel.average_gradients(model)
    found = {"fused": output.fused_hidden, "x": x.grad, "c": torch.zeros_like(c) if c.grad is None else c.grad}
    found |= {f"level.{name}": level.hidden for name, level in output.levels.items()}
    found |= {f"loss.{name}": value for name, value in output.losses.items()}
    inner = getattr(model, "module", model)
    return {n: v.detach() for n, v in found.items()} | {f"grad.{n}": p.grad for n, p in inner.named_parameters()}


def compare(mesh: Any, rank: int, name: str) -> dict[str, float]:
    """The largest difference to one process with all rows: of what crosses no reduction, and of the rest."""
    world, expert = mesh.size(), mesh["expert"].size()
    whole, placed = build(), parallel.place(build(seed=rank), mesh)
    batch, counts = batch_of(whole, name)
    counts = counts[:world]
    ends = np.cumsum([0, *counts])
    if world < 4:  # the rows of the first processes
        batch = {k: {n: r[: ends[-1]] for n, r in v.items()} if k == "routes" else v[: ends[-1]] for k, v in batch.items()}
    # losses of experts are means over the rows along `expert`, averaged along `data`
    groups = [slice(int(ends[i]), int(ends[i + expert])) for i in range(0, world, expert)]
    own, group = slice(int(ends[rank]), int(ends[rank + 1])), groups[rank // expert]
    found = step(placed, batch, own, world)
    one = [step(build(), batch, rows, len(groups)) for rows in groups]
    mine = one[rank // expert]
    offset = slice(own.start - group.start, own.stop - group.start)
    worst = {"exact": 0.0, "rounded": 0.0}
    for key, value in found.items():
        if key.startswith("grad."):
            wanted = sum(part[key] for part in one) / len(groups)
            kind = "rounded" if len(groups) > 1 or key.startswith("grad.fusion") else "exact"
        elif key.startswith("loss."):
            wanted, kind = mine[key], "exact"
        else:
            wanted, kind = mine[key][offset], "exact"
            wanted = wanted * (world / len(groups)) if key in ("x", "c") else wanted
        assert value.shape == wanted.shape, key
        if value.numel():
            difference = float((value - wanted).abs().max())
            worst[kind] = max(worst[kind], difference)
            if difference > 1e-12: print(rank, name, key, difference, file=sys.stderr)
    return worst
def everything(rank: int) -> Any:
    found = {}
    for data, expert in ((1, 4), (2, 2), (4, 1)):
        mesh = parallel.make_mesh(data, expert)
        for name in routings():
            found[f"{data}x{expert} {name}"] = compare(mesh, rank, name)
    return found

if __name__ == "__main__":
    import time
    t = time.time()
    folder = Path(sys.argv[1])
    print(json.dumps(run_together(4, folder / "four", everything), indent=1))
    print(time.time() - t, file=sys.stderr)
