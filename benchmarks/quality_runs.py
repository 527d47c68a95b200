"""Jobs of `quality.py` side by side, and their records in files."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

Job, Result = TypeVar("Job"), TypeVar("Result")
WORKERS = 2


def run(work: Callable[[Job], Result], jobs: Sequence[Job], out: Path, workers: int = WORKERS) -> list[Result]:
    """Return `work` of every job, in order; each runs in a process of one thread, and a bar shows how many are done."""
    from rich.progress import Progress

    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    os.environ |= dict.fromkeys(threads, "1") | {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
    # the same network is met in several tasks, and with noise and without
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": str((out / "compiled").absolute())}
    os.environ |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool, Progress(transient=True) as bar:
        task = bar.add_task("models", total=len(jobs))
        futures = [pool.submit(work, job) for job in jobs]
        for _ in as_completed(futures):
            bar.advance(task)
    return [future.result() for future in futures]


def write(records: list[dict[str, Any]] | dict[str, Any], path: Path) -> None:
    """Write records, or a record by name, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records, indent=1) + "\n")
