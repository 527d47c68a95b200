"""The options of the `convexmoe` subcommands, the checks of them, and errors in one line."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from typer.core import TyperGroup

from . import conversion, frameworks, inspection, job, unfinished
from .saved import read_model
from .tables import EMBEDDED_TARGET, InputError, Table, embedded_table, read_table, require_columns, shorten
from .writing import new_directory, written_beside, written_together

__all__ = ["app"]

BAD_INPUT = 2


class OneLineErrors(TyperGroup):
    """A command group that reports every fault of the input as one line on stderr, with exit code 2."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command; in standalone mode end the process, as a command does."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except InputError as error:
            message = str(error)
        except OSError as error:
            message = (
                f"convexmoe: expected files to be read and written; got {error}. Check disk and permissions."
            )
        except typer.Abort:
            raise SystemExit(130) from None
        except Exception as error:
            if not hasattr(error, "format_message"):  # not a usage error: our fault, shown in full
                raise
            message = (
                f"convexmoe: {error.format_message().rstrip('.')}. Run convexmoe --help for the options."
            )
        else:
            raise SystemExit(code if isinstance(code, int) else 0)
        typer.echo(" ".join(message.split()), err=True)
        raise SystemExit(BAD_INPUT)


app = typer.Typer(
    cls=OneLineErrors,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def start(context: typer.Context) -> None:
    """Convex mixtures of experts: fit one to a table of numbers, predict from the saved file."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def fit(
    context: typer.Context,
    data: Annotated[
        Path | None,
        typer.Argument(
            metavar="DATA.csv",
            help="Table to learn from; without it, the embedded Auto MPG data.",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Column to predict.", show_default="mpg for the embedded data")
    ] = None,
    framework: Annotated[
        str | None, typer.Option(help="jax or torch.", show_default="jax where installed, else torch")
    ] = None,
    petals: Annotated[int, typer.Option(help="Convex networks in the mixture.")] = 8,
    depth: Annotated[int, typer.Option(help="Hidden layers of each.")] = 1,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of the split, the weights and the batches.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Directory to write to.", show_default="a new ./convexmoe-fit")
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option(help="Column to leave out; may be repeated.", show_default=False)
    ] = None,
    pause_at: Annotated[
        int | None,
        typer.Option(
            help="Stop at the first evaluation from this step on, to be resumed.", show_default=False
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Go on with the unfinished run of this directory.", show_default=False
        ),
    ] = None,
) -> None:
    """Fit a convex mixture of experts to a table: writes model.safetensors, metrics.json and report.png."""
    if resume is not None:
        _check_resumable(context)
    usual = {"petals": (petals, 8), "depth": (depth, 1), "steps": (steps, 2000), "seed": (seed, 0)}
    checked = {name: (value, *unfinished.LIMITS[name], good) for name, (value, good) in usual.items()}
    _check_whole_numbers(checked | ({} if pause_at is None else {"pause-at": (pause_at, 1, 10**7, 1000)}))
    chosen = frameworks.choose(framework)
    if not frameworks.is_installed("matplotlib"):
        raise InputError(
            "convexmoe fit: expected matplotlib for report.png; it is not installed. "
            'Run: pip install "convexmoe[plot]".'
        )
    plan = job.Plan(petals=petals, depth=depth, steps=steps, seed=seed)
    dropped, begun = tuple(drop or ()), None
    if resume is not None:
        with chosen.quiet():
            begun = unfinished.read(resume, chosen)
        plan, target, dropped, out = job.Plan(**begun.plan), begun.target, begun.drop, resume
    if begun is not None and data is None and begun.table != embedded_table().name:
        raise InputError(
            f"convexmoe fit --resume: expected the table that the run was begun with; got none. "
            f"Name it: convexmoe fit {begun.table} --resume {resume}."
        )
    table, predicted = _table_and_target(data, target)
    dataset = job.prepare(table, predicted, dropped, plan.seed)
    out = new_directory("convexmoe-fit") if out is None else out
    folder = unfinished.folder_of(out)
    if resume is None and unfinished.is_there(out):
        raise InputError(
            f"convexmoe fit --out: expected a directory without an unfinished run; got {out}. "
            f"Go on with --resume {out}, or remove {folder}."
        )
    console = Console()
    try:
        with written_together(out) as staging, chosen.quiet():
            place = job.Run(staging, folder, dropped, pause_at, begun)
            if job.run(dataset, chosen, plan, place, console) is not None:
                return
    except KeyboardInterrupt:
        found = f"Go on, in either framework: convexmoe fit --resume {out}"
        nothing = "Before the first evaluation there is nothing to go on from."
        text = f"Stopped. {found if unfinished.is_there(out) else nothing}"
        console.print(text, soft_wrap=True, highlight=False, markup=False)
        raise
    except InputError:  # nothing to go on from; what stood there before stays
        if begun is None:
            unfinished.remove(out)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    console.print(
        f"Written to {out}: model.safetensors, metrics.json, report.png",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


@app.command()
def predict(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL", help="A model.safetensors that `convexmoe fit` wrote.", show_default=False
        ),
    ],
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA.csv",
            help="Table with the model's input columns; others are ignored.",
            show_default=False,
        ),
    ],
    framework: Annotated[
        str | None, typer.Option(help="jax or torch.", show_default="jax where installed, else torch")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="CSV file to write.", show_default="the terminal")] = None,
) -> None:
    """Predict a row for each row of a table, from a saved model: a CSV with the column predicted_<target>."""
    chosen = frameworks.choose(framework)
    with chosen.quiet():
        saved = read_model(model, chosen)
    table = read_table(data)
    require_columns(table, saved.columns, "convexmoe predict")
    if not table.rows:
        raise InputError(f"{table.name}: expected at least one row under the header; got none. Add rows.")
    inputs = table.numbers(saved.columns, may_drop=False)
    with chosen.quiet():
        predictions = saved.predict(inputs)
    if not np.isfinite(predictions).all():
        line = table.lines[int(np.flatnonzero(~np.isfinite(predictions))[0])]
        raise InputError(
            f"{table.name}: expected inputs near those of the fitted table; got values on line {line} that overflow. "
            "Correct that row."
        )
    lines = [f"{value:.9g}" for value in predictions]
    if out is None:
        typer.echo("\n".join([_cell(f"predicted_{saved.target}"), *lines]))
        return
    for other in (data, model):
        if out.exists() and other.exists() and out.samefile(other):
            raise InputError(
                f"convexmoe predict --out: expected a file of its own; got {out}, which is an input. Name another file."
            )
    with written_beside(out) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [[f"predicted_{saved.target}"], *([line] for line in lines)]
        )
    typer.echo(f"{len(lines)} predictions written to {out}", err=True)


@app.command("inspect")
def inspect_file(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A file that `save` or `convexmoe fit` wrote.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a saved model is: config, names, shapes, dtypes, sizes. Reads no weights and needs no framework."""
    found = inspection.inspect(file)
    if as_json:
        typer.echo(found.to_json())
    else:
        inspection.show(found, Console())


@app.command("verify")
def verify_files(
    first: Annotated[Path, typer.Argument(metavar="A", help="A saved model; it runs in JAX.")],
    second: Annotated[
        Path | None,
        typer.Argument(metavar="[B]", help="Another one; it runs in PyTorch.", show_default="A itself"),
    ] = None,
    rows: Annotated[int, typer.Option(help="Random rows to compare on.")] = 16,
    steps: Annotated[int, typer.Option(help="Steps of Adam whose losses are compared.")] = 20,
    seed: Annotated[int, typer.Option(help="Of the rows and routes.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare a saved model in JAX and in PyTorch: outputs, gradients, Hessians, a short run. Exit code 1 on a miss."""
    _check_whole_numbers(
        {"rows": (rows, 1, 10**4, 16), "steps": (steps, 0, 10**4, 20), "seed": (seed, 0, 2**31 - 1, 0)},
        "convexmoe verify",
    )
    missing = [name for name in frameworks.LABELS if name not in frameworks.installed()]
    if missing:
        raise InputError(
            f"convexmoe verify: expected JAX and PyTorch; {frameworks.LABELS[missing[0]]} is not installed. "
            'Run: pip install "convexmoe[interop]".'
        )
    from . import verify

    report = verify.verify(first, first if second is None else second, rows=rows, steps=steps, seed=seed)
    if as_json:
        typer.echo(report.to_json())
    else:
        verify.show(report, Console())
    if not report.ok:
        raise typer.Exit(1)


@app.command("certify")
def certify_file(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A saved hull.")],
    framework: Annotated[
        str | None, typer.Option(help="jax or torch.", show_default="jax where installed, else torch")
    ] = None,
    strength: Annotated[
        str | None,
        typer.Option(
            help="structural (any parameters) or numeric (these).", show_default="the first that proves it"
        ),
    ] = None,
    proof: Annotated[bool, typer.Option("--proof", help="Print the proof as a tree.")] = False,
) -> None:
    """Prove that a saved hull is convex; writes MODEL.certificate.json beside it. Exit code 1 without a proof."""
    chosen = frameworks.choose(framework)
    if strength not in (None, "structural", "numeric"):
        raise InputError(
            f"convexmoe certify --strength: expected structural or numeric; got {strength!r}. Leave it out for both."
        )
    from . import certification

    with chosen.quiet():
        done = certification.certify(model, chosen, strength)
    certification.show(done, Console(), proof)
    if done.certificate.verdict != "proved":
        raise typer.Exit(1)


@app.command("minimize")
def minimize_file(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A saved hull.")],
    box: Annotated[
        list[str] | None,
        typer.Option(
            help='Bounds of a column, as "0<=weight<=4", "weight>=0" or "weight=3"; may be repeated.',
            show_default="the range it was trained on",
        ),
    ] = None,
    tol: Annotated[float, typer.Option(help="Of the gap, relative to the value.")] = 1e-6,
    output: Annotated[
        int | None, typer.Option(help="Which output, counted from 0.", show_default="the only one")
    ] = None,
    framework: Annotated[
        str | None, typer.Option(help="jax or torch.", show_default="jax where installed, else torch")
    ] = None,
) -> None:
    """Minimise a saved hull over a box: prints the point, the value, the certified gap, and what binds."""
    if not 0 < tol <= 1:
        raise InputError(
            f"convexmoe minimize --tol: expected a number in (0, 1]; got {tol:g}. Try --tol 1e-6."
        )
    chosen = frameworks.choose(framework)
    from . import minimization

    with chosen.quiet(), Console(stderr=True).status(f"Minimising in {frameworks.LABELS[chosen.name]}"):
        found = minimization.minimize(model, chosen, box or (), tol, output)
    minimization.show(found, Console())
    if not found.certified:
        raise typer.Exit(1)


@app.command("convert")
def convert_file(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A saved model in any of the three forms.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="File or, for Orbax, directory to write.")],
    to: Annotated[
        str | None,
        typer.Option(help="neutral, torch or orbax.", show_default="from neutral torch, else neutral"),
    ] = None,
) -> None:
    """Convert a saved model: neutral file, PyTorch state_dict (safetensors), Orbax directory."""
    done = conversion.convert(source, target, to)
    typer.echo(f"{target}: {done.form}{', without its optimizer' if done.dropped else ''}", err=True)


def _check_resumable(context: typer.Context) -> None:
    """Check that no option is given that the unfinished run has set already."""
    for name in ("target", "petals", "depth", "steps", "seed", "out", "drop"):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise InputError(
                f"convexmoe fit --resume: expected the options of the run itself; got --{name} beside it. "
                f"Leave --{name} out."
            )


def _check_whole_numbers(
    options: dict[str, tuple[int, int, int, int]], command: str = "convexmoe fit"
) -> None:
    for name, (value, least, most, usual) in options.items():
        if not least <= value <= most:
            raise InputError(
                f"{command} --{name}: expected a whole number from {least} to {most}; got {value}. "
                f"Try --{name} {usual}."
            )


def _table_and_target(data: Path | None, target: str | None) -> tuple[Table, str]:
    if data is None:
        return embedded_table(), target or EMBEDDED_TARGET
    table = read_table(data)
    if target is None:
        raise InputError(
            f"convexmoe fit --target: expected the column to predict; got none. "
            f"Choose one of {shorten(table.columns)}: for example --target {table.columns[-1]}."
        )
    return table, target


def _cell(text: str) -> str:
    quoted = text.replace('"', '""')
    return f'"{quoted}"' if any(mark in text for mark in ',"\r\n') else text
