"""The work of `convexmoe fit`: train, compare on folds, check, write."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convexmoe.errors import refuse
from convexmoe.files.atomic import write_whole
from convexmoe.hull import HullConfig
from convexmoe.hull.parameters import parameter_shapes
from convexmoe.training import fingerprint
from convexmoe.training.curvature import CONCAVE, CONVEX, NEITHER, Curvature
from convexmoe.training.shapes import AUTO

from .. import frameworks
from ..frameworks import Framework
from .baselines import fit_linear, fit_mlp
from .group_map import importance, map_groups, rmse
from .output import say, terminal
from .report import draw_report, print_results
from .resume import Keeper, Plan, RunRecord, Unfinished
from .saved_model import notes_of, read_model, reason_of
from .tables import MIN_ROWS, Table, check_varies, fill_gaps, require_columns, shorten

FOLDS = 5
MLP_HELD_OUT = 0.15  # of the rows that an MLP is fitted to: they choose its best step
SEGMENTS = 100_000
ROUNDING = 1e-10, 1e-13  # an error below these parts of the deviation, or of the size, of the target is none
FEW_ROWS = 30  # the RMSE of fewer is off by 13 % and more
_ID = re.compile(r"(?i:(.*[_ .-])?(id|uuid|guid)|index|unnamed: ?\d+|row([_ .-]?(no|nr|num|number))?)|.*[a-z0-9]I[dD]")


@dataclass(frozen=True)
class Dataset:
    """Numbers to learn from, and the folds that measure the errors.

    Attributes:
        name: of the table.
        columns: names of the inputs, in the order of `x`.
        target: name of the column to predict.
        x: `[N, in_dim]`; y: `[N]`.
        folds: indices of rows, disjoint, together all; each is tested by models that are fitted to the others.
        remarks: what was recognized, left out or filled, in sentences.
    """

    name: str
    columns: tuple[str, ...]
    target: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    folds: tuple[NDArray[np.int64], ...]
    remarks: tuple[str, ...]

    def rows(self, part: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return inputs and targets of some rows."""
        return self.x[part], self.y[part]

    def outside(self, fold: int) -> NDArray[np.int64]:
        """Return the rows of the other folds, in an order drawn by the seed."""
        return np.concatenate([*self.folds[fold + 1 :], *self.folds[:fold]])


@dataclass(frozen=True)
class Scores:
    """What the folds tell.

    Attributes:
        errors: the RMSE of each fold, by model; sizes: how many numbers each has that were trained.
        predicted: by the hull that was fitted without the row, `[N]`.
        importance: of each column for the hull, mean over the folds, `[in_dim]`.
    """

    errors: dict[str, list[float]]
    sizes: dict[str, int]
    predicted: NDArray[np.float64]
    importance: NDArray[np.float64]


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
        budget: seconds to choose a shape in, or None for that of the plan.
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
    budget: float | None


def prepare(table: Table, target: str, drop: Sequence[str], seed: int, missing: str | None = None) -> Dataset:
    """Return the checked numbers of a table, and folds of its rows.

    Rows with missing cells are refused, or with `missing` "drop" left out; "mean" fills them with means of their
    columns, and leaves out the rows without a target.

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
        filled = "" if missing == "drop" else ", the other cells filled with means of their columns"
        remarks += (f"Missing cells: {gaps}. Rows left out: {lacks.sum()}{filled}.",)
    if len(values) < MIN_ROWS:
        refuse(table.name, f"at least {MIN_ROWS} rows", str(len(values)), "Add rows.")
    if gaps:
        fill_gaps(values, names, table.name)
    check_varies(values, names, target, table.name)
    order = np.random.default_rng(seed).permutation(len(values))
    data = Dataset(
        table.name, columns, target, values[:, :-1], values[:, -1], tuple(np.array_split(order, FOLDS)), remarks
    )
    for fold in range(FOLDS):  # a column may be constant there, but not nearly so
        part = values[data.outside(fold)]
        varies = part.min(axis=0) < part.max(axis=0)
        where = f"{table.name}, without fold {fold + 1} of --seed {seed}"
        check_varies(part[:, varies], [name for name, moves in zip(names, varies, strict=True) if moves], target, where)
    return data


def run_fit(run: Run) -> int | None:
    """Train a hull on all rows, test on folds, write model.safetensors, metrics.json and report.png, print the results.

    Return the step at which the run paused, None where it came to its end.
    """
    data = run.data
    names = (*data.columns, data.target)
    prints = fingerprint(np.array(names), data.x, data.y)
    first_step = _check_start(run, prints)
    say(
        f"{data.name}: {data.target} from {shorten(data.columns)}; {len(data.y)} rows to train, and in "
        f"{FOLDS} folds to test. In {frameworks.LABELS[run.framework.name]}."
    )
    if run.resumed is not None:
        say(f"Going on from step {first_step} of {run.plan.steps}.")
    for line in (*data.remarks, *_remarks(data)):
        say(line)
    run, curvature = _choose_curvature(run)
    plan = run.plan
    earlier = () if run.resumed is None else run.resumed.record.parts
    parts = (*earlier, {"framework": run.framework.name, "from_step": first_step})
    record = RunRecord(plan, data.target, run.drop, data.name, prints, parts, curvature)
    notes = notes_of(data.columns, data.target, data.x, data.y) | {"curvature": plan.curvature}
    keeper = Keeper(run.framework, run.folder, notes, record, run.pause_at)
    fitted = _train(run, keeper)
    if keeper.paused and keeper.step < plan.steps:
        say(f"Stopped at step {keeper.step} of {plan.steps}: {run.folder}. {run.go_on}")
        return keeper.step
    keeper.write_where_long()
    path = run.directory / "model.safetensors"
    run.framework.package.save(fitted.model, path, notes=notes)
    scores = _cross_validate(run, replace(fitted.model.config, normalization=None))
    metrics = _measure(run, fitted, scores, record, path)
    try:
        text = json.dumps(metrics, indent=2, sort_keys=True, allow_nan=False)
    except ValueError:
        refuse(data.name, "finite results", "NaN or infinity", "Remove the outliers of the table.")
    write_whole(run.directory / "metrics.json", (text + "\n").encode())
    group_map = map_groups(run.framework, fitted.model, data.columns, scores.importance, data.x, data.y)
    group_map = replace(group_map, value=plan.sign * group_map.value)
    legend = draw_report(metrics, fitted.history, scores.predicted, group_map, run.directory / "report.png")
    print_results(metrics)
    if legend:
        say(f"No font is installed for some names; in report.png {legend}.")
    return None


def _remarks(data: Dataset) -> list[str]:
    """Return what should be known of the numbers before the results are believed: ids, duplicates, few rows."""
    lines, x = [], data.x
    whole = [bool((column == np.round(column)).all() and len(np.unique(column)) == len(x)) for column in x.T]
    is_id = np.array([found or _ID.fullmatch(name) for name, found in zip(data.columns, whole, strict=True)], bool)
    if ids := [name for name, found in zip(data.columns, is_id, strict=True) if found]:
        drops = " ".join(f"--drop {shlex.quote(name)}" for name in ids[:8])
        lines.append(f"Perhaps an id, by its name or its whole numbers, all different: {shorten(ids)}. If so: {drops}.")
    rows = [row.tobytes() for row in np.column_stack([x[:, ~is_id | is_id.all()], data.y]) + 0.0]  # no -0
    places: dict[bytes, int] = {}
    several = {
        rows[n] for fold, part in enumerate(data.folds) for n in part if places.setdefault(rows[n], fold) != fold
    }
    if twice := sum(row in several for row in rows):
        lines.append(f"Duplicates: {twice} rows stand in several folds, which flatters the errors. Remove the copies.")
    if (count := len(x)) < FEW_ROWS:
        error = f"the errors are uncertain by {1 / math.sqrt(2 * count):.0%} or more"
        lines.append(f"Only {count} rows: {error}. Compare several --seed.")
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


def _choose_curvature(run: Run) -> tuple[Run, Curvature]:
    """Return a run whose plan is of a convex or a concave target, and what the rows say of it; a new one asks them."""
    if run.resumed is not None:
        return run, run.resumed.record.curvature
    plan, data = run.plan, run.data
    with terminal().status("Comparing a convex with a concave function"):
        compare = run.framework.package.compare_curvature
        found = compare(_new_hull(run), data.x, data.y, steps=plan.steps, seed=plan.seed)
    taken, fix = plan.curvature, ""
    if taken == AUTO:
        taken = CONCAVE if found.shown == CONCAVE else CONVEX
        fix = f"; --curvature auto takes {taken}"
    elif found.shown not in (taken, NEITHER):
        fix = f"; pass --curvature {found.shown} or auto"
    speak = "neither a convex nor a concave" if found.shown == NEITHER else f"a {found.shown}"
    say(f"The rows speak for {speak} function: {found.words()}{fix}.")
    return replace(run, plan=replace(plan, curvature=taken)), found


def _new_hull(run: Run) -> Any:
    """Return the hull that a fit to all rows begins with."""
    plan = run.plan
    config = HullConfig(len(run.data.columns), plan.petals, 1, depth=plan.depth, temperature="learned")
    return run.framework.new_hull(config, plan.seed)


def _train(run: Run, keeper: Keeper) -> Any:
    """Return what `fit` of the framework's package returns for all rows, in a new run or one that goes on."""
    data, plan, state = run.data, run.plan, None if run.resumed is None else run.resumed.state
    model = _new_hull(run) if state is None else state.model
    options: dict[str, Any] = {"steps": plan.steps, "seed": plan.seed, "progress": True, "compare": False}
    if run.budget is None:
        options |= {"resume": state, "on_evaluation": keeper}
    else:
        options |= {"shape": AUTO, "budget": run.budget}
    try:
        return run.framework.package.fit(model, data.x, plan.sign * data.y, **options)
    except KeyboardInterrupt:
        keeper.write()
        raise
    except ValueError as error:
        if state is None:
            raise
        got = f"one that cannot go on ({reason_of(error)[:160]})"
        refuse("convexmoe fit --resume", f"an unfinished run in {run.folder}", got, "Begin again with --out.")


def _cross_validate(run: Run, config: HullConfig) -> Scores:
    """Fit a hull, linear regression and an MLP to the rows of all folds but one, and test them on it, for each fold."""
    data, plan, side = run.data, run.plan, run.framework
    errors: dict[str, list[float]] = {"hull": [], "linear": [], "mlp": []}
    predicted, growth, sizes = np.empty(len(data.y)), [], {}
    schedule: dict[str, Any] = {"steps": plan.steps, "seed": plan.seed}
    with terminal().status("") as status:
        for fold, test in enumerate(data.folds):
            status.update(f"Fold {fold + 1} of {len(data.folds)}")
            rest, (x, y) = data.outside(fold), data.rows(test)
            new, (x_rest, y_rest) = side.new_hull(config, plan.seed), data.rows(rest)
            hull = side.package.fit(new, x_rest, plan.sign * y_rest, **schedule, compare=False).model
            sizes["hull"] = sum(math.prod(shape) for shape in parameter_shapes(hull.config).values())
            linear, sizes["linear"] = fit_linear(x_rest, y_rest)
            held_out, learned = np.split(rest, [round(MLP_HELD_OUT * len(rest))])
            (x_mlp, y_mlp), chooses, size = data.rows(learned), data.rows(held_out), sizes["hull"]
            mlp, sizes["mlp"] = fit_mlp(side, x_mlp, y_mlp, chooses, num_parameters=size, **schedule)
            predicted[test] = plan.sign * side.predict(hull, x)
            for name, values in (("hull", predicted[test]), ("linear", linear(x)), ("mlp", mlp(x))):
                errors[name].append(rmse(values, y))
            growth.append(importance(side, hull, x, plan.sign * y, plan.seed))
    return Scores(errors, sizes, predicted, np.mean(growth, axis=0))


def _measure(run: Run, fitted: Any, scores: Scores, record: RunRecord, path: Path) -> dict[str, Any]:
    """Return the metrics of a hull fitted to all rows, and of the folds."""
    data, plan, framework = run.data, run.plan, run.framework
    violation = framework.largest_violation(fitted.model, data.x, segments=SEGMENTS, seed=plan.seed)
    mean = {name: float(np.mean(errors)) for name, errors in scores.errors.items()}
    rounding = max(ROUNDING[0] * data.y.std(), ROUNDING[1] * np.abs(data.y).max())
    hull = np.array(scores.errors["hull"])
    return {
        "framework": framework.name,
        "parts": record.parts,
        "data": {"name": data.name, "target": data.target, "columns": list(data.columns)},
        "rows": len(data.y),
        "folds": [len(fold) for fold in data.folds],
        "plan": asdict(plan),
        "curvature": {"fitted": plan.curvature} | record.curvature._asdict(),
        "shape": fitted.shape or None,
        "best_step": int(fitted.best_step),
        "steps_run": fitted.history.last_step,
        "test_rmse": mean,
        "test_rmse_spread": {name: float(np.std(errors, ddof=1)) for name, errors in scores.errors.items()},
        "test_rmse_folds": scores.errors,
        "hull_ahead": {name: int(np.sum(hull < scores.errors[name])) for name in ("linear", "mlp")},
        "exact": [name for name, error in mean.items() if error <= rounding],
        "parameters": scores.sizes,
        "importance": dict(zip(data.columns, scores.importance.tolist(), strict=True)),
        "convexity": {"segments": SEGMENTS, "violation": violation},
        "parity": compare_frameworks(framework, path, data.x),
    }


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
