"""What `minimize` costs: the first call in a new process, calls at once, calls under jit, against CVXPY with Clarabel.

    python benchmarks/minimize.py

A hull of 8 petals and 32 hidden units over a box in 32 dimensions, float32 weights. The first call counts from the
end of the imports; the others are timed in turn, medians of rounds, each as a ratio to Clarabel's in the same round
where it solves the same problem. Needs convexmoe[interop,solve].
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import cvxpy as cp
import jax
import numpy as np
import torch
from flax import nnx
from timing import compare, table

import convexmoe_jax
import convexmoe_torch
from interop import to_cvxpy

DIM, MANY, ROUNDS = 32, 100, 9
HULL = {"petals": 8, "out_dim": 1, "hidden_dim": 32}
FIRST = f"""
import time
import jax, numpy as np
from flax import nnx
from convexmoe_jax import Box, VectorHull, minimize

hull = VectorHull({DIM}, **{HULL}, rngs=nnx.Rngs(0)).fold()
run = jax.jit(minimize) if COMPILED else minimize
start = time.perf_counter()
jax.block_until_ready(run(hull, Box(np.full({DIM}, -1.0), np.full({DIM}, 1.0))))
print(time.perf_counter() - start)
"""


def first_call(compiled: bool) -> float:
    """Return the seconds that the first call takes in a new process."""
    program = FIRST.replace("COMPILED", str(compiled))
    return float(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    in_jax = convexmoe_jax.VectorHull(DIM, **HULL, rngs=nnx.Rngs(0)).fold()
    in_torch = convexmoe_torch.VectorHull(DIM, **HULL)
    low, high = np.full(DIM, -1.0), np.full(DIM, 1.0)
    lows, highs = np.full((MANY, DIM), -1.0), np.linspace(0.5, 1.5, MANY)[:, None] * np.ones(DIM)
    compiled = jax.jit(lambda hull, a, b: convexmoe_jax.minimize(hull, convexmoe_jax.Box(a, b)))
    at = cp.Variable(DIM)
    problem = cp.Problem(cp.Minimize(to_cvxpy(in_jax, at, output=0)), [at >= low, at <= high])
    one = compare(
        {
            "JAX, at once (numpy)": lambda: convexmoe_jax.minimize(in_jax, convexmoe_jax.Box(low, high)),
            "JAX, under jit": lambda: jax.block_until_ready(compiled(in_jax, low, high)),
            "PyTorch": lambda: convexmoe_torch.minimize(in_torch, convexmoe_torch.Box(low, high)),
            "CVXPY, Clarabel": lambda: problem.solve(solver=cp.CLARABEL),
        },
        [(name, "CVXPY, Clarabel") for name in ("JAX, at once (numpy)", "JAX, under jit", "PyTorch")],
        rounds,
    )
    many = compare(
        {
            "JAX, at once (numpy)": lambda: convexmoe_jax.minimize(in_jax, convexmoe_jax.Box(lows, highs)),
            "JAX, under jit": lambda: jax.block_until_ready(compiled(in_jax, lows, highs)),
            "PyTorch": lambda: convexmoe_torch.minimize(in_torch, convexmoe_torch.Box(lows, highs)),
        },
        [],
        rounds,
    )
    firsts = {"JAX, at once (numpy)": first_call(False), "JAX, under jit": first_call(True)}
    lines = []
    for name, milliseconds in one["milliseconds"].items():
        ratio = one["ratio"].get(f"{name} / CVXPY, Clarabel")
        first = f"{1e3 * firsts[name]:.0f}" if name in firsts else "-"
        times = [first, f"{milliseconds:.1f}", "1" if ratio is None else f"{ratio[1]:.2f}"]
        batch = many["milliseconds"].get(name)
        lines.append([name, *times, "-" if batch is None else f"{batch / MANY:.2f}"])
    print(table(["ms", "first call", "one problem", "ratio", f"of {MANY} at once, each"], lines))


if __name__ == "__main__":
    main()
