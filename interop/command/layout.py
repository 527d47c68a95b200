"""How a table is written: what packs it, its encoding, the lines above its header, and what separates its cells."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import IO, Any

from convexmoe.errors import refuse

from .options import TableOptions

SEPARATORS = {",": ",", ";": ";", "\t": "tab", "|": "|"}
SAMPLE = 200  # lines that tell the separator
_PACKINGS: dict[str, tuple[bytes, Callable[[Any], Any]]] = {
    "gzip": (b"\x1f\x8b", gzip.open),
    "bzip2": (b"BZh", bz2.open),
    "xz": (b"\xfd7zXZ", lzma.open),
    "": (b"", lambda stream: stream),
}
_SIGNS = "°µ²³¹ªº€£§«»–—‘’“”„…·½¼¾±×©®™´\xa0¿¡÷‰"  # of Windows-1252, beside its letters
_INSIDE = re.compile(r"[^\W\d_][°²³¹€£§«»“”„…½¼¾±×©®™¿¡÷‰][^\W\d_]|[\x01-\x08\x0e-\x1f]")  # are in no word of it
_NUMBER = re.compile(r"\s*[-+]?(?=[.,]*\d)[\d.,]+(?:e[-+]?\d+)?\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Layout:
    """How a table is written.

    Attributes:
        source: opens its bytes anew; packing: "gzip", "bzip2", "xz" or "".
        encoding: a codec of Python; sep: the character between cells.
        header: the cells of the header, stripped.
        skip: lines of the file up to the header's last; comments: how many of them are comments.
        sheet: of a workbook, in words; "" of text.
    """

    source: Callable[[], Any]
    packing: str
    encoding: str = "utf-8"
    sep: str = ","
    header: tuple[str, ...] = ()
    skip: int = 0
    comments: int = 0
    sheet: str = ""

    @contextmanager
    def lines(self) -> Iterator[IO[str]]:
        """Give the lines of the text as the file has them."""
        with self.source() as packed, _PACKINGS[self.packing][1](packed) as content:
            yield io.TextIOWrapper(content, self.encoding, newline="")

    def cells(self, lines: Any) -> Any:
        """Return the reader of rows of cells; its `line_num` is how many lines it has read."""
        return csv.reader(lines, delimiter=self.sep, skipinitialspace=True, strict=True)

    def words(self) -> list[str]:
        """Return in words what is unlike a plain CSV file."""
        sep, encoding = SEPARATORS.get(self.sep, repr(self.sep)), self.encoding.upper()
        found = {"separator " + sep: self.sep != ",", encoding.replace("CP125", "Windows-125"): encoding != "UTF-8"}
        found |= {self.packing: self.packing != "", f"comments above the header ({self.comments})": self.comments > 0}
        found |= {f"sheet {self.sheet}": self.sheet != ""}
        return [words for words, unlike in found.items() if unlike]


def recognize(name: str, source: Callable[[], Any], options: TableOptions) -> Layout:
    """Return how a table is written; what may be read in two ways is refused with the option that settles it."""
    csv.field_size_limit(2**27)  # a cell that is left out may be long
    with source() as stream:
        head = stream.read(5)
    layout = Layout(source, next(kind for kind, (mark, _) in _PACKINGS.items() if head.startswith(mark)))
    try:
        layout = replace(layout, encoding=_encoding(name, layout, options.encoding))
        with layout.lines() as text:
            return _find_header(name, layout, list(islice(text, SAMPLE)), options.sep)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        refuse(name, f"a whole {layout.packing} file", f"a damaged one ({error})", "Copy it again.")


def _encoding(name: str, layout: Layout, wanted: str | None) -> str:
    """Return the codec of the whole text: by its mark, by the zeros of UTF-16, UTF-8, or Windows-1252."""
    with layout.source() as packed, _PACKINGS[layout.packing][1](packed) as content:
        head = content.read(4096)
    even, odd = (head[k::2].count(0) for k in range(2))
    known = "utf-8" if 8 * max(even, odd) <= len(head) else "utf-16-le" if odd > even else "utf-16-be"
    for codec in ("utf-16", "utf-32"):  # the mark of UTF-32 begins as that of UTF-16
        if head.startswith(("\ufeff".encode(f"{codec}-le"), "\ufeff".encode(f"{codec}-be"))):
            known = codec
    for codec in (wanted,) if wanted else (known, "cp1252"):
        with layout.source() as packed, _PACKINGS[layout.packing][1](packed) as content, suppress(UnicodeDecodeError):
            texts = codecs.iterdecode(iter(partial(content.read, 2**20), b""), codec)
            if not any("\0" in text or (not wanted and codec == "cp1252" and not _is_western(text)) for text in texts):
                return codec
    fix = "Export the table as CSV (UTF-8), or name its encoding: --encoding cp1251, for example."
    refuse(name, f"text in {wanted or 'UTF-8, UTF-16 or Windows-1252'}", "binary data or another encoding", fix)


def _is_western(text: str) -> bool:
    """Return whether what is not ASCII looks like words of Western Europe: in other encodings of a byte it does not."""
    tokens = [token for token in re.findall(r"[^\s\d,;|\"'()._/+-]+", text) if not token.isascii()]
    letters = [letter for token in tokens for letter in token if letter not in _SIGNS]
    strange = [letter for letter in letters if not letter.isascii()]
    plain = all(letter.isalpha() and letter != "ƒ" for letter in strange) and not _INSIDE.search(text)
    return plain and len(strange) <= 0.75 * len(letters)


def _find_header(name: str, layout: Layout, sample: list[str], sep: str | None) -> Layout:
    """Return the layout with its header: below empty lines, `sep=`, and comments, the last of which may be it."""
    comments, last, skip, lines = 0, "", 0, iter(sample)
    for line in lines:
        plain = line.strip(' \r\n"\ufeff')
        if declared := re.fullmatch(r"sep=(.)", plain, re.IGNORECASE):
            sep = sep or declared[1]
        elif plain.startswith(("#", "%", "//")):
            comments, last = comments + 1, plain.lstrip("#%/ ")
        elif plain.strip(',;|\t" '):
            break
        skip += 1
    else:
        refuse(name, "a header line and rows", "an empty file", "Export the table again.")
    table, got = [line.removeprefix("\ufeff"), *lines], f"the numbers {line.strip():.80}"
    numbers = not last and re.fullmatch(r'[\d\s.,;|+eE"-]*', line)
    layout = replace(layout, sep=sep or ("," if numbers else _separator(name, table)), comments=comments)
    reader = layout.cells(table)
    try:
        header, above = next(reader), [*layout.cells([last]), []][0]
    except csv.Error as error:
        refuse(name, "CSV", f"a fault on line {skip + reader.line_num} ({error})", "Correct the quotes there.")
    if len(above) == len(header) > 1 and any(map(_NUMBER.fullmatch, header)) and not any(map(_NUMBER.fullmatch, above)):
        return replace(layout, header=tuple(above), skip=skip, comments=comments - 1)  # as numpy writes it
    if numbers or all(map(_NUMBER.fullmatch, header)):
        refuse(name, "a header line with column names", got, "Put the names on the first line.")
    return replace(layout, header=tuple(cell.strip() for cell in header), skip=skip + reader.line_num)


def _separator(name: str, lines: list[str]) -> str:
    """Return what splits the header, and most rows into as many cells; a comma where nothing does."""
    scores: dict[str, float] = {}
    for sep in SEPARATORS:
        header, *rows = [len(cells) for cells in csv.reader(lines, delimiter=sep, skipinitialspace=True) if cells]
        if header > 1:
            scores[sep] = rows.count(header) / max(len(rows), 1)
    best = [sep for sep, score in scores.items() if score == max(scores.values())]
    if len(best) > 1:
        got = f"a header and rows that {' and '.join(map(repr, best))} split alike"
        refuse(name, "one separator of cells", got, f'Name it: --sep "{best[-1]}", for example.')
    return best[0] if best else ","
