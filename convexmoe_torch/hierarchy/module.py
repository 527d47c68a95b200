"""HierarchicalCELMoE: levels of named experts, one after the other, every sample on its own route."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from convexmoe import hierarchy as core
from convexmoe.errors import fail

from ..settings import is_transforming
from .dispatch import Plan, connect, make_plan, permute_rows
from .dropout import sample_keys
from .finite import keep_apart
from .fusion import LearnedFusion, PositionAwareFusion
from .gradient_scale import scale_gradient, scale_gradient_of_rows
from .named import NamedModules
from .routes import encode_given, read_on_host
from .selection import check_kind, split_batch
from .wrapping import check_collectives, warn_inside_a_checkpoint, warn_of_lost_gradients

ARRAYS = (Tensor,)


class HierarchicalCELMoE(core.Hierarchy, nn.Module):
    """Levels of named experts, in order; every sample carries a route for each level.

    Guarantee: a sample's output depends on its own row and routes only
    (tests/contract/test_hierarchy.py, tests/torch/test_hierarchy.py).

    Args:
        config: levels, experts, fusion.
        expert_factory: `(level_name, expert_name, metadata) -> ExpertModule`.
        fusion_module: takes the list of the levels' outputs, returns the fused one; None means what the config says.

    Raises:
        TypeError, ValueError: an expert is no module, or returns another width than its level's.
    """

    _kinds = ARRAYS
    _read_values = staticmethod(read_on_host)
    _where = staticmethod(torch.where)

    def __init__(
        self,
        config: core.CELMoEConfig,
        expert_factory: Callable[..., nn.Module],
        fusion_module: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        levels = {}
        for level in config.enabled_levels:
            experts = {}
            for expert in level.expert_configs:
                module = expert_factory(level.name, expert.name, expert.copy_metadata())
                core.check_module(f"{level.name}.{expert.name}", module, nn.Module, "nn.Module")
                experts[expert.name] = module
            levels[level.name] = NamedModules(experts)
        self.level_modules = NamedModules(levels)
        if fusion_module is None:
            fusion_module = core.build_fusion(config, LearnedFusion, PositionAwareFusion)
        else:
            core.check_module("fusion_module", fusion_module, nn.Module, "nn.Module")
        self.fusion = fusion_module

    def forward(
        self,
        hidden: Tensor,
        routing: core.LevelRouting | None = None,
        context: core.ExpertContext = None,
        mask: Tensor | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> core.CELMoEOutput:
        """Run the levels and fuse their outputs.

        Args:
            hidden: `[rows, hidden_size]` or `[rows, length, hidden_size]`.
            routing: level -> names or integers, one for each row (see `encode_routes`). Under `torch.compile`,
                and where the routes are on a device, an integer out of range gives that row NaN, in this level, those
                after it and the fused output, and no gradient.
            context: a tensor, or nested mappings and lists. Tensors have a leading axis of rows, of which an expert
                gets its own, or are marked: `Shared(value)`. What is no array is handed on as it is.
            mask: `[rows, ...]`.
            state: name -> what every expert gets as it is, beside "level" and "expert", its own names.
        """
        rows = core.check_hidden(hidden, self.config, ARRAYS)
        if torch.jit.is_tracing():
            fix = "Trace, or export, FixedHierarchy(model, routing)."
            fail(core.OWNER, "routing", "routes that are fixed, under torch.jit.trace", "a call of the model", fix)
        if not torch.compiler.is_compiling():
            warn_inside_a_checkpoint(self)
        routes = encode_given(self.config, routing, rows)
        core.check_inputs(rows, context, mask, state, check_kind)
        if isinstance(self.fusion, PositionAwareFusion):
            self.fusion.check_length(hidden)
        return self._run_levels(hidden, routes, core.ExpertBatch(hidden, context, mask, state))

    def _own_level(self, index: int) -> core.HierarchyLevelConfig:
        """Return a level with the experts that this process has: all, but for `convexmoe_torch.parallel`."""
        return self.levels[index]

    def _run_level(
        self, index: int, hidden: Tensor, routes: Any, valid: Tensor | None, given: core.ExpertBatch
    ) -> tuple[Tensor, core.LevelOutput]:
        level = self._own_level(index)
        width = self.config.width_of(level)
        given_routes, all_routes = routes, routes.to(hidden.device, torch.int64, copy=True)
        routes = all_routes if valid is None else torch.where(valid, all_routes, -1)
        modules: Any = self.level_modules[level.name]
        experts = list(modules.values())  # children() would leave out one that stands twice
        if not torch.compiler.is_compiling():
            check_collectives(level, experts, len(hidden))
        plan = make_plan(routes, len(experts))
        scales = self.config.scales_to_parent(level)
        losses: dict[str, Tensor] = {}
        aux: dict[str, Any] = {}
        if _can_be_grouped(experts):
            hidden = scale_gradient_of_rows(hidden, routes, scales)
            sorted_hidden = _run_grouped(experts, permute_rows(hidden, plan.take, plan.back), plan)
        else:
            keys = sample_keys(len(hidden), hidden.device) if self.training else None
            batch = core.ExpertBatch(hidden, given.context, given.mask, given.state, keys)
            on_host = valid is None and given_routes.device != hidden.device  # counted there, without a wait
            counts = make_plan(given_routes, len(experts)).counts if on_host else plan.counts
            results, sorted_hidden = _run_one_by_one(level, experts, batch, plan._replace(counts=counts), scales, width)
            for name, result in results.items():
                aux[name] = result.aux
                for loss, value in result.losses.items():
                    losses[f"{level.name}.{name}.{loss}"] = torch.as_tensor(value)
        core.check_expert_shape(level, hidden.shape, width, sorted_hidden)
        total = permute_rows(sorted_hidden, plan.back, plan.take)
        shown = self._nan_unless(valid, total)
        return total, core.LevelOutput(level.name, shown, all_routes, losses, aux, level.expert_names)


def _can_be_grouped(experts: list[Any]) -> bool:
    """Return whether experts are of one class and widths, and the class has a grouped form of its `forward`.

    Nothing may hang on their call, which the grouped form leaves out, and no transform of `torch.func` be at work.
    """
    hooked = (e._forward_hooks or e._forward_pre_hooks or "forward" in vars(e) for e in experts)
    if is_transforming() or any(hooked):
        return False
    kind = type(experts[0])
    if not hasattr(kind, "grouped") or len({(type(e), getattr(e, "widths", None)) for e in experts}) > 1:
        return False
    # A subclass with a forward of its own inherits a grouped form of another.
    return "grouped" in next(vars(c) for c in kind.__mro__ if "grouped" in vars(c) or "forward" in vars(c))


def _run_grouped(experts: list[Any], hidden: Tensor, plan: Plan) -> Tensor:
    """Run experts that have a grouped form on sorted rows; positions of a sequence are rows as well."""
    length = hidden.shape[1] if hidden.ndim == 3 else 1
    grouped, counts = type(experts[0]).grouped, plan.counts * length
    flat = keep_apart(lambda x: grouped(experts, x, counts), hidden.reshape(-1, hidden.shape[-1]))
    return flat.reshape(*hidden.shape[:-1], flat.shape[-1])


def _run_one_by_one(
    level: core.HierarchyLevelConfig,
    experts: list[Any],
    batch: core.ExpertBatch,
    plan: Plan,
    scales: tuple[float, ...],
    width: int,
) -> tuple[dict[str, core.ExpertResult], Tensor]:
    """Call every expert that has rows on a view of the sorted rows; return their results, and the sorted output."""
    sizes = plan.counts.tolist()

    def sort_and_split(leaf: Tensor) -> Iterator[Tensor]:
        """Yield the rows of one expert after the other; a slice for each would have a full gradient for each."""
        return iter(permute_rows(leaf, plan.take, plan.back).split(sizes))

    results: dict[str, core.ExpertResult] = {}
    unused: list[Tensor] = []
    batches = split_batch(batch, sort_and_split)  # and of the rows without an expert, last
    for name, expert, scale, own in zip(level.expert_names, experts, scales, batches, strict=False):
        if len(own.hidden) == 0:
            unused.extend(expert.parameters())
        else:
            results[name] = run_expert(level, name, expert, own, scale, width)
    if not results:
        unused.append(batch.hidden)  # and so what came before
    parts = [result.hidden for result in results.values()]
    if sizes[-1] or not parts:
        like = parts[0] if parts else batch.hidden.new_empty((0, *batch.hidden.shape[1:-1], width))
        parts.append(like.new_zeros((sizes[-1], *like.shape[1:])))
    return results, connect(torch.cat(parts), unused)


def run_expert(
    level: core.HierarchyLevelConfig, name: str, expert: nn.Module, batch: core.ExpertBatch, scale: float, width: int
) -> core.ExpertResult:
    """Return the result of an expert for its rows, after the checks of its contract."""
    state = {**(batch.state or {}), "level": level.name, "expert": name}
    hidden = scale_gradient(batch.hidden, scale)
    result = expert(core.ExpertBatch(hidden, batch.context, batch.mask, state, batch.key))
    core.check_result(result, "forward", ARRAYS, torch.as_tensor)
    core.check_expert_shape(level, hidden.shape, width, result.hidden)
    if not torch.compiler.is_compiling() and not is_transforming():
        warn_of_lost_gradients(f"{level.name}.{name}", expert, result.hidden)
    return result
