"""The one door for what is written: a file or a folder is there whole or not at all.

It is made beside its place under a name that nobody can know, exclusively, and renamed. While it is made it is locked,
so that the next write in its folder can tell what a killed process left from what another is about to finish.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import fail

try:
    import fcntl
except ImportError:  # on Windows nothing is locked, and leftovers stay
    fcntl = None  # type: ignore[assignment]

BEFORE, AFTER = ".convexmoe-", ".part"  # of the names of what is not finished
LEFTOVER = re.compile(re.escape(BEFORE) + "[0-9a-z_]{8,16}" + re.escape(AFTER))
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINK | getattr(os, "O_BINARY", 0)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file beside `path`, flush it to the disk, and rename it: `path` is always whole.

    The mode, the group and, where that is allowed, the owner of a file that it replaces stay. A link of that name is
    replaced and not followed; a device or a folder is left alone.

    Raises:
        OSError: it cannot be written (no room, a folder for reading only); what was there before stays.
    """
    if not path.parent.is_dir():
        fix = "Make the folder first."
        fail("save", "path", "a folder that exists", repr(str(path)), fix, FileNotFoundError)
    if not path.is_symlink() and path.exists() and not path.is_file():
        fail("save", "path", "a regular file", repr(str(path)), "Choose another name.", FileExistsError)
    beside = None
    try:
        remove_leftovers(path.parent)
        mode = 0o600 if path.exists() and not path.is_symlink() else 0o666
        beside, descriptor = _make_file(path.parent, mode)
        with open(descriptor, "wb") as file:
            _take_mode(descriptor, path)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
            if fcntl is not None:  # while it is locked
                os.replace(beside, path)
        if fcntl is None:
            os.replace(beside, path)
    except OSError as error:
        rule, fix = "a place that can be written", "Check its permissions and the room left"
        message = f"save.path: expected {rule}; got {error.strerror or error}. {fix}"
        raise OSError(error.errno, message, str(path)) from error
    finally:
        if beside is not None:
            beside.unlink(missing_ok=True)


def follow(path: str | os.PathLike[str]) -> Path:
    """Return what a name that a user gave leads to; names that we make up are not followed."""
    return Path(os.path.realpath(os.fsdecode(path)))


def put_in_place(source: Path, target: Path, like: Path | None = None) -> None:
    """Rename a file or a folder; the mode and the group of what it replaces stay, or of `like`; a link is replaced."""
    _take_mode(source, target if like is None else like)
    os.replace(source, target)


@contextmanager
def make_staging(folder: Path) -> Iterator[Path]:
    """Give a new folder in `folder`, for this user alone, to write in; what is left of it vanishes in the end."""
    remove_leftovers(folder)
    while True:
        staging = Path(tempfile.mkdtemp(AFTER, BEFORE, folder))
        with suppress(FileNotFoundError, BlockingIOError):
            descriptor = -1 if fcntl is None else _lock(os.open(staging, os.O_RDONLY))
            break
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if descriptor >= 0:
            os.close(descriptor)


@contextmanager
def write_folder(target: Path, like: tuple[str, ...] = ()) -> Iterator[Path]:
    """Give a new folder to write in; it takes the place of `target`, whole, when the block ends well.

    Args:
        target: where to, without a link; like: names in it whose mode those of the new folder take, as it does itself.
    """
    if target == Path.cwd():
        fail("save", "path", "one that is not the current", repr(str(target)), "Leave it first.", FileExistsError)
    with make_staging(target.parent) as beside:
        fresh = beside / "new"
        fresh.mkdir()
        yield fresh
        old = beside.with_suffix(".old")  # not a leftover: were we killed here, it is all that is left of the target
        if target.exists():
            for name in ("", *like):
                shutil.copymode(target / name, fresh / name)
            os.replace(target, old)
        os.replace(fresh, target)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold a folder against others that want to hold it, until the block or the process ends.

    Raises:
        BlockingIOError: another one holds it.
    """
    descriptor = -1 if fcntl is None else _lock(os.open(folder, os.O_RDONLY))
    try:
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder: of our pattern alone, and locked by nobody."""
    with suppress(OSError):
        names = [entry.path for entry in os.scandir(folder) if LEFTOVER.fullmatch(entry.name)]
        for name in names if fcntl is not None else ():
            with suppress(OSError):
                descriptor = _lock(os.open(name, os.O_RDONLY | os.O_NONBLOCK | NO_LINK), strict=True)
                try:
                    shutil.rmtree(name) if stat.S_ISDIR(os.fstat(descriptor).st_mode) else os.unlink(name)
                finally:
                    os.close(descriptor)


def _make_file(folder: Path, mode: int) -> tuple[Path, int]:
    """Return a new file and its locked descriptor."""
    while True:
        beside = folder / f"{BEFORE}{secrets.token_hex(8)}{AFTER}"
        with suppress(BlockingIOError):
            return beside, _lock(os.open(beside, NEW_FILE, mode))


def _lock(descriptor: int, *, strict: bool = False) -> int:
    """Lock an open file or folder, and return it; where there are no locks it is not locked, unless `strict`.

    Raises:
        BlockingIOError: another process has locked it, or removed it as a leftover before it was locked; it is closed.
    """
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink == 0:
                raise BlockingIOError("it has been removed")
    except OSError as error:  # a network's file system may have no locks
        if strict or isinstance(error, BlockingIOError):
            os.close(descriptor)
            raise
    return descriptor


def _take_mode(new: Path | int, path: Path) -> None:
    """Give a new file or folder the mode, the group and, where that is allowed, the owner of what it is to replace."""
    if path.is_symlink() or not path.exists() or not hasattr(os, "chown"):
        return
    old, now = path.stat(), os.stat(new)
    mode = stat.S_IMODE(old.st_mode) & 0o777
    for owner in (old.st_uid, -1) if (old.st_uid, old.st_gid) != (now.st_uid, now.st_gid) else ():
        with suppress(OSError):
            os.chown(new, owner, old.st_gid)
            break
    if os.stat(new).st_gid != old.st_gid:
        mode &= ~0o070  # what was for that group is not for another
    os.chmod(new, mode)
