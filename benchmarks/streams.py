"""A fit to more rows than should be in memory: rows a second and peak memory at 10^5 and at 10^7 rows of 20 columns.

    python benchmarks/streams.py [--framework torch] [--rows 100000 10000000] [--folder /tmp]

The rows stand in a file of float32 numbers that is made, read in pieces and removed. A fit takes as many steps of 1,024
rows as make one pass, and 2,000 at least, in a process of its own; memory is its largest resident set.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from convexmoe.training import Stream

COLUMNS, BATCH, PIECE, PETALS = 20, 1024, 8192, 8
STEPS = 2000  # at least
NOISE = 0.1


def truth(x: np.ndarray) -> np.ndarray:
    """Return a convex function of the columns, `[N]`."""
    weight = np.linspace(0.2, 1.0, COLUMNS)
    return (weight * x**2).sum(axis=1) / COLUMNS + np.abs(x[:, :4]).max(axis=1)


def write_rows(path: Path, rows: int) -> None:
    """Write rows of columns and target, some at a time."""
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for first in range(0, rows, PIECE):
            x = rng.normal(size=(min(PIECE, rows - first), COLUMNS))
            y = truth(x) + NOISE * rng.normal(size=len(x))
            np.column_stack([x, y]).astype(np.float32).tofile(file)


def read_rows(path: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the rows of a file, some at a time."""
    with path.open("rb") as file:
        while len(numbers := np.fromfile(file, np.float32, PIECE * (COLUMNS + 1))):
            rows = numbers.reshape(-1, COLUMNS + 1)
            yield rows[:, :-1], rows[:, -1]


def new_hull(framework: str) -> tuple[object, object]:
    """Return a package and a new hull of it."""
    if framework == "jax":
        from flax import nnx

        import convexmoe_jax

        return convexmoe_jax, convexmoe_jax.VectorHull(COLUMNS, PETALS, 1, temperature="learned", rngs=nnx.Rngs(0))
    import torch

    import convexmoe_torch

    torch.manual_seed(0)
    return convexmoe_torch, convexmoe_torch.VectorHull(COLUMNS, PETALS, 1, temperature="learned")


def measure(path: Path, framework: str, steps: int) -> dict[str, float]:
    """Return seconds and memory of the first pass and of the fit, and its error on rows that it has not seen."""
    package, hull = new_hull(framework)
    stream, began = Stream(partial(read_rows, path)), time.perf_counter()
    survey = stream.survey(hull.config)
    read = time.perf_counter()
    options = {"steps": steps, "batch_size": BATCH, "learning_rate": 0.02}
    model = package.fit(hull, stream, compare=False, **options).model
    done = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    x = np.random.default_rng(1).normal(size=(10_000, COLUMNS))
    error = np.mean((package.predict(model, x)[:, 0] - truth(x)) ** 2) / truth(x).var()
    return {"first pass": read - began, "fit": done - read, "peak": peak, "error": float(error), "rows": survey.rows}


def main() -> None:
    """Print a row of a table for each number of rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--framework", choices=("jax", "torch"), default="torch")
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 10_000_000])
    parser.add_argument("--folder", default=None)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure is not None:
        print(json.dumps(measure(given.measure, given.framework, given.steps)))
        return
    print(f"| rows | file, MB | first pass, rows/s | fit, rows/s | peak memory, MB | error | ({given.framework})")
    for rows in given.rows:
        steps = max(STEPS, -(-rows // BATCH))
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            path = Path(folder) / "rows.bin"
            write_rows(path, rows)
            call = [sys.executable, __file__, "--framework", given.framework, "--measure", path, "--steps", str(steps)]
            found = json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
            speeds = rows / found["first pass"], steps * BATCH / found["fit"]
            size = path.stat().st_size / 1e6
        cells = f"{rows:,} | {size:,.0f} | {speeds[0]:,.0f} | {speeds[1]:,.0f} | {found['peak']:,.0f}"
        print(f"| {cells} | {found['error']:.4f} |", flush=True)


if __name__ == "__main__":
    main()
