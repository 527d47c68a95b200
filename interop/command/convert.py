"""`convexmoe convert`: a saved model in another form."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..convert import convert
from .output import conclude, say
from .tables import shorten


def convert_file(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A saved model in any of the three forms.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="File or, for Orbax, directory to write.")],
    to: Annotated[
        str | None, typer.Option(help="neutral, torch or orbax.", show_default="from neutral torch, else neutral")
    ] = None,
) -> None:
    """Convert a saved model: neutral file, PyTorch state_dict (safetensors), Orbax directory."""
    conversion = convert(source, target, to)
    if conclude(conversion._asdict() | {"out": target}):
        return
    words = f"{target}: {conversion.form}{', without its optimizer' * conversion.dropped}"
    if conversion.infinite:
        words += f", with NaN or infinity in {shorten(conversion.infinite)}: nothing can be computed with it"
    say(words, error=True)
