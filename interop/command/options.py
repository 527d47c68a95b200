"""Options that several subcommands have, and the check of whole numbers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from convexmoe.errors import refuse

FrameworkOption = Annotated[str | None, typer.Option(help="jax or torch.", show_default="jax where installed")]
SepOption = Annotated[str | None, typer.Option(help="Between cells: one character.", show_default="recognized")]
DecimalOption = Annotated[str | None, typer.Option(help='Decimal mark, "." or ",".', show_default="recognized")]
EncodingOption = Annotated[str | None, typer.Option(help="Of the table.", show_default="recognized")]
SheetOption = Annotated[str | None, typer.Option(help="Of an Excel file.", show_default="the first")]
HullArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="A saved hull.")]


class TableOptions(NamedTuple):
    """What options of a command say of a table: the character between cells, decimal mark, encoding; the sheet."""

    sep: str | None = None
    decimal: str | None = None
    encoding: str | None = None
    sheet: str | None = None
    owner: str = "convexmoe fit"


def check_table_options(
    owner: str, sep: str | None, decimal: str | None, encoding: str | None, sheet: str | None = None
) -> TableOptions:
    """Return the options of a table after their checks; the owner is the command, for messages."""
    sep = "\t" if sep in ("tab", "\\t") else sep
    if sep is not None and (len(sep) != 1 or sep in '"\r\n' or sep.isalnum()):
        refuse(f"{owner} --sep", "one character between cells", repr(sep), 'Try --sep ";", or --sep tab.')
    if decimal not in (None, ".", ","):
        refuse(f"{owner} --decimal", '"." or ","', repr(decimal), 'Try --decimal ",".')
    try:
        io.TextIOWrapper(io.BytesIO(), encoding or "utf-8")
    except LookupError:
        refuse(f"{owner} --encoding", "an encoding of text", repr(encoding), "Try --encoding cp1252.")
    return TableOptions(sep, decimal, encoding, sheet, owner)


def check_whole_number(command: str, name: str, value: int, least: int, most: int, usual: int) -> None:
    """Check that the value of an option is in its range; `usual` is what the message recommends."""
    if not least <= value <= most:
        rule = f"a whole number from {least} to {most}"
        refuse(f"convexmoe {command} --{name}", rule, str(value), f"Try --{name} {usual}.")
