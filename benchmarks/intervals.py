"""How many new rows lie in intervals as `convexmoe fit` makes them: folds give the widths, all rows the hull.

    python benchmarks/intervals.py --draws 20    # the table of docs/pages/numbers.md

Convex truths in three inputs, noise of half their deviation; 2,000 new rows a draw. In PyTorch.
"""

import argparse

import numpy as np
import torch
from convexity_test import noise

from convexmoe.training import conformal_width
from convexmoe_torch import VectorHull, fit, predict

LEVELS = (0.5, 0.8, 0.9, 0.95)


def truth(x: np.ndarray) -> np.ndarray:
    """Return a convex function of three inputs, `[N]`."""
    return np.abs(x[:, 0]) + np.exp(x[:, 1]) + 0.5 * x[:, 2] ** 2


def coverage(rows: int, kind: str, rng: np.random.Generator, steps: int) -> tuple[list[float], list[float]]:
    """Return the share of new rows within the widths of the levels, and within those of residuals of training rows.

    Args:
        rows: to learn from; kind: of the noise; rng: of the rows; steps: of each fit.
    """
    x = rng.uniform(-1.7, 1.7, (rows + 2000, 3))
    f = truth(x)
    y = f + 0.5 * f.std() * noise(kind, x, rng)

    def errors(learned: np.ndarray, asked: np.ndarray) -> np.ndarray:
        torch.manual_seed(0)
        hull = VectorHull(3, petals=8, out_dim=1, temperature="learned")
        model = fit(hull, x[learned], y[learned], steps=steps, compare=False).model
        return y[asked] - predict(model, x[asked])[:, 0]

    folds = np.array_split(rng.permutation(rows), 5)
    held_out = np.concatenate([errors(np.setdiff1d(np.arange(rows), fold), fold) for fold in folds])
    all_rows = errors(np.arange(rows), np.arange(rows + 2000))
    own, new = np.abs(all_rows[:rows]), np.abs(all_rows[rows:])
    widths = [conformal_width(held_out, level) for level in LEVELS]
    return [np.mean(new <= width) for width in widths], [np.mean(new <= np.quantile(own, level)) for level in LEVELS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--rows", type=int, nargs="+", default=[50, 200])
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    print("| rows, noise | " + " | ".join(f"{level:.0%}" for level in LEVELS) + " |\n| --- |" + " ---: |" * len(LEVELS))
    for rows in options.rows:
        for kind in ("normal", "growing"):
            rng = np.random.default_rng(rows)
            found = 100 * np.array([coverage(rows, kind, rng, options.steps) for _ in range(options.draws)])
            cells = [f"{a:.1f} ({b:.1f})" for a, b in found.mean(axis=0).T]
            print(f"| {rows}, {kind} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
