"""What a cell of text says: a number, nothing, or a category; and what is met among the cells of some columns."""

from __future__ import annotations

import math
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

LARGEST = 1e30  # squares of normalized float32 values stay finite
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

_WHOLE = re.compile(r"([-+]?(?:0|[1-9]\d*))[.,]0{0,2}")  # a whole number as floats are written

Place = tuple[int, str, int]  # how many cells, the first, its line
Met = dict[str, dict[str, Place]]  # kind of cell -> column


def to_number(cell: str, decimal: str) -> float | None:
    """Return the number in a cell, whose decimal mark is "." or ","; NaN for a missing one, None for text.

    >>> [to_number("1,234.5", "."), to_number("1.234,5", ","), to_number("#N/A", "."), to_number("1_000", ".")]
    [1234.5, 1234.5, nan, None]
    """
    text = cell.strip().replace("−", "-")
    if _FORMS[decimal].fullmatch(text):
        return float(text.translate(str.maketrans(dict.fromkeys(_GROUPS[decimal]))).replace(",", "."))
    return math.nan if _MISSING.fullmatch(text) else {"true": 1.0, "false": 0.0}.get(text.lower())


def to_label(cell: str) -> str:
    """Return the category in a cell, "" for a missing one; a whole number is the same category without its zeros.

    >>> [to_label(" north "), to_label("4.0"), to_label("n/a"), to_label("007")]
    ['north', '4', '', '007']
    """
    text = cell.strip()
    if _MISSING.fullmatch(text):
        return ""
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text


def count_labels(cells: Sequence[str]) -> Counter[str]:
    """Return how often each category stands in cells."""
    counts: Counter[str] = Counter()
    for cell, count in Counter(cells).items():
        counts[to_label(cell)] += count
    return counts


def is_text(counts: Mapping[str, int]) -> bool:
    """Return whether at least half of what is counted, missing cells aside, is no number, whatever its decimal mark.

    >>> [is_text({"north": 3, "": 9}), is_text({"1,5": 5, "2.5": 1, "north": 1}), is_text({"": 2})]
    [True, False, False]
    """
    filled = {label: count for label, count in counts.items() if label}
    text = sum(n for label, n in filled.items() if to_number(label, ".") is None and to_number(label, ",") is None)
    return 0 < sum(filled.values()) <= 2 * text


@dataclass
class Cells:
    """Numbers of some columns, taken row by row, and what was met among them.

    Attributes:
        names: of the columns; decimal: the mark they are read with.
        values: row after row, NaN for what is no number.
        met: cells that are "text", "missing", "large", "flag", "thousands", or an "unknown" category.
        marks: the first cell that has only the decimal mark "." or ","; "?." or "?," where it may be either.
        stays: whether values are kept; varied: the columns with other numbers than 0 and 1.
        categories: of columns of text; their place in it is the number of a cell.
    """

    names: Sequence[str]
    decimal: str
    stays: bool = True
    values: array = field(default_factory=lambda: array("d"))
    met: Met = field(default_factory=lambda: defaultdict(dict))
    marks: dict[str, str] = field(default_factory=dict)
    varied: set[str] = field(default_factory=set)
    categories: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def add(self, lines: Sequence[int], columns: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """Take the lines on which some rows end, and their cells, column by column; return their numbers."""
        block = np.empty((len(lines), len(self.names)))
        for k, (name, cells) in enumerate(zip(self.names, columns, strict=True)):
            if name in self.categories:
                block[:, k] = self._codes(name, cells, lines)
                continue
            numbers = self._plain(cells, lines)
            if numbers is None or not (np.abs(numbers) <= LARGEST).all():
                numbers = [self._number(name, cell.strip(), line) for cell, line in zip(cells, lines, strict=True)]
            block[:, k] = numbers
        if self.stays:
            self.values.frombytes(block.tobytes())
        others = (block != 0) & (block != 1) & ~np.isnan(block)
        self.varied.update(name for name, other in zip(self.names, others.any(axis=0), strict=True) if other)
        return block

    def _codes(self, name: str, cells: Sequence[str], lines: Sequence[int]) -> list[float]:
        """Return the places of cells among the categories of a column, NaN for what is none of them."""
        numbers = {label: float(code) for code, label in enumerate(self.categories[name])}
        known = {cell: numbers.get(to_label(cell), math.nan) for cell in dict.fromkeys(cells)}
        if any(map(math.isnan, known.values())):
            for cell, line in zip(cells, lines, strict=True):
                if math.isnan(known[cell]):
                    self._note("unknown" if to_label(cell) else "missing", name, cell.strip(), line)
        return [known[cell] for cell in cells]

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
        if number is None or not abs(number) <= LARGEST:
            kind = "text" if number is None else "missing" if math.isnan(number) else "large"
        if kind:
            self._note(kind, name, cell, line)
        return math.nan if number is None else number

    def _note(self, kind: str, name: str, cell: str, line: int) -> None:
        """Note what is met in a cell."""
        count, first, at = self.met[kind].get(name, (0, cell, line))
        self.met[kind][name] = count + 1, first, at

    def _weigh(self, cell: str, line: int) -> str:
        """Note which decimal mark the number in a cell has, and return it."""
        point, comma = (to_number(cell, mark) if "." in cell or "," in cell else None for mark in ".,")
        if point == comma or (point is not None and math.isnan(point)):
            return ""
        kind = "." if comma is None else "," if point is None else f"?{'.' if '.' in cell else ','}"
        self.marks.setdefault(kind, f"{cell.strip()} on line {line}")
        return kind
