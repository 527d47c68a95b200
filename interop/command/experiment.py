"""The work of `convexmoe fit`: split, train, compare, check, write."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convexmoe.errors import InputError, refuse
from convexmoe.files.atomic import write_whole
from convexmoe.hull import HullConfig
from convexmoe.hull.parameters import parameter_shapes

from .. import frameworks
from ..frameworks import Framework
from .baselines import fit_linear, fit_mlp
from .group_map import importance, map_groups, rmse
from .output import say
from .report import draw_report, print_results
from .resume import Keeper, Plan, RunRecord, Unfinished, fingerprint
from .saved_model import notes_of, read_model
from .tables import MIN_ROWS, Table, check_varies, fill_gaps, require_columns, shorten

SEGMENTS = 100_000
ROUNDING = 1e-10, 1e-13  # an error below these parts of the deviation, or of the size, of the target is none
FEW_ROWS = 30  # the RMSE of fewer is off by 13 % and more
_ID = re.compile(r"(?i:(.*[_ .-])?(id|uuid|guid)|index|unnamed: ?\d+|row([_ .-]?(no|nr|num|number))?)|.*[a-z0-9]I[dD]")


@dataclass(frozen=True)
class Dataset:
    """Numbers to learn from, and which rows serve for what.

    Attributes:
        name: of the table.
        columns: names of the inputs, in the order of `x`.
        target: name of the column to predict.
        x: `[N, in_dim]`; y: `[N]`.
        train, validation, test: indices of rows, disjoint, about 70, 15 and 15 % of them.
        remarks: what was recognized, left out or filled, in sentences.
    """

    name: str
    columns: tuple[str, ...]
    target: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    remarks: tuple[str, ...]

    def rows(self, part: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return inputs and targets of some rows."""
        return self.x[part], self.y[part]


@dataclass(frozen=True)
class Run:
    """What is fitted, where it writes, and from where it goes on.

    Attributes:
        data: the numbers; framework: the one that fits.
        plan: the options of the fit.
        directory: for the results; folder: for what is needed to go on.
        drop: the columns left out.
        go_on: what is said after a stop, with the command that goes on.
        pause_at: the step to pause at, or None.
        resumed: the unfinished run that goes on, or None.
    """

    data: Dataset
    framework: Framework
    plan: Plan
    directory: Path
    folder: Path
    drop: tuple[str, ...]
    go_on: str
    pause_at: int | None
    resumed: Unfinished | None


def prepare(table: Table, target: str, drop: Sequence[str], seed: int, missing: str | None = None) -> Dataset:
    """Return the checked, split numbers of a table.

    Rows with missing cells are refused, or with `missing` "drop" left out; "mean" fills them with means of the training
    rows, and leaves out the rows without a target.

    Raises:
        InputError: an unknown column, too few rows, a cell that is no number, a column that does not vary.
    """
    require_columns(table, [target], "convexmoe fit --target")
    require_columns(table, drop, "convexmoe fit --drop")
    columns = tuple(name for name in table.columns if name != target and name not in drop)
    if target in drop:
        rule, fix = "columns other than the target", f"Leave --drop {target} out."
        refuse("convexmoe fit --drop", rule, repr(target), fix)
    if not columns:
        rule = f"at least one input column beside the target {target!r}"
        refuse(table.name, rule, f"the columns {shorten(table.columns)}", "Add a column of inputs.")
    names = (*columns, target)
    values, gaps, remarks = table.numbers(names, keep=(target,), may_miss=missing is not None)
    if gaps:
        lacks = np.isnan(values if missing == "drop" else values[:, -1:]).any(axis=1)
        values = values[~lacks]
        filled = "" if missing == "drop" else ", the other cells filled with means of the training rows"
        remarks += (f"Missing cells: {gaps}. Rows left out: {lacks.sum()}{filled}.",)
    if len(values) < MIN_ROWS:
        refuse(table.name, f"at least {MIN_ROWS} rows", str(len(values)), "Add rows.")
    order = np.random.default_rng(seed).permutation(len(values))
    held_out = round(0.15 * len(values))
    validation, test, train = np.split(order, [held_out, 2 * held_out])
    if gaps:
        fill_gaps(values, names, train, table.name)
    check_varies(values, names, target, table.name)
    where = f"the {len(train)} rows that --seed {seed} chose for training"
    varies = np.array([column[train].min() < column[train].max() for column in values.T])
    kept = [k for k, name in enumerate(names) if varies[k] or name == target or not varies[:-1].any()]
    check_varies(values[train][:, kept], [names[k] for k in kept], target, f"{table.name}, {where}")
    if not varies.all():
        constant = shorten([name for name, moves in zip(names, varies, strict=True) if not moves])
        remarks += (f"Left out, as constant in {where}: {constant}. The model takes it, to no effect.",)
    return Dataset(table.name, columns, target, values[:, :-1], values[:, -1], train, validation, test, remarks)


def run_fit(run: Run) -> int | None:
    """Train a hull and its baselines, write model.safetensors, metrics.json and report.png, print the results.

    Return the step at which the run paused, None where it came to its end.
    """
    data, plan = run.data, run.plan
    names = (*data.columns, data.target)
    prints = fingerprint(names, data.x, data.y, data.train, data.validation, data.test)
    first_step = _check_start(run, prints)
    say(
        f"{data.name}: {data.target} from {shorten(data.columns)}; rows: {len(data.train)} to train, "
        f"{len(data.validation)} to validate, {len(data.test)} to test. In {frameworks.LABELS[run.framework.name]}."
    )
    if run.resumed is not None:
        say(f"Going on from step {first_step} of {plan.steps}.")
    for line in (*data.remarks, *_remarks(data)):
        say(line)
    earlier = () if run.resumed is None else run.resumed.record.parts
    parts = (*earlier, {"framework": run.framework.name, "from_step": first_step})
    record = RunRecord(plan, data.target, run.drop, data.name, prints, parts)
    notes = notes_of(data.columns, data.target, *data.rows(data.train))
    keeper = Keeper(run.framework, run.folder, notes, record, run.pause_at)
    fitted = _train(run, keeper)
    if keeper.paused and keeper.step < plan.steps:
        say(f"Stopped at step {keeper.step} of {plan.steps}: {run.folder}. {run.go_on}")
        return keeper.step
    keeper.write_where_long()
    path = run.directory / "model.safetensors"
    run.framework.package.save(fitted.model, path, notes=notes)
    metrics, predicted, growth = _measure(run, fitted, parts, path)
    try:
        text = json.dumps(metrics, indent=2, sort_keys=True, allow_nan=False)
    except ValueError:
        refuse(data.name, "finite results", "NaN or infinity", "Remove the outliers of the table.")
    write_whole(run.directory / "metrics.json", (text + "\n").encode())
    group_map = map_groups(run.framework, fitted.model, data.columns, growth, data.x, *data.rows(data.test))
    legend = draw_report(metrics, fitted.history, predicted, group_map, run.directory / "report.png")
    print_results(metrics)
    if legend:
        say(f"No font is installed for some names; in report.png {legend}.")
    return None


def _remarks(data: Dataset) -> list[str]:
    """Return what should be known of the numbers before the results are believed: ids, duplicates, few test rows."""
    lines, x = [], data.x
    whole = [bool((column == np.round(column)).all() and len(np.unique(column)) == len(x)) for column in x.T]
    is_id = np.array([found or _ID.fullmatch(name) for name, found in zip(data.columns, whole, strict=True)], bool)
    if ids := [name for name, found in zip(data.columns, is_id, strict=True) if found]:
        drops = " ".join(f"--drop {shlex.quote(name)}" for name in ids[:8])
        lines.append(f"Perhaps an id, by its name or its whole numbers, all different: {shorten(ids)}. If so: {drops}.")
    rows = [row.tobytes() for row in np.column_stack([x[:, ~is_id | is_id.all()], data.y]) + 0.0]  # no -0
    train = {rows[n] for n in data.train}
    validation, test = (sum(rows[n] in train for n in part) for part in (data.validation, data.test))
    if validation or test:
        places = f"{validation} rows to validate and {test} to test stand among those to train as well"
        lines.append(f"Duplicates: {places}, which flatters the errors. Remove the copies.")
    if (count := len(data.test)) < FEW_ROWS:
        error = f"the errors are uncertain by {1 / math.sqrt(2 * count):.0%} or more"
        lines.append(f"Only {count} rows to test: {error}. Compare several --seed.")
    return lines


def _check_start(run: Run, prints: str) -> int:
    """Check that a run goes on with its own table, to a later step, and return the step where it stands."""
    if run.resumed is None:
        return 0
    if run.resumed.record.data != prints:
        rule = f"the table that the run was begun with, {run.resumed.record.table}"
        fix = "Name that table before --resume."
        refuse("convexmoe fit --resume", rule, "other rows or columns", fix)
    step = run.resumed.state.history.last_step
    if run.pause_at is not None and run.pause_at <= step:
        rule, fix = f"a step after {step}, where the run stands", "Leave it out to go on to the end."
        refuse("convexmoe fit --pause-at", rule, str(run.pause_at), fix)
    return step


def _train(run: Run, keeper: Keeper) -> Any:
    """Return what `fit` of the framework's package returns, for a new run or one that goes on."""
    data, plan = run.data, run.plan
    if run.resumed is None:
        config = HullConfig(len(data.columns), plan.petals, 1, depth=plan.depth, temperature="learned")
        state, model = None, run.framework.new_hull(config, plan.seed)
    else:
        state, model = run.resumed.state, run.resumed.state.model
    options = {"steps": plan.steps, "seed": plan.seed, "progress": True, "resume": state, "on_evaluation": keeper}
    held_out = data.rows(data.validation)
    try:
        return run.framework.package.fit(model, *data.rows(data.train), validation=held_out, **options)
    except FloatingPointError:
        raise InputError(
            f"{data.name}: expected training to converge; its loss became infinite. "
            "Remove the outliers of the table, or use fewer --depth."
        ) from None
    except KeyboardInterrupt:
        keeper.write()
        raise


def _measure(
    run: Run, fitted: Any, parts: tuple[dict[str, Any], ...], path: Path
) -> tuple[dict[str, Any], NDArray[np.float64], NDArray[np.float64]]:
    """Return the metrics of a fitted hull, its predictions for the test rows, and the importance of each column."""
    data, plan, framework, model = run.data, run.plan, run.framework, fitted.model
    train, validation, (x_test, y_test) = map(data.rows, (data.train, data.validation, data.test))
    predicted = framework.predict(model, x_test)
    size = sum(math.prod(shape) for shape in parameter_shapes(model.config).values())
    linear, linear_size = fit_linear(*train)
    mlp, mlp_size = fit_mlp(framework, *train, validation, num_parameters=size, steps=plan.steps, seed=plan.seed)
    growth = importance(framework, model, *validation, plan.seed)
    violation = framework.largest_violation(model, train[0], segments=SEGMENTS, seed=plan.seed)
    predictions = {"hull": predicted, "linear": linear(x_test), "mlp": mlp(x_test)}
    errors = {name: rmse(values, y_test) for name, values in predictions.items()}
    rounding = max(ROUNDING[0] * data.y.std(), ROUNDING[1] * np.abs(data.y).max())
    metrics = {
        "framework": framework.name,
        "parts": parts,
        "data": {
            "name": data.name,
            "target": data.target,
            "columns": list(data.columns),
            "rows": {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)},
        },
        "plan": asdict(plan),
        "best_step": int(fitted.best_step),
        "steps_run": fitted.history.last_step,
        "test_rmse": errors,
        "exact": [name for name, error in errors.items() if error <= rounding],
        "parameters": {"hull": size, "linear": linear_size, "mlp": mlp_size},
        "importance": dict(zip(data.columns, growth.tolist(), strict=True)),
        "convexity": {"segments": SEGMENTS, "violation": violation},
        "parity": compare_frameworks(framework, path, data.x),
    }
    return metrics, predicted, growth


def compare_frameworks(framework: Framework, path: Path, x: NDArray[np.float64]) -> dict[str, Any] | None:
    """Return how far the saved file's predictions differ in the other framework; None where that is not installed."""
    other = next((name for name in frameworks.installed() if name != framework.name), None)
    if other is None:
        return None
    there = frameworks.get(other)
    with there.quiet():
        theirs = there.predict(read_model(path, there)[0], x)
    ours = framework.predict(read_model(path, framework)[0], x)
    difference, largest = (float(np.abs(values).max()) for values in (ours - theirs, (ours, theirs)))
    return {"framework": other, "max_difference": difference / largest if difference else 0.0}
