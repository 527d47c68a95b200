"""Whether the mean of five fits to bootstrap samples errs less than one fit: docs/pages/sklearn.md.

    python benchmarks/averages.py DIR/*.npz            # x [N, D] and y [N] in each; three folds, one draw, 1,000 steps
    python benchmarks/averages.py --steps 5 DIR/*.npz  # does it run?

Samples are weights of the rows, as scikit-learn's bagging has them; `--repeat` repeats rows instead. In PyTorch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from convexmoe.hull import HullConfig
from interop import frameworks

FOLDS, FITS, SEED, DRAWS = 3, 5, 0, 100


def ratio(x: np.ndarray, y: np.ndarray, steps: int, repeat: bool) -> float:
    """Return the RMSE of the mean of the fits over that of one fit, on rows held out."""
    side = frameworks.get("torch")

    def fit(rows: np.ndarray, seed: int, weight: np.ndarray | None = None) -> np.ndarray:
        hull = side.new_hull(HullConfig(x.shape[1], 8, 1, temperature="learned"), seed)
        options = {"sample_weight": weight, "steps": steps, "seed": seed, "compare": False}
        return side.predict(side.package.fit(hull, x[rows], y[rows], **options).model, x)

    one, mean = np.empty(len(y)), np.empty(len(y))
    for test in np.array_split(np.random.default_rng(SEED).permutation(len(y)), FOLDS):
        rest = np.setdiff1d(np.arange(len(y)), test)
        one[test], rng, found = fit(rest, SEED)[test], np.random.default_rng(SEED + DRAWS), []
        for seed in range(SEED, SEED + FITS):
            drawn = rng.integers(0, len(rest), len(rest))
            weight = np.bincount(drawn, minlength=len(rest)).astype(float)
            found.append(fit(rest[drawn], seed)[test] if repeat else fit(rest, seed, weight)[test])
        mean[test] = np.mean(found, axis=0)
    return float(np.sqrt(np.mean((mean - y) ** 2) / np.mean((one - y) ** 2)))


def main() -> None:
    """Print a line a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--repeat", action="store_true", help="repeat rows instead of weighing them")
    options = parser.parse_args()
    for path in options.tables:
        with np.load(path) as file, frameworks.get("torch").quiet():
            print(path.stem, f"{ratio(file['x'], file['y'], options.steps, options.repeat):.2f}", flush=True)


if __name__ == "__main__":
    main()
