"""The one door for what a command prints, as a terminal obeys what it reads; and files that are there whole or not."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import typer
from rich.console import Console, JustifyMethod
from rich.table import Table

from convexmoe.errors import printable, refuse
from convexmoe.files.atomic import follow, hold, make_staging, put_in_place, write_whole


class Speech(NamedTuple):
    """How a command speaks.

    Args:
        as_json: the result as one JSON object on stdout, and all else on stderr.
        quiet: no progress and no remarks; what another program reads (predictions, JSON) stays.
    """

    as_json: bool = False
    quiet: bool = False


IN_TEXT = Speech()
_speech = ContextVar("speech", default=IN_TEXT)


@contextmanager
def speak(as_json: bool, quiet: bool) -> Iterator[None]:
    """Speak in this way within the block; errors, which are said outside of it, are always said."""
    token = _speech.set(Speech(as_json, quiet))
    try:
        yield
    finally:
        _speech.reset(token)


def shows_progress() -> bool:
    """Return whether the bars of a fit, which are on stdout, are wanted there."""
    return _speech.get() == IN_TEXT


def terminal(*, stderr: bool = False) -> Console:
    """Return a console that shows text as it is: no markup, no codes of emoji, no colors for numbers."""
    as_json, quiet = _speech.get()
    return Console(stderr=stderr or as_json, quiet=quiet, markup=False, emoji=False, highlight=False)


def in_one_line(text: object) -> str:
    """Return text with its line breaks and tabs written out, and all else that a terminal would obey."""
    return printable(str(text)).replace("\n", "\\n").replace("\t", "\\t")


def say(text: str, *, error: bool = False) -> None:
    """Print one line of any length, to stderr if it is an `error`."""
    terminal(stderr=error).print(in_one_line(text), soft_wrap=True)


def emit(text: str) -> None:
    """Print lines that another program may read, JSON among them, where \\u007f is the one control it leaves bare."""
    typer.echo(printable(text.replace("\x7f", "\\u007f")))


def conclude(result: Mapping[str, Any]) -> bool:
    """Print the result of a command as JSON if that is asked for, and return whether it is; else print nothing.

    Args:
        result: what a command found: values of JSON, arrays and paths; NaN and infinity are written as null.
    """
    if _speech.get().as_json:
        emit(json.dumps(_plain(result), indent=2, sort_keys=True, allow_nan=False))
    return _speech.get().as_json


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return os.fsdecode(value) if isinstance(value, Path) else value


def tabulate(columns: Mapping[str, JustifyMethod], rows: Iterable[Iterable[object]], title: str = "") -> None:
    """Print a table, its columns aligned as stated."""
    table = Table(title=in_one_line(title) or None, title_justify="left")
    for heading, justify in columns.items():
        table.add_column(in_one_line(heading), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*map(in_one_line, row))
    terminal().print(table)


def with_spread(value: float, spread: float) -> str:
    """Return a figure >= 0 and its deviation in one notation: `9,871 ± 447`, `(2.00 ± 0.03)e-07`."""
    power = math.floor(math.log10(value)) if value > 0 else 0
    if not -5 < power < 7:
        return f"({value / 10.0**power:.2f} ± {spread / 10.0**power:.2f})e{power:+03d}"
    form = f",.{0 if power > 2 else max(2, 2 - power)}f"
    return f"{value:{form}} ± {spread:{form}}"


def digits_of(offset: float, spread: float, least: int = 9) -> int:
    """Return how many digits show numbers around an offset to `least` digits of their spread, 17 at most.

    >>> digits_of(21.0, 3.0), digits_of(2460000.0, 8.66)
    (10, 15)
    """
    return min(17, least + max(0, math.ceil(math.log10(max(abs(offset), spread) / spread))))


@contextmanager
def claim(out: Path | None) -> Iterator[Path]:
    """Give a directory that no other fit can write to until the block ends; None makes a new ./convexmoe-fit.

    Entering proves that it can be written, before any work is done. It vanishes where it is new and stays empty.
    """
    names = (Path("convexmoe-fit" + (f"-{k}" if k > 1 else "")) for k in count(1))
    places = (place for place in names if not place.exists()) if out is None else iter((out,))
    with ExitStack() as stack:
        for place in places:
            stack.callback(_remove_empty, [path for path in (place, *place.parents) if not path.exists()])
            try:
                place.mkdir(parents=True, exist_ok=True)
                stack.enter_context(hold(place))
                with make_staging(place):
                    break
            except BlockingIOError:
                if out is not None:
                    fix = "Wait for it, or name another directory."
                    refuse("convexmoe fit --out", "a directory that no other fit writes to", f"{out}, in use", fix)
            except (FileExistsError, NotADirectoryError):
                refuse("convexmoe fit --out", "a directory", f"{place}, a file or in one", "Name another directory.")
            except OSError as error:
                _refuse_place("fit", place, error)
        yield place


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def write_together(out: Path, names: tuple[str, ...]) -> Iterator[Path]:
    """Give a directory to write files of these names in; they move to `out` when the block ends well."""
    for name in names:
        if (out / name).is_dir():
            refuse("convexmoe fit --out", f"no directory {name} in it", str(out / name), "Name another directory.")
    with make_staging(out) as staging:
        yield staging
        for name in names:
            if (staging / name).exists():
                put_in_place(staging / name, out / name)


def write_text(out: Path, text: str) -> None:
    """Write the file of `convexmoe predict --out`.

    A link is followed; what is there and is no regular file (a pipe, a device, a directory) is left alone.
    """
    if out.is_dir():
        refuse("convexmoe predict --out", "a file", f"{out}, a directory", "Name a file in it.")
    target = follow(out)
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
