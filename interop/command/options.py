"""Options that several subcommands have, and the check of whole numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convexmoe.errors import refuse

FrameworkOption = Annotated[
    str | None, typer.Option(help="jax or torch.", show_default="jax where installed, else torch")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
HullArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="A saved hull.")]


def check_whole_number(command: str, name: str, value: int, least: int, most: int, usual: int) -> None:
    """Check that the value of an option is in its range; `usual` is what the message recommends."""
    if not least <= value <= most:
        rule = f"a whole number from {least} to {most}"
        refuse(f"convexmoe {command} --{name}", rule, str(value), f"Try --{name} {usual}.")
