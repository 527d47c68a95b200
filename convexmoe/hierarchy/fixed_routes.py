"""Fixed routes: where the rows go, in numbers that are known before any row is.

A level whose rows all go to one expert runs that expert, on batches of any size. A level with a route a row fixes the
size of the batch: its rows are put in a constant order, and every expert of the plan runs once, on its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import describe, fail
from .config import CELMoEConfig
from .routes import LevelRouting, ReadValues, route_levels


@dataclass(frozen=True)
class LevelPlan:
    """Where the rows of one level go.

    Args:
        experts: names of those that have rows, in the order of the level.
        scales: the share of each one's gradient that it passes to the level before.
        sizes: the rows of each; empty with one expert, which has them all.
        take: the row that stands at each place when they are sorted by expert; empty with one expert.
        back: the place of each row in that order; empty with one expert.
    """

    experts: tuple[str, ...]
    scales: tuple[float, ...]
    sizes: tuple[int, ...] = ()
    take: tuple[int, ...] = ()
    back: tuple[int, ...] = ()


def plan_levels(
    config: CELMoEConfig, routing: LevelRouting | None, read: ReadValues
) -> tuple[int | None, tuple[LevelPlan, ...]]:
    """Return the number of rows that `routing` is for, None where it is for any, and the plan of every enabled level.

    Args:
        config: the hierarchy.
        routing: level -> name of the one expert, or the routes of `encode_routes`, one a row.
        read: returns the values of an array of the framework.

    >>> from .config import ExpertConfig, HierarchyLevelConfig
    >>> level = HierarchyLevelConfig("family", [ExpertConfig("slavic"), ExpertConfig("romance")])
    >>> rows, (plan,) = plan_levels(CELMoEConfig(8, [level]), {"family": ["romance", "slavic", "romance"]}, np.asarray)
    >>> rows, plan.experts, plan.sizes, plan.take, plan.back
    (3, ('slavic', 'romance'), (1, 2), (1, 0, 2), (1, 0, 2))
    """
    rows = None
    if isinstance(routing, Mapping):
        lengths = [_length(routing.get(level.name)) for level in config.enabled_levels]
        rows = next((length for length in lengths if length is not None), None)
        some = 1 if rows is None else rows
        routing = {name: [r] * some if isinstance(r, str) else r for name, r in routing.items()}
    if rows == 0:
        fix = "Name one expert a level, for batches of any size."
        fail("FixedHierarchy", "routing", "routes of one sample at least", "0 entries", fix)
    encoded = route_levels(config, routing, 1 if rows is None else rows, read)
    plans = []
    for level in config.enabled_levels:
        routes = np.asarray(read(encoded[level.name]))
        experts, sizes = np.unique(routes, return_counts=True)
        names = tuple(level.expert_names[expert] for expert in experts)
        scales = tuple(config.scales_to_parent(level)[expert] for expert in experts)
        if len(experts) == 1:
            plans.append(LevelPlan(names, scales))
            continue
        take = np.argsort(routes, kind="stable")
        order = (sizes, take, np.argsort(take))
        plans.append(LevelPlan(names, scales, *(tuple(numbers.tolist()) for numbers in order)))
    return rows, tuple(plans)


def _length(routes: Any) -> int | None:
    """Return the number of rows that routes are for; None for one name, and for what `encode_routes` refuses."""
    if isinstance(routes, Sequence) and not isinstance(routes, str):
        return len(routes)
    return routes.shape[0] if len(getattr(routes, "shape", ())) > 0 else None


def check_fixed_rows(hidden: Any, rows: int | None) -> None:
    """Check that a batch has as many rows as the routes were fixed for; None stands for any number."""
    if rows is not None and hidden.shape[0] != rows:
        fix = "Fix the routes of a batch of that size, or name one expert a level."
        fail("FixedHierarchy", "hidden", f"{rows} rows, as the routing has", describe(hidden), fix)
