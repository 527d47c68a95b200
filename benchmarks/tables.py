"""How well `fit` predicts rows that it has not seen: ten real tables, beside least squares, an MLP and boosting.

    python benchmarks/tables.py                        # five folds, three seeds; ours in JAX, or --framework torch
    python benchmarks/tables.py --folder DIR           # every DIR/*.npz with x [N, D] and y [N] instead
    python benchmarks/tables.py --models ours --cache FILE   # FILE keeps what does not change: all but ours
    python benchmarks/tables.py --models mlp,boosting,lpcf,cnls --seeds 1    # the peers of the documentation
    python benchmarks/tables.py --wide                 # linear truths with few rows, beside ridge regression

Ours is a hull of 8 petals with a learned temperature and the defaults of `fit`; plain is least squares, ridge has its
penalty chosen by leave-one-out, the MLP (on standardized rows) and boosting are scikit-learn's with its defaults; lpcf
and cnls, where they are named, may compute for one and two minutes a fold, and have a dash where nothing was done by
then (timed_peers.py says what they are, and how to get lpcf). Errors of other models are over those of the better of
plain and ridge. A run prints a table and writes tables.json (or wide.json) into quality-run/. `--quick`: does it run?
Extra: `pip install -c constraints.txt -e ".[tables]"`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from quality_runs import write
from regressors import fit_ridge
from table_data import TABLES, Table, need, of_folder
from timed_peers import CNLS, LPCF, best_in_time
from timing import table

from convexmoe.hull import HullConfig
from convexmoe.training.curvature import CONCAVE
from interop import frameworks
from interop.command.baselines import fit_linear
from interop.command.importance import rmse

OURS, LINEAR, PEERS = "ours", ("plain", "ridge"), ("mlp", "boosting")
LIMITS, HELD = {LPCF: 60.0, CNLS: 120.0}, 15  # seconds that a fold may compute; per cent held out for a penalty
NEEDS = dict.fromkeys(PEERS, "sklearn") | {LPCF: "lpcf", CNLS: "clarabel"}
CURVED, CHOSEN = (
    "curvature chosen",
    "shape too",
)  # a hull of -y where the rows held out speak for it; and `shape="auto"`
OWN = (OURS, CURVED, CHOSEN)
OTHERS = (*OWN, *PEERS, *LIMITS)
FOLDS, STEPS, QUICK = 5, 2000, {"folds": 2, "steps": 5, "rows": 60}
WIDE = ((40, 10), (40, 20), (100, 50), (500, 50), (30, 100))  # rows and columns
NOISES, WIDE_SEEDS, FRESH = (0.1, 1.0), 5, 2000  # noise over the deviation of the truth

Record = dict[str, Any]
# x and y to train on, rows to predict, seed -> predictions
Regressor = Callable[[np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]


def our_regressor(framework: str, steps: int, curved: bool = False, shape: str | None = None) -> Regressor:
    """Return the hull of `fit`, in a framework."""
    side = frameworks.get(framework)

    def predict(x: np.ndarray, y: np.ndarray, rows: np.ndarray, seed: int) -> np.ndarray:
        hull, sign = side.new_hull(HullConfig(x.shape[1], 8, 1, temperature="learned"), seed), 1.0
        found = side.package.fit(hull, x, y, steps=steps, seed=seed, shape=shape)
        if curved and found.curvature.shown == CONCAVE:
            found, sign = side.package.fit(hull, x, -y, steps=steps, seed=seed, shape=shape), -1.0
        return sign * side.predict(found.model, rows)

    return predict


def mlp(x: np.ndarray, y: np.ndarray, rows: np.ndarray, seed: int) -> np.ndarray:
    """Predict by scikit-learn's MLP on standardized rows."""
    from sklearn.compose import TransformedTargetRegressor
    from sklearn.neural_network import MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    network = make_pipeline(StandardScaler(), MLPRegressor(max_iter=2000, random_state=seed))
    return TransformedTargetRegressor(network, transformer=StandardScaler()).fit(x, y).predict(rows)


def boosting(x: np.ndarray, y: np.ndarray, rows: np.ndarray, seed: int) -> np.ndarray:
    """Predict by scikit-learn's boosted trees on histograms."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    return HistGradientBoostingRegressor(random_state=seed).fit(x, y).predict(rows)


def timed(peer: str, limit: float) -> Regressor:
    """Return a peer of timed_peers.py on standardized rows, 15 % of them held out for its penalty.

    It predicts NaN where it was not done within `limit` seconds of computing.
    """

    def predict(x: np.ndarray, y: np.ndarray, rows: np.ndarray, seed: int) -> np.ndarray:
        center, width, mean, size = x.mean(axis=0), x.std(axis=0), y.mean(), y.std()
        x, rows = (x - center) / np.where(width > 0, width, 1), (rows - center) / np.where(width > 0, width, 1)
        order = np.random.default_rng(seed).permutation(len(y))
        held, rest = np.split(order, [max(1, len(y) * HELD // 100)])
        targets = (y[:, None] - mean) / size
        found = best_in_time(peer, (x[rest], targets[rest], x[held], targets[held]), rows, limit)
        return np.full(len(rows), np.nan) if found is None else mean + size * found.predicted[:, 0]

    return predict


REGRESSORS: dict[str, Regressor] = {
    "plain": lambda x, y, rows, seed: fit_linear(x, y)[0](rows),
    "ridge": lambda x, y, rows, seed: fit_ridge(x, y)(rows),
    "mlp": mlp,
    "boosting": boosting,
    **{peer: timed(peer, limit) for peer, limit in LIMITS.items()},
}


def held_out_errors(x: np.ndarray, y: np.ndarray, regressor: Regressor, seed: int, folds: int) -> np.ndarray:
    """Return the errors of all rows, each predicted by a model that was trained on the other folds.

    Where a fold gives no predictions, the folds after it are not tried, and their errors are NaN too.
    """
    errors = np.full(len(y), np.nan)
    for test in np.array_split(np.random.default_rng(seed).permutation(len(y)), folds):
        rest = np.setdiff1d(np.arange(len(y)), test)
        errors[test] = regressor(x[rest], y[rest], x[test], seed) - y[test]
        if np.isnan(errors[test]).any():
            break
    return errors


def measure(x: np.ndarray, y: np.ndarray, regressor: Regressor, seed: int, folds: int) -> dict[str, float]:
    """Return the RMSE over all rows, the largest error, and the seconds of a fit with its predictions."""
    began = time.perf_counter()
    errors = held_out_errors(x, y, regressor, seed, folds)
    done = not np.isnan(errors).any()
    seconds = (time.perf_counter() - began) / folds if done else np.nan
    return {"rmse": rmse(errors, np.zeros(len(errors))), "largest": float(np.abs(errors).max()), "seconds": seconds}


def records_of(one: Table, models: dict[str, Regressor], seeds: int, cache: Record, quick: bool) -> list[Record]:
    """Return a record for each model and seed on one table; `cache` gives those of all but ours, and takes new ones."""
    x, y = one.read()
    if quick:
        some = np.random.default_rng(0).permutation(len(y))[: QUICK["rows"]]
        x, y = x[some], y[some]
    folds = QUICK["folds"] if quick else FOLDS
    key = f"{one.name} {zlib.crc32(np.column_stack([x, y]).tobytes()):08x}, {folds} folds"
    records = []
    for name, seed in itertools.product(models, range(seeds)):
        case = f"{key}, {name}, seed {seed}"
        found = cache.get(case)
        if found is None or name in OWN:
            found = measure(x, y, models[name], seed, folds)
            print(case, found, file=sys.stderr, flush=True)
        if name not in OWN:
            cache[case] = found
        records.append({"table": one.name, "shape": list(x.shape), "model": name, "seed": seed} | found)
    return records


def line_of(records: Sequence[Record]) -> list[Any]:
    """Return a line of the report: RMSE of plain and ridge, the mean over seeds; then what is over the better of them.

    These are, of each other model, its RMSE, its largest error of all seeds, and (as they are) seconds a fit.
    """
    models = list(dict.fromkeys(one["model"] for one in records))
    found = {
        name: np.array([(r["rmse"], r["largest"], r["seconds"]) for r in records if r["model"] == name])
        for name in models
    }
    better = found[min(LINEAR, key=lambda name: found[name][:, 0].mean())]
    line = [records[0]["table"], *records[0]["shape"], *[found[name][:, 0].mean() for name in LINEAR]]
    for name in [name for name in models if name not in LINEAR]:
        rmses, largest, seconds = found[name].T
        line += [rmses.mean() / better[:, 0].mean(), largest.max() / better[:, 1].max(), seconds.mean()]
    return line


def report(lines: Sequence[Sequence[Any]], models: Sequence[str]) -> str:
    """Return the tables a line each, then geometric means and the worst."""
    ratios = np.array([line[5:] for line in lines], float)
    means, worst = np.exp(np.nanmean(np.log(ratios), axis=0)), np.nanmax(ratios, axis=0)  # of those that finished
    titles = ["table", "rows", "columns", *LINEAR]
    for name in models:
        titles += [name, "largest error", "seconds"]
    cells = [[*line[:3], *[f"{value:.4g}" for value in line[3:5]]] for line in lines]
    cells += [["geometric mean", *[""] * 4], ["worst", *[""] * 4]]
    forms = (".3f", ".2f", ".1f") * len(models)
    for row, values in zip(cells, [*ratios, means, worst], strict=True):
        row += ["-" if np.isnan(value) else format(value, form) for value, form in zip(values, forms, strict=True)]
    return table(titles, cells)


def wide_records(ours: Regressor, sizes: Sequence[tuple[int, int]], seeds: int) -> list[Record]:
    """Return the RMSE of ours and of ridge on fresh rows of linear truths of deviation 1, with noise and without."""
    records = []
    for (rows, columns), noise, seed in itertools.product(sizes, NOISES, range(seeds)):
        rng = np.random.default_rng([rows, columns, seed])
        slopes, x = rng.normal(size=columns), rng.normal(size=(rows + FRESH, columns))
        truth = x @ slopes / np.linalg.norm(slopes)
        y = truth + noise * rng.normal(size=len(x))
        record: Record = {"rows": rows, "columns": columns, "noise": noise, "seed": seed}
        for name, regressor in ((OURS, ours), ("ridge", REGRESSORS["ridge"])):
            predicted = regressor(x[:rows], y[:rows], x[rows:], seed)
            record |= {name: rmse(predicted, y[rows:]), f"{name}, truth": rmse(predicted, truth[rows:])}
        records.append(record)
    return records


def wide_report(records: Sequence[Record]) -> str:
    """Return a line for each size and noise: means over seeds."""
    lines = []
    for case in dict.fromkeys((one["rows"], one["columns"], one["noise"]) for one in records):
        own = [one for one in records if (one["rows"], one["columns"], one["noise"]) == case]
        mean = {name: np.mean([one[name] for one in own]) for name in own[0]}
        ratios = mean[OURS] / mean["ridge"], mean[f"{OURS}, truth"] / mean["ridge, truth"]
        lines.append([*case, f"{mean['ridge']:.4g}", *[f"{ratio:.3f}" for ratio in ratios]])
    return table(["rows", "columns", "noise", "ridge", "ours over it", "without noise"], lines)


def arguments() -> argparse.Namespace:
    """Return the options; `models` are names beside plain and ridge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="read its .npz files instead of the ten tables")
    parser.add_argument(
        "--models",
        default=",".join((OURS, *PEERS)),
        help=f"beside plain and ridge, of {', '.join(OTHERS)}; may be empty",
    )
    parser.add_argument("--framework", choices=tuple(frameworks.LABELS), default="jax", help="of ours")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cache", type=Path, metavar="FILE", help="read and keep what all models but ours came to")
    parser.add_argument("--wide", action="store_true", help="linear truths with few rows instead")
    parser.add_argument("--quick", action="store_true", help="few rows, folds and steps, one seed")
    parser.add_argument("--out", type=Path, default=Path("quality-run"))
    options = parser.parse_args()
    options.models = [name for name in options.models.split(",") if name]
    if unknown := set(options.models) - set(OTHERS):
        parser.error(f"--models: expected of {', '.join(OTHERS)}; got {', '.join(sorted(unknown))}")
    if options.seeds < 1:
        parser.error(f"--seeds: expected 1 or more; got {options.seeds}")
    if options.quick:
        options.seeds, options.out = 1, options.out / "quick"
    return options


def main() -> None:
    """Measure, print the table, write the records."""
    options = arguments()
    steps = QUICK["steps"] if options.quick else STEPS
    ours = our_regressor(options.framework, steps)
    if options.wide:
        records = wide_records(ours, *((WIDE[:1], 1) if options.quick else (WIDE, WIDE_SEEDS)))
        write(records, options.out / "wide.json")
        print(wide_report(records))
        return
    tables = TABLES if options.folder is None else of_folder(options.folder)
    if not tables:
        raise SystemExit(f"tables.py --folder: expected .npz files with x and y; {options.folder} has none.")
    need([one.package for one in tables] + [NEEDS[name] for name in options.models if name in NEEDS])
    chosen = {c: our_regressor(options.framework, steps, True, s) for c, s in ((CURVED, None), (CHOSEN, "auto"))}
    models = {name: (REGRESSORS | chosen | {OURS: ours})[name] for name in (*LINEAR, *options.models)}
    kept = options.cache is not None and options.cache.exists()
    cache = json.loads(options.cache.read_text()) if kept else {}
    records, lines = [], []
    for one in tables:
        records += (found := records_of(one, models, options.seeds, cache, options.quick))
        lines.append(line_of(found))
        write(records, options.out / "tables.json")
        if options.cache is not None:
            write(cache, options.cache)
    print(report(lines, options.models))


if __name__ == "__main__":
    main()
