"""What a hull costs beside an MLP: parameters, multiply-adds, time. And what its fusion costs beside log-sum-exp.

The MLP is D -> 4D -> D with ReLU and biases; the hull is `VectorHull(in_dim=D, petals=P)`, D -> D.

Multiply-adds a row: every entry of a weight, raw or not, enters one matrix product, once a row. So they are the
entries of all weights: 8 D^2 for the MLP, D H + P D (D + H) for the hull with H hidden units. Biases, activations
and the fusion are no matrix products and count in the times only.

Times: both models run the same treatment in the same process. JAX: under jit, donated carry, waiting for the
result. PyTorch: eager. A step is forward, backward and Adam on the mean squared error of one batch. After warm-up,
every round times both, in alternating order; a ratio is hull / MLP within a round. Printed are the median over
rounds and the quartiles. Each framework and thread count has a process of its own, bound to that many cores.

    python benchmarks/hull_cost.py --framework both --threads 1 2 --sizes 512,8 512,2 --rows 256 1024
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from timing import FRAMEWORKS, Calls, Record, bind, compare, quartiles, run_job, table

Shapes = dict[str, tuple[int, ...]]

SIZES = ((64, 8), (256, 8), (512, 8), (512, 2))
FUSION_ROWS, FUSION_DIM, FUSION_PETALS = 256, 512, (2, 4, 8, 32)
MODELS, FUSIONS = ("hull", "MLP"), ("max-of-means", "log-sum-exp")
PARTS = ("forward", "step")  # of a fusion, the step is forward and backward
LEARNING_RATE = 1e-3


def count(shapes: Shapes) -> Record:
    """Return parameters and multiply-adds a row of a model from the shapes of its parameters."""
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    return {
        "parameters": sum(sizes.values()),
        "macs": sum(size for name, size in sizes.items() if name.endswith("weight")),
    }


def jax_models(
    D: int, P: int, rows: int, options: Record, dtype: str = "float32"
) -> tuple[dict[str, Shapes], Calls, Calls]:
    """Return shapes, forward calls and train steps of the MLP and the hull."""
    import jax
    import optax

    from convexmoe_jax import HullConfig, hull

    def mlp(params: Any, x: jax.Array) -> jax.Array:
        hidden = jax.nn.relu(x @ params["0.weight"] + params["0.bias"])
        return hidden @ params["1.weight"] + params["1.bias"]

    config = HullConfig(D, P, **options)
    keys = jax.random.split(jax.random.key(0), 5)
    x, y = (jax.random.normal(key, (rows, D), dtype) for key in keys[:2])
    mlp_params = {
        "0.weight": jax.random.normal(keys[2], (D, 4 * D)) * math.sqrt(2 / D),
        "0.bias": jax.numpy.zeros(4 * D),
        "1.weight": jax.random.normal(keys[3], (4 * D, D)) * math.sqrt(1 / (4 * D)),
        "1.bias": jax.numpy.zeros(D),
    }
    models: dict[str, Any] = {
        "MLP": (mlp, mlp_params),
        "hull": (lambda params, x: hull.apply(params, x, config), hull.init(config, keys[4])),
    }
    shapes, forwards, steps = {}, {}, {}
    for name, (model, params) in models.items():
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        shapes[name] = {key: leaf.shape for key, leaf in hull.flatten(params).items()}
        forward = jax.jit(model)
        forwards[name] = lambda forward=forward, params=params: forward(params, x).block_until_ready()
        steps[name] = jax_step(model, jax.tree.map(jax.numpy.copy, params), optax.adam(LEARNING_RATE), x, y)
    return shapes, forwards, steps


def jax_step(model: Any, params: Any, optimizer: Any, x: Any, y: Any) -> Callable[[], None]:
    """Return a call that takes one train step and keeps the new parameters."""
    import jax
    import optax

    def step(carry: Any, x: jax.Array, y: jax.Array) -> Any:
        params, state = carry
        grads = jax.grad(lambda p: jax.numpy.mean((model(p, x) - y) ** 2))(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=0)
    carry = (params, optimizer.init(params))

    def call() -> None:
        nonlocal carry
        carry = jax.block_until_ready(compiled(carry, x, y))

    return call


def torch_models(D: int, P: int, rows: int, options: Record) -> tuple[dict[str, Shapes], Calls, Calls]:
    """Return shapes, forward calls and train steps of the MLP and the hull."""
    import torch
    from torch import nn

    from convexmoe_torch import VectorHull

    torch.manual_seed(0)
    x, y = torch.randn(2, rows, D)
    mlp = nn.Sequential(nn.Linear(D, 4 * D), nn.ReLU(), nn.Linear(4 * D, D))
    models: dict[str, nn.Module] = {"MLP": mlp, "hull": VectorHull(D, P, **options)}
    forwards = {name: lambda model=model: torch.no_grad()(model)(x) for name, model in models.items()}
    steps = {name: torch_step(model, x, y) for name, model in models.items()}
    shapes = {name: {key: tuple(p.shape) for key, p in model.named_parameters()} for name, model in models.items()}
    return shapes, forwards, steps


def torch_step(model: Any, x: Any, y: Any) -> Callable[[], None]:
    """Return a call that takes one train step."""
    import torch

    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)

    def call() -> None:
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()

    return call


def jax_fusions(P: int) -> tuple[Calls, Calls]:
    """Return forward and forward-and-backward calls of log-sum-exp and of max-of-means."""
    import jax

    from convexmoe_jax.hull.fusion import group_values, maximum, smooth_maximum

    f_NPO = jax.random.normal(jax.random.key(0), (FUSION_ROWS, P, FUSION_DIM))
    shifts, y_NO = jax.numpy.zeros(P), f_NPO[:, 0]
    forwards, gradients = {}, {}
    for name, fuse in {"log-sum-exp": lambda g: smooth_maximum(g, 1.0), "max-of-means": maximum}.items():
        fused = lambda f, s, fuse=fuse: fuse(group_values(f, s, 2))  # noqa: E731
        forward = jax.jit(fused)
        gradient = jax.jit(lambda f, s, y, fused=fused: jax.vjp(fused, f, s)[1](y))
        forwards[name] = lambda forward=forward: forward(f_NPO, shifts).block_until_ready()
        gradients[name] = lambda gradient=gradient: jax.block_until_ready(gradient(f_NPO, shifts, y_NO))
    return forwards, gradients


def torch_fusions(P: int) -> tuple[Calls, Calls]:
    """Return forward and forward-and-backward calls of log-sum-exp and of max-of-means."""
    import torch

    from convexmoe_torch.hull.fusion import group_values, maximum, smooth_maximum

    f_NPO = torch.randn(FUSION_ROWS, P, FUSION_DIM, requires_grad=True)
    shifts, y_NO = torch.zeros(P, requires_grad=True), torch.randn(FUSION_ROWS, FUSION_DIM)
    forwards, gradients = {}, {}
    for name, fuse in {"log-sum-exp": lambda g: smooth_maximum(g, 1.0), "max-of-means": maximum}.items():
        fused = lambda fuse=fuse: fuse(group_values(f_NPO, shifts, 2))  # noqa: E731
        forwards[name] = torch.no_grad()(fused)
        gradients[name] = lambda fused=fused: torch.autograd.grad(fused(), (f_NPO, shifts), y_NO)
    return forwards, gradients


def measure(job: Record) -> Iterator[Record]:
    """Yield every record of one framework and thread count. Binds this process, so it runs in one of its own."""
    threads, rounds = job["threads"], job["rounds"]
    bind(job["framework"], threads)
    both = {"jax": (jax_models, jax_fusions), "torch": (torch_models, torch_fusions)}
    models, fusions = both[job["framework"]]
    for D, P in job["sizes"]:
        for rows in job["rows"]:
            shapes, *calls = models(D, P, rows, {"temperature": job["temperature"]})
            counts = {name: count(shape) for name, shape in shapes.items()}
            kind = {"kind": "model", "in_dim": D, "petals": P, "rows": rows, "counts": counts}
            yield kind | {part: compare(call, [MODELS], rounds) for part, call in zip(PARTS, calls, strict=True)}
    for P in job["fusion_petals"]:
        kind = {"kind": "fusion", "petals": P}
        yield kind | {part: compare(call, [FUSIONS], rounds) for part, call in zip(PARTS, fusions(P), strict=True)}


def report(records: list[Record]) -> str:
    """Return the three tables: counts, times against the MLP, fusion against log-sum-exp."""
    counts, times, fusions = {}, [], []
    for record in records:
        run = [record["framework"], record["threads"]]
        ratios = [quartiles(*record[part]["ratio"].values()) for part in PARTS]
        if record["kind"] == "fusion":
            fusions.append([*run, record["petals"], *ratios])
            continue
        shape, (mlp, hull) = [record["in_dim"], record["petals"]], record["counts"].values()
        pairs = [(hull[key], mlp[key]) for key in ("parameters", "macs")]
        counts[tuple(shape)] = [*shape, *(f"{h:,} / {m:,} = {h / m:.2f}" for h, m in pairs)]
        milliseconds = [f"{record[part]['milliseconds']['MLP']:.2f}" for part in PARTS]
        times.append([*run, *shape, record["rows"], *ratios, *milliseconds])
    run, shape = ["framework", "threads"], ["in_dim", "petals"]
    last = ["forward", "train step", "MLP forward, ms", "MLP step, ms"]
    sections = {
        "Counts, hull / MLP": table([*shape, "parameters", "multiply-adds a row"], list(counts.values())),
        "Time, hull / MLP: median (quartiles)": table([*run, *shape, "rows", *last], times),
        f"Fusion alone, max-of-means / log-sum-exp, {FUSION_ROWS} rows, {FUSION_DIM} outputs": table(
            [*run, "petals", "forward", "forward and backward"], fusions
        ),
    }
    return "\n".join(f"{title}\n\n{text}" for title, text in sections.items())


def size(text: str) -> list[int]:
    """Return `[D, P]` of "D,P"."""
    D, P = text.split(",")
    return [int(D), int(P)]


def main() -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--framework", choices=[*FRAMEWORKS, "both"], default="both")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2][:cores])
    parser.add_argument("--sizes", type=size, nargs="+", default=SIZES, metavar="D,P")
    parser.add_argument("--rows", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--temperature", choices=["0.0", "learned"], default="0.0")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--quick", action="store_true", help="two rounds, one fusion: to see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every record to FILE")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        for record in measure(options.job):
            print(json.dumps(record), flush=True)
        return
    if not 1 <= min(options.threads) <= max(options.threads) <= cores:
        parser.error(f"--threads: expected 1 to {cores}, the cores there are; got {options.threads}.")
    names = list(FRAMEWORKS) if options.framework == "both" else [options.framework]
    job = {
        "sizes": options.sizes,
        "rows": options.rows,
        "temperature": "learned" if options.temperature == "learned" else 0.0,
        "rounds": 2 if options.quick else options.rounds,
        "fusion_petals": FUSION_PETALS[:1] if options.quick else FUSION_PETALS,
    }
    load, records = [os.getloadavg()[0]], []
    for name in names:
        for threads in options.threads:
            records += run_job(__file__, job | {"framework": name, "threads": threads})
            load.append(os.getloadavg()[0])
    versions = ", ".join(f"{package} {version(package)}" for name in names for package in FRAMEWORKS[name])
    note = f"{versions}; {cores} cores; load average {min(load):.1f} to {max(load):.1f}."
    print(report(records), note, sep="\n")
    if options.json:
        options.json.write_text(json.dumps({"job": job, "note": note, "records": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
