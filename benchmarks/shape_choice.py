"""How near `fit(shape="auto")` comes to the best of the settings that it tries, had that been known.

    python benchmarks/shape_choice.py --without diamonds randhie   # the suite, tables of packages, unseen functions
    python benchmarks/shape_choice.py --folder DIR                 # and every DIR/*.npz with x [N, D] and y [N]
    python benchmarks/shape_choice.py --groups suite --resume      # what the file of results has is not done again

A setting is one of the shapes of `convexmoe.training.shapes` at the usual rate, or the given shape (8 petals, learned
temperature) with the other activation, at another rate or with more steps. Each is fitted to the same rows, and
`shape="auto"` chooses among the same fits by the rows that they hold out, with no budget that would end it. Errors are
mean squared ones without noise, over the variance of the function; of tables root mean squared ones on three folds. The
best single setting is the one whose geometric mean over the tasks of a group is least; which is best on each task no
rule can know.
The suite is that of `quality.py` in 2 and 8 dimensions with noise 0.1, the unseen functions the first of
`quality_unseen.py --draw 1`. A run prints a table and writes shape_choice.json into quality-run/. `--quick`: does it
run? Extra: `pip install -c constraints.txt -e ".[tables]"`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from quality_grammar import KINDS, draw
from quality_runs import write
from quality_scores import EXACT, relative_error
from quality_tasks import FAMILIES, Task, columns, suite_task
from quality_unseen import QUICK_ROWS
from table_data import TABLES, Rows, need, of_folder
from tables import QUICK, STEPS, Regressor, measure
from timing import table

from convexmoe.hull import HullConfig
from convexmoe.training import FitResult
from convexmoe.training.schedule import default_rate
from convexmoe.training.shapes import LONGER, RATES, STAGES, Trial, fit_shapes
from interop import frameworks

DIMS, NOISE, DRAW, FOLDS = (2, 8), 0.1, 1, 3
SETTINGS = (
    "given shape",
    "more petals",
    "planes",
    "one layer more",
    "other activation",
    *[f"rate x {rate:g}" for rate in RATES],
    f"{LONGER} x the steps",
)
AUTO, GROUPS = "auto", ("suite", "tables", "files", "unseen")

Record = dict[str, Any]
# what predicts after a fit -> its error on a task
Measure = Callable[[Regressor], float]


class Fits:
    """The fits of one task, each made once.

    Args:
        framework: in which they are made.
        steps: of each.
    """

    def __init__(self, framework: str, steps: int) -> None:
        self.side, self.steps = frameworks.get(framework), steps
        self.made: dict[tuple, FitResult] = {}
        self.chosen: list[str] = []

    def fit(self, x: np.ndarray, y: np.ndarray, seed: int, trial: Trial) -> FitResult:
        """Return the fit that `shape="auto"` makes of a trial."""
        key = (x.tobytes(), y.tobytes(), seed, *trial[1:])
        if key not in self.made:
            rate = default_rate(len(x), x.shape[1]) * trial.faster
            options = {"steps": self.steps * trial.longer, "seed": seed, "learning_rate": rate, "compare": False}
            self.made[key] = self.side.package.fit(self.side.new_hull(trial.config, seed), x, y, **options)
        return self.made[key]

    def regressor(self, setting: str) -> Regressor:
        """Return what predicts by a setting, or by the one that the rows held out choose."""

        def predict(x: np.ndarray, y: np.ndarray, rows: np.ndarray, seed: int) -> np.ndarray:
            given = HullConfig(x.shape[1], 8, columns(y).shape[1], temperature="learned")
            fit = partial(self.fit, x, y, seed)
            if setting == AUTO:
                found = fit_shapes(fit, given, math.inf, False)
                self.chosen.append(found.shape)
            else:
                found = fit(settings(given)[SETTINGS.index(setting)])
            predicted = np.asarray(self.side.package.predict(found.model, rows), np.float64)
            return predicted.reshape(len(rows), *y.shape[1:])

        return predict


def settings(config: HullConfig) -> list[Trial]:
    """Return what `shape="auto"` may try before it knows more: `SETTINGS`."""
    given = Trial("the given shape", config)
    return [given, *[trial for stage in STAGES for trial in stage(given)]]


def error_on_function(task: Task, regressor: Regressor) -> float:
    """Return the error on a function whose truth is known."""
    return max(relative_error(task, regressor(task.x, task.y, task.x_test, 0)), EXACT)


def error_on_table(read: Callable[[], Rows], rows: int | None, regressor: Regressor) -> float:
    """Return the root mean squared error on three folds of a table; on two of so many rows, if they are given.

    A row or two are left out, so that the folds are of one size: what is compiled for one serves the others.
    """
    x, y = read()
    folds = FOLDS if rows is None else QUICK["folds"]
    some = np.random.default_rng(0).permutation(len(y))[: (rows or len(y)) // folds * folds]
    return measure(x[some], y[some], regressor, 0, folds)["rmse"]


def tasks_of(options: argparse.Namespace) -> Iterator[tuple[str, str, Measure]]:
    """Yield group, name and measure of each task."""
    if "suite" in options.groups:
        for dim in DIMS:
            for family in list(FAMILIES)[: 1 if options.quick else None]:
                task = suite_task(family, dim, NOISE, 0, 0, **({"rows": QUICK["rows"]} if options.quick else {}))
                yield "suite", task.name, partial(error_on_function, task)
    for one in options.tables:
        rows = QUICK["rows"] if options.quick else None
        yield "tables" if one.package else "files", one.name, partial(error_on_table, one.read, rows)
    if "unseen" in options.groups:
        for number in range(options.functions):
            task = draw(DRAW, number, QUICK_ROWS).task if options.quick else draw(DRAW, number).task
            yield "unseen", task.name, partial(error_on_function, task)


def record_of(group: str, name: str, measure: Measure, framework: str, steps: int) -> Record:
    """Return the errors of all settings and of the choice on a task, and what was chosen."""
    began, fits = time.perf_counter(), Fits(framework, steps)
    errors = {setting: measure(fits.regressor(setting)) for setting in (*SETTINGS, AUTO)}
    record = {"group": group, "task": name, "errors": errors, "chosen": fits.chosen}
    record["seconds"] = time.perf_counter() - began
    print(record, file=sys.stderr, flush=True)
    return record


def mean_ratio(over: np.ndarray, under: np.ndarray) -> float:
    """Return the geometric mean of ratios."""
    return float(np.exp(np.mean(np.log(over) - np.log(under))))


def line_of(group: str, records: Sequence[Record]) -> list[str]:
    """Return a line of the report: all over the given setting, then auto over the best single and over each best."""
    errors = np.array([[one["errors"][setting] for setting in SETTINGS] for one in records])
    auto = np.array([one["errors"][AUTO] for one in records])
    over_given = [mean_ratio(column, errors[:, 0]) for column in errors.T]
    best = int(np.argmin(over_given))
    ratios = mean_ratio(auto, errors[:, best]), mean_ratio(auto, errors.min(axis=1))
    cells = [f"{value:.3f}" for value in (*over_given, mean_ratio(auto, errors[:, 0]))]
    return [group, str(len(records)), *cells, SETTINGS[best], *[f"{ratio:.3f}" for ratio in ratios]]


def report(records: Sequence[Record]) -> str:
    """Return a line a group."""
    titles = ["group", "tasks", *SETTINGS, AUTO, "best single", "auto over it", "over each task's best"]
    groups = dict.fromkeys(one["group"] for one in records)
    return table(titles, [line_of(group, [one for one in records if one["group"] == group]) for group in groups])


def arguments() -> argparse.Namespace:
    """Return the options; `tables` are those to read, of packages and of files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS), help="these only")
    parser.add_argument("--folder", type=Path, help="its .npz files are the group files")
    parser.add_argument("--without", nargs="+", metavar="TABLE", default=[], help="leave these tables out")
    parser.add_argument("--functions", type=int, default=len(KINDS), help="how many unseen ones; one a kind")
    parser.add_argument("--framework", choices=tuple(frameworks.LABELS), default="jax")
    parser.add_argument("--quick", action="store_true", help="few rows, folds, steps and functions")
    parser.add_argument("--out", type=Path, default=Path("quality-run"))
    parser.add_argument("--resume", action="store_true", help="go on with the file of results that is there")
    options = parser.parse_args()
    every = [*TABLES, *(() if options.folder is None else of_folder(options.folder))]
    every = [one for one in every if ("tables" if one.package else "files") in options.groups]
    options.tables = [one for one in every if one.name not in options.without]
    need(one.package for one in options.tables)
    if options.quick:
        options.tables, options.functions, options.out = options.tables[:1], 1, options.out / "quick"
    return options


def main() -> None:
    """Measure, print the table, write the records."""
    options = arguments()
    path, steps = options.out / "shape_choice.json", QUICK["steps"] if options.quick else STEPS
    records = json.loads(path.read_text()) if options.resume and path.exists() else []
    for group, name, error in tasks_of(options):
        if (group, name) not in {(one["group"], one["task"]) for one in records}:
            records.append(record_of(group, name, error, options.framework, steps))
            write(records, path)
    print(report(records))


if __name__ == "__main__":
    main()
