"""How far rounding lifts a float32 hull above its chords, over random configurations.

    python benchmarks/rounding.py

Each configuration draws the number of inputs, petals, outputs and units, depth, trunk, means, temperature, activation,
gate and strong convexity, and is measured with its initial weights and with weights moved to extremes. The ends of the
segments are multiples of 2^-8, so that the points between them are exact: what is measured is the rounding of the model
alone, as the last rows show, where the same weights are computed with in float64.
"size" is the median absolute value of the output over the end points. Needs convexmoe[interop].
"""

from __future__ import annotations

import argparse

import jax.numpy as jnp
import numpy as np
import torch

import convexmoe_torch
from interop import to_jax

CONFIGS, SEGMENTS, GRID = 300, 4096, 2.0**-8
PACKAGES = {
    "JAX": lambda hull, x: np.asarray(to_jax(hull)(jnp.asarray(x))),
    "PyTorch": lambda hull, x: hull(torch.from_numpy(x)).detach().numpy(),
    "PyTorch, the same weights in float64": lambda hull, x: (
        hull.double()(torch.from_numpy(x).double()).detach().numpy()
    ),
}


def draw_hull(rng: np.random.Generator, extreme: bool) -> convexmoe_torch.VectorHull:
    """A float32 hull of a random configuration; with `extreme` weights over four orders of magnitude."""
    torch.manual_seed(int(rng.integers(2**31)))
    hull = convexmoe_torch.VectorHull(
        int(rng.choice([1, 2, 5, 13])),
        int(rng.integers(1, 17)),
        out_dim=int(rng.choice([1, 3])),
        hidden_dim=int(rng.choice([2, 7, 17])),
        depth=int(rng.integers(1, 5)),
        trunk=str(rng.choice(["shared", "private"])),
        group_size=int(rng.choice([1, 2])),
        temperature=(0.0, "learned", 0.3)[rng.integers(3)],
        activation=("softplus", "relu", "huber_relu")[rng.integers(3)],
        gate=bool(rng.integers(2)),
        strong_convexity=(0.0, 0.3)[rng.integers(2)],
    )
    if extreme:
        with torch.no_grad():
            for parameter in hull.parameters():
                drawn = 10.0 ** rng.uniform(-2, 2) * rng.normal(size=parameter.shape)
                parameter.copy_(torch.from_numpy(drawn))
    return hull


def lifts(values, rng: np.random.Generator, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The heights of midpoints above their chords, their values, and the size of each output."""
    left, right = (np.round(rng.normal(size=(SEGMENTS, dim)) * 2 / GRID) * GRID for _ in range(2))
    # Half of the segments are short: the function is nearly affine along them, and rounding is what is left.
    right[::2] = left[::2] + np.round(rng.normal(size=left[::2].shape) * 4) * GRID
    ends = [values(end.astype(np.float32)).astype(np.float64) for end in (left, right)]
    middle = values(((left + right) / 2).astype(np.float32)).astype(np.float64)
    return middle - (ends[0] + ends[1]) / 2, middle, np.median(np.abs(ends[0]), axis=0)


def measure(package: str, configs: int, extreme: bool, seed: int) -> list[float]:
    """Median, 95th percentile and largest of the lifts by size, a configuration each; the largest by its own value."""
    rng = np.random.default_rng(seed)
    by_size, by_value = [], []
    for _ in range(configs):
        hull = draw_hull(rng, extreme)
        lift, middle, size = lifts(lambda x, hull=hull: PACKAGES[package](hull, x), rng, hull.config.in_dim)
        by_size.append((lift / size).max())
        by_value.append((lift[middle != 0] / np.abs(middle[middle != 0])).max())
    return [*np.quantile(by_size, [0.5, 0.95, 1.0]).tolist(), max(by_value)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", type=int, default=CONFIGS)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(f"{given.configs} configurations of each kind, {SEGMENTS} segments each, seed {given.seed}\n")
    print("| package | weights | median of size | 95 % | largest | largest of the value itself |")
    print("|---|---|---|---|---|---|")
    for package in PACKAGES:
        for name, extreme in (("initial", False), ("extreme", True)):
            figures = " | ".join(f"{figure:.1e}" for figure in measure(package, given.configs, extreme, given.seed))
            print(f"| {package} | {name} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
