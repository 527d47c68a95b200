"""A file is written whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from ..errors import fail


def write_whole(path: Path, data: bytes) -> None:
    """Write a file beside `path`, flush it to the disk, and rename it: `path` is always whole.

    A link is followed; a device or a folder of that name is left alone.

    Raises:
        OSError: it cannot be written (no room, a folder for reading only); what was there before stays.
    """
    path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        fix = "Make the folder first."
        fail("save", "path", "a folder that exists", repr(str(path)), fix, FileNotFoundError)
    if path.exists() and not path.is_file():
        fail("save", "path", "a regular file", repr(str(path)), "Choose another name.", FileExistsError)
    beside = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with open(beside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        rule, fix = "a place that can be written", "Check its permissions and the room left"
        message = f"save.path: expected {rule}; got {error.strerror or error}. {fix}"
        raise OSError(error.errno, message, str(path)) from error
    finally:
        beside.unlink(missing_ok=True)
