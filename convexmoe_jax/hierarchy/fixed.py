"""A hierarchy with its routes fixed: a function of arrays alone, to be exported and served.

A level whose rows all go to one expert runs that expert, on batches of any size. A level with a route a row fixes the
size of the batch: its rows are put in a constant order, and every expert of the plan runs once, on its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convexmoe.errors import describe, fail
from convexmoe.hierarchy.config import CELMoEConfig, HierarchyLevelConfig
from convexmoe.hierarchy.route_lists import LevelRouting

from .dispatch import expert_slice
from .fusion import PositionAwareFusion
from .gradient_scale import scale_gradient
from .module import ExpertFunction, HierarchicalCELMoE, check_shape, checked_rows
from .routes import encode_routes
from .selection import ExpertContext, check_leading, split_context, split_state


@dataclass(frozen=True)
class LevelPlan:
    """Where the rows of one level go, in numbers that are known before any row is.

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


def make_plans(
    config: CELMoEConfig, routing: LevelRouting | None
) -> tuple[int | None, tuple[LevelPlan, ...]]:
    """Return the number of rows that `routing` is for, None where it is for any, and the plan of every enabled level.

    Args:
        config: the hierarchy.
        routing: level -> name of the one expert, or the routes of `encode_routes`, one a row.
    """
    rows = None
    if isinstance(routing, Mapping):
        given = [routing.get(level.name) for level in config.enabled_levels]
        rows = next((_length(routes) for routes in given if _length(routes) is not None), None)
        some = 1 if rows is None else rows
        routing = {name: [r] * some if isinstance(r, str) else r for name, r in routing.items()}
    if rows == 0:
        fix = "Name one expert a level, for batches of any size."
        fail("FixedHierarchy", "routing", "routes of one sample at least", "0 entries", fix)
    encoded = encode_routes(config, routing, 1 if rows is None else rows)
    plans = []
    for index, level in enumerate(config.enabled_levels):
        routes = np.asarray(encoded[level.name])
        chosen, sizes = np.unique(routes, return_counts=True)
        names = tuple(level.expert_names[expert] for expert in chosen)
        cut = index > 0 or config.stop_gradient_from_input
        configs = [level.expert_configs[expert] for expert in chosen]
        scales = tuple(expert.scale_to_parent if cut else 1.0 for expert in configs)
        if len(chosen) == 1:
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


class FixedHierarchy(nnx.Module):
    """A hierarchy for inference whose routes are fixed: `hidden -> fused_hidden`, for `jax.export` and serving.

    It holds a copy of the fusion and of the experts that have rows, no other, and computes what the model computes
    without a key; losses and aux are left out.

    Guarantee: the output is `model(hidden, routing).fused_hidden`, within rounding
    (tests/contract/test_deployment.py).

    Args:
        model: the hierarchy.
        routing: level -> name of one expert, which all rows go to, or one route a row, as the model takes them. With
            one name for every level the batch may have any size; else it has as many rows as there are routes.
            A level that is left out goes to its only expert or its `fallback_expert`.

    Raises:
        TypeError, ValueError: no hierarchy; a level or an expert that it has not; no route, or lists of unequal length.

    >>> from convexmoe.hierarchy.config import ExpertConfig, HierarchyLevelConfig
    >>> from .experts import LinearExpert
    >>> level = HierarchyLevelConfig("family", [ExpertConfig("slavic"), ExpertConfig("romance")])
    >>> config, rngs = CELMoEConfig(8, [level]), nnx.Rngs(0)
    >>> model = HierarchicalCELMoE(config, lambda *_, rngs: LinearExpert(8, rngs=rngs), rngs=rngs)
    >>> FixedHierarchy(model, {"family": "romance"})(jnp.ones((5, 8))).shape
    (5, 8)
    """

    def __init__(self, model: HierarchicalCELMoE, routing: LevelRouting | None = None) -> None:
        if not isinstance(model, HierarchicalCELMoE):
            fix = "Pass the model itself."
            fail("FixedHierarchy", "model", "a HierarchicalCELMoE", type(model).__name__, fix, TypeError)
        self.config = model.config
        self.rows, self.plans = make_plans(model.config, routing)
        chosen = {}
        for level, plan in zip(self.config.enabled_levels, self.plans, strict=True):
            chosen[level.name] = {name: _expert_of(model, level, name) for name in plan.experts}
        self.level_modules = nnx.data(chosen)
        self.fusion = nnx.data(None if model.fusion is None else nnx.clone(model.fusion))

    def __call__(
        self,
        hidden: jax.Array,
        *,
        context: ExpertContext = None,
        mask: jax.Array | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> jax.Array:
        """Return the fused output, `[rows, ..., hidden_size]`; arguments as the model's."""
        rows = checked_rows(hidden, self.config)
        if self.rows is not None and rows != self.rows:
            fix = "Fix the routes of a batch of that size, or name one expert a level."
            fail("FixedHierarchy", "hidden", f"{self.rows} rows, as the routing has", describe(hidden), fix)
        own, shared, structure = split_context(context, rows)
        state_shared, state_structure = split_state(state)
        if mask is not None:
            check_leading("mask", mask, rows)
            mask = jnp.asarray(mask)
        if isinstance(self.fusion, PositionAwareFusion):
            self.fusion.check_length(hidden)
        given = {"context": shared, "state": state_shared, "key": None}
        hidden = jnp.asarray(hidden)
        hiddens: list[jax.Array] = []
        for level, plan in zip(self.config.enabled_levels, self.plans, strict=True):
            batch = {"hidden": hidden, "context": own, "mask": mask, "position": None}
            hidden = self._run_level(level, plan, batch, given, (structure, state_structure))
            hiddens.append(hidden)
        return hiddens[-1] if self.fusion is None else self.fusion(hiddens)

    def _run_level(
        self, level: HierarchyLevelConfig, plan: LevelPlan, batch: Any, given: Any, structures: Any
    ) -> jax.Array:
        def sort_and_split(leaf: jax.Array) -> list[jax.Array]:
            """Return the rows of one expert after the other."""
            if not plan.sizes:
                return [leaf]
            return jnp.split(leaf[np.array(plan.take)], np.cumsum(plan.sizes)[:-1])

        leaves, tree = jax.tree.flatten(batch)
        divided = zip(*map(sort_and_split, leaves), strict=True)
        parts = []
        for own_leaves, name, scale in zip(divided, plan.experts, plan.scales, strict=True):
            own = jax.tree.unflatten(tree, own_leaves)
            own["hidden"] = scale_gradient(own["hidden"], scale)
            graph, weights = nnx.split(self.level_modules[level.name][name])
            # one sample's function, as in the model; over all rows it is one product again
            expert_rows = jax.vmap(ExpertFunction(graph, level.name, *structures), (None, None, 0))
            index = jnp.asarray(level.expert_names.index(name), jnp.int32)
            new, _, _ = expert_rows({"weights": weights, "index": index}, given, own)
            check_shape(level, own["hidden"], self.config.width_of(level), new)
            parts.append(new)
        if not plan.sizes:
            return parts[0]
        return jnp.concatenate(parts)[np.array(plan.back)]


def _expert_of(model: HierarchicalCELMoE, level: HierarchyLevelConfig, name: str) -> nnx.Module:
    """Return one expert of a level, taken out of the arrays that those of its structure share."""
    member = level.expert_names.index(name)
    for index, group in enumerate(dict(model.groups)[level.name]):
        if member in group.members:
            stack = model.level_modules[level.name][str(index)]
            return nnx.merge(group.graph, expert_slice(stack, group.members.index(member)))
    raise AssertionError("every expert stands in a group")
