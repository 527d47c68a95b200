"""HierarchicalCELMoE: levels of named experts, one after the other, every sample on its own route."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convexmoe import hierarchy as core
from convexmoe.errors import fail, one_of

from ..hull.initialization import Rngs, check_rngs
from ..settings import divide_rows, pick, standard_promotion
from .dispatch import Tree, dispatch, join
from .experts import HullExpert, LinearExpert, MLPExpert
from .finite import keep_apart
from .fusion import LearnedFusion, PositionAwareFusion
from .gradient_scale import scale_gradient_of_rows
from .grouped import Groups, hierarchy_backend, run_grouped
from .records import unmark
from .routes import encode_routes, read_values
from .selection import split_inputs

ARRAYS = (jax.Array, np.ndarray)


@dataclass(frozen=True)
class ExpertGroup:
    """Experts of one level and one structure, whose parameters are stacked.

    Args:
        graph: the structure, as `nnx.split` returns it.
        members: their indices in the level.
    """

    graph: Any
    members: tuple[int, ...]

    def find(self, routes: jax.Array, num_experts: int) -> jax.Array:
        """Return the routes of a level as indices into the group; -1 for the experts of other groups."""
        table = np.full(num_experts + 1, -1, np.int32)
        table[list(self.members)] = np.arange(len(self.members))
        valid = (routes >= 0) & (routes < num_experts)
        return pick(jnp.asarray(table), jnp.where(valid, routes, num_experts))


@dataclass(frozen=True)
class ExpertFunction:
    """One expert on one sample, as `dispatch` calls it: `(params, shared, row) -> (hidden, losses, aux)`.

    Args:
        graph: the expert's structure.
        level: the name of its level.
        apart: whether a ready expert keeps positions that are not finite apart; of whole samples `dispatch` takes care.
    """

    graph: Any
    level: str
    apart: bool = False

    @standard_promotion  # its derivatives are traced outside of the call of the hierarchy
    def __call__(self, params: Tree, shared: Tree, row: Tree) -> Tree:
        context = join(row["context"], unmark(shared["context"]))
        state = unmark(shared["state"]) | {"level": self.level, "expert": params["index"]}
        key = None if shared["key"] is None else jax.random.fold_in(shared["key"], row["position"])
        batch = core.ExpertBatch(row["hidden"], context, row["mask"], state, key)
        expert = nnx.merge(self.graph, params["weights"])
        if self.apart and type(expert) in (HullExpert, LinearExpert, MLPExpert):
            return keep_apart(lambda hidden: expert(replace(batch, hidden=hidden)).hidden, row["hidden"]), {}, {}
        result = expert(batch)
        core.check_result(result, "__call__", ARRAYS, jnp.asarray)
        return result.hidden, dict(result.losses), result.aux


@dataclass(frozen=True)
class GroupedFunction:
    """Experts of one structure on sorted rows, as `run_grouped` calls it: `(stacked weights, rows, groups) -> hidden`.

    Args:
        graph: the experts' structure.
    """

    graph: Any

    def is_known(self, weights: Tree) -> bool:
        """Return whether the experts are ready ones that consist of grouped products; a subclass may compute more."""
        return type(nnx.merge(self.graph, weights)) in (LinearExpert, MLPExpert)

    @standard_promotion
    def __call__(self, weights: Tree, rows: jax.Array, groups: Groups) -> jax.Array:
        return nnx.merge(self.graph, weights).run_grouped(rows, groups)


class HierarchicalCELMoE(core.Hierarchy, nnx.Module):
    """Levels of named experts, in order; every sample carries a route for each level.

    Guarantee: a sample's output depends on its own row and routes only, and one compilation serves all routes
    (tests/contract/test_hierarchy.py, tests/jax/test_hierarchy.py).

    Args:
        config: levels, experts, fusion.
        expert_factory: `(level_name, expert_name, metadata, *, rngs) -> ExpertModule`. Experts of equal
            structure within a level are stacked; they must not keep random state (use `batch.key`).
        fusion_module: takes the list of the levels' outputs, returns the fused one; None means what the config says.
        differentiation: "reverse" (gradients), or "any" (also forward mode and second derivatives, 2-5x the time).
        rngs: the source of the initial values.

    Raises:
        TypeError, ValueError: an expert is no module, keeps random state, or returns another width than its level's.
    """

    _kinds = ARRAYS
    _read_values = staticmethod(read_values)
    _where = staticmethod(jnp.where)

    def __init__(
        self,
        config: core.CELMoEConfig,
        expert_factory: Callable[..., nnx.Module],
        fusion_module: nnx.Module | None = None,
        *,
        differentiation: str = "reverse",
        rngs: Rngs = None,
    ) -> None:
        check_rngs(core.OWNER, rngs)
        self.config = config
        self.differentiation = one_of(core.OWNER, "differentiation", differentiation, ("reverse", "any"))
        groups, stacks = {}, {}
        for level in config.enabled_levels:
            groups[level.name], stacks[level.name] = _stack_experts(level, expert_factory, rngs)
        self.groups = tuple(groups.items())
        self.level_modules = nnx.data(stacks)
        if fusion_module is None:
            fusions = (partial(kind, rngs=rngs) for kind in (LearnedFusion, PositionAwareFusion))
            fusion_module = core.build_fusion(config, *fusions)
        else:
            core.check_module("fusion_module", fusion_module, nnx.Module, "nnx.Module")
        self.fusion = nnx.data(fusion_module)

    @standard_promotion
    def __call__(
        self,
        hidden: jax.Array,
        routing: core.LevelRouting | None = None,
        context: core.ExpertContext = None,
        mask: jax.Array | None = None,
        state: Mapping[str, Any] | None = None,
        *,
        key: jax.Array | None = None,
    ) -> core.CELMoEOutput:
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
        rows = core.check_hidden(hidden, self.config, ARRAYS)
        routes = encode_routes(self.config, routing, rows)
        own, shared = split_inputs(rows, context, mask, state)
        routes, own = divide_rows((routes, own), hidden)
        if isinstance(self.fusion, PositionAwareFusion):
            self.fusion.check_length(hidden)
        return self._run_levels(hidden, routes, (own, shared, key))

    def _fuse(self, hiddens: list[jax.Array], given: Any) -> jax.Array:
        if isinstance(self.fusion, (LearnedFusion, PositionAwareFusion)):
            return self.fusion(hiddens, _key_at(len(hiddens), given[2]))
        return super()._fuse(hiddens, given)

    def _run_level(
        self, index: int, hidden: Any, routes: Any, valid: Any, given: Any
    ) -> tuple[jax.Array, core.LevelOutput]:
        level, (own, shared, key) = self.levels[index], given
        shared = shared | {"key": _key_at(index, key)}
        all_routes = jnp.asarray(routes, jnp.int32)
        routes = all_routes if valid is None else jnp.where(valid, all_routes, -1)
        hidden = scale_gradient_of_rows(hidden, routes, self.config.scales_to_parent(level))
        rows = own | {"hidden": hidden, "position": jnp.arange(len(routes), dtype=jnp.int32)}
        total: Any = None
        losses: dict[str, jax.Array] = {}
        aux: dict[str, Any] = {}
        groups = dict(self.groups)[level.name]
        for index, group in enumerate(groups):
            inside = routes if len(groups) == 1 else group.find(routes, len(level.experts))
            function = ExpertFunction(group.graph, level.name, hidden.ndim == 3)
            weights = self.level_modules[level.name][str(index)]
            params = {"weights": weights, "index": jnp.asarray(group.members, jnp.int32)}
            new, new_losses, new_aux = self._run_group(function, params, shared, rows, inside)
            core.check_expert_shape(level, hidden.shape, self.config.width_of(level), new)
            total = new if total is None else total + new  # zeros where a row is not of the group
            for member in group.members:
                name = level.expert_names[member]
                aux[name] = new_aux
                for loss, value in new_losses.items():
                    losses[f"{level.name}.{name}.{loss}"] = _mean_over(routes == member, value)
        shown = self._nan_unless(valid, total)
        return total, core.LevelOutput(level.name, shown, all_routes, losses, aux, level.expert_names)

    def _run_group(self, function: ExpertFunction, params: Tree, shared: Tree, rows: Tree, routes: Any) -> Tree:
        """Return (hidden, losses, aux) of the experts of one group for all rows, zeros where a row is not of it."""
        any_order, backend = self.differentiation == "any", hierarchy_backend()
        grouped, count = GroupedFunction(function.graph), len(params["index"])
        if backend is not None and not any_order and grouped.is_known(params["weights"]):
            return run_grouped(grouped, params["weights"], rows["hidden"], routes, count, backend), {}, {}
        return dispatch(function, params, shared, rows, routes, count, any_order, backend is not None)


def _key_at(index: int, key: jax.Array | None) -> jax.Array | None:
    """Return the key of a level, or, at the number of levels, of the fusion."""
    return None if key is None else jax.random.fold_in(key, index)


def _mean_over(rows: jax.Array, value: jax.Array) -> jax.Array:
    """Return the mean of a loss over the rows of an expert, 0 where it has none."""
    # a sum in half precision may overflow where the mean does not
    wide = jnp.promote_types(value.dtype, jnp.float32)
    mean = jnp.sum(jnp.where(rows, value, 0), dtype=wide) / jnp.maximum(jnp.sum(rows), 1)
    return mean.astype(value.dtype) if jnp.issubdtype(value.dtype, jnp.inexact) else mean


def _stack_experts(level: core.HierarchyLevelConfig, factory: Callable[..., Any], rngs: Rngs) -> tuple[Any, Any]:
    """Build a level's experts, and stack those of equal structure."""
    by_structure: dict[Any, list[tuple[int, Any]]] = {}
    for index, expert in enumerate(level.expert_configs):
        module = factory(level.name, expert.name, expert.copy_metadata(), rngs=rngs)
        name = f"{level.name}.{expert.name}"
        core.check_module(name, module, nnx.Module, "nnx.Module")
        graph, state = nnx.split(module)
        _check_state(name, module, state)
        leaves, structure = jax.tree.flatten(state)
        key = (graph, structure, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves))
        try:
            hash(key)
        except TypeError as error:
            got = f"{type(module).__name__} ({error})"
            fix = "Keep the numbers or names that it needs, not a dict or list."
            fail(core.OWNER, name, "attributes that can be hashed", got, fix, TypeError)
        by_structure.setdefault(key, []).append((index, state))
    groups = tuple(ExpertGroup(key[0], tuple(i for i, _ in ms)) for key, ms in by_structure.items())
    stacks = {}
    for number, members in enumerate(by_structure.values()):
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[state for _, state in members])
        stacks[str(number)] = _as_dicts(stacked)
    return groups, stacks


def _check_state(name: str, module: nnx.Module, state: Any) -> None:
    """Check that an expert keeps neither random state nor statistics of a batch."""
    variables = jax.tree.leaves(state, is_leaf=lambda v: isinstance(v, nnx.Variable))
    for kind, what, fix in (
        (nnx.RngState, "random state", "Draw from batch.key instead, and build nnx.Dropout without rngs."),
        (nnx.BatchStat, "statistics of a batch", "It sees one sample: normalize each by itself."),
    ):
        if any(isinstance(variable, kind) for variable in variables):
            fail(core.OWNER, name, f"an expert without {what}", type(module).__name__, fix)


def _as_dicts(state: Any) -> Any:
    """Return a state of NNX as nested plain dicts of Variables, and of arrays that an expert keeps as they are."""
    if isinstance(state, (nnx.Variable, jax.Array)):
        return state
    return {key: _as_dicts(value) for key, value in state.items()}
