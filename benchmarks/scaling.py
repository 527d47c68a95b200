"""How time and memory of a train step grow with a model, a batch and devices, in JAX; fitted exponents, and a plot.

    python benchmarks/scaling.py                    # some minutes; the plot goes to docs/pages/images/scaling.png
    python benchmarks/scaling.py --tpu v5e:2x4      # memory and FLOPs of whole programs, compiled for TPUs

A step is the value and all gradients of a mean square. Of a hull P (petals), D (inputs and outputs), depth and B (rows)
grow by powers of two or four, of a level of a hierarchy of MLP experts E (experts), B (samples) and S (positions), one
at a time, from `HULL` and `LEVEL`. Seconds are medians of computing on one thread; memory is what XLA's compiler plans
for the program: arguments, results and what it needs between; FLOPs are those that it counts, a loop's body once.
An exponent is the slope of the logarithm over the upper half of the sizes: 1 where a quantity doubles with the size.

With devices (virtual ones, on one machine) there is no time worth printing: memory and FLOPs are of one device, its
parameters and rows being divided by `convexmoe_jax.parallel`. The rows grow with the devices.

`--tpu` needs libtpu (`pip install libtpu`) and no TPU. It names a topology; the axis `expert` has all its devices.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from timing import bind, run_job, table

Record = dict[str, Any]
HULL = {"P": 8, "D": 64, "depth": 1, "B": 256}
LEVEL = {"E": 8, "D": 64, "B": 512, "S": 1}
GROWS: dict[str, dict[str, tuple[int, ...]]] = {
    "hull": {"P": (2, 8, 32, 128), "D": (16, 32, 64, 128, 256), "depth": (1, 2, 4, 8), "B": (64, 256, 1024, 4096)},
    "level": {"E": (2, 8, 32, 128), "B": (128, 512, 2048, 8192), "S": (1, 4, 16, 64)},
}
DEVICES = (1, 2, 4, 8)
QUICK = 2  # sizes of each
PARTS = {"seconds": "time", "bytes": "memory", "flops": "FLOPs"}
# Of one TPU topology: what is compiled ahead of time.
LARGE = {"hull": {"P": 32, "D": 1024, "depth": 2, "B": 8192}, "level": {"E": 64, "D": 1024, "B": 8192, "S": 1}}


def make_model(kind: str, sizes: dict[str, int]) -> tuple[Any, list[Any]]:
    """Return a model, and arrays to call it with."""
    from flax import nnx

    from convexmoe_jax import (
        CELMoEConfig,
        ExpertConfig,
        HierarchicalCELMoE,
        HierarchyLevelConfig,
        MLPExpert,
        VectorHull,
    )

    rng, D, B = np.random.default_rng(0), sizes["D"], sizes["B"]
    if kind == "hull":
        hull = VectorHull(D, sizes["P"], depth=sizes["depth"], temperature="learned", rngs=nnx.Rngs(0))
        return hull, [rng.normal(size=(B, D)).astype(np.float32)]
    level = HierarchyLevelConfig("level", [ExpertConfig(f"expert_{e}") for e in range(sizes["E"])])
    config = CELMoEConfig(D, [level], use_learned_fusion=False)
    model = HierarchicalCELMoE(config, lambda *_, rngs: MLPExpert(D, 2 * D, rngs=rngs), rngs=nnx.Rngs(0))
    shape = (B, D) if sizes["S"] == 1 else (B, sizes["S"], D)
    routes = rng.integers(0, sizes["E"], B).astype(np.int32)
    return model, [rng.normal(size=shape).astype(np.float32), routes]


def make_step(model: Any) -> tuple[Callable[..., Any], Any]:
    """Return (state, *arrays) -> value and gradients of the mean square, and the state of a model."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    graph, state = nnx.split(model)

    def loss(state: Any, x: Any, *routes: Any) -> Any:
        model = nnx.merge(graph, state)
        y = model(x, {"level": routes[0]}).fused_hidden if routes else model(x)
        return jnp.mean(y * y)

    return jax.value_and_grad(loss), state


def measure(compiled: Any) -> Record:
    """Return bytes and FLOPs of a compiled program, of one device."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {"bytes": held + memory.temp_size_in_bytes, "flops": cost["flops"]}


def one_device(kind: str, sizes: dict[str, int], rounds: int) -> Record:
    """Time one step, and measure its program."""
    import jax

    model, arrays = make_model(kind, sizes)
    step, state = make_step(model)
    compiled = jax.jit(step).lower(state, *arrays).compile()
    seconds = []
    for _ in range(rounds + 1):  # the first warms up
        began = time.process_time()
        jax.block_until_ready(compiled(state, *arrays))
        seconds.append(time.process_time() - began)
    return measure(compiled) | {"seconds": float(np.median(seconds[1:]))}


def many_devices(kind: str, sizes: dict[str, int], topology: str | None = None) -> Record:
    """Measure the program of a step whose petals, or experts, and rows all devices share.

    Args:
        kind, sizes: of the model; topology: of TPUs, for which it is compiled; None for the devices that are there.
    """
    import jax
    from jax.sharding import NamedSharding

    from convexmoe_jax.parallel import make_mesh, place, place_batch

    mesh = make_mesh(expert=jax.device_count())
    model, arrays = make_model(kind, sizes)
    step, state = make_step(place(model, mesh))
    given = (state, *place_batch(tuple(arrays), mesh))
    if topology is not None:
        from jax.experimental import topologies

        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
        there = make_mesh(expert=len(devices), devices=devices)

        def lay_out(leaf: Any) -> Any:
            sharding = NamedSharding(there, leaf.sharding.spec)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        given = jax.tree.map(lay_out, given)
    return measure(jax.jit(step).lower(*given).compile())


def work(job: Record) -> None:
    """Print the record of a job."""
    bind("jax", job["threads"])
    kind, sizes = job["kind"], job["sizes"]
    if job["devices"] is None:
        found = one_device(kind, sizes, job["rounds"])
    else:
        found = many_devices(kind, sizes, job["topology"])
    print(json.dumps(job | found), flush=True)


def run(job: Record) -> Record:
    """Run a job in a process of its own, with as many virtual devices as it names."""
    count = job["devices"] or 1
    flags = f"--xla_force_host_platform_device_count={count} --xla_cpu_multi_thread_eigen=false"
    variables = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    if job["topology"] is not None:
        variables["CONVEXMOE_GROUPED"] = "tiers"  # what a TPU takes: the platform of this process is the CPU
    (record,) = run_job(__file__, job, **variables)
    if job["kind"] == "level" and job["topology"] is None:
        del record["flops"]  # of a loop over the experts that have rows, whose body is counted once
    return record


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Return the slope of the logarithm of values over that of sizes, over the upper half, two at least.

    >>> round(exponent([1, 2, 4, 8], [5.0, 5.0, 10.0, 40.0]), 9)
    2.0
    """
    half = min(len(sizes) // 2, len(sizes) - 2)
    return float(np.polyfit(np.log(sizes[half:]), np.log(values[half:]), 1)[0])


def show(records: Sequence[Record]) -> None:
    """Print a line for each size that grows: from the first to the last, and the exponents."""
    lines = []
    for kind, name in dict.fromkeys((one["kind"], one["grows"]) for one in records):
        here = [one for one in records if (one["kind"], one["grows"]) == (kind, name)]
        sizes = [one["sizes"][name] if name in one["sizes"] else one["devices"] for one in here]
        cells = [kind, name, f"{sizes[0]} - {sizes[-1]}"]
        for part in PARTS:
            values = [one[part] for one in here if part in one]
            cells.append(f"{exponent(sizes, values):.2f}" if len(values) > 1 else "-")
        last = here[-1]
        cells.append(f"{1e3 * last['seconds']:.3g}" if "seconds" in last else "-")
        cells.append(f"{last['bytes'] / 1e6:.3g}")
        lines.append([*cells, f"{last['flops'] / 1e9:.3g}" if "flops" in last else "-"])
    titles = ["model", "grows", "from - to", *PARTS.values(), "last: ms", "MB", "GFLOP"]
    print(table(titles, lines))


def draw(records: Sequence[Record], path: Path) -> None:
    """Draw time, memory and FLOPs over what grows, each as a multiple of its first, on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cases = list(dict.fromkeys((one["kind"], one["grows"]) for one in records))
    figure, axes = plt.subplots(2, -(-len(cases) // 2), figsize=(13, 6), sharey=True, layout="constrained")
    for axis, (kind, name) in zip(axes.flat, cases, strict=False):
        here = [one for one in records if (one["kind"], one["grows"]) == (kind, name)]
        sizes = [one["sizes"][name] if name in one["sizes"] else one["devices"] for one in here]
        for number, (part, marker) in enumerate(zip(PARTS, "osD", strict=True)):
            values = [one[part] for one in here if part in one]
            if values:
                line = {"color": f"C{number}", "marker": marker, "label": PARTS[part]}
                axis.loglog(sizes, np.array(values) / values[0], base=2, **line)
        axis.loglog(sizes, np.array(sizes) / sizes[0], color="0.7", linestyle="--", base=2, label="in proportion")
        axis.set_title(f"{kind}: {name}")
        axis.set_xticks(sizes, [str(size) for size in sizes])
    for axis in axes.flat[len(cases) :]:
        axis.set_visible(False)
    axes.flat[0].legend()
    figure.supylabel("times the first")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def show_tpu(topology: str, quick: bool) -> None:
    """Print memory and FLOPs of a device, of steps that are compiled for a topology."""
    chips, _, shape = topology.partition(":")
    count = int(np.prod([int(part) for part in shape.split("x")]))
    lines = []
    for kind, sizes in LARGE.items():
        sizes = {"hull": HULL, "level": LEVEL}[kind] | {"P": count, "E": count} if quick else sizes
        sizes = {name: size for name, size in sizes.items() if name in LARGE[kind]}
        job = {"kind": kind, "sizes": sizes, "devices": count, "topology": topology, "rounds": 0}
        found = run(job | {"framework": "jax", "threads": 1})
        shown = ", ".join(f"{name} = {size}" for name, size in sizes.items())
        lines.append([kind, shown, f"{found['bytes'] / 1e6:.4g}", f"{found['flops'] / 1e9:.4g}"])
    print(table(["model", "sizes", "MB a device", "GFLOP a device"], lines))
    print(f"{count} devices of {chips}, compiled ahead of time; not run")


def jobs_of(quick: bool, rounds: int) -> list[Record]:
    """Return all jobs: one size grows in each series, at last the devices with the rows."""
    cut, jobs = slice(0, QUICK if quick else None), []
    base = {"hull": HULL, "level": LEVEL}
    for kind, series in GROWS.items():
        jobs += [
            {"kind": kind, "grows": name, "sizes": base[kind] | {name: size}, "devices": None}
            for name, sizes in series.items()
            for size in sizes[cut]
        ]
        jobs += [
            {"kind": kind, "grows": "devices", "sizes": base[kind] | {"B": base[kind]["B"] * count}, "devices": count}
            for count in DEVICES[cut]
        ]
    return [job | {"topology": None, "rounds": rounds, "framework": "jax", "threads": 1} for job in jobs]


def main(given: Sequence[str] | None = None) -> None:
    """Run all jobs, print the table, draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tpu", metavar="TOPOLOGY", help="compile for TPUs instead, v5e:2x4 for example")
    parser.add_argument("--rounds", type=int, default=15, help="steps that are timed")
    parser.add_argument("--quick", action="store_true", help="two sizes of each, two steps: does it run?")
    parser.add_argument("--json", type=Path, help="write all records there")
    parser.add_argument("--plot", type=Path, default=Path("docs/pages/images/scaling.png"))
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    if options.job is not None:
        return work(options.job)
    if options.tpu is not None:
        return show_tpu(options.tpu, options.quick)
    records = [run(job) for job in jobs_of(options.quick, 2 if options.quick else options.rounds)]
    if options.json is not None:
        options.json.write_text(json.dumps(records, indent=1))
    show(records)
    return draw(records, options.plot)


if __name__ == "__main__":
    main()
