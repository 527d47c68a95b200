"""Routes: names of experts to integers, once, on the host; and what each sample sees of context and mask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from convexmoe.errors import describe, fail, whole_number
from convexmoe.hierarchy.config import CELMoEConfig, HierarchyLevelConfig
from convexmoe.hierarchy.route_lists import LevelRouting

Routes = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Shared:
    """Context that every sample sees whole, whatever its sizes: `Shared(value)`."""

    value: Any


def encode_routes(config: CELMoEConfig, routing: LevelRouting | None, rows: int) -> dict[str, Any]:
    """Return one integer route a sample for every enabled level.

    A level that the routing does not name goes to its only expert or its `fallback_expert`; so does a sample
    whose route is None. Encode once and pass the result again: integers are taken as they are.

    Args:
        config: the hierarchy.
        routing: level -> sequence of names (or None), or integer array `[rows]` of indices into the level's experts.
        rows: the number of samples.

    Returns:
        level -> int64 tensor `[rows]`; tensors stay what they are.

    Raises:
        ValueError: an unknown level or expert (the known ones are listed), a list of another length, an integer
            out of range, a sample without a route where the level has no fallback.

    >>> from convexmoe.hierarchy.config import ExpertConfig
    >>> level = HierarchyLevelConfig("family", [ExpertConfig("slavic"), ExpertConfig("romance")])
    >>> encode_routes(CELMoEConfig(8, [level]), {"family": ["romance", "slavic"]}, 2)["family"].tolist()
    [1, 0]
    """
    routing = {} if routing is None else routing
    if not isinstance(routing, Mapping):
        fix = "Pass {level: names}."
        fail(
            "HierarchicalCELMoE",
            "routing",
            "a mapping of levels to routes",
            type(routing).__name__,
            fix,
            TypeError,
        )
    known = [level.name for level in config.levels]
    unknown = sorted(set(routing) - set(known))
    if unknown:
        fail("HierarchicalCELMoE", "routing", f"levels among {known}", repr(unknown), "Correct the name.")
    return {
        level.name: _level_routes(level, routing.get(level.name), rows) for level in config.enabled_levels
    }


def _level_routes(level: HierarchyLevelConfig, routes: Any, rows: int) -> Any:
    argument = f"routing[{level.name!r}]"
    if routes is None:
        if level.default_expert is None:
            fix = "Route the level, or give it a fallback_expert."
            fail(
                "HierarchicalCELMoE",
                argument,
                f"one of {list(level.expert_names)} a sample",
                "no routes",
                fix,
            )
        return torch.full((rows,), level.expert_names.index(level.default_expert))
    if isinstance(routes, str) or not (isinstance(routes, Sequence) or hasattr(routes, "shape")):
        fix = "Pass a list, one for each sample."
        fail("HierarchicalCELMoE", argument, "names or integers", repr(routes), fix, TypeError)
    if (tuple(routes.shape) if hasattr(routes, "shape") else (len(routes),)) != (rows,):
        got = describe(routes) if hasattr(routes, "shape") else f"{len(routes)} entries"
        fail(
            "HierarchicalCELMoE",
            argument,
            f"one route for each of {rows} samples",
            got,
            "Pass as many as samples.",
        )
    if hasattr(routes, "dtype") and not str(routes.dtype).startswith(("<U", "object", "str")):
        return _checked_integers(level, argument, routes)
    table: dict[Any, int] = {name: index for index, name in enumerate(level.expert_names)}
    if level.default_expert is not None:
        table[None] = table[level.default_expert]
    try:
        return torch.from_numpy(np.fromiter((table[route] for route in routes), np.int64, rows))
    except (KeyError, TypeError):
        return _encode_slowly(level, argument, routes, table)


def _encode_slowly(
    level: HierarchyLevelConfig, argument: str, routes: Any, table: dict[Any, int]
) -> torch.Tensor:
    """Encode what is no plain list of names: integers in a list, or a fault to report."""
    if all(hasattr(route, "__index__") and not isinstance(route, bool) for route in routes):
        return _checked_integers(level, argument, np.asarray(routes))
    for row, route in enumerate(routes):
        if route is None and None not in table:
            fix = "Give the level a fallback_expert."
            fail("HierarchicalCELMoE", argument, "a route for every sample", f"None at sample {row}", fix)
        if (not isinstance(route, str) and route is not None) or route not in table:
            got = f"{route!r} at sample {row}"
            fail(
                "HierarchicalCELMoE",
                argument,
                f"experts among {list(level.expert_names)}",
                got,
                "Correct the name.",
            )
    raise AssertionError("every fault has a message")


def _checked_integers(level: HierarchyLevelConfig, argument: str, routes: Any) -> Any:
    """Check integer routes; the values only where they are at hand, which under jit they are not."""
    if not any(kind in str(routes.dtype) for kind in ("int8", "int16", "int32", "int64")):
        fix = "Cast them to int32."
        fail("HierarchicalCELMoE", argument, "names or integers", describe(routes), fix, TypeError)
    values = concrete(routes)
    count = len(level.experts)
    if values is not None and values.size and not (values.min() >= 0 and values.max() < count):
        bad = int(values[(values < 0) | (values >= count)][0])
        fail(
            "HierarchicalCELMoE",
            argument,
            f"integers in [0, {count})",
            str(bad),
            "Index the level's experts.",
        )
    return routes if isinstance(routes, torch.Tensor) else torch.from_numpy(np.array(routes, np.int64))


def constant_routes(config: CELMoEConfig, routing: Mapping[str, str], rows: int) -> dict[str, Any]:
    """Return the routes of a batch whose samples all take the same path: level -> name of the expert."""
    rows = whole_number("constant_routes", "rows", rows, 0)
    return encode_routes(config, {level: [name] * rows for level, name in routing.items()}, rows)


def merged_routes(*parts: Mapping[str, Any]) -> Routes:
    """Return the routes of batches put one after the other; all must route the same levels."""
    levels = [sorted(part) for part in parts]
    if not parts or any(names != levels[0] for names in levels):
        fail(
            "merged_routes",
            "parts",
            "encoded routes of the same levels",
            repr(levels),
            "Encode each part first.",
        )
    return {name: torch.cat([torch.as_tensor(part[name]) for part in parts]) for name in parts[0]}


def routing_summary(config: CELMoEConfig, routes: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Return level -> expert -> number of rows, for encoded routes."""
    summary = {}
    for level in config.enabled_levels:
        counts = Counter(np.asarray(concrete(routes[level.name])).tolist())
        summary[level.name] = {name: counts[index] for index, name in enumerate(level.expert_names)}
    return summary


def concrete(routes: Any) -> np.ndarray | None:
    """Return the values of routes, None while they are traced."""
    if not isinstance(routes, torch.Tensor):
        return np.asarray(routes)
    if torch.compiler.is_compiling():
        return None
    try:
        return routes.cpu().numpy()
    except RuntimeError:  # inside a transform of torch.func
        return np.array(routes.tolist())
