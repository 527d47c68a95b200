"""Processes that train together, forked once PyTorch is imported, as importing is most of what they would take.

python processes.py equal FOLDER        four processes against one; checkpoints of four, read by two and by one
python processes.py kill FOLDER TIMES   runs of one and of two processes, killed so many times, against undisturbed ones

Prints what was found as JSON; run by torch/test_parallel.py and torch/test_process_faults.py.
"""

import functools
import importlib.util
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch._dynamo  # which optimizers import: once, before forking
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import convexmoe_torch as c
from convexmoe_torch import parallel
from convexmoe_torch.files.layers import parameters_of
from convexmoe_torch.parallel import rows as crossing

# Rows of 64 bytes: what a matrix product rounds may depend on where its rows begin.
WIDTH, ROWS, CONTEXT, DOUBLE = 8, 6, 3, torch.float64
ROOT = Path(__file__).parents[1]
NAMES = {"linear": "abcde", "own": "fgh", "mlp": "ijkl", "hull": "m"}


def fork(number: int, folder: Path, work: Callable[[int], Any]) -> list[int]:
    """Start processes that are a group; each writes what `work(rank)` returns to a file."""
    folder.mkdir(exist_ok=True)
    (folder / "rendezvous").unlink(missing_ok=True)

    def start(rank: int) -> None:
        torch.set_num_threads(1)
        where = {"backend": "gloo", "init_method": f"file://{folder}/rendezvous", "rank": rank, "world_size": number}
        where["timeout"] = timedelta(seconds=100)
        initialize = functools.partial(distributed.init_process_group, **where)
        with mock.patch.object(distributed, "init_process_group", initialize):
            result = work(rank)
        (folder / f"{rank}.json").write_text(json.dumps(result))

    children = []
    for rank in range(number):
        if (child := os.fork()) == 0:
            try:
                start(rank)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    return children


def run(number: int, folder: Path, work: Callable[[int], Any]) -> list[Any]:
    """Return what `work(rank)` returns on each of some processes."""

    def work_in_group(rank: int) -> Any:
        distributed.init_process_group()
        result = work(rank)
        distributed.barrier()
        distributed.destroy_process_group()
        return result

    ends = [os.waitpid(child, 0)[1] for child in fork(number, folder, work_in_group)]
    assert ends == [0] * number, ends
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(number)]


class OwnExpert(c.ExpertModule):
    """An expert of no known kind, with a loss, that uses context and mask."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH + CONTEXT, WIDTH, dtype=DOUBLE)

    def forward(self, batch):
        x = torch.cat([batch.hidden, batch.context["own"]], dim=1)
        hidden = torch.tanh(self.linear(x) * batch.context["all"]) * batch.mask[:, None]
        return c.ExpertResult(hidden, {"size": hidden.square().mean()}, {"rows": len(hidden)})


def make_expert(level: str, *_: Any) -> c.ExpertModule:
    if level == "hull":
        return c.HullExpert(make_hull(out_dim=WIDTH))
    options = {"in_dim": WIDTH, "dtype": DOUBLE}
    kinds = {"linear": c.LinearExpert, "mlp": functools.partial(c.MLPExpert, hidden_dim=16)}
    return OwnExpert() if level == "own" else kinds[level](**options)


def make_hull(**options: Any) -> c.VectorHull:
    return c.VectorHull(WIDTH, petals=7, hidden_dim=3, temperature="learned", dtype=DOUBLE, **options)


def build(fuse: bool = True, seed: int = 0) -> c.HierarchicalCELMoE:
    torch.manual_seed(seed)
    levels = [c.HierarchyLevelConfig(level, [c.ExpertConfig(n) for n in names]) for level, names in NAMES.items()]
    return c.HierarchicalCELMoE(c.CELMoEConfig(WIDTH, levels, fuse, fusion_dropout=0.0), make_expert).to(DOUBLE)


EVEN = [ROWS] * 4
# name -> the rows of each process, and the routes of `count` rows among `number` experts
ROUTINGS: dict[str, tuple[list[int], Callable[..., np.ndarray]]] = {
    "uniform": (EVEN, lambda draw, number, count: draw.integers(0, number, count)),
    "zipf": (EVEN, lambda draw, number, count: np.minimum(draw.zipf(1.5, count), number) - 1),
    "all_to_one": (EVEN, lambda draw, number, count: np.full(count, number - 1)),
    "empty_experts": (EVEN, lambda draw, number, count: draw.integers(0, 2, count) * (number - 1)),
    "no_rows": ([0] * 4, lambda draw, number, count: np.zeros(count, int)),
    "odd_counts": ([5, 1, 7, 3], lambda draw, number, count: draw.integers(0, number, count)),
    "process_without_rows": ([4, 0, 7, 0], lambda draw, number, count: draw.integers(0, number, count)),
}


def batch_of(name: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], list[int]]:
    """Arrays and routes of all processes, one after the other, and the rows of each."""
    counts, routes_of = ROUTINGS[name]
    draw, total = np.random.default_rng(3), sum(counts)
    shapes = {"x": (total, WIDTH), "y": (total, WIDTH), "context": (total, CONTEXT), "mask": (total,)}
    arrays = {key: torch.from_numpy(draw.normal(size=shape)) for key, shape in shapes.items()}
    routes = {level: torch.from_numpy(routes_of(draw, len(names), total)) for level, names in NAMES.items()}
    return arrays, routes, counts


def step(model: nn.Module, name: str, rows: slice, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """Values and gradients at some rows, of `scale` times a sum over the rows, and of the losses of experts."""
    model.zero_grad()
    arrays, routes, _ = batch_of(name)
    own = {key: value[rows] for key, value in arrays.items()}
    x, context = own["x"].requires_grad_(), own["context"].requires_grad_()
    given = {"own": context, "all": c.Shared(torch.tensor(1.5, dtype=DOUBLE)), "name": "text"}
    output = model(x, {level: part[rows] for level, part in routes.items()}, given, own["mask"])
    losses = sum(output.losses.values())
    ((output.fused_hidden - own["y"]).square().sum() * scale + losses).backward()
    if isinstance(model, parallel.PlacedHierarchy):
        parallel.average_gradients(model)
    found = {"fused": output.fused_hidden, "losses": torch.as_tensor(losses, dtype=DOUBLE)}
    found |= {level: part.hidden for level, part in output.levels.items()}
    inputs = {"x": x, "context": context}  # a context gets no gradient where there are no rows at all
    gradients = {key: torch.zeros_like(v) if v.grad is None else v.grad for key, v in inputs.items()}
    gradients |= {key: parameter.grad for key, parameter in model.named_parameters()}
    return {key: value.detach() for key, value in found.items()} | {f"d {key}": g for key, g in gradients.items()}


def largest(found: Any, wanted: Any) -> float:
    """The largest difference of two lists of tensors."""
    pairs = list(zip(found, wanted, strict=True))
    assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in pairs)
    return max(float((a - b).abs().max()) if a.numel() else 0.0 for a, b in pairs)


def compare(placed: parallel.PlacedHierarchy, whole: c.HierarchicalCELMoE, name: str) -> float:
    """The largest difference to one process that has the rows of all along `expert`."""
    rank, expert = distributed.get_rank(), placed.mesh["expert"].size()
    ends = np.cumsum([0, *ROUTINGS[name][0]]).tolist()
    found = step(placed, name, slice(ends[rank], ends[rank + 1]), 4.0)
    groups = [step(whole, name, slice(ends[i], ends[i + expert]), 4.0 / expert) for i in range(0, 4, expert)]
    first = ends[rank - rank % expert]
    inside, mine = slice(ends[rank] - first, ends[rank + 1] - first), groups[rank // expert]

    def wanted(key: str) -> torch.Tensor:
        if key in ("d x", "d context"):  # not averaged
            return mine[key][inside] * expert
        if key.startswith("d "):
            return sum(group[key] for group in groups) / len(groups)
        return mine[key] if key == "losses" else mine[key][inside]

    return largest(found.values(), [wanted(key) for key in found])


def compare_all(rank: int, folder: Path) -> dict[str, Any]:
    """Values and gradients: without a fusion no product depends on which rows a process has, and bits are equal."""
    found: dict[str, Any] = {}
    for fuse, kind, mesh in (
        (False, "bits", parallel.make_mesh(expert=4)),
        (True, "rounded", parallel.make_mesh(2, 2)),
    ):
        whole, placed = build(fuse), parallel.place(build(fuse, seed=rank), mesh)
        check = functools.partial(compare, whole=whole, name="uniform")
        found |= {f"{kind} {name}": compare(placed, whole, name) for name in ROUTINGS}
        with mock.patch.object(
            crossing, "_reduce_scatter", lambda x, group: x.chunk(group.size())[group.rank()].clone()
        ):
            found[f"control: no sum over processes, {kind}"] = check(placed)
        for name, expert in placed.level_modules["mlp"].items():
            other = NAMES["mlp"][NAMES["mlp"].index(name) - 1]
            expert.load_state_dict(whole.level_modules["mlp"][other].state_dict())
        found[f"control: experts of another process, {kind}"] = check(placed)
        with mock.patch.object(distributed, "broadcast", lambda *given, **options: None):
            placed = parallel.place(build(fuse, seed=rank), mesh)
        found[f"control: weights that differ, {kind}"] = check(placed)
    placed = parallel.place(build(), mesh)
    with mock.patch.object(parallel, "average_gradients", lambda model: None):
        found["control: gradients that are not averaged"] = check(placed)
    found["messages"] = refusals(placed, folder)
    hull = make_hull()
    optimizer = torch.optim.Adam((make_hull() if rank == 1 else hull).parameters())
    try:
        parallel.save_sharded(folder / "none", 1, hull, optimizer)
    except (RuntimeError, ValueError) as error:
        found["where one fails"] = f"{type(error).__name__}: {error}"
    distributed.barrier()
    found["what one leaves"] = [*map(str, (folder / "none").iterdir())]
    return found


def refusals(placed: parallel.PlacedHierarchy, folder: Path) -> list[str]:
    rank, said, tied = distributed.get_rank(), [], build()
    parallel.save(make_hull(), hull := folder / "hull")
    one_route = {level: [0, 0] for level in NAMES}
    tied.level_modules["mlp"]["i"] = tied.level_modules["mlp"]["j"]
    for call in (
        lambda: parallel.make_mesh(3, 2),
        lambda: parallel.place(make_hull(), placed.mesh),
        lambda: parallel.place(tied, placed.mesh),
        lambda: parallel.place(build(), placed.mesh["data"]),
        lambda: parallel.average_gradients(tied),
        lambda: parallel.restore(hull, placed),
        lambda: c.FixedHierarchy(placed, {level: names[0] for level, names in NAMES.items()}),
        lambda: DistributedDataParallel(placed),
        lambda: fully_shard(parallel.place(build(), placed.mesh)),
        lambda: placed(torch.zeros(2, 3 + rank, WIDTH, dtype=DOUBLE), one_route),
    ):
        try:
            call()
        except (RuntimeError, TypeError, ValueError) as error:
            said.append(str(error).replace(repr(str(hull)), "'hull'"))
    return said


KINDS = ("placed", "sharded", "sharded hull", "replicated hull")


def wrap(kind: str, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model that all processes hold together, and its optimizer."""
    torch.manual_seed(seed)
    model: nn.Module = make_hull() if "hull" in kind else build(seed=seed)
    if kind == "placed":
        model = parallel.place(model, parallel.make_mesh(expert=2))
    else:
        model = DistributedDataParallel(model) if "replicated" in kind else fully_shard(model)
    return model, torch.optim.Adam(model.parameters(), lr=0.01)


def gradients_of(model: nn.Module, kind: str, rows: slice) -> list[torch.Tensor]:
    model.zero_grad()
    if "hull" in kind:
        model(batch_of("uniform")[0]["x"][rows]).square().mean().backward()
    else:
        step(model, "uniform", rows)
    return [whole_of(parameter.grad) for parameter in model.parameters()]


def whole_of(value: Any) -> torch.Tensor:
    return value.full_tensor() if hasattr(value, "full_tensor") else value.detach()


def evaluate(model: nn.Module, kind: str) -> None:
    """A forward pass, after which a module of `fully_shard` holds gathered parameters in place of its own."""
    if "hull" in kind:
        with torch.no_grad():
            model(batch_of("uniform")[0]["x"])


def write_all(rank: int, folder: Path) -> dict[str, Any]:
    """Take a step, save; is what the file has what the processes hold, and are the gradients those of one process?"""
    found: dict[str, Any] = {}
    for kind in KINDS:
        model, optimizer = wrap(kind, seed=1)
        if "hull" in kind:
            torch.manual_seed(1)
            wanted = gradients_of(make_hull(), kind, slice(None))
        given = gradients_of(model, kind, slice(rank * ROWS, (rank + 1) * ROWS))
        if "hull" in kind:
            found[f"gradients {kind}"] = largest(given, wanted)
        optimizer.step()
        evaluate(model, kind)
        parallel.save(model, folder / kind, optimizer=optimizer, notes={"step": 1})
        parallel.save_sharded(folder / f"{kind} shards", 3, model, optimizer)
        stored = parameters_of(c.load(folder / kind, expert_factory=make_expert))
        held = parameters_of(getattr(model, "module", model))
        found[f"stored {kind}"] = largest([stored[name] for name in held], [whole_of(v) for v in held.values()])
    return found


def read_all(rank: int, folder: Path) -> None:
    """Restore into models of other weights, and save again."""
    for kind in KINDS:
        model, optimizer = wrap(kind, seed=2)
        evaluate(model, kind)
        parallel.restore(folder / kind, model, optimizer)
        parallel.save(model, folder / f"{kind} by two", optimizer=optimizer, notes={"step": 1})
        model, optimizer = wrap(kind, seed=3)
        assert parallel.restore_sharded(folder / f"{kind} shards", model, optimizer) == 3
        parallel.save(model, folder / f"{kind} shards by two", optimizer=optimizer, notes={"step": 1})


def read_alone(folder: Path) -> dict[str, Any]:
    """In one process: load, and save again; are files and shards of four, two and one processes the same bytes?"""
    found = {}
    for kind in KINDS:
        model = c.load(folder / kind, expert_factory=make_expert)
        optimizer = c.load_optimizer(folder / kind, torch.optim.Adam(model.parameters()), model)
        c.save(model, folder / f"{kind} by one", optimizer=optimizer, notes={"step": 1})
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        optimizer = torch.optim.Adam(model.parameters())
        parallel.restore_sharded(folder / f"{kind} shards", model, optimizer)
        c.save(model, folder / f"{kind} shards by one", optimizer=optimizer, notes={"step": 1})
        names = ("", " by two", " by one", " shards by two", " shards by one")
        files = [(folder / f"{kind}{by}").read_bytes() for by in names]
        found[kind] = [files[0] == file for file in files]
    return found


def kill(folder: Path, times: int) -> dict[str, Any]:
    """Runs of the example on one and two processes, one of which is killed at random moments."""
    spec: Any = importlib.util.spec_from_file_location("example", ROOT / "examples" / "many_processes.py")
    spec.loader.exec_module(example := importlib.util.module_from_spec(spec))
    draw, found = random.Random(0), {}

    def train(path: Path, rank: int) -> None:
        example.main(path)

    def die_while_saving(path: Path, rank: int) -> None:
        with mock.patch.object(os, "replace", lambda *_: os.kill(os.getpid(), signal.SIGKILL)):
            example.main(path)

    def forget_optimizer(path: Path, rank: int) -> None:
        with mock.patch.object(
            parallel, "restore", lambda path, model, _, restore=parallel.restore: restore(path, model)
        ):
            example.main(path)

    for number in (1, 2):
        whole, path, half = (folder / f"{name}-{number}" for name in ("whole", "killed", "half"))

        def start(work: Any, path: Path = path, number: int = number) -> list[int]:
            return fork(number, folder / str(number), functools.partial(work, path))

        def wait(children: list[int]) -> float:
            began = time.monotonic()
            [os.waitpid(child, 0) for child in children]
            return time.monotonic() - began

        lasts = wait(start(train, whole))
        same, reached, slowest = [], [], 0.0
        while len(reached) < times:
            children = start(train)
            time.sleep(draw.uniform(0.1, 0.7) * lasts)
            os.kill(draw.choice(children), signal.SIGKILL)
            slowest = max(slowest, wait(children))  # the others stop by themselves
            steps = len(c.read_notes(path)["losses"]) if path.exists() else 0
            if steps == example.STEPS:  # it had come to its end
                same.append(path.read_bytes() == whole.read_bytes())
                path.unlink()
            else:
                reached.append(steps)
        wait(start(lambda path, rank: example.main(path, 10), half))
        before = half.read_bytes()
        wait(start(die_while_saving, half))
        found[f"whole {number}"] = half.read_bytes() == before
        wait(start(forget_optimizer, half))
        found[f"control {number}"] = half.read_bytes() == whole.read_bytes()
        wait(start(train))
        same.append(path.read_bytes() == whole.read_bytes())
        found |= {f"same {number}": same, f"reached {number}": reached, f"slowest {number}": slowest}
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    if sys.argv[1] == "kill":
        print(json.dumps(kill(folder, int(sys.argv[3]))))
    else:
        four = run(4, folder / "4", lambda rank: compare_all(rank, folder) | write_all(rank, folder))
        run(2, folder / "2", lambda rank: read_all(rank, folder))
        print(json.dumps({"processes": four, "files": read_alone(folder)}))
