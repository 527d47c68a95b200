"""Tables of numbers in files, checked so that every fault has a one-line remedy."""

from __future__ import annotations

import csv
import difflib
import io
import math
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convexmoe.errors import InputError, printable, refuse

from .layout import Layout, recognize
from .options import TableOptions

EMBEDDED_TARGET = "mpg"
MIN_ROWS = 10
LEAST_SPREAD = 1e-13  # of the size of a column: some hundred steps of float64
_LARGEST = 1e30  # squares of normalized float32 values stay finite
_SMALLEST = 1e-30  # a spread that float32 holds in full precision, and what is computed from it
_CELLS = 2**15  # that are in memory as text at a time
_MISSING = re.compile(
    r"[-–—]*|[.…]+|\*+|\?+|\\n|#(?:n/?[avd](?: n/a)?|[^\W\d_/¡]?[\w/¡]*[!?])"
    r"|[<(\[]?(?:n[./]?a\.?|#?[-+]?nan(?:\(ind\))?|nat|nil|none|null|missing)[>)\]]?",
    re.IGNORECASE,
)
_GROUPS = {".": ", '’\u00a0\u202f", ",": ". '’\u00a0\u202f"}  # decimal mark -> marks of thousands
_FORMS = {
    mark: re.compile(
        rf"[-+]?(?:(?:\d+|[1-9]\d{{0,2}}([{groups}])\d{{3}}(?:\1\d{{3}})*)(?:\{mark}\d*)?|\{mark}\d+)(?:e[-+]?\d+)?"
        r"|[-+]?inf(?:inity)?",
        re.IGNORECASE,
    )
    for mark, groups in _GROUPS.items()
}


Place = tuple[int, str, int]  # how many cells, the first, its line
Met = dict[str, dict[str, Place]]  # kind of cell -> column


def shorten(names: Sequence[object], limit: int = 8, width: int = 40) -> str:
    """Return the names in one line, at most `limit` of them, each cut at `width` characters.

    >>> shorten(["weight", "horsepower", "displacement"], limit=2, width=7)
    'weight, hors... and 1 more'
    """
    texts = [printable(str(name)).replace("\n", "\\n") for name in names[:limit]]
    shown = [text if len(text) <= width else text[: width - 3] + "..." for text in texts]
    return ", ".join(shown) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def to_number(cell: str, decimal: str) -> float | None:
    """Return the number in a cell, whose decimal mark is "." or ","; NaN for a missing one, None for text.

    >>> [to_number("1,234.5", "."), to_number("1.234,5", ","), to_number("#N/A", "."), to_number("1_000", ".")]
    [1234.5, 1234.5, nan, None]
    """
    text = cell.strip().replace("−", "-")
    if _FORMS[decimal].fullmatch(text):
        return float(text.translate(str.maketrans(dict.fromkeys(_GROUPS[decimal]))).replace(",", "."))
    return math.nan if _MISSING.fullmatch(text) else {"true": 1.0, "false": 0.0}.get(text.lower())


@dataclass
class _Cells:
    """Numbers of some columns, taken row by row, and what was met among them.

    Attributes:
        names: of the columns; decimal: the mark they are read with.
        values: row after row, NaN for what is no number.
        met: cells that are "text", "missing", "large", "flag" or "thousands".
        marks: the first cell that has only the decimal mark "." or ","; "?." or "?," where it may be either.
    """

    names: Sequence[str]
    decimal: str
    values: array = field(default_factory=lambda: array("d"))
    met: Met = field(default_factory=lambda: defaultdict(dict))
    marks: dict[str, str] = field(default_factory=dict)

    def add(self, lines: Sequence[int], rows: Sequence[Sequence[str]]) -> None:
        """Take some rows, and the lines on which they end."""
        block = np.empty((len(rows), len(self.names)))
        for k, (name, cells) in enumerate(zip(self.names, zip(*rows, strict=True), strict=True)):
            numbers = self._plain(cells, lines)
            if numbers is None or not (np.abs(numbers) <= _LARGEST).all():
                numbers = [self._number(name, cell.strip(), line) for cell, line in zip(cells, lines, strict=True)]
            block[:, k] = numbers
        self.values.frombytes(block.tobytes())

    def _plain(self, cells: Sequence[str], lines: Sequence[int]) -> list[float] | None:
        """Return the numbers in cells that Python reads as they are, None where it does not."""
        text, point = "".join(cells), self.decimal == "."
        if "_" in text or ("," if point else ".") in text:
            return None
        if self.decimal in text and self.decimal not in self.marks:
            any(self._weigh(cell, line) == self.decimal for cell, line in zip(cells, lines, strict=True))
        try:
            return list(map(float, cells)) if point else [float(cell.replace(",", ".")) for cell in cells]
        except ValueError:
            return None

    def _number(self, name: str, cell: str, line: int) -> float:
        number = to_number(cell, self.decimal)
        if number is None or self.decimal not in self.marks:
            self._weigh(cell, line)
        kind = "thousands" if {*cell} & {*_GROUPS[self.decimal]} else "flag" if cell.isalpha() else ""
        if number is None or not abs(number) <= _LARGEST:
            kind = "text" if number is None else "missing" if math.isnan(number) else "large"
        if kind:
            count, first, at = self.met[kind].get(name, (0, cell, line))
            self.met[kind][name] = count + 1, first, at
        return math.nan if number is None else number

    def _weigh(self, cell: str, line: int) -> str:
        """Note which decimal mark the number in a cell has, and return it."""
        point, comma = (to_number(cell, mark) if "." in cell or "," in cell else None for mark in ".,")
        if point == comma or (point is not None and math.isnan(point)):
            return ""
        kind = "." if comma is None else "," if point is None else f"?{'.' if '.' in cell else ','}"
        self.marks.setdefault(kind, f"{cell.strip()} on line {line}")
        return kind


@dataclass(frozen=True)
class Table:
    """A table that stays in its file: its rows are read anew where they are needed, some at a time.

    Attributes:
        name: the file's name, for messages; layout: how it is written.
        decimal: its decimal mark, or None where it is to be recognized.
        columns: the names in the header, distinct.
    """

    name: str
    layout: Layout
    decimal: str | None
    columns: tuple[str, ...]

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
        self, names: Sequence[str], *, keep: Sequence[str] = (), may_miss: bool = False
    ) -> tuple[NDArray[np.float64], str, tuple[str, ...]]:
        """Return the named columns as numbers.

        Args:
            names: columns of the table; keep: those that cannot be left out, which is a remedy for others.
            may_miss: whether cells may be missing.

        Returns:
            `float64[rows, len(names)]`, NaN where a cell is missing; how many are, and where; a remark on its layout.

        Raises:
            InputError: an unclear decimal mark; a cell is text, missing, infinite or too large: the first of these.
        """
        cells = self._read(names, self.decimal or ".")
        if self.decimal is None and "," in cells.marks and "." not in cells.marks:
            cells = self._read(names, ",")
        if self.decimal is None:
            self._check_marks(cells.marks)
        values, met = np.frombuffer(cells.values).reshape(-1, len(names)), cells.met
        for k, name in enumerate(names):
            if name in met["flag"] and not np.isin(np.nan_to_num(values[:, k]), (0, 1)).all():
                met["text"].setdefault(name, met["flag"][name])
        self._check_cells(met, keep, False, may_miss)
        self._check_cells(met, [name for name in names if name not in keep], True, may_miss)
        words = self.layout.words() + ["decimal comma"] * (cells.decimal == ",")
        words += ["an index column without a name, left out"] * ("" in self.layout.header)
        words += [f"thousands as in {cell}" for _, cell, _ in islice(met["thousands"].values(), 1)]
        words += [f"True as 1 in {shorten([*met['flag']])}"] if met["flag"] else []
        return values, _counts(met["missing"]), (f"{self.name} read as: {', '.join(words)}",) * bool(words)

    def _read(self, names: Sequence[str], decimal: str) -> _Cells:
        place = {name: k for k, name in enumerate(self.layout.header)}
        cells, places, rows = _Cells(names, decimal), [place[name] for name in names], self.rows()
        picked = ((line, [row[k] for k in places]) for line, row in rows)
        while chunk := list(islice(picked, _CELLS // len(names) + 1)):
            cells.add(*zip(*chunk, strict=True))
            if self.decimal is None and decimal == "." and "," in cells.marks:
                break  # it is another one
        return cells

    def _check_cells(self, met: Met, names: Sequence[str], may_drop: bool, may_miss: bool) -> None:
        """Check what was met in some columns: the worst kind of fault is reported."""
        text, missing, large = (
            {k: of[k] for k in names if k in of} for of in (met["text"], met["missing"], met["large"])
        )
        drop = f"Leave it out with {' '.join(f'--drop {_quoted(name)}' for name in text)}, or write"
        fix = f"{drop if may_drop else 'Write'} it as numbers."
        if text:
            refuse(self.name, "numbers", f"the text {_firsts(text)}", fix)
        fix = f"Fill in or remove those rows, or use --missing mean{', --missing drop or --drop' if may_drop else ''}."
        if missing and not may_miss:
            refuse(self.name, "no missing values", _counts(missing), fix)
        if large:
            rule = f"finite numbers up to {_LARGEST:g} in size"
            refuse(self.name, rule, _firsts(large), "Correct or remove those rows.")

    def _check_marks(self, marks: dict[str, str]) -> None:
        """Check that it is clear what the decimal mark is."""
        if {".", ","} <= {*marks}:
            got = f"a point in {marks['.']} and a comma in {marks[',']}"
        elif {".", ","} & {*marks} or not ("?," in marks or ("?." in marks and self.layout.sep != ",")):
            return
        else:
            got = f"{marks.get('?,') or marks['?.']}, a fraction or a thousand"
        refuse(self.name, "one decimal mark", got, 'Name it: --decimal "." or --decimal ",".')


def _counts(cells: dict[str, Place]) -> str:
    return shorten([f"{n} in column {name!r} (first on line {at})" for name, (n, _, at) in cells.items()], 3, 120)


def _firsts(cells: dict[str, Place]) -> str:
    places = [f"{shorten([repr(cell)])} in column {name!r} on line {at}" for name, (_, cell, at) in cells.items()]
    return shorten(places, 3, 120)


PLAIN = TableOptions()


def read_table(path: Path, options: TableOptions = PLAIN) -> Table:
    """Return the table in a file, with a header line; how it is written is recognized where no option says it."""
    try:
        content = None if path.is_file() else path.read_bytes()  # a pipe gives its bytes once
        source = partial(path.open, "rb") if content is None else partial(io.BytesIO, content)
        source().close()
    except FileNotFoundError:
        raise InputError(f"{path}: expected a CSV file; found no such file. Check the path.") from None
    except IsADirectoryError:
        refuse(path, "a CSV file", "a directory", "Name a file in it.")
    except OSError as error:
        refuse(path, "a readable CSV file", str(error.strerror), "Check the path.")
    return open_table(printable(path.name), source, options)


def embedded_table(options: TableOptions = PLAIN) -> Table:
    """Return the Auto MPG table that ships with the package (`interop/data/SOURCE.md`).

    >>> len(list(embedded_table().rows()))
    392
    """
    return open_table("auto_mpg.csv", partial((files("interop") / "data" / "auto_mpg.csv").open, "rb"), options)


def open_table(name: str, source: Callable[[], Any], options: TableOptions = PLAIN) -> Table:
    """Return the table in bytes that can be opened more than once."""
    layout = recognize(name, source, options)
    columns = layout.header if layout.header[0] else layout.header[1:]  # a first one without a name is an index
    if "" in columns:
        got = f"none for column {layout.header.index('', 1) + 1}"
        refuse(name, "a name for every column", got, "Name it on the first line.")
    if twice := sorted(column for column, times in Counter(columns).items() if times > 1):
        refuse(name, "distinct column names", f"{shorten(twice)} more than once", "Rename one.")
    return Table(name, layout, options.decimal, columns)


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


def _quoted(name: str) -> str:
    return f'"{name}"' if not name.replace("_", "").isalnum() else name
