"""Tables of numbers read from CSV files, checked so that every fault has a one-line remedy."""

from __future__ import annotations

import csv
import difflib
import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convexmoe.errors import InputError, printable, refuse

EMBEDDED_TARGET = "mpg"
MIN_ROWS = 20
LEAST_SPREAD = 1e-13  # of the size of a column: some hundred steps of float64
_LARGEST = 1e30  # squares of normalized float32 values stay finite
_SMALLEST = 1e-30  # a spread that float32 holds in full precision, and what is computed from it
_MISSING = frozenset({"", "?", "-", "na", "n/a", "nan", "none", "null", "."})


def shorten(names: Sequence[object], limit: int = 8, width: int = 40) -> str:
    """Return the names in one line, at most `limit` of them, each cut at `width` characters.

    >>> shorten(["weight", "horsepower", "displacement"], limit=2, width=7)
    'weight, hors... and 1 more'
    """
    texts = [printable(str(name)).replace("\n", "\\n") for name in names[:limit]]
    shown = [text if len(text) <= width else text[: width - 3] + "..." for text in texts]
    return ", ".join(shown) + (f" and {len(names) - limit} more" if len(names) > limit else "")


@dataclass(frozen=True)
class Table:
    """The cells of a CSV file as text.

    Attributes:
        name: the file's name, for messages.
        columns: names from the header line, distinct and not empty.
        rows: one tuple a row, as long as `columns`.
        lines: the line of the file on which each row ends, counted from 1.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]

    def numbers(self, names: Sequence[str], *, may_drop: bool = True) -> NDArray[np.float64]:
        """Return the named columns as `float64[rows, len(names)]`.

        Args:
            names: columns of the table.
            may_drop: whether leaving a column out is a remedy to offer.

        Raises:
            InputError: a cell is text, missing, infinite or too large; the worst kind of fault is reported, in
                that order, for all columns at once.
        """
        values = np.empty((len(self.rows), len(names)))
        texts: dict[str, str] = {}
        missing: dict[str, list[int]] = {}
        unusable: dict[str, str] = {}
        place = {name: k for k, name in enumerate(self.columns)}
        for k, name in enumerate(names):
            column = place[name]
            for n, (row, line) in enumerate(zip(self.rows, self.lines, strict=True)):
                cell = row[column].strip()
                if cell.lower() in _MISSING:
                    missing.setdefault(name, []).append(line)
                elif (value := _number(cell)) is None:
                    texts.setdefault(name, f"{shorten([cell])!r} in column {name!r} on line {line}")
                elif abs(value) > _LARGEST:
                    unusable.setdefault(name, f"{cell} in column {name!r} on line {line}")
                else:
                    values[n, k] = value
        if texts:
            leave_out = f"Leave it out with {' '.join(f'--drop {_quoted(name)}' for name in texts)}, or write"
            fix = f"{leave_out if may_drop else 'Write'} it as numbers."
            refuse(self.name, "numbers", f"the text {shorten(list(texts.values()), 3, 120)}", fix)
        if missing:
            places = [f"{len(at)} in column {name!r} (first on line {at[0]})" for name, at in missing.items()]
            fix = f"Fill in or remove those rows{', or leave the column out with --drop' if may_drop else ''}."
            refuse(self.name, "no missing values", shorten(places, 3, 120), fix)
        if unusable:
            rule, got = f"finite numbers up to {_LARGEST:g} in size", shorten(list(unusable.values()), 3, 120)
            refuse(self.name, rule, got, "Correct or remove those rows.")
        return values


def read_table(path: Path) -> Table:
    """Return the table in a CSV file: UTF-8, commas, a header line, every row as long as the header.

    Every line under the header is a row: one without cells is refused, but for those at the end.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: expected a CSV file; found no such file. Check the path.") from None
    except IsADirectoryError:
        refuse(path, "a CSV file", "a directory", "Name a file in it.")
    except OSError as error:
        refuse(path, "a readable CSV file", str(error.strerror), "Check the path.")
    return _parse(content, printable(path.name))


def embedded_table() -> Table:
    """Return the Auto MPG table that ships with the package (`interop/data/SOURCE.md`).

    >>> len(embedded_table().rows)
    392
    """
    return _parse((files("interop") / "data" / "auto_mpg.csv").read_bytes(), "auto_mpg.csv")


def require_columns(table: Table, names: Sequence[str], owner: str) -> None:
    """Check that the table has the named columns; the message names the closest one."""
    present = set(table.columns)
    absent = [name for name in names if name not in present]
    if absent:
        lower = {column.lower(): column for column in table.columns}
        close = difflib.get_close_matches(absent[0].lower(), lower, n=1, cutoff=0.0)
        rule = f"columns of {table.name} ({shorten(table.columns)})"
        fix = f"The closest column to {absent[0]!r} is {lower[close[0]]!r}."
        refuse(owner, rule, shorten(list(map(repr, absent))), fix)


def check_varies(values: NDArray[np.float64], names: Sequence[str], target: str, where: str) -> None:
    """Check that every column of `float64[rows, len(names)]` varies as float64 can tell, in the range of float32."""
    span = values.max(axis=0) - values.min(axis=0)
    size = np.abs(values).max(axis=0)
    for name, width, largest, first in zip(names, span, size, values[0], strict=True):
        if width > LEAST_SPREAD * largest:
            if _SMALLEST <= width <= _LARGEST:
                continue
            rule = f"column {name!r} to spread over {_SMALLEST:g} to {_LARGEST:g}"
            refuse(where, rule, f"{width:.3g}", "Write it in another unit.")
        got = f"the value {first:g} throughout" if width == 0 else f"{largest:g} with a spread of {width:g}"
        if width > 0:
            fix = f"Subtract {first:g} from it first."
        elif name == target:
            fix = "Choose another --target, or add rows in which it varies."
        else:
            fix = f"Leave it out with --drop {_quoted(name)}."
        refuse(where, f"column {name!r} to vary", got, fix)


def _parse(content: bytes, name: str) -> Table:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        refuse(name, "CSV text in UTF-8", "binary data", "Export the table as CSV (UTF-8).")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    records: list[tuple[int, list[str]]] = []
    try:
        for record in reader:
            if records or any(cell.strip() for cell in record):  # the header is the first line with a word
                records.append((reader.line_num, record))
    except csv.Error as error:
        refuse(name, "CSV", f"a fault on line {reader.line_num} ({error})", "Correct the quotes there.")
    if not records:
        refuse(name, "a header line and rows", "an empty file", "Export the table again.")
    columns = tuple(cell.strip() for cell in records.pop(0)[1])
    _check_header(columns, name)
    if len(columns) == 1:  # an empty line is its row with a missing cell
        records = [(line, record or [""]) for line, record in records]
    else:
        while records and not "".join(records[-1][1][:1]).strip() and len(records[-1][1]) < 2:
            records.pop()  # empty lines at the end hold no row
    for line, record in records:
        if len(record) != len(columns):
            rule, got = f"{len(columns)} cells a line, as in the header", f"{len(record)} on line {line}"
            refuse(name, rule, got, "Correct that line, remove it, or export the table as CSV again.")
    return Table(name, columns, tuple(tuple(record) for _, record in records), tuple(line for line, _ in records))


def _check_header(columns: tuple[str, ...], name: str) -> None:
    if len(columns) == 1 and any(mark in columns[0] for mark in ";\t|"):
        refuse(name, "commas between cells", shorten([repr(columns[0])]), "Export it with commas.")
    if all(_number(cell) is not None for cell in columns):
        got = f"the numbers {shorten(columns)}"
        refuse(name, "a header line with column names", got, "Put the names on the first line.")
    if "" in columns:
        got = f"none for column {columns.index('') + 1}"
        refuse(name, "a name for every column", got, "Name it on the first line.")
    if twice := sorted(column for column, times in Counter(columns).items() if times > 1):
        refuse(name, "distinct column names", f"{shorten(twice)} more than once", "Rename one.")


def _number(cell: str) -> float | None:
    if "_" in cell:  # Python reads 1_000 as a number, tables do not mean it
        return None
    try:
        value = float(cell)
    except ValueError:
        return None
    return math.inf if math.isnan(value) else value


def _quoted(name: str) -> str:
    return f'"{name}"' if not name.replace("_", "").isalnum() else name
