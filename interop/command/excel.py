"""Tables in Excel workbooks, read by openpyxl, with the checks and the messages of text."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any
from zipfile import BadZipFile

from convexmoe.errors import InputError, refuse

from .. import is_installed
from ..frameworks import not_installed
from .layout import Layout
from .options import TableOptions
from .tables import Categories, TextTable, check_columns, shorten

# What openpyxl raises for files that are damaged, encrypted, or no workbooks: it has no error of its own for most.
FAULTS = (
    *(BadZipFile, zlib.error, OSError, EOFError, SyntaxError),
    *(LookupError, ValueError, TypeError, AttributeError, RuntimeError),
)

UNSAVED = "\0formula"  # stands for a formula whose value is not in the file


@dataclass(frozen=True)
class SheetTable(TextTable):
    """A sheet of a workbook, its cells as text.

    Attributes:
        cells: for each row under the header its number in the sheet, and its cells.
        others: what stands in the first rows of each other sheet of the workbook.
    """

    cells: tuple[tuple[int, list[str]], ...] = ()
    others: Categories = field(default_factory=dict)

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield for each row its number in the sheet, counted from 1, and its cells."""
        yield from self.cells

    def _columns(self, names: Sequence[str]) -> Iterator[tuple[tuple[int, ...], list[tuple[str, ...]]]]:
        for lines, columns in super()._columns(names):
            for name, cells in zip(names, columns, strict=True):
                if UNSAVED in cells:
                    got = f"a formula without one in column {name!r} on line {lines[cells.index(UNSAVED)]}"
                    fix = "Open and save it in a spreadsheet program, which computes it."
                    refuse(self.name, "a saved value for each formula", got, fix)
            yield lines, columns


def open_excel(name: str, source: Callable[[], Any], options: TableOptions) -> SheetTable:
    """Return the table in a sheet of a workbook: its first row that is not empty has the names of the columns.

    Raises:
        InputError: openpyxl is not installed; options of text; an old or a damaged workbook; no such sheet; no names.
    """
    if not is_installed("openpyxl"):
        not_installed(name, "openpyxl for an Excel file", "it", "excel")
    if options[:3] != TableOptions()[:3]:
        fix = "Leave them out: they are of text."
        refuse(name, "no --sep, --decimal and --encoding for an Excel file", "one of them", fix)
    with source() as stream:
        rows, sheet, others = _read_sheet(name, stream, options)
    start = next((k for k, (_, cells) in enumerate(rows) if any(cells)), None)
    if start is None:
        refuse(name, "a header row and rows", f"an empty sheet {sheet}", "Name another one: --sheet.")
    width = max(k + 1 for _, cells in rows[start:] for k, cell in enumerate(cells) if cell)
    padded = tuple((row, (cells + [""] * width)[:width]) for row, cells in rows[start:])
    header = tuple(cell.strip() for cell in padded[0][1])
    columns = check_columns(name, header)
    return SheetTable(name, Layout(source, "", header=header, sheet=sheet), ".", columns, 0, padded[1:], others)


def _read_sheet(name: str, stream: Any, options: TableOptions) -> tuple[list[tuple[int, list[str]]], str, Categories]:
    """Return the rows of a sheet, each with its number; in words which it is; what the first rows of others hold."""
    from openpyxl import load_workbook

    try:
        with warnings.catch_warnings():  # of styles and extensions that are no cells
            warnings.simplefilter("ignore")
            book = load_workbook(stream, read_only=True, data_only=True)
            sheets = {sheet.title: sheet for sheet in book.worksheets}
            if options.sheet is not None and options.sheet not in sheets:
                known = f"one of {shorten([*sheets])}"
                refuse(f"{options.owner} --sheet", known, repr(shorten([options.sheet])), "Name one of these.")
            if not sheets:
                refuse(name, "a sheet of cells", "none", "Save the table as a sheet.")
            shown = [title for title, sheet in sheets.items() if sheet.sheet_state == "visible"]
            title = options.sheet or next(iter([*shown, *sheets]))
            sheet = sheets.pop(title)
            rows, last = _read_rows(sheet)
            widths = {len(cells) for _, cells in rows}
            if len(widths) > 1 or any("" in cells for _, cells in rows) or (rows and last > rows[-1][0]):
                rows, _ = _read_rows(sheet, load_workbook(stream, read_only=True)[title])
            heads = {other: one.iter_rows(max_row=9, values_only=True) for other, one in sheets.items()}
            others = {other: [str(cell).strip() for row in head for cell in row] for other, head in heads.items()}
    except InputError:
        raise
    except FAULTS as error:
        got, fix = f"another or a damaged one ({type(error).__name__})", "Save it as .xlsx, or as CSV."
        refuse(name, "an Excel workbook (.xlsx)", got, fix)
    several = f", the first of {len(sheets) + 1}" if options.sheet is None and sheets else ""
    return rows, title + several, others


def _read_rows(sheet: Any, formulas: Any = None) -> tuple[list[tuple[int, list[str]]], int]:
    """Return the rows of a sheet up to the last that has a value, each up to its last value, and the last number.

    What a sheet says of its size may be wrong, and cells that only have a format are none: each is looked at. With the
    sheet of `formulas` one of them without a saved value is UNSAVED; a saved value that is an empty text is a "str".
    """
    (formulas or sheet).reset_dimensions()  # that of values first
    rows: list[tuple[int, list[str]]] = []
    number = 0
    others: Any = repeat(repeat(None)) if formulas is None else formulas.iter_rows(values_only=True)
    for number, (cells, beside) in enumerate(zip(sheet.iter_rows(), others, strict=False), 1):
        known = [UNSAVED if f is not None and c.data_type != "str" else "" for c, f in zip(cells, beside, strict=False)]
        texts = [mark if cell.value is None else str(cell.value) for cell, mark in zip(cells, known, strict=True)]
        while texts and not texts[-1]:
            texts.pop()
        if texts:
            first = rows[-1][0] + 1 if rows else 1
            rows += [*((empty, []) for empty in range(first, number)), (number, texts)]
    return rows, number
