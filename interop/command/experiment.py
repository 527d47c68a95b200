"""The work of `convexmoe fit`: train, compare on folds, check, write."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from functools import partial
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
from convexmoe.training.losses import SQUARED
from convexmoe.training.shapes import AUTO
from convexmoe.training.stream import Survey

from .. import frameworks
from ..frameworks import Framework
from . import report_rows
from .baselines import fit_baselines, reason_against_boosting, rows_to_learn
from .contradiction import LEVEL, ask_rows, explain_contradiction
from .dataset import Dataset, remarks_on
from .function import LEVEL_LOSSES, QUANTILE, Function
from .importance import importance, rmse
from .intervals import interval_notes, measure_intervals
from .output import say, shows_progress, terminal
from .pictures import draw_report, see_report
from .report import print_results
from .report_rows import ReportRows
from .resume import Keeper, Plan, RunRecord, Unfinished
from .saved_model import notes_of, read_model, reason_of
from .tables import shorten

SEGMENTS = 100_000
ROUNDING = 1e-10, 1e-13  # an error below these parts of the deviation, or of the size, of the target is none


@dataclass(frozen=True)
class Scores:
    """What the folds tell.

    Attributes:
        sizes: how many numbers each model has that were trained.
        predicted: by each model, fitted without the row, `[N]`.
        importance: of each column of the table for the hull, mean over the folds: of inputs, then of contexts.
        residuals: of each fold, target - hull, of the rows that count, `[n]`; none of a level, which no interval is
            around.
    """

    sizes: dict[str, int]
    predicted: dict[str, NDArray[np.float64]]
    importance: NDArray[np.float64]
    residuals: tuple[NDArray[np.float64], ...]


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


def run_fit(run: Run) -> int | None:
    """Train a hull on all rows, test on folds, write what is in `fit.FILES`, print the results.

    Return the step at which the run paused, None where it came to its end.
    """
    data = run.data
    names = (*data.columns, data.target)
    survey, weights = data.survey, () if data.weight is None else (data.weight,)
    passes = () if survey is None else (np.array([survey.rows, survey.checksum]),)
    prints = fingerprint(np.array(names), data.x, data.y, *weights, *passes)
    data.function.check_sign(data.name, data.target, float(np.average(data.y, weights=data.weight)), run.plan.curvature)
    first_step = _check_start(run, prints)
    rows = f"{len(data.y)} rows" if survey is None else f"{survey.counted:,} rows"
    say(
        f"{data.name}: {data.target} from {shorten(data.inputs)}{_beside(data.function)}; {rows} to train, "
        f"and {'' if survey is None else f'{len(data.y):,} '}in {len(data.folds)} folds to test. "
        f"In {frameworks.LABELS[run.framework.name]}."
    )
    if run.resumed is not None:
        say(f"Going on from step {first_step} of {run.plan.steps}.")
    learned = rows_to_learn(data, data.outside(0))[1]
    reason = reason_against_boosting(data.function.objective, len(learned))
    for line in (*data.remarks, *remarks_on(data), *([] if reason is None else [f"No boosted trees: {reason}."])):
        say(line)
    run, curvature = _choose_curvature(run)
    plan = run.plan
    earlier = () if run.resumed is None else run.resumed.record.parts
    parts = (*earlier, {"framework": run.framework.name, "from_step": first_step})
    record = RunRecord(plan, data.target, run.drop, data.name, prints, parts, curvature)
    notes = notes_of(data.columns, data.target, data.x, data.y, data.function, data.design)
    if survey is not None:
        notes |= ranges_of(survey)
    keeper = Keeper(run.framework, run.folder, notes, record, run.pause_at)
    fitted = _train(run, keeper)
    if keeper.paused and keeper.step < plan.steps:
        say(f"Stopped at step {keeper.step} of {plan.steps}: {run.folder}. {run.go_on}")
        return keeper.step
    keeper.write_where_long()
    path = run.directory / "model.safetensors"
    scores = _cross_validate(run, replace(fitted.model.config, normalization=None))
    if scores.residuals:
        notes |= interval_notes(np.concatenate(scores.residuals))
    asked = ask_rows(data, plan.curvature, plan.seed)
    if asked is not None and asked["p_value"] <= LEVEL:
        notes["contradiction"] = explain_contradiction(asked, plan.curvature)
    run.framework.package.save(fitted.model, path, notes=notes)
    metrics = _measure(run, fitted, scores, record, path) | {"convexity_test": asked}
    try:
        text = json.dumps(metrics, indent=2, sort_keys=True, allow_nan=False)
    except ValueError:
        refuse(data.name, "finite results", "NaN or infinity", "Remove the outliers of the table.")
    write_whole(run.directory / "metrics.json", (text + "\n").encode())
    kept = ReportRows.draw(data.x, data.y, scores.predicted, fitted.history, plan.seed)
    write_whole(run.directory / report_rows.FILE, kept.to_bytes())
    report = see_report(run.framework, fitted.model, metrics, kept, data.design)
    legend = draw_report(report, run.directory / "report.png")
    print_results(metrics)
    if legend:
        say(f"No font is installed for some names; in report.png {legend}.")
    return None


def _beside(function: Function) -> str:
    """Return in words what a hull learns by beside its inputs."""
    words = f", for each {shorten(function.context)}" if function.context else ""
    return words + (f", weighted by {shorten([function.weights])}" if function.weights is not None else "")


def _check_start(run: Run, prints: str) -> int:
    """Check that a run goes on with its own table, to a later step, and return the step where it stands."""
    if run.resumed is None:
        return 0
    if run.resumed.record.data != prints:
        rule = f"the table that the run was begun with, {run.resumed.record.table}"
        fix = "Name that table before --resume."
        refuse("convexmoe fit --resume", rule, "other rows or columns", fix)
    state = run.resumed.state
    if replace(state.model.config, normalization=None) != _config(run):
        got = "one of another hull, as an earlier version has for a concave target"
        refuse("convexmoe fit --resume", "an unfinished run of its own options", got, "Begin again with --out.")
    step = state.history.last_step
    if run.pause_at is not None and run.pause_at <= step:
        rule, fix = f"a step after {step}, where the run stands", "Leave it out to go on to the end."
        refuse("convexmoe fit --pause-at", rule, str(run.pause_at), fix)
    return step


def _choose_curvature(run: Run) -> tuple[Run, Curvature | None]:
    """Return a run whose plan is of a convex or a concave target, and what the rows say of it; a new one asks them.

    They are not asked where a level is fitted: what is compared are functions of the mean, without signs or weights.
    """
    if run.resumed is not None:
        return run, run.resumed.record.curvature
    plan, data = run.plan, run.data
    if data.function.loss in LEVEL_LOSSES:
        return run, None
    with terminal().status("Comparing a convex with a concave function"):
        config = replace(_config(run), monotone=None, nonnegative=False, curvature=CONVEX)
        new = run.framework.new_hull(config, plan.seed)
        counted = np.arange(len(data.y)) if data.weight is None else np.flatnonzero(data.weight)
        x, y, context = _split(data, counted)
        found = run.framework.package.compare_curvature(new, x, y, context, steps=plan.steps, seed=plan.seed)
    taken, fix = plan.curvature, ""
    if taken == AUTO:
        taken = CONCAVE if found.shown == CONCAVE else CONVEX
        fix = f"; --curvature auto takes {taken}"
    elif found.shown not in (taken, NEITHER):
        fix = f"; pass --curvature {found.shown} or auto"
    say(f"The rows speak for {found.words()}{fix}.")
    return replace(run, plan=replace(plan, curvature=taken)), found


def _config(run: Run) -> HullConfig:
    """Return the config of the hull that a fit to all rows begins with."""
    plan, function, inputs = run.plan, run.data.function, run.data.inputs
    return HullConfig(
        len(inputs),
        plan.petals,
        1,
        depth=plan.depth,
        temperature="learned",
        context_dim=run.data.context_dim,
        monotone=function.signs(inputs),
        curvature=CONVEX if plan.curvature == AUTO else plan.curvature,
        nonnegative=function.nonnegative,
    )


def ranges_of(survey: Survey) -> dict[str, Any]:
    """Return the notes of the ranges of all rows, in place of those of a sample."""
    of_x, of_y = survey.columns, survey.targets
    return {
        "ranges": np.stack([of_x.low, of_x.high], axis=1).tolist(),
        "target_range": [float(of_y.low[0]), float(of_y.high[0])],
    }


def _split(data: Dataset, part: Any) -> tuple[Any, Any, Any]:
    """Return inputs, targets and contexts (None without one) of some rows."""
    x, y = data.rows(part)
    return x[:, : len(data.inputs)], y, x[:, len(data.inputs) :] if data.context_dim else None


def _fit(run: Run, model: Any, part: Any, **options: Any) -> Any:
    """Return what `fit` of the framework's package returns for some rows, None for all of them."""
    data, plan = run.data, run.plan
    given: tuple[Any, ...]
    if part is None and data.stream is not None:
        given = data.stream, None, None, None, data.function.objective
    else:
        part = slice(None) if part is None else part
        given = *_split(data, part), data.weights(part), data.function.objective
    return run.framework.package.fit(model, *given, steps=plan.steps, seed=plan.seed, compare=False, **options)


def _train(run: Run, keeper: Keeper) -> Any:
    """Return what `fit` returns for all rows, in a new run or one that goes on."""
    state = None if run.resumed is None else run.resumed.state
    model = run.framework.new_hull(_config(run), run.plan.seed) if state is None else state.model
    options = {"resume": state, "on_evaluation": keeper}
    if run.budget is not None:
        options = {"shape": AUTO, "budget": run.budget}
    try:
        return _fit(run, model, None, progress=shows_progress(), **options)
    except KeyboardInterrupt:
        keeper.write()
        raise
    except ValueError as error:
        if state is None:
            raise
        got = f"one that cannot go on ({reason_of(error)[:160]})"
        refuse("convexmoe fit --resume", f"an unfinished run in {run.folder}", got, "Begin again with --out.")


def _cross_validate(run: Run, config: HullConfig) -> Scores:
    """Fit a hull and what it is compared with to the rows of all folds but one, and test them on it, for each fold."""
    data, plan, side, function = run.data, run.plan, run.framework, run.data.function
    predicted: dict[str, NDArray[np.float64]] = {}
    growth, sizes = [], {}
    with terminal().status("") as status:
        for fold, test in enumerate(data.folds):
            status.update(f"Fold {fold + 1} of {len(data.folds)}")
            rest, (x, y) = data.outside(fold), data.rows(test)
            hull = _fit(run, side.new_hull(config, plan.seed), rest).model
            sizes["hull"] = sum(math.prod(shape) for shape in parameter_shapes(hull.config).values())
            models: dict[str, Any] = {"hull": partial(side.predict, hull)}
            for name, (model, size) in fit_baselines(side, data, rest, sizes["hull"], plan.steps, plan.seed).items():
                models[name] = model
                sizes |= {} if size is None else {name: size}
            for name, model in models.items():
                predicted.setdefault(name, np.empty(len(data.y)))[test] = model(x)
            error = partial(function.measure, weight=data.weights(test))
            growth.append(importance(side, hull, x, y, plan.seed, error, data.design.groups))
    left, counts = data.y - predicted["hull"], np.ones(len(data.y), bool) if data.weight is None else data.weight > 0
    residuals = () if function.loss in LEVEL_LOSSES else tuple(left[fold[counts[fold]]] for fold in data.folds)
    return Scores(sizes, predicted, np.mean(growth, axis=0), residuals)


def _measure(run: Run, fitted: Any, scores: Scores, record: RunRecord, path: Path) -> dict[str, Any]:
    """Return the metrics of a hull fitted to all rows, and of the folds."""
    data, plan, framework = run.data, run.plan, run.framework
    violation = framework.largest_violation(fitted.model, data.x, segments=SEGMENTS, seed=plan.seed)
    rounding = max(ROUNDING[0] * data.y.std(), ROUNDING[1] * np.abs(data.y).max())
    by_square = _summarize("test_rmse", data, scores.predicted, rmse)
    by_loss = _summarize("test_loss", data, scores.predicted, data.function.measure)
    mean, folds = (by_loss[name] for name in ("test_loss", "test_loss_folds"))
    return {
        "framework": framework.name,
        "parts": record.parts,
        "data": {"name": data.name, "target": data.target, "columns": list(data.inputs)}
        | {"context": list(data.function.context), "weights": data.function.weights},
        "rows": len(data.y),
        "rows_to_train": len(data.y) if data.survey is None else data.survey.counted,
        "folds": [len(fold) for fold in data.folds],
        "plan": asdict(plan),
        "curvature": {"fitted": plan.curvature} | (record.curvature._asdict() if record.curvature else {}),
        "shape": fitted.shape or None,
        "shape_gain": fitted.gain if fitted.shape else None,
        "best_step": int(fitted.best_step),
        "steps_run": fitted.history.last_step,
        **by_square,
        **({} if data.function.loss == SQUARED else by_loss),
        "coverage": _coverage(data, scores.predicted) if data.function.loss == QUANTILE else None,
        "interval_coverage": measure_intervals(scores.residuals) if scores.residuals else None,
        "hull_ahead": {name: int(np.sum(np.less(folds["hull"], folds[name]))) for name in mean if name != "hull"},
        "exact": [name for name, error in mean.items() if error <= rounding],
        "parameters": scores.sizes,
        "importance": dict(zip(data.design.columns, scores.importance.tolist(), strict=True)),
        "convexity": {"segments": SEGMENTS, "violation": violation},
        "parity": compare_frameworks(framework, path, data.x),
    }


def _summarize(key: str, data: Dataset, predicted: dict[str, Any], error: Any) -> dict[str, dict[str, Any]]:
    """Return by name the mean error of each model over the folds, its deviation, and that of each fold."""
    folds = {
        name: [error(values[fold], data.y[fold], data.weights(fold)) for fold in data.folds]
        for name, values in predicted.items()
    }
    mean = {name: float(np.mean(errors)) for name, errors in folds.items()}
    spread = {name: float(np.std(errors, ddof=1)) for name, errors in folds.items()}
    return {key: mean, f"{key}_spread": spread, f"{key}_folds": folds}


def _coverage(data: Dataset, predicted: dict[str, Any]) -> dict[str, float | None]:
    """Return the level of a quantile, and for each model the share of held-out targets that lie at or below it."""
    shares = {name: float(np.average(data.y <= values, weights=data.weight)) for name, values in predicted.items()}
    return {"level": data.function.number} | shares


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
