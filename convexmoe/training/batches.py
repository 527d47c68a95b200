"""What the source of a `Stream` gives: a new iterator each time, and where in it a fault is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..errors import fail

UNLIKE = "Shuffle the rows once, where they are stored: fit shuffles blocks of them anew in every pass."
USED_UP = "Return a new iterator at each call: the one of the pass before is used up."


def open_source(source: Any) -> Iterator[Any]:
    """Return an iterator over the batches of a source, of a function what it returns."""
    given = source if isinstance(source, Iterable) else source()
    try:
        return iter(given)
    except TypeError:
        rule, fix = "a function that returns an iterator", "Return one, or yield the batches."
        fail("Stream", "source", rule, f"one that returns {type(given).__name__}", fix, TypeError)


def check_alike(rows: Sequence[np.ndarray], like: Sequence[np.ndarray], rule: str, where: str, fix: str) -> None:
    """Check that each row of x and of the targets is shaped as others are."""
    shapes, wanted = (" and ".join(str(part.shape[1:]) for part in parts) for parts in (rows, like))
    if shapes != wanted:
        fail("Stream", "source", f"{rule} {wanted}", f"{shapes} {where}", fix)


@contextmanager
def in_batch(first: int) -> Iterator[None]:
    """Add to an error about rows of a batch where that begins."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"{error} It is in the batch that begins at row {first} of the Stream.") from None
