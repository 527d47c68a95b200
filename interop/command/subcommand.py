"""What every subcommand has: `--json` and `--quiet`, examples, and a help in plain text that fits a screen."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from .output import speak

JsonOption = Annotated[bool, typer.Option("--json", help="The result as one JSON object; all else on stderr.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress and no remarks; errors on stderr.")]
SPEECH = {"as_json": JsonOption, "quiet": QuietOption}
OTHERS = "Options"  # the heading of what stands in no group
DEFAULT = re.compile(r"\[default: \((.*)\)\]$")


def add_subcommand(
    app: typer.Typer,
    name: str,
    function: Callable[..., Any],
    *examples: str,
    groups: Mapping[str, tuple[str, ...]] | None = None,
) -> None:
    """Add a subcommand to the command.

    Args:
        app: the command; name: of the subcommand; function: what it does, with a parameter an option.
        examples: command lines without the program's name, for the help.
        groups: heading -> the parameters below it, for a help with many options.
    """

    @wraps(function)
    def call(*arguments: Any, as_json: bool = False, quiet: bool = False, **options: Any) -> Any:
        with speak(as_json, quiet):
            return function(*arguments, **options)

    keyword = inspect.Parameter.KEYWORD_ONLY
    own = inspect.signature(function, eval_str=True).parameters.values()
    parameters = [*own, *(inspect.Parameter(n, keyword, default=False, annotation=a) for n, a in SPEECH.items())]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    lines = [f"convexmoe {example}" for example in examples]
    shown = type("Subcommand", (Subcommand,), {"examples": tuple(lines), "groups": dict(groups or {})})
    app.command(name, cls=shown, short_help=re.split("[:;.]", function.__doc__ or "")[0])(call)


class Subcommand(TyperCommand):
    """A subcommand whose help is plain text: its parameters below headings, and examples at the end."""

    examples: tuple[str, ...] = ()
    groups: Mapping[str, tuple[str, ...]] = {}

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the parameters, a line each where it is wide enough, group by group."""
        heading_of = {name: heading for heading, names in self.groups.items() for name in names}
        rows: dict[str, list[tuple[str, str]]] = {heading: [] for heading in (*self.groups, OTHERS)}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                text = DEFAULT.sub(r"[default: \1]", " ".join(record[1].replace("\\[", "[").split()))
                rows[heading_of.get(parameter.name or "", OTHERS)].append((record[0], text))
        formatter.write("\n")
        for heading, found in rows.items():
            if found:
                formatter.write(f"{heading}:\n")
                with formatter.indentation():
                    formatter.write_dl(found)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples, each as it is to be typed."""
        write_lines(formatter, "Examples" if len(self.examples) > 1 else "Example", self.examples)


def write_lines(formatter: Any, heading: str, lines: tuple[str, ...]) -> None:
    """Write lines of a help below a heading, none of them wrapped."""
    formatter.write("\n".join([f"\n{heading}:", *(f"  {line}" for line in lines), ""]))
