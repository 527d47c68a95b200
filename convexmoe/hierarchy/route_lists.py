"""Routes as lists of names, before a config is known. No framework is imported here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import fail, whole_number

# level -> a name (or None, for the fallback) or the integer of an expert for each sample; None leaves the level out
LevelRouting = Mapping[str, Any]


def merge_routing(base: LevelRouting | None, extra: LevelRouting | None) -> dict[str, Any]:
    """Return the routes of `base` and `extra`, level by level; where both route a level, those of `extra`.

    >>> merge_routing({"family": ["slavic"], "language": ["ru"]}, {"language": ["uk"]})
    {'family': ['slavic'], 'language': ['uk']}
    """
    merged: dict[str, Any] = {}
    for argument, part in (("base", base), ("extra", extra)):
        if part is not None and not isinstance(part, Mapping):
            got = type(part).__name__
            fail(
                "merge_routing",
                argument,
                "a mapping of levels to routes",
                got,
                "Pass {level: names}.",
                TypeError,
            )
        merged |= part or {}
    return merged


def routing_constant(name: str | None, batch_size: int) -> list[str | None]:
    """Return the routes of a level whose samples all go to one expert.

    >>> routing_constant("slavic", 3)
    ['slavic', 'slavic', 'slavic']
    """
    if name is not None and not isinstance(name, str):
        fix = "Pass the name of an expert."
        fail("routing_constant", "name", "a name, or None for the fallback", repr(name), fix, TypeError)
    return [name] * whole_number("routing_constant", "batch_size", batch_size, 0)


def validate_routing_length(level: str, routes: Sequence[Any], batch_size: int) -> None:
    """Check that a level has one route for each sample.

    Raises:
        TypeError: the routes have no length.
        ValueError: there are more or fewer.
    """
    rows = whole_number("validate_routing_length", "batch_size", batch_size, 0)
    argument = f"routing[{level!r}]"
    if isinstance(routes, str) or not hasattr(routes, "__len__"):
        fix = "Pass a list, one for each sample."
        fail("validate_routing_length", argument, "names or integers", repr(routes), fix, TypeError)
    if len(routes) != rows:
        rule = f"one route for each of {rows} samples"
        fail("validate_routing_length", argument, rule, f"{len(routes)} entries", "Pass as many as samples.")
