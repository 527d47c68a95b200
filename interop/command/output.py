"""What a command prints, and files that are there whole or not at all: written beside their place, then renamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from convexmoe.errors import refuse
from convexmoe.files.atomic import write_whole


def say(console: Console, text: str) -> None:
    """Print a line as it is, of any length."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def new_directory(stem: str) -> Path:
    """Return `stem`, or `stem-2`, `stem-3` ... where it exists."""
    names = chain([stem], (f"{stem}-{k}" for k in count(2)))
    return next(path for path in map(Path, names) if not path.exists())


@contextmanager
def write_together(out: Path) -> Iterator[Path]:
    """Give a directory to write in; its files move to `out` when the block ends well, and vanish when it does not.

    Entering proves that `out` can be written, before any work is done.
    """
    existing = next((path for path in (out, *out.parents) if path.exists()), out)
    if not existing.is_dir():
        refuse("convexmoe fit --out", "a directory", f"{existing}, a file", "Name another directory.")
    try:
        staging = tempfile.TemporaryDirectory(prefix=".convexmoe-", dir=existing)
    except OSError as error:
        _refuse_place("fit", out, error)
    with staging as name:
        yield Path(name)
        out.mkdir(parents=True, exist_ok=True)
        for path in sorted(Path(name).iterdir()):
            os.replace(path, out / path.name)


def write_text(out: Path, text: str) -> None:
    """Write the file of `convexmoe predict --out`.

    A link is followed; what is there and is no regular file (a pipe, a device, a directory) is left alone.
    """
    if out.is_dir():
        refuse("convexmoe predict --out", "a file", f"{out}, a directory", "Name a file in it.")
    target = Path(os.path.realpath(out))
    if target.is_symlink() or (out.exists() and not out.is_file()):
        got, fix = f"{out}, which is none", "Leave --out out to print the predictions."
        refuse("convexmoe predict --out", "a regular file", got, fix)
    try:
        os.stat(target.parent)
        write_whole(target, text.encode())
    except OSError as error:
        _refuse_place("predict", out, error)


def _refuse_place(command: str, out: Path, error: OSError) -> NoReturn:
    reason = os.strerror(error.errno) if error.errno else str(error)
    refuse(f"convexmoe {command} --out", "a place that can be written", f"{out} ({reason})", "Name another one.")
