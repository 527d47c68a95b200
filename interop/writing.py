"""Output that is there whole or not at all: written beside its place, then renamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .tables import InputError

__all__ = ["new_directory", "written_beside", "written_together"]


def new_directory(stem: str) -> Path:
    """Return `stem`, or `stem-2`, `stem-3` ... where it exists."""
    path, k = Path(stem), 1
    while path.exists():
        k += 1
        path = Path(f"{stem}-{k}")
    return path


@contextmanager
def written_together(out: Path) -> Iterator[Path]:
    """Give a directory to write in; its files move to `out` when the block ends well, and vanish when it does not.

    Entering proves that `out` can be written, before any work is done.
    """
    existing = out
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(
            f"convexmoe fit --out: expected a directory; got {existing}, a file. Name another directory."
        )
    with _staging_directory(
        existing, f"convexmoe fit --out: expected a place that can be written; got {out}"
    ) as staging:
        yield staging
        out.mkdir(parents=True, exist_ok=True)
        for path in sorted(staging.iterdir()):
            os.replace(path, out / path.name)


@contextmanager
def written_beside(out: Path) -> Iterator[Path]:
    """Give a file to write; it becomes `out` when the block ends well, and vanishes when it does not.

    A link is followed; what is there and is no regular file (a pipe, a device, a directory) is left alone.
    """
    if out.is_dir():
        raise InputError(
            f"convexmoe predict --out: expected a file; got {out}, a directory. Name a file in it."
        )
    target = Path(os.path.realpath(out))
    if target.is_symlink() or (out.exists() and not out.is_file()):
        raise InputError(
            f"convexmoe predict --out: expected a regular file; got {out}, which is none. "
            "Leave --out out to print the predictions."
        )
    with _staging_directory(
        target.parent, f"convexmoe predict --out: expected a place that can be written; got {out}"
    ) as staging:
        yield staging / target.name
        os.replace(staging / target.name, target)


@contextmanager
def _staging_directory(parent: Path, refusal: str) -> Iterator[Path]:
    try:
        staging = tempfile.TemporaryDirectory(prefix=".convexmoe-", dir=parent)
    except OSError as error:
        raise InputError(f"{refusal} ({error.strerror}). Name another one.") from None
    with staging as name:
        yield Path(name)
