"""`convexmoe fit`: its options, the checks of them, and how a run begins, goes on and ends."""

from __future__ import annotations

import json
import math
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from convexmoe.errors import InputError, refuse
from convexmoe.training.losses import SQUARED
from convexmoe.training.shapes import AUTO

from .. import frameworks
from . import report_rows
from . import resume as unfinished
from .dataset import prepare
from .design import DROP, INDICATOR, MEAN, MISSING
from .experiment import Run, run_fit
from .function import LOSSES, read_curvature, read_function
from .options import (
    DecimalOption,
    EncodingOption,
    FrameworkOption,
    SepOption,
    SheetOption,
    check_table_options,
    check_whole_number,
)
from .output import claim, conclude, say, write_together
from .resume import LIMITS, Plan
from .subcommand import SPEECH
from .tables import EMBEDDED_TARGET, embedded_table, read_table, shorten

FILES = ("model.safetensors", "metrics.json", "report.png", report_rows.FILE)
DATA_HELP = "CSV, Parquet or Excel; without it, embedded data."
RESUME_HELP = "Go on with the unfinished run of a directory."
PAUSE_HELP = "Stop at a step, to be resumed."
# What a run keeps of its options: none of them is given again beside --resume.
KEPT = (
    *("target", "petals", "depth", "steps", "seed", "out", "drop", "curvature", "concave", "shape", "budget"),
    *("context", "categorical", "increasing", "decreasing", "nonnegative", "loss", "level", "delta", "weights"),
)
MISSING_HELP = "drop the rows, mean, or indicator."
CATEGORICAL_HELP = "Context columns whose cells are categories."
DROP_HELP = "Columns to leave out."
CURVATURE_HELP = "convex, concave or auto."
SHAPE_HELP = "auto tries shapes and rates on rows held out."
CONCAVE_HELP = "As --curvature concave."
CONTEXT_HELP = "Columns in which nothing is assumed."
INCREASING_HELP, DECREASING_HELP = "Columns along which it rises.", "Along which it falls."
NONNEGATIVE_HELP = "It is >= 0; a concave one <= 0."
LOSS_HELP = f"{', '.join(LOSSES)}."
LEVEL_HELP, DELTA_HELP = "Of --loss quantile or expectile, 0 to 1.", "Of --loss huber, in units of the target."
WEIGHTS_HELP = "Column that says how much each row counts."
BUDGET_HELP, SECONDS = "Seconds for --shape auto.", 60.0


def fit_table(
    call: typer.Context,
    data: Annotated[Path | None, typer.Argument(metavar="DATA.csv", help=DATA_HELP, show_default=False)] = None,
    target: Annotated[str | None, typer.Option(help="Column to predict.", show_default="mpg, of the embedded")] = None,
    framework: FrameworkOption = None,
    petals: Annotated[int, typer.Option(help="Convex networks in the hull.")] = LIMITS["petals"][2],
    depth: Annotated[int, typer.Option(help="Hidden layers of each.")] = LIMITS["depth"][2],
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = LIMITS["steps"][2],
    seed: Annotated[int, typer.Option(help="Of folds, weights and batches.")] = LIMITS["seed"][2],
    out: Annotated[
        Path | None, typer.Option(help="Directory to write to.", show_default="a new ./convexmoe-fit")
    ] = None,
    drop: Annotated[list[str] | None, typer.Option(help=DROP_HELP, show_default=False)] = None,
    context: Annotated[list[str] | None, typer.Option(help=CONTEXT_HELP, show_default=False)] = None,
    categorical: Annotated[list[str] | None, typer.Option(help=CATEGORICAL_HELP, show_default=False)] = None,
    increasing: Annotated[list[str] | None, typer.Option(help=INCREASING_HELP, show_default=False)] = None,
    decreasing: Annotated[list[str] | None, typer.Option(help=DECREASING_HELP, show_default=False)] = None,
    curvature: Annotated[str | None, typer.Option(help=CURVATURE_HELP, show_default="convex")] = None,
    concave: Annotated[bool, typer.Option("--concave", help=CONCAVE_HELP)] = False,
    nonnegative: Annotated[bool, typer.Option("--nonnegative", help=NONNEGATIVE_HELP)] = False,
    loss: Annotated[str, typer.Option(help=LOSS_HELP)] = SQUARED,
    level: Annotated[float | None, typer.Option(help=LEVEL_HELP, show_default=False)] = None,
    delta: Annotated[float | None, typer.Option(help=DELTA_HELP, show_default=False)] = None,
    weights: Annotated[str | None, typer.Option(help=WEIGHTS_HELP, show_default=False)] = None,
    shape: Annotated[str | None, typer.Option(help=SHAPE_HELP, show_default=False)] = None,
    budget: Annotated[float | None, typer.Option(help=BUDGET_HELP, show_default=f"{SECONDS:g}")] = None,
    missing: Annotated[str | None, typer.Option(help=MISSING_HELP, show_default="refused")] = None,
    sep: SepOption = None,
    decimal: DecimalOption = None,
    encoding: EncodingOption = None,
    sheet: SheetOption = None,
    pause_at: Annotated[int | None, typer.Option(help=PAUSE_HELP, show_default=False)] = None,
    resume: Annotated[Path | None, typer.Option(metavar="DIR", help=RESUME_HELP, show_default=False)] = None,
) -> None:
    """Fit a hull, a convex mixture of experts, to a table: writes model.safetensors, metrics.json and report.png."""
    for name in KEPT if resume is not None else ():
        if getattr(call.get_parameter_source(name), "name", None) == "COMMANDLINE":  # the run itself has set it
            got, fix = f"--{name} beside it", f"Leave --{name} out."
            refuse("convexmoe fit --resume", "the options of the run itself", got, fix)
    lists = {"context": context, "categorical": categorical, "increasing": increasing, "decreasing": decreasing}
    function = read_function(lists, nonnegative, loss, level, delta, weights)
    plan = Plan(petals, depth, steps, seed, read_curvature(curvature, concave, function), function)
    dropped = tuple(drop or ())
    for name, limits in LIMITS.items():
        check_whole_number("fit", name, getattr(plan, name), *limits)
    if pause_at is not None:
        check_whole_number("fit", "pause-at", pause_at, 1, 10**7, 1000)
    seconds = check_choices(shape, budget, pause_at)
    if missing not in (None, DROP, MEAN, INDICATOR):
        refuse(MISSING, "drop, mean or indicator", repr(missing), "Try --missing drop.")
    side, earlier = frameworks.choose(framework), None
    options = check_table_options("convexmoe fit", sep, decimal, encoding, sheet)
    if not frameworks.is_installed("matplotlib"):
        frameworks.not_installed("convexmoe fit", "matplotlib for report.png", "it", "plot")
    if resume is not None:
        with side.quiet():
            earlier = unfinished.read(resume, side)
        record, out = earlier.record, resume
        plan, target, dropped = record.plan, record.target, record.drop
        if data is None and record.table != embedded_table().name:
            fix = f"Name it: {shlex.join(['convexmoe', 'fit', record.table, '--resume', str(resume)])}."
            refuse("convexmoe fit --resume", "the table that the run was begun with", "none", fix)
    if data is None:
        target = target or EMBEDDED_TARGET
    table = embedded_table(options) if data is None else read_table(data, options)
    if target is None:
        fix = f"Choose one of {shorten(table.columns)}: for example --target {table.columns[-1]}."
        refuse("convexmoe fit --target", "the column to predict", "none", fix)
    dataset = prepare(table, target, dropped, plan.seed, missing, plan.function)
    if seconds is not None and dataset.stream is not None:
        fix = "Leave --shape out: choose a shape by a part of the table first."
        refuse("convexmoe fit --shape", "a table that is in memory", f"{table.name}, which is read in pieces", fix)
    plan = replace(plan, function=dataset.function)
    with claim(out) as place, side.quiet():
        folder = place / unfinished.FOLDER
        unfinished.check_folder(place, resume is not None)
        command = resume_command(call, data, place)
        go_on = f"Go on, in either framework: {command}"
        with write_together(place, FILES) as staging:
            run = Run(dataset, side, plan, staging, folder, dropped, go_on, pause_at, earlier, seconds)
            if (step := _run(run, place)) is not None:
                conclude({"out": place, "paused_at": step, "go_on": command})
                return
        shutil.rmtree(folder, ignore_errors=True)
    say(f"Written to {place}: {', '.join(FILES)}")
    say(f"One page to show of it: {shlex.join(['convexmoe', 'report', str(place), '--html'])}")
    conclude({"out": place, "files": FILES, "metrics": json.loads((place / "metrics.json").read_text())})


def check_choices(shape: str | None, budget: float | None, pause_at: int | None) -> float | None:
    """Return the seconds to choose a shape in, None for no choice, after checks of the options of what rows choose."""
    if shape not in (None, AUTO):
        refuse("convexmoe fit --shape", "auto", repr(shape), "Leave it out for --petals and --depth.")
    if shape is None:
        if budget is not None:
            refuse("convexmoe fit --budget", "--shape auto, which it is for", "none", "Add --shape auto.")
        return None
    if pause_at is not None:
        refuse("convexmoe fit --shape", "a run that is not paused", "--pause-at beside it", "Leave one of them out.")
    seconds = SECONDS if budget is None else budget
    if not 0 < seconds < math.inf:
        refuse("convexmoe fit --budget", "a finite number of seconds above 0", f"{seconds:g}", "Try --budget 60.")
    return seconds


def resume_command(call: typer.Context, data: Path | None, out: Path) -> str:
    """Return the command that goes on with a run: its table, the options of which it keeps nothing, its directory."""
    words = [] if data is None else [f"./{data}" if str(data).startswith("-") else str(data)]
    again = {*KEPT, *SPEECH, "data", "framework", "pause_at", "resume"}
    for option in call.command.params:
        name = option.name or ""
        if name not in again and getattr(call.get_parameter_source(name), "name", None) == "COMMANDLINE":
            words += [option.opts[0], str(call.params[name])]
    return shlex.join(["convexmoe", "fit", *words, "--resume", str(out)])


def _run(run: Run, out: Path) -> int | None:
    """Fit, and say how to go on where that is interrupted."""
    try:
        return run_fit(run)
    except KeyboardInterrupt:
        when = "Before the first evaluation" if run.budget is None else "With --shape"
        nothing = f"{when} there is nothing to go on from."
        say(f"Stopped. {run.go_on if unfinished.exists(out) else nothing}")
        raise
    except (InputError, FloatingPointError) as error:  # nothing to go on from; what stood there before stays
        if run.resumed is None:
            unfinished.remove(out)
        if isinstance(error, FloatingPointError):
            rule, fix = "training to converge", "Remove the outliers of the table, or use fewer --depth."
            raise InputError(f"{run.data.name}: expected {rule}; its loss became infinite. {fix}") from None
        raise
