"""Tables of numbers in files, checked so that every fault has a one-line remedy."""

from __future__ import annotations

import csv
import difflib
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from convexmoe.errors import InputError, printable, refuse

from .cells import LARGEST, Cells, Met, Place, count_labels
from .layout import Layout, recognize
from .options import TableOptions

EMBEDDED_TARGET = "mpg"
MIN_ROWS = 10
LARGE = 200_000_000  # bytes of a file, or of its numbers: what is larger is read in pieces
CLOSE = 0.4  # how much alike two names are, from which on the one is proposed for the other
LEAST_SPREAD = 1e-13  # of the size of a column: some hundred steps of float64
_SMALLEST = 1e-30  # a spread that float32 holds in full precision, and what is computed from it
WORKBOOKS = b"PK\x03\x04", b"\xd0\xcf\x11\xe0"  # first bytes of .xlsx, of .xls
MOST_SHOWN = 20  # categories in a line
_CELLS = 2**15  # that are in memory as text at a time


def shorten(names: Sequence[object], limit: int = 8, width: int = 40) -> str:
    """Return the names in one line, at most `limit` of them, each cut at `width` characters.

    >>> shorten(["weight", "horsepower", "displacement"], limit=2, width=7)
    'weight, hors... and 1 more'
    """
    texts = [printable(str(name)).replace("\n", "\\n") for name in names[:limit]]
    shown = [text if len(text) <= width else text[: width - 3] + "..." for text in texts]
    return ", ".join(shown) + (f" and {len(names) - limit} more" if len(names) > limit else "")


Pieces = Callable[[], Iterator[NDArray[np.float64]]]
Categories = Mapping[str, Sequence[str]]  # column -> its categories, in order
NONE: Categories = {}


class Table(Protocol):
    """A table that stays in its file: its rows are read anew where they are needed, some at a time.

    Attributes:
        name: the file's name, for messages; columns: the names of its columns, distinct.
        size: about how many bytes it has.
    """

    @property
    def name(self) -> str: ...
    @property
    def columns(self) -> tuple[str, ...]: ...
    @property
    def size(self) -> int: ...

    def numbers(
        self, names: Sequence[str], *, keep: Sequence[str] = (), may_miss: bool = False, categories: Categories = NONE
    ) -> tuple[NDArray[np.float64], str, tuple[str, ...]]:
        """Return the named columns as numbers.

        Args:
            names: columns of the table; keep: those that cannot be left out, which is a remedy for others.
            may_miss: whether cells may be missing.
            categories: of columns of text: the number of such a cell is the place of its category.

        Returns:
            `float64[rows, len(names)]`, NaN where a cell is missing; how many are, and where; a remark on its layout.

        Raises:
            InputError: an unclear decimal mark; a cell is text, of an unknown category, missing, infinite or too large:
                the first of these.
        """

    def pieces(
        self, names: Sequence[str], *, keep: Sequence[str] = (), may_miss: bool = False, categories: Categories = NONE
    ) -> tuple[Pieces, str, tuple[str, ...]]:
        """Return what `numbers` does, but for the numbers a function that reads them anew, some rows at a time."""

    def labels(self, names: Sequence[str]) -> Iterator[list[Counter[str]]]:
        """Yield how often each category stands in each of the columns, "" for missing cells, some rows at a time."""

    def place(self, row: int) -> str:
        """Return in words where a row is, counted from 0."""


@dataclass(frozen=True)
class TextTable:
    """A table in text.

    Attributes:
        name, columns, size: as of any table; layout: how it is written.
        decimal: its decimal mark, or None where it is to be recognized.
    """

    name: str
    layout: Layout
    decimal: str | None
    columns: tuple[str, ...]
    size: int = 0

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield for each row the line on which it ends, counted from 1, and its cells.

        Every line under the header is a row: one without cells is refused, but for those at the end.
        """
        width, skip, empty = len(self.layout.header), self.layout.skip, None
        with self.layout.lines() as lines:
            reader = self.layout.cells(islice(lines, skip, None))
            try:
                for cells in reader:
                    line = skip + reader.line_num
                    if width == 1:
                        cells = cells or [""]  # its row with a missing cell
                    elif len(cells) < 2 and not "".join(cells).strip():
                        empty = empty or (line, len(cells))
                        continue
                    if empty or len(cells) != width:
                        line, count = empty or (line, len(cells))
                        rule, got = f"{width} cells a line, as in the header", f"{count} on line {line}"
                        refuse(self.name, rule, got, "Correct that line, remove it, or export the table as CSV again.")
                    yield line, cells
            except csv.Error as error:
                where = f"a fault on line {skip + reader.line_num} ({error})"
                refuse(self.name, "CSV", where, "Correct the quotes there.")

    def numbers(
        self, names: Sequence[str], *, keep: Sequence[str] = (), may_miss: bool = False, categories: Categories = NONE
    ) -> tuple[NDArray[np.float64], str, tuple[str, ...]]:
        cells, gaps, remarks = self._scan(names, keep, may_miss, True, categories)
        return np.frombuffer(cells.values).reshape(-1, len(names)), gaps, remarks

    def place(self, row: int) -> str:
        return f"line {next(islice(self.rows(), row, None))[0]}"

    def pieces(
        self, names: Sequence[str], *, keep: Sequence[str] = (), may_miss: bool = False, categories: Categories = NONE
    ) -> tuple[Pieces, str, tuple[str, ...]]:
        cells, gaps, remarks = self._scan(names, keep, may_miss, False, categories)
        return lambda: self._fill(Cells(names, cells.decimal, False, categories=categories)), gaps, remarks

    def labels(self, names: Sequence[str]) -> Iterator[list[Counter[str]]]:
        for _, columns in self._columns(names):
            yield [count_labels(column) for column in columns]

    def _scan(
        self, names: Sequence[str], keep: Sequence[str], may_miss: bool, stays: bool, categories: Categories
    ) -> tuple[Cells, str, tuple[str, ...]]:
        """Read the named columns once and check them; return what was met, the missing cells, a remark."""
        cells = self._read(names, self.decimal or ".", stays, categories)
        if self.decimal is None and "," in cells.marks and "." not in cells.marks:
            cells = self._read(names, ",", stays, categories)
        if self.decimal is None:
            self._check_marks(cells.marks)
        met = cells.met
        for name in cells.varied & {*met["flag"]}:
            met["text"].setdefault(name, met["flag"][name])
        check_cells(self.name, names, met, keep, may_miss, categories=categories)
        words = self.layout.words() + ["decimal comma"] * (cells.decimal == ",")
        words += ["an index column without a name, left out"] * ("" in self.layout.header)
        words += [f"thousands as in {cell}" for _, cell, _ in islice(met["thousands"].values(), 1)]
        words += [f"True as 1 in {shorten([*met['flag']])}"] if met["flag"] else []
        return cells, _counts(met["missing"]), (f"{self.name} read as: {', '.join(words)}",) * bool(words)

    def _read(self, names: Sequence[str], decimal: str, stays: bool, categories: Categories) -> Cells:
        cells = Cells(names, decimal, stays, categories=categories)
        for _ in self._fill(cells):
            if self.decimal is None and decimal == "." and "," in cells.marks:
                break  # it is another one
        return cells

    def _fill(self, cells: Cells) -> Iterator[NDArray[np.float64]]:
        """Yield the numbers of the table, some rows at a time, and note what is met."""
        for lines, columns in self._columns(cells.names):
            yield cells.add(lines, columns)

    def _columns(self, names: Sequence[str]) -> Iterator[tuple[tuple[int, ...], list[tuple[str, ...]]]]:
        """Yield the lines of some rows, and the cells of some columns in them."""
        place = {name: k for k, name in enumerate(self.layout.header)}
        places, rows = [place[name] for name in names], self.rows()
        picked = ((line, [row[k] for k in places]) for line, row in rows)
        while chunk := list(islice(picked, _CELLS // len(places) + 1)):
            lines, cells = zip(*chunk, strict=True)
            yield lines, list(zip(*cells, strict=True))

    def _check_marks(self, marks: dict[str, str]) -> None:
        """Check that it is clear what the decimal mark is."""
        if {".", ","} <= {*marks}:
            got = f"a point in {marks['.']} and a comma in {marks[',']}"
        elif {".", ","} & {*marks} or not ("?," in marks or ("?." in marks and self.layout.sep != ",")):
            return
        else:
            got = f"{marks.get('?,') or marks['?.']}, a fraction or a thousand"
        refuse(self.name, "one decimal mark", got, 'Name it: --decimal "." or --decimal ",".')


def check_cells(
    name: str,
    names: Sequence[str],
    met: Met,
    keep: Sequence[str],
    may_miss: bool,
    at: str = "on line",
    categories: Categories = NONE,
) -> None:
    """Check what was met in the columns of a table: the worst kind of fault is reported, of those to be kept first.

    Args:
        name: of the table; names: of the columns; met: what was met in them.
        keep: the columns that cannot be left out; may_miss: whether cells may be missing; at: what a place is called.
        categories: of columns of text.
    """
    for may_drop, some in ((False, keep), (True, [name for name in names if name not in keep])):
        text, unknown, missing, large = (
            {k: met[kind][k] for k in some if k in met[kind]} for kind in ("text", "unknown", "missing", "large")
        )
        drop = f"Leave it out with {join_drops(text)}, or write"
        fix = f"{drop if may_drop else 'Write'} it as numbers."
        if text:
            refuse(name, "numbers", f"the text {_firsts(text, at)}", fix)
        if unknown:
            column = next(iter(unknown))
            rule = f"a category of {column!r} that the model knows ({list_labels(categories[column])})"
            fix = "Correct or remove those rows, or fit the model anew with rows of that category."
            refuse(name, rule, _firsts(unknown, at), fix)
        ways = [] if may_drop and not missing.keys().isdisjoint(categories) else ["--missing mean"]
        ways += ["--missing drop", "--missing indicator", "--drop"] if may_drop else []
        fix = f"Fill in or remove those rows, or use {' or '.join(ways)}."
        if missing and not may_miss:
            refuse(name, "no missing values", _counts(missing, at), fix)
        if large:
            rule = f"finite numbers up to {LARGEST:g} in size"
            refuse(name, rule, _firsts(large, at), "Correct or remove those rows.")


def _counts(cells: dict[str, Place], at: str = "on line") -> str:
    return shorten([f"{n} in column {name!r} (first {at} {k})" for name, (n, _, k) in cells.items()], 3, 120)


def _firsts(cells: dict[str, Place], at: str) -> str:
    places = [f"{shorten([repr(cell)])} in column {name!r} {at} {k}" for name, (_, cell, k) in cells.items()]
    return shorten(places, 3, 120)


PLAIN = TableOptions()


def read_table(path: Path, options: TableOptions = PLAIN) -> Table:
    """Return the table in a file: Parquet or Excel by its first bytes, else text with a header line.

    How text is written is recognized where no option says it.
    """
    try:
        content = None if path.is_file() else path.read_bytes()  # a pipe gives its bytes once
        source = partial(path.open, "rb") if content is None else partial(io.BytesIO, content)
        with source() as stream:
            head = stream.read(4)
        is_parquet = content is None and head == b"PAR1"
    except FileNotFoundError:
        raise InputError(f"{path}: expected a table; found no such file. Check the path.") from None
    except IsADirectoryError:
        refuse(path, "a table", "a directory", "Name a file in it.")
    except OSError as error:
        refuse(path, "a readable table", str(error.strerror), "Check the path.")
    if options.sheet is not None and head not in WORKBOOKS:
        refuse(f"{options.owner} --sheet", "an Excel file, which has sheets", printable(path.name), "Leave it out.")
    if is_parquet:
        from .parquet import open_parquet  # which imports this module

        return open_parquet(path, options)
    if head in WORKBOOKS:
        from .excel import open_excel

        return open_excel(printable(path.name), source, options)
    return replace(
        open_table(printable(path.name), source, options), size=path.stat().st_size if content is None else 0
    )


def embedded_table(options: TableOptions = PLAIN) -> TextTable:
    """Return the Auto MPG table that ships with the package (`interop/data/SOURCE.md`).

    >>> len(list(embedded_table().rows()))
    392
    """
    return open_table("auto_mpg.csv", partial((files("interop") / "data" / "auto_mpg.csv").open, "rb"), options)


def open_table(name: str, source: Callable[[], Any], options: TableOptions = PLAIN) -> TextTable:
    """Return the table in bytes that can be opened more than once."""
    layout = recognize(name, source, options)
    return TextTable(name, layout, options.decimal, check_columns(name, layout.header))


def check_columns(name: str, header: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of columns in a header after their checks; a first one without a name is an index."""
    columns = header if header[0] else header[1:]
    if "" in columns:
        got = f"none for column {header.index('', 1) + 1}"
        refuse(name, "a name for every column", got, "Name it on the first line.")
    if twice := sorted(column for column, times in Counter(columns).items() if times > 1):
        refuse(name, "distinct column names", f"{shorten(twice)} more than once", "Rename one.")
    return columns


def require_columns(table: Table, names: Sequence[str], owner: str) -> None:
    """Check that the table has the named columns; the message names the closest one."""
    present = set(table.columns)
    absent = [name for name in names if name not in present]
    if absent:
        lower = {column.lower(): column for column in table.columns}
        close = difflib.get_close_matches(absent[0].lower(), lower, n=1, cutoff=CLOSE)
        rule = f"columns of {table.name} ({shorten(table.columns)})"
        fix = f"The closest column to {absent[0]!r} is {lower[close[0]]!r}." if close else "Name one of these."
        for sheet in [sheet for sheet, cells in getattr(table, "others", NONE).items() if absent[0] in cells][:1]:
            fix = f"Another sheet has {absent[0]!r}: --sheet {_quoted(sheet)}."
        refuse(owner, rule, shorten(list(map(repr, absent))), fix)


def fill_gaps(values: NDArray[np.float64], names: Sequence[str], name: str) -> None:
    """Fill in, for each NaN of `float64[rows, len(names)]`, the mean of its column."""
    for column, numbers in zip(names, values.T, strict=True):
        gaps = np.isnan(numbers)
        if gaps.all():
            fix = f"Leave it out with --drop {_quoted(column)}."
            refuse(name, f"a number in column {column!r}", "none", fix)
        numbers[gaps] = numbers[~gaps].mean()


def check_varies(values: NDArray[np.float64], names: Sequence[str], target: str, where: str) -> None:
    """Check that every column of `float64[rows, len(names)]` varies as float64 can tell, in the range of float32."""
    span = values.max(axis=0) - values.min(axis=0)
    size = np.abs(values).max(axis=0)
    for name, width, largest, first in zip(names, span, size, values[0], strict=True):
        if width > LEAST_SPREAD * largest:
            if _SMALLEST <= width <= LARGEST:
                continue
            rule = f"column {name!r} to spread over {_SMALLEST:g} to {LARGEST:g}"
            refuse(where, rule, f"{width:.3g}", "Write it in another unit.")
        got = f"the value {first:g} throughout" if width == 0 else f"{largest:g} with a spread of {width:g}"
        if width > 0:
            fix = f"Subtract {first:g} from it first."
        elif name == target:
            fix = "Choose another --target, or add rows in which it varies."
        else:
            fix = f"Leave it out with --drop {_quoted(name)}."
        refuse(where, f"column {name!r} to vary", got, fix)


def list_labels(labels: Sequence[str]) -> str:
    """Return categories in one line, in quotes where they have commas.

    >>> list_labels(["north", "east, by the sea"])
    "north, 'east, by the sea'"
    """
    return shorten([repr(label) if "," in label else label for label in labels], MOST_SHOWN)


def join_drops(names: Iterable[str]) -> str:
    """Return the options that leave columns out.

    >>> join_drops(["id", "first name"])
    '--drop id --drop "first name"'
    """
    return " ".join(f"--drop {_quoted(name)}" for name in names)


def _quoted(name: str) -> str:
    return f'"{name}"' if not name.replace("_", "").isalnum() else name
