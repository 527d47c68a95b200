"""Routes: names of experts to integers, once, on the host. Only what becomes of the integers is left to a package."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import describe, fail, whole_number
from .checks import OWNER
from .config import CELMoEConfig, HierarchyLevelConfig

LevelRouting = Mapping[str, Any]
"""Level -> a name (or None, for the fallback) or the integer of an expert for each sample; None leaves a level out."""
# Returns the values of an array of either framework, None while it is traced.
ReadValues = Callable[[Any], np.ndarray | None]
MAPPING = "a mapping of levels to routes"


def merge_routing(base: LevelRouting | None, extra: LevelRouting | None) -> dict[str, Any]:
    """Return the routes of `base` and `extra`, level by level; where both route a level, those of `extra`.

    >>> merge_routing({"family": ["slavic"], "language": ["ru"]}, {"language": ["uk"]})
    {'family': ['slavic'], 'language': ['uk']}
    """
    merged: dict[str, Any] = {}
    for argument, part in (("base", base), ("extra", extra)):
        if part is not None and not isinstance(part, Mapping):
            fail("merge_routing", argument, MAPPING, type(part).__name__, "Pass {level: names}.", TypeError)
        merged.update(part or {})
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
    owner, argument = "validate_routing_length", f"routing[{level!r}]"
    rows = whole_number(owner, "batch_size", batch_size, 0)
    if isinstance(routes, str) or not hasattr(routes, "__len__"):
        fail(owner, argument, "names or integers", repr(routes), "Pass a list, one for each sample.", TypeError)
    if len(routes) != rows:
        rule = f"one route for each of {rows} samples"
        fail(owner, argument, rule, f"{len(routes)} entries", "Pass as many as samples.")


def route_levels(config: CELMoEConfig, routing: LevelRouting | None, rows: int, read: ReadValues) -> dict[str, Any]:
    """Return what `RouteFunctions.encode_routes` converts, of the same arguments.

    That is level -> integers `[rows]`, of numpy, or the array of integers that was given; its values are in range where
    they can be read.
    """
    routing = {} if routing is None else routing
    if not isinstance(routing, Mapping):
        fail(OWNER, "routing", MAPPING, type(routing).__name__, "Pass {level: names}.", TypeError)
    known = [level.name for level in config.levels]
    unknown = sorted(set(routing) - set(known))
    if unknown:
        fail(OWNER, "routing", f"levels among {known}", repr(unknown), "Correct the name.")
    return {lv.name: _route_level(lv, routing.get(lv.name), rows, read) for lv in config.enabled_levels}


def _route_level(level: HierarchyLevelConfig, routes: Any, rows: int, read: ReadValues) -> Any:
    argument, names = f"routing[{level.name!r}]", level.expert_names
    if routes is None:
        if level.default_expert is None:
            fix = "Route the level, or give it a fallback_expert."
            fail(OWNER, argument, f"one of {list(names)} a sample", "no routes", fix)
        return np.full(rows, names.index(level.default_expert), np.int32)
    if isinstance(routes, (str, bytes)) or not (isinstance(routes, Sequence) or hasattr(routes, "shape")):
        fail(OWNER, argument, "names or integers", repr(routes), "Pass a list, one for each sample.", TypeError)
    if (tuple(routes.shape) if hasattr(routes, "shape") else (len(routes),)) != (rows,):
        got = describe(routes) if hasattr(routes, "shape") else f"{len(routes)} entries"
        fail(OWNER, argument, f"one route for each of {rows} samples", got, "Pass as many as samples.")
    if hasattr(routes, "dtype") and not str(routes.dtype).startswith(("<U", "object", "str")):
        return _check_integers(level, argument, routes, read)
    table: dict[Any, int] = {name: index for index, name in enumerate(names)}
    if level.default_expert is not None:
        table[None] = table[level.default_expert]
    try:
        return np.fromiter((table[route] for route in routes), np.int32, rows)
    except (KeyError, TypeError):  # integers in a list, or a fault to report
        integers = _read_integers(routes)
    if integers is None:
        _report_fault(argument, names, routes, None in table)
        raise AssertionError("every fault has a message")
    _check_range(level, argument, integers)
    return np.array(integers, np.int32)


def _read_integers(routes: Any) -> list[int] | None:
    """Return the routes of a sequence as integers of Python, whatever their size; None where some are none."""
    kinds = {(str(getattr(route, "dtype", type(route).__name__)), len(getattr(route, "shape", ()))) for route in routes}
    if any("bool" in kind or axes > 0 for kind, axes in kinds):
        return None
    try:
        return [operator.index(route) for route in routes]
    except TypeError:  # also what JAX raises for a traced integer
        return None


def _check_range(level: HierarchyLevelConfig, argument: str, values: list[int]) -> None:
    """Check that integers are indices of a level's experts, before any is narrowed."""
    count = len(level.experts)
    bad = next((value for value in values if not 0 <= value < count), None)
    if bad is not None:
        fail(OWNER, argument, f"integers in [0, {count})", str(bad), "Index the level's experts.")


def _report_fault(argument: str, names: tuple[str, ...], routes: Any, has_default: bool) -> None:
    """Raise for the first route that names no expert."""
    for row, route in enumerate(routes):
        if route is None and not has_default:
            rule, fix = "a route for every sample", "Give the level a fallback_expert."
            fail(OWNER, argument, rule, f"None at sample {row}", fix)
        if route is not None and not (isinstance(route, str) and route in names):
            fail(OWNER, argument, f"experts among {list(names)}", f"{route!r} at sample {row}", "Correct the name.")


def _check_integers(level: HierarchyLevelConfig, argument: str, routes: Any, read: ReadValues) -> Any:
    """Return integer routes after the checks of their dtype, and of their values where they can be read."""
    _check_dtype(argument, routes)
    values, count = read(routes), len(level.experts)
    if values is not None and np.ma.is_masked(routes):
        got = f"{np.ma.count_masked(routes)} masked"
        fail(OWNER, argument, "a route for every sample", got, "Fill them with an expert's index.")
    if values is not None and values.size and not (values.min() >= 0 and values.max() < count):
        _check_range(level, argument, values.ravel().tolist())
    return routes


def _check_dtype(argument: str, routes: Any) -> Any:
    """Return routes, a list as an array, after the check that they are integers."""
    routes = routes if hasattr(routes, "dtype") else np.asarray(routes)
    if not any(kind in str(routes.dtype) for kind in ("int8", "int16", "int32", "int64")):
        fail(OWNER, argument, "names or integers", describe(routes), "Cast them to int32.", TypeError)
    return routes


@dataclass(frozen=True)
class RouteFunctions:
    """The functions of encoded routes, which both packages have, for the arrays of one framework.

    Args:
        read: returns the values of an array, None while it is traced.
        convert: returns integers of numpy, or an array that was given, as routes of the package.
        join: returns routes put one after the other.
    """

    read: ReadValues
    convert: Callable[[Any], Any]
    join: Callable[[list[Any]], Any]

    def encode_routes(self, config: CELMoEConfig, routing: LevelRouting | None, rows: int) -> dict[str, Any]:
        """Return one integer route for each sample of every enabled level.

        A level that the routing does not name goes to its only expert or its `fallback_expert`; so does a sample
        whose route is None. Encode once and pass the result again: integers are taken as they are.

        Args:
            config: the hierarchy.
            routing: level -> sequence of names (or None), or integer array `[rows]` of indices into the level's
                experts.
            rows: the number of samples.

        Returns:
            level -> array `[rows]`: in JAX int32, of numpy unless an array of JAX was given; in PyTorch an int64
            tensor, on the device of the one that was given.

        Raises:
            ValueError: an unknown level or expert (the known ones are listed), a list of another length, an integer
                out of range, a sample without a route where the level has no fallback.

        >>> from convexmoe.hierarchy import ExpertConfig
        >>> level = HierarchyLevelConfig("family", [ExpertConfig("slavic"), ExpertConfig("romance")])
        >>> encode_routes = RouteFunctions(np.asarray, np.asarray, np.concatenate).encode_routes
        >>> encode_routes(CELMoEConfig(8, [level]), {"family": ["romance", "slavic"]}, 2)["family"].tolist()
        [1, 0]
        """
        routes = route_levels(config, routing, rows, self.read)
        return {level: self.convert(integers) for level, integers in routes.items()}

    def constant_routes(self, config: CELMoEConfig, routing: Mapping[str, str], rows: int) -> dict[str, Any]:
        """Return the routes of a batch whose samples all take the same path: level -> name of the expert."""
        rows = whole_number("constant_routes", "rows", rows, 0)
        return self.encode_routes(config, {level: [name] * rows for level, name in routing.items()}, rows)

    def merged_routes(self, *parts: Mapping[str, Any]) -> dict[str, Any]:
        """Return the routes of batches put one after the other; all must route the same levels."""
        levels = [sorted(part) for part in parts]
        if not parts or any(names != levels[0] for names in levels):
            fail("merged_routes", "parts", "encoded routes of the same levels", repr(levels), "Encode each part first.")
        checked = [{name: _check_dtype(f"parts[{name!r}]", routes) for name, routes in part.items()} for part in parts]
        return {level: self.join([self.convert(part[level]) for part in checked]) for level in parts[0]}

    def routing_summary(self, config: CELMoEConfig, routes: Mapping[str, Any]) -> dict[str, dict[str, int]]:
        """Return level -> expert -> number of rows, for the routes that a call takes, by its rules and with its errors.

        A level that the routes leave out goes to its only expert or its `fallback_expert`.
        """
        parts = routes.values() if isinstance(routes, Mapping) else ()
        rows = next((len(part) for part in parts if getattr(part, "shape", None) or isinstance(part, Sequence)), 0)
        levels, summary = route_levels(config, routes, rows, self.read), {}
        for level in config.enabled_levels:
            counts = Counter(np.asarray(self.read(levels[level.name])).tolist())
            summary[level.name] = {name: counts[index] for index, name in enumerate(level.expert_names)}
        return summary
