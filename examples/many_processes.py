"""Train a hierarchy whose experts are divided over processes; killed at any moment, it goes on from its checkpoint.

torchrun --nproc-per-node 2 examples/many_processes.py run.safetensors [STEPS]
"""

import sys
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from convexmoe_torch import (
    CELMoEConfig,
    ExpertConfig,
    HierarchicalCELMoE,
    HierarchyLevelConfig,
    MLPExpert,
    parallel,
    read_notes,
)

STEPS, EVERY, ROWS, WIDTH = 60, 5, 32, 8


def main(path: Path, steps: int = STEPS) -> None:
    distributed.init_process_group(timeout=timedelta(seconds=60))
    torch.manual_seed(0)
    level = HierarchyLevelConfig("group", [ExpertConfig(name) for name in "abcd"])
    whole = HierarchicalCELMoE(CELMoEConfig(WIDTH, [level], fusion_dropout=0.0), lambda *_: MLPExpert(WIDTH, 16))
    rank, count = distributed.get_rank(), distributed.get_world_size()
    model = parallel.place(whole, parallel.make_mesh(expert=count))
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=1e-2), []
    if path.exists():
        parallel.restore(path, model, optimizer)
        losses = read_notes(path)["losses"]
    for step in range(len(losses), steps):
        draw = torch.Generator().manual_seed(step * count + rank)  # the rows of this step and process
        x, routes = torch.randn(ROWS, WIDTH, generator=draw), torch.randint(4, (ROWS,), generator=draw)
        loss = (model(x, {"group": routes}).fused_hidden - x.roll(1, 1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        parallel.average_gradients(model)
        optimizer.step()
        distributed.all_reduce(mean := loss.detach() / count)
        losses.append(mean.item())
        if (step + 1) % EVERY == 0:
            parallel.save(model, path, notes={"losses": losses}, optimizer=optimizer)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
