"""Tables in Parquet, read by pyarrow a row group at a time, with the checks and the messages of text."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convexmoe.errors import printable, refuse

from .. import is_installed
from ..frameworks import not_installed
from .cells import LARGEST, Met, to_label, to_number
from .options import TableOptions
from .tables import NONE, Categories, Pieces, check_cells, shorten

AT_ONCE = 2**14  # rows
AT = "in row"  # counted from 1


@dataclass(frozen=True)
class ParquetTable:
    """A table in a Parquet file.

    Attributes:
        name, columns, size: as of any table; path: of its file.
    """

    name: str
    columns: tuple[str, ...]
    size: int
    path: Path

    def numbers(
        self, names: Sequence[str], *, keep: Sequence[str] = (), may_miss: bool = False, categories: Categories = NONE
    ) -> tuple[NDArray[np.float64], str, tuple[str, ...]]:
        pieces, gaps, remarks = self.pieces(names, keep=keep, may_miss=may_miss, categories=categories)
        return np.concatenate([np.empty((0, len(names))), *pieces()]), gaps, remarks

    def place(self, row: int) -> str:
        return f"row {row + 1}"

    def pieces(
        self, names: Sequence[str], *, keep: Sequence[str] = (), may_miss: bool = False, categories: Categories = NONE
    ) -> tuple[Pieces, str, tuple[str, ...]]:
        met: Met = defaultdict(dict)
        for _ in self._read(names, met, categories):
            pass
        check_cells(self.name, names, met, keep, may_miss, AT, categories)
        gaps = [f"{n} in column {name!r} (first {AT} {k})" for name, (n, _, k) in met["missing"].items()]
        flags = (f"{self.name} read as: True as 1 in {shorten([*met['flag']])}",) if met["flag"] else ()
        return lambda: self._read(names, defaultdict(dict), categories), shorten(gaps, 3, 120), flags

    def labels(self, names: Sequence[str]) -> Iterator[list[Counter[str]]]:
        for batch in self._batches(names):
            found = [labels_of(batch.column(name)) for name in names]
            yield [
                Counter(dict(zip(labels, np.bincount(at, minlength=len(labels)).tolist(), strict=True)))
                for labels, at in found
            ]

    def _read(self, names: Sequence[str], met: Met, categories: Categories) -> Iterator[NDArray[np.float64]]:
        """Yield the numbers of some columns, some rows at a time, and note what is met."""
        row = 1
        for batch in self._batches(names):
            columns = ((name, batch.column(name), categories.get(name)) for name in names)
            yield np.stack([column_of(cells, name, row, met, known) for name, cells, known in columns], axis=1)
            row += len(batch)

    def _batches(self, names: Sequence[str]) -> Iterator[Any]:
        """Yield some columns as Arrow has them, some rows at a time."""
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        try:
            with ParquetFile(self.path) as file:
                yield from file.iter_batches(AT_ONCE, columns=list(names))
        except (ArrowException, OSError) as error:
            refuse_damaged(self.name, error)


def labels_of(cells: Any) -> tuple[list[str], NDArray[np.int64]]:
    """Return the distinct categories in an array of Arrow, the first of them "" for missing cells, and where each is.

    Cells that are lists or records have none.
    """
    from pyarrow import types

    if types.is_nested(cells.type):
        return [""], np.zeros(len(cells), np.int64)
    coded = cells if types.is_dictionary(cells.type) else cells.dictionary_encode()
    places: dict[str, int] = {"": 0}
    values = [to_label("" if value is None or value != value else str(value)) for value in coded.dictionary.to_pylist()]
    codes = np.array([*(places.setdefault(value, len(places)) for value in values), 0])
    at = coded.indices.fill_null(len(values)).to_numpy(zero_copy_only=False)
    return [*places], codes[at]


def column_of(
    cells: Any, name: str, row: int, met: Met, categories: Sequence[str] | None = None
) -> NDArray[np.float64]:
    """Return a column of some rows as numbers, NaN where a cell is missing or no number, and note what is met.

    Args:
        cells: an array of Arrow; name: of the column; row: the number of its first row; met: to note it in.
        categories: of a column of text, or None for numbers.
    """
    from pyarrow import types

    kind = cells.type
    is_number = any(
        test(kind) for test in (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean, types.is_null)
    )

    def note(word: str, which: NDArray[np.bool_]) -> None:
        if which.any():
            at = int(which.argmax())
            count, first, place = met[word].get(name, (0, str(cells[at].as_py()), row + at))
            met[word][name] = count + int(which.sum()), first, place

    if categories is not None:
        known, (labels, at) = {label: code for code, label in enumerate(categories)}, labels_of(cells)
        values = np.array([known.get(label, np.nan) for label in labels])[at]
        note("missing", at == 0)
        note("unknown", np.isnan(values) & (at > 0))
        return values
    if not is_number and not types.is_nested(kind):  # text is read as in other tables
        labels, at = labels_of(cells)
        parsed = [to_number(label, ".") for label in labels]
        values = np.array([np.nan if number is None else number for number in parsed])[at]
        note("missing", at == 0)
        note("text", np.array([number is None for number in parsed])[at])
        note("large", np.abs(values) > LARGEST)
        return values
    missing = np.asarray(cells.is_null(nan_is_null=types.is_floating(kind)).to_numpy(zero_copy_only=False), bool)
    note("missing", missing)
    if not is_number:
        note("text", ~missing)
        return np.full(len(cells), np.nan)
    values = np.array(cells.cast("float64", safe=False).to_numpy(zero_copy_only=False), np.float64)
    values[missing] = np.nan
    note("flag", ~missing & types.is_boolean(kind))
    note("large", ~missing & ~(np.abs(values) <= LARGEST))
    return values


def open_parquet(path: Path, options: TableOptions) -> ParquetTable:
    """Return the table in a Parquet file.

    Raises:
        InputError: pyarrow is not installed; options of text; a damaged file; columns of one name.
    """
    name = printable(path.name)
    if not is_installed("pyarrow"):
        not_installed(name, "pyarrow for a Parquet file", "it", "data")
    if options[:3] != TableOptions()[:3]:
        fix = "Leave them out: they are of text."
        refuse(name, "no --sep, --decimal and --encoding for a Parquet file", "one of them", fix)
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            columns, rows = file.schema_arrow.names, file.metadata.num_rows
    except (ArrowException, OSError) as error:
        refuse_damaged(name, error)
    columns = [column for column in columns if not column.startswith("__index_level_")]  # as pandas names an index
    if twice := sorted({column for column in columns if columns.count(column) > 1}):
        refuse(name, "distinct column names", f"{shorten(twice)} more than once", "Rename one.")
    return ParquetTable(name, tuple(columns), 8 * rows * len(columns), path)


def refuse_damaged(name: str, error: Exception) -> Any:
    """Refuse a file that pyarrow cannot read."""
    reason = shorten([" ".join(str(error).split())], width=120)
    refuse(name, "a whole Parquet file", f"a damaged one ({reason})", "Write it again.")
