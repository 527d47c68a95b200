"""A hierarchy with its routes fixed: a function of arrays alone, to be exported and served.

A level whose rows all go to one expert runs that expert, on batches of any size. A level with a route a row fixes the
size of the batch: its rows are put in a constant order, and every expert of the plan runs once, on its own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convexmoe.errors import describe, fail
from convexmoe.hierarchy.config import CELMoEConfig
from convexmoe.hierarchy.route_lists import LevelRouting

from .experts import ExpertBatch
from .fusion import PositionAwareFusion
from .gradient_scale import scale_gradient
from .module import HierarchicalCELMoE, checked_rows, run_expert, state_of
from .routes import concrete, encode_routes
from .selection import ExpertContext, check_context, check_leading, check_state, next_context, split_context


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
        routes = np.asarray(concrete(encoded[level.name]))
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


class FixedHierarchy(nn.Module):
    """A hierarchy for inference whose routes are fixed: `hidden -> fused_hidden`, for `torch.export` and serving.

    It holds a copy of the fusion and of the experts that have rows, no other, and computes what the model computes
    in `eval()` mode, in which it stays; losses and aux are left out.

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
    >>> model = HierarchicalCELMoE(CELMoEConfig(8, [level]), lambda *_: LinearExpert(8))
    >>> FixedHierarchy(model, {"family": "romance"})(torch.ones(5, 8)).shape
    torch.Size([5, 8])
    """

    def __init__(self, model: HierarchicalCELMoE, routing: LevelRouting | None = None) -> None:
        super().__init__()
        if not isinstance(model, HierarchicalCELMoE):
            fix = "Pass the model itself."
            fail("FixedHierarchy", "model", "a HierarchicalCELMoE", type(model).__name__, fix, TypeError)
        self.config = model.config
        self.rows, self.plans = make_plans(model.config, routing)
        chosen = nn.ModuleDict()
        device = next((parameter.device for parameter in model.parameters()), None)
        for index, (level, plan) in enumerate(zip(self.config.enabled_levels, self.plans, strict=True)):
            modules: Any = model.level_modules[level.name]
            chosen[level.name] = nn.ModuleDict({name: modules[name] for name in plan.experts})
            # no part of `state_dict`: they say which experts there are, and go with them
            for name in ("take", "back") if plan.sizes else ():
                order = torch.tensor(getattr(plan, name), dtype=torch.int64, device=device)
                self.register_buffer(f"{name}_{index}", order, persistent=False)
        # copied together: what experts share they share again
        self.level_modules, self.fusion = copy.deepcopy((chosen, model.fusion))
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FixedHierarchy:
        """Stay in evaluation."""
        return super().train(False)

    def forward(
        self,
        hidden: Tensor,
        *,
        context: ExpertContext = None,
        mask: Tensor | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Return the fused output, `[rows, ..., hidden_size]`; arguments as the model's."""
        rows = checked_rows(hidden, self.config)
        if self.rows is not None and rows != self.rows:
            fix = "Fix the routes of a batch of that size, or name one expert a level."
            fail("FixedHierarchy", "hidden", f"{self.rows} rows, as the routing has", describe(hidden), fix)
        check_context(context, rows)
        check_state(state)
        if mask is not None:
            check_leading("mask", mask, rows)
        if isinstance(self.fusion, PositionAwareFusion):
            self.fusion.check_length(hidden)
        hiddens: list[Tensor] = []
        for index in range(len(self.plans)):
            hidden = self._run_level(index, hidden, context, mask, state)
            hiddens.append(hidden)
        return hiddens[-1] if self.fusion is None else self.fusion(hiddens)

    def _run_level(self, index: int, hidden: Tensor, context: Any, mask: Any, state: Any) -> Tensor:
        level, plan = self.config.enabled_levels[index], self.plans[index]
        modules: Any = self.level_modules[level.name]

        def sort_and_split(leaf: Tensor) -> Iterator[Tensor]:
            """Yield the rows of one expert after the other."""
            if not plan.sizes:
                return iter((leaf,))
            return iter(leaf.index_select(0, self.get_buffer(f"take_{index}")).split(plan.sizes))

        hiddens = sort_and_split(hidden)
        contexts = split_context(context, sort_and_split)
        masks = None if mask is None else sort_and_split(mask)
        parts = []
        for name, scale in zip(plan.experts, plan.scales, strict=True):
            own = scale_gradient(next(hiddens), scale)
            own_context = next_context(contexts)
            own_mask = None if masks is None else next(masks)
            batch = ExpertBatch(own, own_context, own_mask, state_of(state, level, name))
            parts.append(run_expert(level, modules[name], batch, self.config.width_of(level)).hidden)
        if not plan.sizes:
            return parts[0]
        return torch.cat(parts).index_select(0, self.get_buffer(f"back_{index}"))
