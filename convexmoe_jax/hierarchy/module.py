"""HierarchicalCELMoE: levels of named experts, one after the other, every sample on its own route."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convexmoe.errors import check_scalar, describe, fail, one_of
from convexmoe.hierarchy.config import CELMoEConfig, HierarchyLevelConfig
from convexmoe.hierarchy.results import check_fused, check_result
from convexmoe.hierarchy.route_lists import LevelRouting

from .dispatch import dispatch, expanded
from .experts import ExpertBatch, ExpertResult
from .fusion import LearnedFusion, PositionAwareFusion, fusion_of
from .gradient_scale import scale_gradient_of_rows
from .routes import concrete, encode_routes
from .selection import ExpertContext, Structure, check_leading, split_context, split_state

Tree = Any


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["hidden", "routes", "losses", "aux"],
    meta_fields=["name", "expert_names"],
)
@dataclass(frozen=True)
class LevelOutput:
    """What one level gives.

    Args:
        name: of the level.
        hidden: `[rows, ..., width]`.
        routes: index of each sample's expert, int32 `[rows]`.
        losses: `level.expert.loss` -> mean over the rows of the expert, 0 where it has none.
        aux: expert -> its aux, with a leading axis of all rows; valid where the route is that expert's.
        expert_names: of the level; a route is an index into them.
    """

    name: str
    hidden: jax.Array
    routes: jax.Array
    losses: dict[str, jax.Array]
    aux: dict[str, Any]
    expert_names: tuple[str, ...] = ()

    @property
    def route_names(self) -> list[str]:
        """The name of each sample's expert; the routes are copied to the host, so not under `jit`."""
        return [self.expert_names[route] for route in self.routes.tolist()]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["levels", "fused_hidden", "losses", "aux"],
    meta_fields=["weights"],
)
@dataclass(frozen=True)
class CELMoEOutput:
    """What the hierarchy gives. A pytree.

    Args:
        levels: name -> `LevelOutput` of each enabled level, in order.
        fused_hidden: `[rows, ..., hidden_size]`.
        losses: the losses of all levels by name, unweighted.
        aux: level -> its aux.
        weights: (name, `loss_weight`) of every loss; one that is left out has the weight 1.
    """

    levels: Mapping[str, LevelOutput]
    fused_hidden: jax.Array
    losses: dict[str, jax.Array]
    aux: dict[str, Any]
    weights: tuple[tuple[str, float], ...] = ()

    @property
    def loss_weights(self) -> dict[str, float]:
        """The `loss_weight` of every loss by name."""
        return dict(self.weights)


@dataclass(frozen=True)
class ExpertGroup:
    """Experts of one level and one structure, whose parameters are stacked.

    Args:
        graph: the structure, as `nnx.split` gives it.
        members: their indices in the level.
    """

    graph: Any
    members: tuple[int, ...]


@dataclass(frozen=True)
class ExpertFunction:
    """One expert on one sample, as `dispatch` calls it: `(params, shared, row) -> (hidden, losses, aux)`.

    Args:
        graph: the expert's structure.
        level: the name of its level.
        context, state: how their leaves go together.
    """

    graph: Any
    level: str
    context: Structure
    state: Structure

    def __call__(self, params: Tree, shared: Tree, row: Tree) -> Tree:
        context = self.context.join(row["context"], shared["context"])
        state = self.state.join([], shared["state"]) | {"level": self.level, "expert": params["index"]}
        key = None if shared["key"] is None else jax.random.fold_in(shared["key"], row["position"])
        batch = ExpertBatch(row["hidden"], context, row["mask"], state, key)
        result = nnx.merge(self.graph, params["weights"])(batch)
        if not isinstance(result, ExpertResult):
            got, fix = type(result).__name__, "Wrap the hidden."
            fail("ExpertModule", "__call__", "an ExpertResult", got, fix, TypeError)
        check_result(result, isinstance(result.hidden, (jax.Array, np.ndarray)))
        for name, value in result.losses.items():
            check_scalar("ExpertModule", f"losses[{name!r}]", jnp.asarray(value))
        return result.hidden, dict(result.losses), result.aux


class HierarchicalCELMoE(nnx.Module):
    """Levels of named experts, in order; every sample carries a route for each level.

    Guarantee: a sample's output depends on its own row and routes only, and one compilation serves all routes
    (tests/contract/test_hierarchy.py, tests/jax/test_hierarchy.py).

    Args:
        config: levels, experts, fusion.
        expert_factory: `(level_name, expert_name, metadata, *, rngs) -> ExpertModule`. Experts of equal
            structure within a level are stacked; they must not keep random state (use `batch.key`).
        fusion_module: takes the list of the levels' outputs, gives the fused one; None means what the config says.
        differentiation: "reverse" (gradients), or "any" (also forward mode and second derivatives, 2-5x the time).
        rngs: the source of the initial values.

    Raises:
        TypeError, ValueError: an expert is no module, keeps random state, or gives another width than its level's.
    """

    def __init__(
        self,
        config: CELMoEConfig,
        expert_factory: Callable[..., nnx.Module],
        fusion_module: nnx.Module | None = None,
        *,
        differentiation: str = "reverse",
        rngs: nnx.Rngs,
    ) -> None:
        self.config = config
        self.differentiation = one_of(
            "HierarchicalCELMoE", "differentiation", differentiation, ("reverse", "any")
        )
        groups, stacks = {}, {}
        for level in config.enabled_levels:
            groups[level.name], stacks[level.name] = _stacked_experts(level, expert_factory, rngs)
        self.groups = tuple(groups.items())
        self.level_modules = nnx.data(stacks)
        fusion_module = fusion_of(config, rngs) if fusion_module is None else fusion_module
        if fusion_module is not None and not isinstance(fusion_module, nnx.Module):
            name, fix = "fusion_module", "Pass a module that takes the list of the levels' outputs."
            fail("HierarchicalCELMoE", name, "an nnx.Module", type(fusion_module).__name__, fix, TypeError)
        self.fusion = nnx.data(fusion_module)

    @property
    def levels(self) -> tuple[HierarchyLevelConfig, ...]:
        """The configs of the levels that run, in order."""
        return self.config.enabled_levels

    def __call__(
        self,
        hidden: jax.Array,
        routing: LevelRouting | None = None,
        context: ExpertContext = None,
        mask: jax.Array | None = None,
        *,
        state: Mapping[str, Any] | None = None,
        key: jax.Array | None = None,
    ) -> CELMoEOutput:
        """Run the levels and fuse their outputs.

        Args:
            hidden: `[rows, hidden_size]` or `[rows, length, hidden_size]`.
            routing: level -> names or integers, one for each row (see `encode_routes`). Under jit an integer out
                of range gives that row NaN, in this level, those after it and the fused output, and no gradient.
            context: an array, or nested mappings and lists. Arrays have a leading axis of rows, of which a sample
                gets its own, or are marked: `Shared(value)`. What is no array is handed on as it is, as a constant
                of the program: a new value compiles anew.
            mask: `[rows, ...]`.
            state: name -> what every expert gets whole, beside "level" and "expert", its own name and index.
            key: PRNG key: switches dropout on.
        """
        rows = checked_rows(hidden, self.config)
        routes = encode_routes(self.config, routing, rows)
        given: dict[str, Any] = {"context": split_context(context, rows), "state": split_state(state)}
        if mask is not None:
            check_leading("mask", mask, rows)
            mask = jnp.asarray(mask)
        if isinstance(self.fusion, PositionAwareFusion):
            self.fusion.check_length(hidden)
        levels: OrderedDict[str, LevelOutput] = OrderedDict()
        hiddens: list[jax.Array] = []
        kept = None  # the rows whose routes were all in range; None while that is known of all
        for index, level in enumerate(self.config.enabled_levels):
            level_key = None if key is None else jax.random.fold_in(key, index)
            given |= {"mask": mask, "key": level_key}
            cut = index > 0 or self.config.stop_gradient_from_input
            kept = _kept(kept, routes[level.name], len(level.experts))
            hidden, levels[level.name] = self._run_level(level, hidden, routes[level.name], kept, given, cut)
            hiddens.append(hidden)
        losses = {name: value for output in levels.values() for name, value in output.losses.items()}
        factors = {f"{lv.name}.{ex.name}": ex.loss_weight for lv in self.levels for ex in lv.expert_configs}
        weights = tuple((name, factors[name[: name.index(".", name.index(".") + 1)]]) for name in losses)
        aux = {name: output.aux for name, output in levels.items()}
        fused = self._fused(hiddens, key)
        check_fused(fused, isinstance(fused, (jax.Array, np.ndarray)), rows)
        fused = _lost_as_nan(fused, kept)
        return CELMoEOutput(levels, fused, losses, aux, weights)

    def _fused(self, hiddens: list[jax.Array], key: jax.Array | None) -> jax.Array:
        if self.fusion is None:
            return hiddens[-1]
        if isinstance(self.fusion, (LearnedFusion, PositionAwareFusion)):
            key = None if key is None else jax.random.fold_in(key, len(hiddens))
            return self.fusion(hiddens, key)
        return self.fusion(hiddens)

    def _run_level(
        self, level: HierarchyLevelConfig, hidden: Any, routes: Any, kept: Any, given: Any, cut: bool
    ) -> tuple[jax.Array, LevelOutput]:
        """Return what the next level gets, with zeros in the rows that are lost, and what the caller gets."""
        given_routes = jnp.asarray(routes, jnp.int32)
        routes = given_routes if kept is None else jnp.where(kept, given_routes, -1)
        if cut:
            hidden = scale_gradient_of_rows(hidden, routes, [e.scale_to_parent for e in level.expert_configs])
        context_rows, context_shared, context = given["context"]
        state_shared, state = given["state"]
        place = jnp.arange(len(routes), dtype=jnp.int32)
        rows = {"hidden": hidden, "context": context_rows, "mask": given["mask"], "position": place}
        shared = {"context": context_shared, "state": state_shared, "key": given["key"]}
        total: Any = None
        losses: dict[str, jax.Array] = {}
        aux: dict[str, Any] = {}
        groups = dict(self.groups)[level.name]
        for index, group in enumerate(groups):
            inside = routes if len(groups) == 1 else _routes_inside(group, routes, len(level.experts))
            function = ExpertFunction(group.graph, level.name, context, state)
            weights = self.level_modules[level.name][str(index)]
            params = {"weights": weights, "index": jnp.asarray(group.members, jnp.int32)}
            every = self.differentiation == "any"
            number = len(group.members)
            new, new_losses, new_aux = dispatch(function, params, shared, rows, inside, number, every)
            check_shape(level, hidden, self.config.width_of(level), new)
            total = new if total is None else total + new  # zeros where a row is not of the group
            for member in group.members:
                name = level.expert_names[member]
                aux[name] = new_aux
                own = routes == member
                count = jnp.maximum(jnp.sum(own), 1)
                for loss, value in new_losses.items():
                    # A sum in half precision may overflow where its mean does not.
                    wide = jnp.promote_types(value.dtype, jnp.float32)
                    mean = jnp.sum(jnp.where(own, value, 0), dtype=wide) / count
                    floating = jnp.issubdtype(value.dtype, jnp.inexact)
                    losses[f"{level.name}.{name}.{loss}"] = mean.astype(value.dtype) if floating else mean
        shown = _lost_as_nan(total, kept)
        return total, LevelOutput(level.name, shown, given_routes, losses, aux, level.expert_names)


def _stacked_experts(
    level: HierarchyLevelConfig, factory: Callable[..., Any], rngs: nnx.Rngs
) -> tuple[Any, Any]:
    """Build a level's experts, and stack those of equal structure."""
    found: dict[Any, list[tuple[int, Any]]] = {}
    for index, expert in enumerate(level.expert_configs):
        module = factory(level.name, expert.name, dict(expert.metadata), rngs=rngs)
        name = f"{level.name}.{expert.name}"
        if not isinstance(module, nnx.Module):
            fix = "Return an ExpertModule from the factory."
            fail("HierarchicalCELMoE", name, "an nnx.Module", type(module).__name__, fix, TypeError)
        graph, state = nnx.split(module)
        variables = jax.tree.leaves(state, is_leaf=lambda v: isinstance(v, nnx.Variable))
        if any(isinstance(variable, nnx.RngState) for variable in variables):
            fix = "Draw from batch.key instead, and build nnx.Dropout without rngs."
            fail("HierarchicalCELMoE", name, "an expert without random state", type(module).__name__, fix)
        if any(isinstance(variable, nnx.BatchStat) for variable in variables):
            fix = "It sees one sample: normalize each by itself."
            fail(
                "HierarchicalCELMoE",
                name,
                "an expert without statistics of a batch",
                type(module).__name__,
                fix,
            )
        leaves, structure = jax.tree.flatten(state)
        shape = (graph, structure, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves))
        try:
            hash(shape)
        except TypeError as error:
            rule, fix = (
                "attributes that can be hashed",
                "Keep the numbers or names that it needs, not a dict or list.",
            )
            fail("HierarchicalCELMoE", name, rule, f"{type(module).__name__} ({error})", fix, TypeError)
        found.setdefault(shape, []).append((index, state))
    groups = tuple(ExpertGroup(key[0], tuple(i for i, _ in members)) for key, members in found.items())
    stacks = {}
    for number, members in enumerate(found.values()):
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[state for _, state in members])
        stacks[str(number)] = _plain(stacked)
    return groups, stacks


def _plain(state: Any) -> Any:
    """Return a state of NNX as nested plain dicts of Variables, and of arrays that an expert keeps as they are."""
    if isinstance(state, (nnx.Variable, jax.Array)):
        return state
    return {key: _plain(value) for key, value in state.items()}


def _routes_inside(group: ExpertGroup, routes: jax.Array, num_experts: int) -> jax.Array:
    """Return the routes as indices into the group; -1 for the experts of other groups."""
    table = np.full(num_experts + 1, -1, np.int32)
    table[list(group.members)] = np.arange(len(group.members))
    valid = (routes >= 0) & (routes < num_experts)
    return jnp.asarray(table)[jnp.where(valid, routes, num_experts)]


def _kept(kept: jax.Array | None, routes: Any, num_experts: int) -> jax.Array | None:
    """Return which rows have had routes in range so far; None where they were checked eagerly."""
    if concrete(routes) is not None:
        return kept
    valid = (routes >= 0) & (routes < num_experts)
    return valid if kept is None else kept & valid


def _lost_as_nan(hidden: jax.Array, kept: jax.Array | None) -> jax.Array:
    """Return `hidden` with NaN in the rows that are not kept."""
    return hidden if kept is None else jnp.where(expanded(kept, hidden), hidden, jnp.nan)


def checked_rows(hidden: Any, config: CELMoEConfig) -> int:
    """Return the number of samples after the checks of `hidden`."""
    rule = f"[rows, hidden_size={config.hidden_size}] or [rows, length, hidden_size={config.hidden_size}]"
    if not isinstance(hidden, (jax.Array, np.ndarray)):
        fix = "Convert it to an array of this framework first."
        fail("HierarchicalCELMoE", "hidden", rule, type(hidden).__name__, fix, TypeError)
    if hidden.ndim not in (2, 3) or hidden.shape[-1] != config.hidden_size:
        fail("HierarchicalCELMoE", "hidden", rule, describe(hidden), "Project or reshape it.")
    return hidden.shape[0]


def check_shape(level: HierarchyLevelConfig, hidden: jax.Array, width: int, new: jax.Array) -> None:
    """Check that an expert kept all axes of its input but the last, and gave the width of its level."""
    expected = (*hidden.shape[:-1], width)
    if new.shape != expected:
        fix = "Change the expert, or set hidden_size on the level."
        fail("HierarchicalCELMoE", level.name, f"hidden of shape {list(expected)}", describe(new), fix)
