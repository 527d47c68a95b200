"""What a hull and a level of a hierarchy cost on a device, as ratios to an MLP and to one dense expert.

    python benchmarks/gpu.py                  # both frameworks, where a device is; some minutes
    python benchmarks/gpu.py --any --quick    # on whatever there is, small: does it run?

The subjects, peers and ratios are those of `hull_cost.py` and `dispatch.py`, timed by the clock with the device's
queue waited for. Hulls in float32 and bfloat16, levels in float32, in PyTorch in bfloat16 too. First comes how fast
the device copies, in GB/s (read and written): what a hull has beside an MLP is mostly memory traffic.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dispatch
import hull_cost
from timing import FRAMEWORKS, Calls, Record, compare, duration, run_job, table

SIZES, ROWS = ((64, 8), (256, 8), (512, 8)), (256, 1024, 16_384)
LEVELS = ((16, 1024), (16, 16_384), (64, 16_384))  # experts, rows
QUICK = {"sizes": ((8, 2),), "rows": (16,), "levels": ((2, 16),), "copied": 2**16, "rounds": 2}
COPIED = 2**28  # numbers of float32
DTYPES = ("float32", "bfloat16")
PAIRS = (("uniform", "dense"), ("uniform", "balanced"))


def start_jax(is_any: bool) -> tuple[str, Callable[[], None]]:
    """Return the name of the device, and what waits for it: calls of JAX wait by themselves."""
    import jax

    device = jax.devices()[0]
    if device.platform == "cpu" and not is_any:
        raise SystemExit("gpu.py: JAX has no device but the CPU; pass --any to run there.")
    return device.device_kind, lambda: None


def start_torch(is_any: bool) -> tuple[str, Callable[[], None]]:
    """Return the name of the device, on which tensors are made from now on, and what waits for it."""
    import torch

    if torch.cuda.is_available():
        torch.set_default_device("cuda")
        return torch.cuda.get_device_name(), torch.cuda.synchronize
    if not is_any:
        raise SystemExit("gpu.py: PyTorch has no CUDA device; pass --any to run on the CPU.")
    return "cpu", lambda: None


def jax_copy(count: int) -> Callable[[], Any]:
    """Return a call that reads and writes so many numbers of float32."""
    import jax
    import jax.numpy as jnp

    x, copy = jnp.zeros(count, jnp.float32), jax.jit(jnp.negative)
    return lambda: copy(x).block_until_ready()


def torch_copy(count: int) -> Callable[[], Any]:
    """Return a call that reads and writes so many numbers of float32."""
    import torch

    x, y = torch.zeros(2, count, dtype=torch.float32)
    return lambda: y.copy_(x)


def jax_hulls(dtype: str, D: int, P: int, rows: int) -> tuple[Calls, Calls]:
    """Return forward calls and train steps."""
    return hull_cost.jax_models(D, P, rows, {"temperature": "learned"}, dtype)[1:]


def torch_hulls(dtype: str, D: int, P: int, rows: int) -> tuple[Calls, Calls]:
    """Return forward calls and train steps."""
    import torch

    torch.set_default_dtype(getattr(torch, dtype))
    calls = hull_cost.torch_models(D, P, rows, {"temperature": "learned"})[1:]
    torch.set_default_dtype(torch.float32)
    return calls


def torch_levels(dtype: str, E: int, rows: int) -> tuple[Calls, Calls]:
    """Return forward calls, and those with gradients."""
    import torch

    torch.set_default_dtype(getattr(torch, dtype))
    calls = dispatch.torch_calls("mlp", E, rows, 0)
    torch.set_default_dtype(torch.float32)
    return calls


# Of each framework: what starts it, copies, makes hulls, makes levels, and the dtypes of levels.
SIDES: dict[str, tuple[Any, Any, Any, Any, tuple[str, ...]]] = {
    "jax": (start_jax, jax_copy, jax_hulls, lambda dtype, E, rows: dispatch.jax_calls("mlp", E, rows, 0), DTYPES[:1]),
    "torch": (start_torch, torch_copy, torch_hulls, torch_levels, DTYPES),
}


def wait_after(calls: Calls, wait: Callable[[], None]) -> Calls:
    """Return the calls, each of which ends when the device is done."""

    def run(call: Callable[[], Any]) -> None:
        call()
        wait()

    return {name: partial(run, call) for name, call in calls.items()}


def measure(job: Record) -> Iterator[Record]:
    """Yield every record of one framework."""
    import time

    start, copy, hulls, levels, dtypes = SIDES[job["framework"]]
    device, wait = start(job["any"])
    (call,) = wait_after({"copy": copy(job["copied"])}, wait).values()
    seconds = min(duration(call, 3, time.perf_counter) for _ in range(5))
    yield {"kind": "copy", "device": device, "speed": 8 * job["copied"] / seconds / 1e9}
    for kind, make, cases, names, pairs in (
        ("hull", hulls, [(*size, rows) for size in job["sizes"] for rows in job["rows"]], DTYPES, [hull_cost.MODELS]),
        ("level", levels, job["levels"], dtypes, PAIRS),
    ):
        for dtype in names:
            for sizes in cases:
                record: Record = {"kind": kind, "dtype": dtype, "sizes": sizes}
                for part, calls in zip(("forward", "both"), make(dtype, *sizes), strict=True):
                    record[part] = compare(wait_after(calls, wait), pairs, job["rounds"])
                yield record


def show(records: list[Record]) -> None:
    """Print how fast devices copy, and the two tables."""
    for one in records:
        if one["kind"] == "copy":
            print(f"{one['framework']} on {one['device']}: copies {one['speed']:.0f} GB/s")
    for kind, titles in (("hull", ["D, P, rows", "hull / MLP: forward", "step"]), ("level", ["E, rows", *PAIRS])):
        lines = []
        for one in (record for record in records if record["kind"] == kind):
            medians = [[f"{ratio[1]:.2f}" for ratio in one[part]["ratio"].values()] for part in ("forward", "both")]
            cells = [cell for part in medians for cell in part]
            if kind == "level":
                cells = [" / ".join(pair) for pair in zip(*medians, strict=True)]
            lines.append([one["framework"], one["dtype"], ", ".join(map(str, one["sizes"])), *cells])
        titles = [title if isinstance(title, str) else " / ".join(title) for title in titles]
        print(table(["framework", "dtype", *titles], lines))
    print("of levels forward / with gradients; medians over rounds")


def main() -> None:
    """Run both frameworks, each in a process of its own, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--framework", choices=[*FRAMEWORKS, "both"], default="both")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--any", action="store_true", help="run on a CPU where there is no device")
    parser.add_argument("--quick", action="store_true", help="small: does it run?")
    parser.add_argument("--json", type=Path, help="write every record there")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job is not None:
        for record in measure(options.job):
            print(json.dumps(record), flush=True)
        return
    job = {"sizes": SIZES, "rows": ROWS, "levels": LEVELS, "copied": COPIED, "rounds": options.rounds}
    job |= QUICK if options.quick else {}
    names = FRAMEWORKS if options.framework == "both" else [options.framework]
    packages = {name: {part: version(part) for part in FRAMEWORKS[name]} for name in names}
    jobs = [job | {"framework": name, "threads": 2, "any": options.any} for name in names]
    records = [record for one in jobs for record in run_job(__file__, one)]
    if options.json is not None:
        options.json.write_text(json.dumps({"versions": packages, "records": records}, indent=1))
    print(packages)
    show(records)


if __name__ == "__main__":
    main()
