"""The `convexmoe` command: its subcommands, and errors in one line."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from convexmoe.errors import InputError, printable

from .certify import certify_file
from .convert import convert_file
from .doctor import check_installation, version_of
from .fit import fit_table
from .inspect import inspect_file
from .minimize import minimize_file
from .output import emit, say
from .predict import predict_rows
from .render import render_run
from .subcommand import add_subcommand, write_lines
from .verify import verify_files

GROUPS = {  # of the options of `fit`
    "Table": ("data", "target", "drop", "weights", "missing", "sep", "decimal", "encoding", "sheet"),
    "Function": ("context", "categorical", "increasing", "decreasing", "curvature", "concave", "nonnegative"),
    "Loss": ("loss", "level", "delta"),
    "Training": ("petals", "depth", "shape", "budget", "steps", "seed", "framework"),
    "Run": ("out", "pause_at", "resume"),
}
EXIT_CODES = (
    "0    done",
    "1    done, but what was checked does not hold, as of verify, certify, doctor",
    "2    an option, a table or a file is at fault: one line on stderr",
    "130  interrupted",
)


class OneLineErrors(TyperGroup):
    """A command group that reports every fault of the input as one line on stderr, with exit code 2."""

    def main(self, *args: Any, standalone_mode: bool = True, **options: Any) -> Any:
        """Run the command; in standalone mode end the process, as a command does."""
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **options)  # type: ignore[misc]
        try:
            code = super().main(*args, standalone_mode=False, **options)  # type: ignore[misc]
        except InputError as error:
            message = str(error)
        except OSError as error:
            message = f"convexmoe: expected files to be read and written; got {error}. Check disk and permissions."
        except typer.Abort:
            raise SystemExit(130) from None
        except Exception as error:
            if not hasattr(error, "format_message"):  # not a usage error: our fault, shown in full
                raise
            message = f"convexmoe: {error.format_message().rstrip('.')}. Run convexmoe --help for the options."
        else:
            raise SystemExit(code if isinstance(code, int) else 0)
        say(" ".join(printable(message).split()), error=True)
        raise SystemExit(2)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write what the exit codes mean, and an example."""
        write_lines(formatter, "Exit codes", EXIT_CODES)
        write_lines(formatter, "Example", ("convexmoe fit DATA.csv --target price --out run",))


app = typer.Typer(cls=OneLineErrors, rich_markup_mode=None, pretty_exceptions_enable=False)
table = "DATA.csv --target price"
add_subcommand(
    app,
    "fit",
    fit_table,
    f"fit {table} --context season --increasing area",
    f"fit {table} --loss quantile --level 0.9 --weights n",
    groups=GROUPS,
)
add_subcommand(app, "predict", predict_rows, "predict run/model.safetensors DATA.csv --flag --out predicted.csv")
add_subcommand(app, "report", render_run, "report run --html")
add_subcommand(app, "inspect", inspect_file, "inspect run/model.safetensors")
add_subcommand(app, "verify", verify_files, "verify run/model.safetensors")
add_subcommand(app, "certify", certify_file, "certify run/model.safetensors --proof")
add_subcommand(app, "minimize", minimize_file, 'minimize run/model.safetensors --at season=2 --box "weight<=2500"')
add_subcommand(
    app,
    "convert",
    convert_file,
    "convert run/model.safetensors state.safetensors --to torch",
    "convert run/model.safetensors folder --to hub",
)
add_subcommand(app, "doctor", check_installation, "doctor")


def _show_version(wanted: bool) -> None:
    if wanted:
        emit(f"convexmoe {version_of('convexmoe') or 'that is not installed'}")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
]


@app.callback(invoke_without_command=True)
def start(context: typer.Context, version: VersionOption = False) -> None:
    """Convex mixtures of experts: fit one to a table, predict from the saved file."""
    if context.invoked_subcommand is None:
        emit(context.get_help())
