"""What the cost benchmarks share: calls timed in turn, ratios within a round, a process of its own for each run."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Calls = dict[str, Callable[[], Any]]
Pairs = Sequence[tuple[str, str]]
Record = dict[str, Any]

FRAMEWORKS = {"jax": ("jax", "flax", "optax"), "torch": ("torch",)}
WARM_UP = 4  # the first of them compiles
SHORTEST = 5e-3  # seconds: shorter calls are repeated within a sample


def compare(calls: Calls, pairs: Pairs, rounds: int, clock: Callable[[], float] = time.perf_counter) -> Record:
    """Time calls in turn; return the median milliseconds of each, and the quartiles of first / second of each pair."""
    warm = {name: min(duration(call, 1, clock) for _ in range(WARM_UP)) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(rounds):
        for name in list(calls)[:: -1 if index % 2 else 1]:
            repeats = max(1, math.ceil(SHORTEST / max(warm[name], 1e-9)))
            seconds[name].append(duration(calls[name], repeats, clock))
    times = {name: np.array(values) for name, values in seconds.items()}
    ratios = {f"{a} / {b}": np.quantile(times[a] / times[b], (0.25, 0.5, 0.75)).tolist() for a, b in pairs}
    return {"milliseconds": {name: 1e3 * float(np.median(t)) for name, t in times.items()}, "ratio": ratios}


def duration(call: Callable[[], Any], repeats: int, clock: Callable[[], float]) -> float:
    """Return the seconds that one of `repeats` calls took."""
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats


def bind(framework: str, threads: int) -> None:
    """Bind this process to that many cores, and the framework to that many threads."""
    if hasattr(os, "sched_setaffinity"):  # XLA takes its thread count from here
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    if framework == "torch":
        import torch

        torch.set_num_threads(threads)


def run_job(script: str, job: Record, **variables: str) -> list[Record]:
    """Return the records that `script --job JOB` prints, JSON a line, in a new process with these variables."""
    threads = job["threads"]
    flags = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false" if threads == 1 else ""}
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    command = [sys.executable, str(Path(script).resolve()), "--job", json.dumps(job)]
    env = os.environ | counts | flags | variables
    run = {"framework": job["framework"], "threads": threads}
    records = []
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            records.append(run | json.loads(line))
            print(f"{job['framework']}, {threads} threads: {len(records)} done", file=sys.stderr)
    if process.returncode:
        raise SystemExit(process.returncode)
    return records


def table(titles: list[str], lines: list[list[Any]]) -> str:
    """Return a markdown table."""
    rows = [titles, ["---"] + ["---:"] * (len(titles) - 1), *lines]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows) + "\n"


def quartiles(ratio: list[float]) -> str:
    """Return "median (lower quartile-upper quartile)" of a ratio."""
    lower, median, upper = ratio
    return f"{median:.2f} ({lower:.2f}-{upper:.2f})"
