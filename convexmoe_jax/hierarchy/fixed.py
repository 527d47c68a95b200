"""A hierarchy with its routes fixed: a function of arrays alone, to be exported and served."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convexmoe import hierarchy as core

from ..settings import make_whole, on_any_mesh
from .dispatch import expert_slice
from .fusion import PositionAwareFusion
from .gradient_scale import scale_gradient
from .module import ARRAYS, ExpertFunction, HierarchicalCELMoE
from .routes import read_values
from .selection import split_inputs


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

    >>> from convexmoe.hierarchy import CELMoEConfig, ExpertConfig, HierarchyLevelConfig
    >>> from .experts import LinearExpert
    >>> level = HierarchyLevelConfig("family", [ExpertConfig("slavic"), ExpertConfig("romance")])
    >>> config, rngs = CELMoEConfig(8, [level]), nnx.Rngs(0)
    >>> model = HierarchicalCELMoE(config, lambda *_, rngs: LinearExpert(8, rngs=rngs), rngs=rngs)
    >>> FixedHierarchy(model, {"family": "romance"})(jnp.ones((5, 8))).shape
    (5, 8)
    """

    def __init__(self, model: HierarchicalCELMoE, routing: core.LevelRouting | None = None) -> None:
        core.check_model("FixedHierarchy", model, HierarchicalCELMoE)
        self.config = model.config
        self.rows, self.plans = core.plan_levels(model.config, routing, read_values)
        plans = zip(self.config.enabled_levels, self.plans, strict=True)
        experts = {lv.name: {name: _copy_expert(model, lv, name) for name in plan.experts} for lv, plan in plans}
        self.level_modules = nnx.data(experts)
        self.fusion = nnx.data(None if model.fusion is None else nnx.clone(model.fusion))

    @on_any_mesh
    def __call__(
        self,
        hidden: jax.Array,
        context: core.ExpertContext = None,
        mask: jax.Array | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> jax.Array:
        """Return the fused output, `[rows, ..., hidden_size]`; arguments as the model's."""
        rows = core.check_hidden(hidden, self.config, ARRAYS)
        core.check_fixed_rows(hidden, self.rows)
        own, shared = split_inputs(rows, context, mask, state)
        if isinstance(self.fusion, PositionAwareFusion):
            self.fusion.check_length(hidden)
        hidden = jnp.asarray(hidden)
        hiddens: list[jax.Array] = []
        for level, plan in zip(self.config.enabled_levels, self.plans, strict=True):
            given = own | {"hidden": hidden, "position": None}
            hidden = self._run_level(level, plan, given, shared | {"key": None})
            hiddens.append(hidden)
        return hiddens[-1] if self.fusion is None else self.fusion(hiddens)

    def _run_level(self, level: core.HierarchyLevelConfig, plan: core.LevelPlan, rows: Any, shared: Any) -> jax.Array:
        def sort_and_split(leaf: jax.Array) -> list[jax.Array]:
            """Return the rows of one expert after the other."""
            if not plan.sizes:
                return [leaf]
            return jnp.split(leaf[np.array(plan.take)], np.cumsum(plan.sizes)[:-1])

        leaves, tree = jax.tree.flatten(rows)
        by_expert = zip(*map(sort_and_split, leaves), strict=True)
        parts = []
        for own_leaves, name, scale in zip(by_expert, plan.experts, plan.scales, strict=True):
            own = jax.tree.unflatten(tree, own_leaves)
            own["hidden"] = scale_gradient(own["hidden"], scale)
            graph, weights = nnx.split(self.level_modules[level.name][name])
            # one sample's function, as in the model; over all rows it is one product again
            run_rows = jax.vmap(ExpertFunction(graph, level.name), (None, None, 0))
            index = jnp.asarray(level.expert_names.index(name), jnp.int32)
            new, _, _ = run_rows({"weights": weights, "index": index}, shared, own)
            core.check_expert_shape(level, own["hidden"].shape, self.config.width_of(level), new)
            parts.append(new)
        if not plan.sizes:
            return parts[0]
        return jnp.concatenate(parts)[np.array(plan.back)]


def _copy_expert(model: HierarchicalCELMoE, level: core.HierarchyLevelConfig, name: str) -> nnx.Module:
    """Return one expert of a level, taken out of the arrays that those of its structure share."""
    member = level.expert_names.index(name)
    for index, group in enumerate(dict(model.groups)[level.name]):
        if member in group.members:
            stack = make_whole(model.level_modules[level.name][str(index)])
            return nnx.merge(group.graph, expert_slice(stack, group.members.index(member)))
    raise AssertionError("every expert stands in a group")
