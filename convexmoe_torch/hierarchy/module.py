"""HierarchicalCELMoE: levels of named experts, one after the other, every sample on its own route."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convexmoe.errors import check_scalar, describe, fail
from convexmoe.hierarchy.config import CELMoEConfig, HierarchyLevelConfig
from convexmoe.hierarchy.results import check_fused, check_result
from convexmoe.hierarchy.route_lists import LevelRouting

from .dispatch import Plan, make_plan, permuted, touched, transformed
from .dropout import sample_keys
from .experts import ExpertBatch, ExpertResult
from .fusion import PositionAwareFusion, fusion_of
from .gradient_scale import scale_gradient, scale_gradient_of_rows
from .routes import concrete, encode_routes
from .selection import ExpertContext, check_context, check_leading, check_state, next_context, split_context


@dataclass(frozen=True)
class LevelOutput:
    """What one level gives.

    Args:
        name: of the level.
        hidden: `[rows, ..., width]`.
        routes: index of each sample's expert, int64 `[rows]`.
        losses: `level.expert.loss` -> mean over the rows of the expert; experts without rows have none.
        aux: expert -> its aux, for its rows in their order; of the experts that have rows.
        expert_names: of the level; a route is an index into them.
    """

    name: str
    hidden: Tensor
    routes: Tensor
    losses: dict[str, Tensor]
    aux: dict[str, Any]
    expert_names: tuple[str, ...] = ()

    @property
    def route_names(self) -> list[str]:
        """The name of each sample's expert; the routes are copied to the host."""
        return [self.expert_names[route] for route in self.routes.tolist()]


@dataclass(frozen=True)
class CELMoEOutput:
    """What the hierarchy gives.

    Args:
        levels: name -> `LevelOutput` of each enabled level, in order.
        fused_hidden: `[rows, ..., hidden_size]`.
        losses: the losses of all levels by name, unweighted.
        aux: level -> its aux.
        weights: (name, `loss_weight`) of every loss; one that is left out has the weight 1.
    """

    levels: Mapping[str, LevelOutput]
    fused_hidden: Tensor
    losses: dict[str, Tensor]
    aux: dict[str, Any]
    weights: tuple[tuple[str, float], ...] = ()

    @property
    def loss_weights(self) -> dict[str, float]:
        """The `loss_weight` of every loss by name."""
        return dict(self.weights)


class HierarchicalCELMoE(nn.Module):
    """Levels of named experts, in order; every sample carries a route for each level.

    Guarantee: a sample's output depends on its own row and routes only
    (tests/contract/test_hierarchy.py, tests/torch/test_hierarchy.py).

    Args:
        config: levels, experts, fusion.
        expert_factory: `(level_name, expert_name, metadata) -> ExpertModule`.
        fusion_module: takes the list of the levels' outputs, gives the fused one; None means what the config says.

    Raises:
        TypeError, ValueError: an expert is no module, or gives another width than its level's.
    """

    def __init__(
        self,
        config: CELMoEConfig,
        expert_factory: Callable[..., nn.Module],
        fusion_module: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.level_modules = nn.ModuleDict()
        for level in config.enabled_levels:
            experts = nn.ModuleDict()
            for expert in level.expert_configs:
                module = expert_factory(level.name, expert.name, dict(expert.metadata))
                if not isinstance(module, nn.Module):
                    name, fix = f"{level.name}.{expert.name}", "Return an ExpertModule from the factory."
                    fail("HierarchicalCELMoE", name, "an nn.Module", type(module).__name__, fix, TypeError)
                _add(experts, expert.name, module)
            _add(self.level_modules, level.name, experts)
        fusion_module = fusion_of(config) if fusion_module is None else fusion_module
        if fusion_module is not None and not isinstance(fusion_module, nn.Module):
            name, fix = "fusion_module", "Pass a module that takes the list of the levels' outputs."
            fail("HierarchicalCELMoE", name, "an nn.Module", type(fusion_module).__name__, fix, TypeError)
        self.fusion = fusion_module

    @property
    def levels(self) -> tuple[HierarchyLevelConfig, ...]:
        """The configs of the levels that run, in order."""
        return self.config.enabled_levels

    def forward(
        self,
        hidden: Tensor,
        routing: LevelRouting | None = None,
        context: ExpertContext = None,
        mask: Tensor | None = None,
        *,
        state: Mapping[str, Any] | None = None,
    ) -> CELMoEOutput:
        """Run the levels and fuse their outputs.

        Args:
            hidden: `[rows, hidden_size]` or `[rows, length, hidden_size]`.
            routing: level -> names or integers, one for each row (see `encode_routes`). Under `torch.compile` an
                integer out of range gives that row NaN, in this level, those after it and the fused output, and
                no gradient.
            context: a tensor, or nested mappings and lists. Tensors have a leading axis of rows, of which an expert
                gets its own, or are marked: `Shared(value)`. What is no array is handed on as it is.
            mask: `[rows, ...]`.
            state: name -> what every expert gets as it is, beside "level" and "expert", its own names.
        """
        rows = checked_rows(hidden, self.config)
        routes = encode_routes(self.config, routing, rows)
        check_context(context, rows)
        check_state(state)
        if mask is not None:
            check_leading("mask", mask, rows)
        if isinstance(self.fusion, PositionAwareFusion):
            self.fusion.check_length(hidden)
        levels: OrderedDict[str, LevelOutput] = OrderedDict()
        hiddens: list[Tensor] = []
        kept = None  # the rows whose routes were all in range; None while that is known of all
        for index, level in enumerate(self.config.enabled_levels):
            given = {"context": context, "mask": mask, "state": state}
            cut = index > 0 or self.config.stop_gradient_from_input
            kept = _kept(kept, routes[level.name], len(level.experts))
            hidden, levels[level.name] = self._run_level(level, hidden, routes[level.name], kept, given, cut)
            hiddens.append(hidden)
        losses = {name: value for output in levels.values() for name, value in output.losses.items()}
        factors = {f"{lv.name}.{ex.name}": ex.loss_weight for lv in self.levels for ex in lv.expert_configs}
        weights = tuple((name, factors[name[: name.index(".", name.index(".") + 1)]]) for name in losses)
        aux = {name: output.aux for name, output in levels.items()}
        fused = hiddens[-1] if self.fusion is None else self.fusion(hiddens)
        check_fused(fused, isinstance(fused, Tensor), rows)
        return CELMoEOutput(levels, _lost_as_nan(fused, kept), losses, aux, weights)

    def _run_level(
        self, level: HierarchyLevelConfig, hidden: Any, routes: Any, kept: Any, given: Any, cut: bool
    ) -> tuple[Tensor, LevelOutput]:
        """Return what the next level gets, with zeros in the rows that are lost, and what the caller gets."""
        given_routes = routes.to(hidden.device, torch.int64, copy=True)
        routes = given_routes if kept is None else torch.where(kept, given_routes, -1)
        modules: Any = self.level_modules[level.name]
        experts = list(modules.values())  # children() would leave out one that stands twice
        plan = make_plan(routes, len(experts))
        scales = [expert.scale_to_parent if cut else 1.0 for expert in level.expert_configs]
        losses: dict[str, Tensor] = {}
        aux: dict[str, Any] = {}
        if _can_be_grouped(experts):
            scaled = scale_gradient_of_rows(hidden, routes, scales)
            sorted_hidden = _grouped(experts, permuted(scaled, plan.take, plan.back), plan)
        else:
            keys = sample_keys(len(hidden), hidden.device) if self.training else None
            given = given | {"keys": keys, "width": self.config.width_of(level)}
            sorted_hidden, losses, aux = _one_by_one(level, experts, hidden, given, plan, scales)
        _check_shape(level, hidden, self.config.width_of(level), sorted_hidden)
        total = permuted(sorted_hidden, plan.back, plan.take)
        shown = _lost_as_nan(total, kept)
        return total, LevelOutput(level.name, shown, given_routes, losses, aux, level.expert_names)


def _add(modules: nn.ModuleDict, name: str, module: nn.Module) -> None:
    """Add a module under a name, unless PyTorch uses that name itself."""
    if hasattr(modules, name):
        fix = "Rename it."
        fail("HierarchicalCELMoE", "config", "names that nn.ModuleDict has no attribute of", repr(name), fix)
    modules[name] = module


def _kept(kept: Tensor | None, routes: Any, num_experts: int) -> Tensor | None:
    """Return which rows have had routes in range so far; None where they were checked eagerly."""
    if concrete(routes) is not None:
        return kept
    valid = (routes >= 0) & (routes < num_experts)
    return valid if kept is None else kept & valid


def _lost_as_nan(hidden: Tensor, kept: Tensor | None) -> Tensor:
    """Return `hidden` with NaN in the rows that are not kept."""
    if kept is None:
        return hidden
    return torch.where(kept.reshape(-1, *[1] * (hidden.ndim - 1)), hidden, torch.nan)


def _can_be_grouped(experts: list[Any]) -> bool:
    """Return whether experts are of one class and widths, and the class has a grouped form of its `forward`.

    Nothing may hang on their call, which the grouped form leaves out, and no transform of `torch.func` be at work.
    """
    if transformed() or any(
        e._forward_hooks or e._forward_pre_hooks or "forward" in vars(e) for e in experts
    ):
        return False
    kind = type(experts[0])
    if not hasattr(kind, "grouped") or len({(type(e), getattr(e, "widths", None)) for e in experts}) > 1:
        return False
    # A subclass with a forward of its own inherits a grouped form of another.
    return "grouped" in next(vars(c) for c in kind.__mro__ if "grouped" in vars(c) or "forward" in vars(c))


def _grouped(experts: list[Any], hidden: Tensor, plan: Plan) -> Tensor:
    """Run experts that have a grouped form on sorted rows; positions of a sequence are rows as well."""
    length = hidden.shape[1] if hidden.ndim == 3 else 1
    flat = type(experts[0]).grouped(experts, hidden.reshape(-1, hidden.shape[-1]), plan.counts * length)
    return flat.reshape(*hidden.shape[:-1], flat.shape[-1])


def _one_by_one(
    level: HierarchyLevelConfig,
    experts: list[Any],
    hidden: Tensor,
    given: Any,
    plan: Plan,
    scales: list[float],
) -> tuple[Tensor, dict[str, Tensor], dict[str, Any]]:
    """Call every expert that has rows on a view of the sorted rows."""
    sizes = plan.counts.tolist()

    def sort_and_split(leaf: Tensor) -> Iterator[Tensor]:
        """Yield the rows of one expert after the other; a slice for each would have a full gradient for each."""
        return iter(permuted(leaf, plan.take, plan.back).split(sizes))

    hiddens = sort_and_split(hidden)
    context = split_context(given["context"], sort_and_split)
    mask, keys = (None if given[name] is None else sort_and_split(given[name]) for name in ("mask", "keys"))
    parts, unused = [], []
    losses: dict[str, Tensor] = {}
    aux: dict[str, Any] = {}
    for name, expert, scale in zip(level.expert_names, experts, scales, strict=True):
        own, own_context = next(hiddens), next_context(context)
        own_mask, own_keys = (None if leaves is None else next(leaves) for leaves in (mask, keys))
        if len(own) == 0:
            unused.extend(expert.parameters())
            continue
        state = state_of(given["state"], level, name)
        batch = ExpertBatch(scale_gradient(own, scale), own_context, own_mask, state, own_keys)
        result = run_expert(level, expert, batch, given["width"])
        parts.append(result.hidden)
        aux[name] = result.aux
        for loss, value in result.losses.items():
            value = torch.as_tensor(value)
            check_scalar("ExpertModule", f"losses[{loss!r}]", value)
            losses[f"{level.name}.{name}.{loss}"] = value
    if sizes[-1] or not parts:
        like = parts[0] if parts else hidden.new_empty((0, *hidden.shape[1:-1], given["width"]))
        parts.append(like.new_zeros((sizes[-1], *like.shape[1:])))
    return touched(torch.cat(parts), unused), losses, aux


def run_expert(
    level: HierarchyLevelConfig, expert: nn.Module, batch: ExpertBatch, width: int
) -> ExpertResult:
    """Return what an expert gives for its rows, after the checks of its contract."""
    result = expert(batch)
    if not isinstance(result, ExpertResult):
        fix = "Wrap the hidden."
        fail("ExpertModule", "forward", "an ExpertResult", type(result).__name__, fix, TypeError)
    check_result(result, isinstance(result.hidden, Tensor))
    _check_shape(level, batch.hidden, width, result.hidden)
    return result


def state_of(state: Mapping[str, Any] | None, level: HierarchyLevelConfig, expert: str) -> dict[str, Any]:
    """Return what an expert gets as `state`: what the caller gave, and where it stands."""
    return {**(state or {}), "level": level.name, "expert": expert}


def checked_rows(hidden: Any, config: CELMoEConfig) -> int:
    """Return the number of samples after the checks of `hidden`."""
    rule = f"[rows, hidden_size={config.hidden_size}] or [rows, length, hidden_size={config.hidden_size}]"
    if not isinstance(hidden, Tensor):
        fix = "Convert it to an array of this framework first."
        fail("HierarchicalCELMoE", "hidden", rule, type(hidden).__name__, fix, TypeError)
    if hidden.ndim not in (2, 3) or hidden.shape[-1] != config.hidden_size:
        fail("HierarchicalCELMoE", "hidden", rule, describe(hidden), "Project or reshape it.")
    return hidden.shape[0]


def _check_shape(level: HierarchyLevelConfig, hidden: Tensor, width: int, new: Tensor) -> None:
    """Check that an expert kept all axes of its input but the last, and gave the width of its level."""
    expected = (*hidden.shape[:-1], width)
    if tuple(new.shape) != expected:
        fix = "Change the expert, or set hidden_size on the level."
        fail("HierarchicalCELMoE", level.name, f"hidden of shape {list(expected)}", describe(new), fix)
