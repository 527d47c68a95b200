"""A hierarchy with its routes fixed: a function of arrays alone, to be exported and served."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from convexmoe import hierarchy as core
from convexmoe.errors import fail

from .fusion import PositionAwareFusion
from .module import ARRAYS, HierarchicalCELMoE, run_expert
from .named import NamedModules
from .routes import read_values
from .selection import check_kind, split_batch

State = Mapping[str, Any] | None


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

    >>> from convexmoe.hierarchy import CELMoEConfig, ExpertConfig, HierarchyLevelConfig
    >>> from .experts import LinearExpert
    >>> level = HierarchyLevelConfig("family", [ExpertConfig("slavic"), ExpertConfig("romance")])
    >>> model = HierarchicalCELMoE(CELMoEConfig(8, [level]), lambda *_: LinearExpert(8))
    >>> FixedHierarchy(model, {"family": "romance"})(torch.ones(5, 8)).shape
    torch.Size([5, 8])
    """

    def __init__(self, model: HierarchicalCELMoE, routing: core.LevelRouting | None = None) -> None:
        super().__init__()
        core.check_model("FixedHierarchy", model, HierarchicalCELMoE)
        self.config = model.config
        self.rows, self.plans = core.plan_levels(model.config, routing, read_values)
        experts = {}
        device = next((parameter.device for parameter in model.parameters()), None)
        for index, (level, plan) in enumerate(zip(self.config.enabled_levels, self.plans, strict=True)):
            modules: Any = model.level_modules[level.name]
            if len(modules) < len(level.experts):
                fix = "Write it by parallel.save, and load it."
                fail("FixedHierarchy", "model", "a hierarchy with all of its experts", "one that is placed", fix)
            experts[level.name] = NamedModules({name: modules[name] for name in plan.experts})
            # no part of `state_dict`: they say which experts there are, and go with them
            for name in ("take", "back") if plan.sizes else ():
                order = torch.tensor(getattr(plan, name), dtype=torch.int64, device=device)
                self.register_buffer(f"{name}_{index}", order, persistent=False)
        # copied together: what experts share they share again
        self.level_modules, self.fusion = copy.deepcopy((NamedModules(experts), model.fusion))
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FixedHierarchy:
        """Stay in evaluation."""
        return super().train(False)

    def forward(
        self, hidden: Tensor, context: core.ExpertContext = None, mask: Tensor | None = None, state: State = None
    ) -> Tensor:
        """Return the fused output, `[rows, ..., hidden_size]`; arguments as the model's."""
        rows = core.check_hidden(hidden, self.config, ARRAYS)
        core.check_fixed_rows(hidden, self.rows)
        core.check_inputs(rows, context, mask, state, check_kind)
        if isinstance(self.fusion, PositionAwareFusion):
            self.fusion.check_length(hidden)
        hiddens: list[Tensor] = []
        for index in range(len(self.plans)):
            hidden = self._run_level(index, core.ExpertBatch(hidden, context, mask, state))
            hiddens.append(hidden)
        return hiddens[-1] if self.fusion is None else self.fusion(hiddens)

    def _run_level(self, index: int, batch: core.ExpertBatch) -> Tensor:
        level, plan = self.config.enabled_levels[index], self.plans[index]
        modules: Any = self.level_modules[level.name]
        width = self.config.width_of(level)

        def sort_and_split(leaf: Tensor) -> Iterator[Tensor]:
            """Yield the rows of one expert after the other."""
            if not plan.sizes:
                return iter((leaf,))
            return iter(leaf.index_select(0, self.get_buffer(f"take_{index}")).split(plan.sizes))

        batches = zip(plan.experts, plan.scales, split_batch(batch, sort_and_split), strict=True)
        parts = [run_expert(level, name, modules[name], own, s, width).hidden for name, s, own in batches]
        if not plan.sizes:
            return parts[0]
        return torch.cat(parts).index_select(0, self.get_buffer(f"back_{index}"))
