"""Routes as arrays of integers: what the core makes of names, for JAX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from convexmoe import hierarchy as core

Routes = dict[str, np.ndarray]


def encode_routes(config: core.CELMoEConfig, routing: core.LevelRouting | None, rows: int) -> dict[str, Any]:
    """Return one integer route for each sample of every enabled level.

    A level that the routing does not name goes to its only expert or its `fallback_expert`; so does a sample
    whose route is None. Encode once and pass the result again: integers are taken as they are.

    Args:
        config: the hierarchy.
        routing: level -> sequence of names (or None), or integer array `[rows]` of indices into the level's experts.
        rows: the number of samples.

    Returns:
        level -> int32 array `[rows]`; arrays of integers stay what they are.

    Raises:
        ValueError: an unknown level or expert (the known ones are listed), a list of another length, an integer
            out of range, a sample without a route where the level has no fallback.

    >>> from convexmoe.hierarchy import CELMoEConfig, ExpertConfig, HierarchyLevelConfig
    >>> level = HierarchyLevelConfig("family", [ExpertConfig("slavic"), ExpertConfig("romance")])
    >>> encode_routes(CELMoEConfig(8, [level]), {"family": ["romance", "slavic"]}, 2)["family"].tolist()
    [1, 0]
    """
    return core.route_levels(config, routing, rows, read_values)


def constant_routes(config: core.CELMoEConfig, routing: Mapping[str, str], rows: int) -> dict[str, Any]:
    """Return the routes of a batch whose samples all take the same path: level -> name of the expert."""
    return encode_routes(config, core.constant_routing(routing, rows), rows)


def merged_routes(*parts: Mapping[str, Any]) -> Routes:
    """Return the routes of batches put one after the other; all must route the same levels."""
    return {
        level: np.concatenate([np.asarray(p[level]) for p in parts]) for level in core.common_levels(parts)
    }


def routing_summary(config: core.CELMoEConfig, routes: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Return level -> expert -> number of rows, for encoded routes."""
    return core.count_rows(config, routes)


def read_values(routes: Any) -> np.ndarray | None:
    """Return the values of routes, None while they are traced."""
    return None if isinstance(routes, jax.core.Tracer) else np.asarray(routes)
