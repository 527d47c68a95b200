"""The `convexmoe` command: its subcommands, and errors in one line."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from convexmoe.errors import InputError, printable

from .certify import certify_file
from .convert import convert_file
from .fit import fit_table
from .inspect import inspect_file
from .minimize import minimize_file
from .output import emit, say
from .predict import predict_rows
from .render import render_run
from .verify import verify_files

FIT_EXAMPLES = """Examples: convexmoe fit DATA.csv --target price --context region,season --increasing area --concave

convexmoe fit DATA.csv --target price --loss quantile --level 0.9 --weights n"""
MINIMIZE_EXAMPLES = 'Example: convexmoe minimize run/model.safetensors --at season=2,region=1 --box "weight<=2500"'


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


app = typer.Typer(cls=OneLineErrors, add_completion=False, pretty_exceptions_enable=False)
app.command("fit", epilog=FIT_EXAMPLES)(fit_table)
app.command("predict")(predict_rows)
app.command("report")(render_run)
app.command("inspect")(inspect_file)
app.command("verify")(verify_files)
app.command("certify")(certify_file)
app.command("minimize", epilog=MINIMIZE_EXAMPLES)(minimize_file)
app.command("convert")(convert_file)


@app.callback(invoke_without_command=True)
def start(context: typer.Context) -> None:
    """Convex mixtures of experts: fit one to a table of numbers, predict from the saved file."""
    if context.invoked_subcommand is None:
        emit(context.get_help())
