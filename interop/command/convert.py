"""`convexmoe convert`: a saved model in another form."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..convert import convert
from .output import conclude, say
from .tables import shorten


def convert_file(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A saved model in any of the four forms.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="File or, for orbax and hub, directory to write.")],
    to: Annotated[
        str | None, typer.Option(help="neutral, torch, orbax or hub.", show_default="torch, or neutral")
    ] = None,
) -> None:
    """Convert a saved model: neutral file, PyTorch state_dict, Orbax directory, folder for a hub."""
    conversion = convert(source, target, to)
    if conclude(conversion._asdict() | {"out": target}):
        return
    words = f"Written to {target}, {conversion.form}{', without its optimizer' * conversion.dropped}"
    if conversion.infinite:
        words += f", with NaN or infinity in {shorten(conversion.infinite)}: nothing can be computed with it"
    say(words, error=True)
