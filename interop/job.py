"""The work of `convexmoe fit`: split, train, compare, check, write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from . import frameworks
from .baselines import fit_linear, fit_mlp
from .frameworks import Framework
from .group_map import importance, map_groups, rmse
from .report import LossCurves, Predictions, draw_report, print_results
from .saved import notes_of, read_model
from .tables import MIN_ROWS, InputError, Table, check_varies, require_columns, shorten
from .unfinished import Keeper, Unfinished, fingerprint

__all__ = ["Dataset", "Plan", "Run", "prepare", "run"]


SEGMENTS = 100_000


@dataclass(frozen=True)
class Dataset:
    """Numbers to learn from, and which rows serve for what.

    Attributes:
        name: of the table.
        columns: names of the inputs, in the order of `x`.
        target: name of the column to predict.
        x: `[N, in_dim]`; y: `[N]`.
        train, validation, test: indices of rows, disjoint, about 70, 15 and 15 % of them.
    """

    name: str
    columns: tuple[str, ...]
    target: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """How to train: the options of `convexmoe fit`."""

    petals: int
    depth: int
    steps: int
    seed: int


@dataclass(frozen=True)
class Run:
    """Where a run writes, and from where it goes on.

    Attributes:
        directory: for the results; folder: for what is needed to go on.
        drop: the columns left out.
        pause_at: the step to pause at, or None.
        resumed: the unfinished run that goes on, or None.
    """

    directory: Path
    folder: Path
    drop: tuple[str, ...]
    pause_at: int | None
    resumed: Unfinished | None


def prepare(table: Table, target: str, drop: Sequence[str], seed: int) -> Dataset:
    """Return the checked, split numbers of a table.

    Raises:
        InputError: an unknown column, too few rows, a cell that is no number, a column that does not vary.
    """
    require_columns(table, [target], "convexmoe fit --target")
    require_columns(table, drop, "convexmoe fit --drop")
    columns = tuple(name for name in table.columns if name != target and name not in drop)
    if target in drop:
        raise InputError(
            f"convexmoe fit --drop: expected columns other than the target; got {target!r}. Leave --drop {target} out."
        )
    if not columns:
        raise InputError(
            f"{table.name}: expected at least one input column beside the target {target!r}; "
            f"got the columns {shorten(table.columns)}. Add a column of inputs."
        )
    if len(table.rows) < MIN_ROWS:
        raise InputError(f"{table.name}: expected at least {MIN_ROWS} rows; got {len(table.rows)}. Add rows.")
    y = table.numbers([target], may_drop=False)
    x = table.numbers(columns)
    names, values = (*columns, target), np.hstack([x, y])
    check_varies(values, names, target, table.name)
    order = np.random.default_rng(seed).permutation(len(x))
    held_out = round(0.15 * len(x))
    validation, test, train = np.split(order, [held_out, 2 * held_out])
    where = f"{table.name}, the {len(train)} rows that --seed {seed} chose for training"
    check_varies(values[train], names, target, where)
    return Dataset(table.name, columns, target, x, y[:, 0], train, validation, test)


def run(data: Dataset, framework: Framework, plan: Plan, place: Run, console: Console) -> int | None:
    """Train a hull and its baselines, write model.safetensors, metrics.json and report.png, print the results.

    Returns:
        The step at which the run paused, None where it came to its end.
    """
    names = (*data.columns, data.target)
    prints = fingerprint(names, data.x, data.y, data.train, data.validation, data.test)
    if place.resumed is not None and place.resumed.data != prints:
        raise InputError(
            f"convexmoe fit --resume: expected the table that the run was begun with, {place.resumed.table}; got other "
            "rows or columns. Name that table before --resume."
        )
    begun_at = 0 if place.resumed is None else place.resumed.state.history.step[-1]
    if place.pause_at is not None and place.pause_at <= begun_at:
        raise InputError(
            f"convexmoe fit --pause-at: expected a step after {begun_at}, where the run stands; got {place.pause_at}. "
            "Leave it out to go on to the end."
        )
    x_train, y_train = data.x[data.train], data.y[data.train]
    x_test, y_test = data.x[data.test], data.y[data.test]
    validation = (data.x[data.validation], data.y[data.validation])
    label = frameworks.LABELS[framework.name]
    console.print(
        f"{data.name}: {data.target} from {shorten(data.columns)}; rows: {len(data.train)} to train, "
        f"{len(data.validation)} to validate, {len(data.test)} to test. In {label}.",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    options: dict[str, Any] = {"steps": plan.steps, "seed": plan.seed, "progress": True}
    parts = [{"framework": framework.name, "from_step": 0}]
    if place.resumed is not None:
        model = place.resumed.state.model
        parts = [*place.resumed.parts, {"framework": framework.name, "from_step": begun_at}]
        options["resume"] = place.resumed.state
        console.print(f"Going on from step {begun_at} of {plan.steps}.", highlight=False)
    else:
        model = framework.hull(
            plan.seed,
            in_dim=len(data.columns),
            petals=plan.petals,
            out_dim=1,
            depth=plan.depth,
            temperature="learned",
        )
    notes = notes_of(data.columns, data.target, x_train)
    begun = {
        "plan": asdict(plan),
        "target": data.target,
        "drop": list(place.drop),
        "table": data.name,
        "data": prints,
        "parts": parts,
    }
    keeper = Keeper(framework, place.folder, notes, begun, place.pause_at)
    try:
        fitted = framework.package.fit(
            model, x_train, y_train, validation=validation, on_evaluation=keeper, **options
        )
    except FloatingPointError:
        raise InputError(
            f"{data.name}: expected training to converge; its loss became infinite. "
            "Remove the outliers of the table, or use fewer --depth."
        ) from None
    except KeyboardInterrupt:
        keeper.write()
        raise
    if keeper.paused and keeper.step < plan.steps:
        _say_paused(keeper.step, plan, place, console)
        return keeper.step
    keeper.write_where_long()
    predicted = framework.predict(fitted.model, x_test)
    size = framework.num_parameters(fitted.model)
    linear = fit_linear(x_train, y_train)
    mlp = fit_mlp(
        framework, x_train, y_train, validation, num_parameters=size, steps=plan.steps, seed=plan.seed
    )
    growth = importance(framework, fitted.model, *validation, plan.seed)
    group_map = map_groups(framework, fitted.model, data.columns, growth, data.x, x_test, y_test)
    errors = {
        "hull": rmse(predicted, y_test),
        "linear": rmse(linear.predict(x_test), y_test),
        "mlp": rmse(mlp.predict(x_test), y_test),
    }
    path = place.directory / "model.safetensors"
    framework.package.save(fitted.model, path, notes=notes)
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
        "steps_run": int(fitted.history.step[-1]),
        "test_rmse": errors,
        "parameters": {"hull": size, "linear": linear.num_parameters, "mlp": mlp.num_parameters},
        "importance": dict(zip(data.columns, growth.tolist(), strict=True)),
        "convexity": _convexity(framework, fitted.model, data.x[data.train], plan.seed),
        "parity": _parity(framework, path, data.x),
    }
    try:
        text = json.dumps(metrics, indent=2, sort_keys=True, allow_nan=False)
    except ValueError:
        raise InputError(
            f"{data.name}: expected finite results; got NaN or infinity. Remove the outliers of the table."
        ) from None
    (place.directory / "metrics.json").write_text(text + "\n", encoding="utf-8")
    history = fitted.history
    curves = LossCurves(history.step, history.train_loss, history.validation_loss, int(fitted.best_step))
    predictions = Predictions(data.target, y_test, predicted, errors["hull"])
    draw_report(curves, predictions, group_map, place.directory / "report.png")
    print_results(metrics, console)
    return None


def _say_paused(step: int, plan: Plan, place: Run, console: Console) -> None:
    """Print where a run stands and how it goes on."""
    console.print(
        f"Stopped at step {step} of {plan.steps}: {place.folder}. "
        f"Go on, in either framework: convexmoe fit --resume {place.folder.parent}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def _convexity(framework: Framework, model: Any, x: NDArray[np.float64], seed: int) -> dict[str, Any]:
    """Return the outcome of a search for a segment on which the model lies above its chord."""
    found = framework.largest_violation(model, x, segments=SEGMENTS, seed=seed)
    return {"segments": SEGMENTS, "violation": found}


def _parity(framework: Framework, path: Path, x: NDArray[np.float64]) -> dict[str, Any] | None:
    """Return how far the saved file's predictions differ in the other framework; None where that is not installed."""
    others = [name for name in frameworks.installed() if name != framework.name]
    if not others:
        return None
    there = frameworks.get(others[0])
    with there.quiet():
        theirs = read_model(path, there).predict(x)
    ours = read_model(path, framework).predict(x)
    difference, largest = float(np.abs(ours - theirs).max()), float(np.abs(ours).max())
    return {"framework": others[0], "max_difference": difference / largest if difference else 0.0}
