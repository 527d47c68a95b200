"""What a command prints, and files that are there whole or not at all: written beside their place, then renamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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
    path, k = Path(stem), 1
    while path.exists():
        k += 1
        path = Path(f"{stem}-{k}")
    return path


@contextmanager
def write_together(out: Path) -> Iterator[Path]:
    """Give a directory to write in; its files move to `out` when the block ends well, and vanish when it does not.

    Entering proves that `out` can be written, before any work is done.
    """
    existing = out
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
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
        fix = "Leave --out out to print the predictions."
        refuse("convexmoe predict --out", "a regular file", f"{out}, which is none", fix)
    try:
        os.stat(target.parent)
        write_whole(target, text.encode())
    except OSError as error:
        _refuse_place("predict", out, error)


def _refuse_place(command: str, out: Path, error: OSError) -> NoReturn:
    reason = os.strerror(error.errno) if error.errno else str(error)
    rule, fix = "a place that can be written", "Name another one."
    refuse(f"convexmoe {command} --out", rule, f"{out} ({reason})", fix)
