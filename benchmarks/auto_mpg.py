"""Hull, linear regression and MLP on the embedded Auto MPG table: the test RMSE of five folds.

    python benchmarks/auto_mpg.py            # some minutes
    python benchmarks/auto_mpg.py --quick    # does it run?

Each fold of the 392 rows, drawn with seed 0, is the test part once; of the others 15 % of all rows choose the step, and
the rest train. Options, baselines and errors are those of `convexmoe fit`, in PyTorch.
"""

from __future__ import annotations

import argparse
import math

import numpy as np

from convexmoe.hull import HullConfig
from convexmoe.hull.parameters import parameter_shapes
from interop import frameworks
from interop.command.baselines import fit_linear, fit_mlp
from interop.command.group_map import rmse
from interop.command.resume import LIMITS
from interop.command.tables import EMBEDDED_TARGET, embedded_table

FOLDS = 5
PETALS, DEPTH, STEPS = (LIMITS[name][2] for name in ("petals", "depth", "steps"))


def errors_of(x: np.ndarray, y: np.ndarray, test: np.ndarray, rest: np.ndarray, steps: int) -> list[float]:
    """Return the test RMSE of hull, linear regression and MLP; `test` and `rest` are indices of rows."""
    side = frameworks.get("torch")
    validation, train = np.split(rest, [round(0.15 * len(x))])
    held_out = x[validation], y[validation]
    config = HullConfig(x.shape[1], PETALS, 1, depth=DEPTH, temperature="learned")
    fitted = side.package.fit(side.new_hull(config, 0), x[train], y[train], validation=held_out, steps=steps, seed=0)
    size = sum(math.prod(shape) for shape in parameter_shapes(config).values())
    linear, _ = fit_linear(x[train], y[train])
    mlp, _ = fit_mlp(side, x[train], y[train], held_out, num_parameters=size, steps=steps, seed=0)
    predictions = side.predict(fitted.model, x[test]), linear(x[test]), mlp(x[test])
    return [rmse(predicted, y[test]) for predicted in predictions]


def main() -> None:
    """Print a line a fold, the means, and in how many folds the hull is ahead."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="train for a few steps")
    steps = 5 if parser.parse_args().quick else STEPS
    table = embedded_table()
    columns = [name for name in table.columns if name != EMBEDDED_TARGET]
    x, y = table.numbers(columns)[0], table.numbers([EMBEDDED_TARGET])[0][:, 0]
    order = np.random.default_rng(0).permutation(len(x))
    folds, errors = np.array_split(order, FOLDS), []
    print(f"{'fold':<6}{'hull':>8}{'linear':>8}{'MLP':>8}")
    with frameworks.get("torch").quiet():
        for k, test in enumerate(folds):
            rest = np.concatenate(folds[k + 1 :] + folds[:k])
            errors.append(errors_of(x, y, test, rest, steps))
            print(f"{k:<6}" + "".join(f"{error:>8.2f}" for error in errors[-1]), flush=True)
    found = np.array(errors)
    print(f"{'mean':<6}" + "".join(f"{error:>8.2f}" for error in found.mean(axis=0)))
    for k, name in ((1, "linear regression"), (2, "the MLP")):
        lead = found[:, k] - found[:, 0]
        print(f"hull ahead of {name} in {(lead > 0).sum()} of {FOLDS} folds, by {lead.mean():.2f} +- {lead.std():.2f}")


if __name__ == "__main__":
    main()
