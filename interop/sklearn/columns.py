"""The columns of a table by name or by number: which are inputs, which are contexts, and the signs of the inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from convexmoe.errors import fail

OWNER, ALL = "ConvexRegressor", "all"


def check_frame(X: Any, by_place: bool) -> None:
    """Check that a table has numbers, and a frame a name for each column; `by_place`: a number names its place."""
    given = list(getattr(X, "columns", ()))
    if by_place and any(hasattr(name, "__index__") and name != place for place, name in enumerate(given)):
        fix = "Rename them, as by X.rename(columns=str), and name them by text."
        fail(OWNER, "X", "names of text, or 0, 1, ... in order: a number is a place", f"{given[:8]}", fix)
    names = [*map(str, given)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        fail(OWNER, "X", "a name for each column", f"{twice} more than once", "Rename one.")
    kinds = [str(kind).lower() for kind in getattr(X, "dtypes", ())]
    for name, kind in zip(getattr(X, "columns", ()), kinds, strict=False):
        is_text = kind == "object" and any(isinstance(cell, str) for cell in X[name])
        if is_text or kind.startswith(("str", "cat", "enum", "date", "time")):
            fix = "Encode it before, by OneHotEncoder for example, and name in convex= the columns of numbers."
            fix = "Write it as a number, as the days since some day." if kind.startswith(("date", "time")) else fix
            fail(OWNER, "X", "numbers", f"{kind} in column {name!r}", fix)
    if getattr(dtype := getattr(X, "dtype", None), "kind", "") in tuple("SUMm"):
        fail(OWNER, "X", "numbers", f"an array of {dtype}", "Write it as numbers, dates as days since one.")


def number_of(argument: str, column: Any, names: Sequence[str], count: int) -> int:
    """Return the number of a column that is given by its name, or by its number.

    Args:
        argument: of the estimator, for the message.
        column: a name, or a number from 0 to `count - 1`.
        names: of the columns; none where the table has no names.
        count: how many columns there are.
    """
    if isinstance(column, str):
        if column not in names:
            rule = f"columns of X, {names}" if names else "columns by number, as X has no names"
            fail(OWNER, argument, rule, repr(column), "Name columns that X has." if names else "Pass 0 for the first.")
        return names.index(column)
    if isinstance(column, bool) or not hasattr(column, "__index__"):
        fail(OWNER, argument, "names or numbers of columns", repr(column), "Pass 0 for the first.", TypeError)
    number = column.__index__()
    if not 0 <= number < count:
        fail(OWNER, argument, f"columns from 0 to {count - 1}", repr(column), "Pass 0 for the first.")
    return number


def split_columns(convex: Any, names: Sequence[str], count: int) -> tuple[list[int], list[int]]:
    """Return the numbers of the inputs, in which the function is convex, and of the contexts, both rising.

    Args:
        convex: "all", or the columns that are inputs; the others are contexts.
        names, count: as for `number_of`.
    """
    if isinstance(convex, str) and convex == ALL:
        return list(range(count)), []
    rule, fix = '"all" or a list of columns', 'Pass convex="all" for every column.'
    if isinstance(convex, str) or not isinstance(convex, Iterable):
        fail(OWNER, "convex", rule, repr(convex), fix, TypeError)
    numbers = [number_of("convex", column, names, count) for column in convex]
    if not numbers or len(set(numbers)) < len(numbers):
        fail(OWNER, "convex", f"{rule}, one at least and each once", repr(list(convex)), fix)
    return sorted(numbers), sorted(set(range(count)) - set(numbers))


def signs_of(monotone: Any, inputs: Sequence[int], names: Sequence[str], count: int) -> tuple[int, ...] | None:
    """Return for each input whether the function rises (1) or falls (-1) along it, else 0; None for all free.

    Args:
        monotone: a mapping of columns to 1, 0 or -1, or None.
        inputs: the numbers of the inputs; names, count: as for `number_of`.
    """
    if monotone is None:
        return None
    fix = 'Pass {"price": -1}, for example.'
    if not isinstance(monotone, Mapping):
        fail(OWNER, "monotone", "a dict of columns to 1, 0 or -1", repr(monotone), fix, TypeError)
    signs = {}
    for column, sign in monotone.items():
        number = number_of("monotone", column, names, count)
        if number not in inputs:
            rule, got = "inputs: nothing is assumed in a context", f"{column!r}, which convex leaves out"
            fail(OWNER, "monotone", rule, got, "Leave it out, or add it to convex.")
        if isinstance(sign, bool) or sign not in (-1, 0, 1):
            fail(OWNER, "monotone", "1, 0 or -1 for a column", f"{sign!r} for {column!r}", fix)
        if number in signs:
            fail(OWNER, "monotone", "each column once", f"{column!r} twice, by name and by number", fix)
        signs[number] = int(sign)
    return tuple(signs.get(number, 0) for number in inputs)
