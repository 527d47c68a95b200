"""HierarchicalCELMoE: levels of named experts, one after the other, every sample on its own route."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ._checks import check_scalar, describe, fail, one_of
from .config import CELMoEConfig, HierarchyLevelConfig
from .dispatch import dispatch, expanded
from .dropout import sample_dropout
from .experts import ExpertBatch, ExpertResult
from .routing import Routing, Shared, concrete, encode_routes

Tree = Any
EPSILON = 1e-5  # of the fusion's LayerNorm


@partial(
    jax.tree_util.register_dataclass, data_fields=["hidden", "routes", "losses", "aux"], meta_fields=["name"]
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
    """

    name: str
    hidden: jax.Array
    routes: jax.Array
    losses: dict[str, jax.Array]
    aux: dict[str, Any]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["levels", "fused_hidden", "losses", "aux"],
    meta_fields=["weights"],
)
@dataclass(frozen=True)
class CELMoEOutput:
    """What the hierarchy gives. A pytree.

    Args:
        levels: one `LevelOutput` for each enabled level, in order.
        fused_hidden: `[rows, ..., hidden_size]`.
        losses: the losses of all levels by name, unweighted.
        aux: level -> its aux.
        weights: (name, `loss_weight`) of every loss.
    """

    levels: tuple[LevelOutput, ...]
    fused_hidden: jax.Array
    losses: dict[str, jax.Array]
    aux: dict[str, Any]
    weights: tuple[tuple[str, float], ...]

    @property
    def loss_weights(self) -> dict[str, float]:
        """The `loss_weight` of every loss by name."""
        return dict(self.weights)


class LearnedFusion(nnx.Module):
    """`dropout(LayerNorm(mean over levels of h_l W_l))`, with W_l (width of the level, hidden_size).

    Args:
        hidden_size: width of the fused output.
        widths: width of each level's output.
        dropout: share of the units that are dropped where a key is given.
        dtype: floating dtype of the parameters.
        rngs: the source of the initial values.
    """

    def __init__(
        self,
        hidden_size: int,
        widths: Sequence[int],
        dropout: float = 0.0,
        *,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.dropout = dropout
        draw = partial(jax.random.normal, dtype=dtype)
        weights = [draw(rngs.params(), (width, hidden_size)) / width**0.5 for width in widths]
        self.gates = nnx.data({str(i): {"weight": nnx.Param(weight)} for i, weight in enumerate(weights)})
        ones, zeros = jnp.ones(hidden_size, dtype), jnp.zeros(hidden_size, dtype)
        self.norm = nnx.data({"weight": nnx.Param(ones), "bias": nnx.Param(zeros)})

    def __call__(self, hiddens: Sequence[jax.Array], key: jax.Array | None = None) -> jax.Array:
        """Return the fusion of the levels' outputs, `[rows, ..., hidden_size]`."""
        mixed = [hidden @ self.gates[str(i)]["weight"][...] for i, hidden in enumerate(hiddens)]
        mean = sum(mixed[1:], start=mixed[0]) / len(mixed)
        centred = mean - jnp.mean(mean, axis=-1, keepdims=True)  # the variance in two passes
        deviation = jnp.sqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + EPSILON)
        fused = centred / deviation * self.norm["weight"][...] + self.norm["bias"][...]
        return sample_dropout(fused, self.dropout, key)


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
    """One expert on one sample, as `dispatch` calls it: `(weights, shared, row) -> (hidden, losses, aux)`."""

    graph: Any
    context: Any

    def __call__(self, weights: Tree, shared: Tree, row: Tree) -> Tree:
        structure, is_shared = self.context
        own, common = iter(row["context"]), iter(shared["context"])
        context = jax.tree.unflatten(structure, [next(common) if flag else next(own) for flag in is_shared])
        key = None if shared["key"] is None else jax.random.fold_in(shared["key"], row["position"])
        batch = ExpertBatch(row["hidden"], context, row["mask"], shared["state"], key)
        result = nnx.merge(self.graph, weights)(batch)
        if not isinstance(result, ExpertResult):
            fail(
                "ExpertModule",
                "__call__",
                "an ExpertResult",
                type(result).__name__,
                "Wrap the hidden.",
                TypeError,
            )
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
        if fusion_module is None and config.use_learned_fusion:
            widths = [config.width_of(level) for level in config.enabled_levels]
            fusion_module = LearnedFusion(config.hidden_size, widths, config.fusion_dropout, rngs=rngs)
        if fusion_module is not None and not isinstance(fusion_module, nnx.Module):
            name, fix = "fusion_module", "Pass a module that takes the list of the levels' outputs."
            fail("HierarchicalCELMoE", name, "an nnx.Module", type(fusion_module).__name__, fix, TypeError)
        self.fusion = nnx.data(fusion_module)

    def __call__(
        self,
        hidden: jax.Array,
        routing: Routing | None = None,
        *,
        context: Any = None,
        mask: jax.Array | None = None,
        state: Any = None,
        key: jax.Array | None = None,
    ) -> CELMoEOutput:
        """Run the levels and fuse their outputs.

        Args:
            hidden: `[rows, hidden_size]` or `[rows, length, hidden_size]`.
            routing: level -> names or integers, one for each row (see `encode_routes`). Under jit an integer out
                of range gives that row NaN, in this level, those after it and the fused output, and no gradient.
            context: array or nested dicts and lists of arrays with a leading axis of rows; anything else must be
                marked: `Shared(value)`.
            mask: `[rows, ...]`.
            state: arrays and numbers, handed to every expert whole.
            key: PRNG key: switches dropout on.
        """
        rows = checked_rows(hidden, self.config)
        routes = encode_routes(self.config, routing, rows)
        parts = split_context(context, rows)
        if mask is not None:
            check_leading("mask", mask, rows)
            mask = jnp.asarray(mask)
        state = jax.tree.map(as_array, state)
        outputs: list[LevelOutput] = []
        hiddens: list[jax.Array] = []
        kept = None  # the rows whose routes were all in range; None while that is known of all
        for index, level in enumerate(self.config.enabled_levels):
            level_key = None if key is None else jax.random.fold_in(key, index)
            given = {"context": parts, "mask": mask, "state": state, "key": level_key}
            cut = index > 0 or self.config.stop_gradient_from_input
            kept = _kept(kept, routes[level.name], len(level.experts))
            hidden, output = self._run_level(level, hidden, routes[level.name], kept, given, cut)
            hiddens.append(hidden)
            outputs.append(output)
        losses = {name: value for output in outputs for name, value in output.losses.items()}
        factors = {f"{lv.name}.{ex.name}": ex.loss_weight for lv in self.config.levels for ex in lv.experts}
        weights = tuple((name, factors[name[: name.index(".", name.index(".") + 1)]]) for name in losses)
        aux = {output.name: output.aux for output in outputs}
        fused = _lost_as_nan(self._fused(hiddens, key), kept)
        return CELMoEOutput(tuple(outputs), fused, losses, aux, weights)

    def _fused(self, hiddens: list[jax.Array], key: jax.Array | None) -> jax.Array:
        if self.fusion is None:
            return hiddens[-1]
        if isinstance(self.fusion, LearnedFusion):
            key = None if key is None else jax.random.fold_in(key, len(hiddens))
            return self.fusion(hiddens, key)
        return self.fusion(hiddens)

    def _run_level(
        self, level: HierarchyLevelConfig, hidden: Any, routes: Any, kept: Any, given: Any, cut: bool
    ) -> tuple[jax.Array, LevelOutput]:
        """Return what the next level gets, with zeros in the rows that are lost, and what the caller gets."""
        given_routes = jnp.asarray(routes, jnp.int32)
        routes = given_routes if kept is None else jnp.where(kept, given_routes, -1)
        hidden = _cut_gradients(level, hidden, routes) if cut else hidden
        context_rows, context_shared, structure = given["context"]
        place = jnp.arange(len(routes), dtype=jnp.int32)
        rows = {"hidden": hidden, "context": context_rows, "mask": given["mask"], "position": place}
        shared = {"context": context_shared, "state": given["state"], "key": given["key"]}
        total: Any = None
        losses: dict[str, jax.Array] = {}
        aux: dict[str, Any] = {}
        groups = dict(self.groups)[level.name]
        for index, group in enumerate(groups):
            inside = routes if len(groups) == 1 else _routes_inside(group, routes, len(level.experts))
            function = ExpertFunction(group.graph, structure)
            weights = self.level_modules[level.name][str(index)]
            every = self.differentiation == "any"
            number = len(group.members)
            new, new_losses, new_aux = dispatch(function, weights, shared, rows, inside, number, every)
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
                    losses[f"{level.name}.{name}.{loss}"] = mean.astype(value.dtype)
        return total, LevelOutput(level.name, _lost_as_nan(total, kept), given_routes, losses, aux)


def _stacked_experts(
    level: HierarchyLevelConfig, factory: Callable[..., Any], rngs: nnx.Rngs
) -> tuple[Any, Any]:
    """Build a level's experts, and stack those of equal structure."""
    found: dict[Any, list[tuple[int, Any]]] = {}
    for index, expert in enumerate(level.experts):
        module = factory(level.name, expert.name, dict(expert.metadata), rngs=rngs)
        name = f"{level.name}.{expert.name}"
        if not isinstance(module, nnx.Module):
            fix = "Return an ExpertModule from the factory."
            fail("HierarchicalCELMoE", name, "an nnx.Module", type(module).__name__, fix, TypeError)
        graph, state = nnx.split(module)
        if any(
            isinstance(v, nnx.RngState)
            for v in jax.tree.leaves(state, is_leaf=lambda v: isinstance(v, nnx.Variable))
        ):
            fix = "Draw from batch.key instead, and build nnx.Dropout without rngs."
            fail("HierarchicalCELMoE", name, "an expert without random state", type(module).__name__, fix)
        leaves, structure = jax.tree.flatten(state)
        shape = (graph, structure, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves))
        found.setdefault(shape, []).append((index, state))
    groups = tuple(ExpertGroup(key[0], tuple(i for i, _ in members)) for key, members in found.items())
    stacks = {}
    for number, members in enumerate(found.values()):
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[state for _, state in members])
        stacks[str(number)] = _plain(stacked)
    return groups, stacks


def _plain(state: Any) -> Any:
    """Return a state of NNX as nested plain dicts of Variables."""
    if isinstance(state, nnx.Variable):
        return state
    return {key: _plain(value) for key, value in state.items()}


def _routes_inside(group: ExpertGroup, routes: jax.Array, num_experts: int) -> jax.Array:
    """Return the routes as indices into the group; -1 for the experts of other groups."""
    table = np.full(num_experts + 1, -1, np.int32)
    table[list(group.members)] = np.arange(len(group.members))
    valid = (routes >= 0) & (routes < num_experts)
    return jnp.asarray(table)[jnp.where(valid, routes, num_experts)]


def as_array(leaf: Any) -> jax.Array:
    return leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)


def _kept(kept: jax.Array | None, routes: Any, num_experts: int) -> jax.Array | None:
    """Return which rows have had routes in range so far; None where they were checked eagerly."""
    if concrete(routes) is not None:
        return kept
    valid = (routes >= 0) & (routes < num_experts)
    return valid if kept is None else kept & valid


def _lost_as_nan(hidden: jax.Array, kept: jax.Array | None) -> jax.Array:
    """Return `hidden` with NaN in the rows that are not kept."""
    return hidden if kept is None else jnp.where(expanded(kept, hidden), hidden, jnp.nan)


def _cut_gradients(level: HierarchyLevelConfig, hidden: jax.Array, routes: jax.Array) -> jax.Array:
    """Return `hidden` without gradient in the rows whose expert does not pass it on."""
    stops = np.asarray([expert.stop_gradient_from_parent for expert in level.experts])
    if not stops.any():
        return hidden
    cut = jax.lax.stop_gradient(hidden)
    return cut if stops.all() else jnp.where(expanded(jnp.asarray(stops)[routes], hidden), cut, hidden)


def checked_rows(hidden: Any, config: CELMoEConfig) -> int:
    """Return the number of samples after the checks of `hidden`."""
    rule = f"[rows, hidden_size={config.hidden_size}] or [rows, length, hidden_size={config.hidden_size}]"
    if not isinstance(hidden, (jax.Array, np.ndarray)):
        fix = "Convert it to an array of this framework first."
        fail("HierarchicalCELMoE", "hidden", rule, type(hidden).__name__, fix, TypeError)
    if hidden.ndim not in (2, 3) or hidden.shape[-1] != config.hidden_size:
        fail("HierarchicalCELMoE", "hidden", rule, describe(hidden), "Project or reshape it.")
    return hidden.shape[0]


def check_leading(argument: str, value: Any, rows: int) -> None:
    """Check that `value` is an array with a leading axis of `rows`."""
    if not hasattr(value, "shape") or len(value.shape) == 0 or value.shape[0] != rows:
        fix = (
            "Give it one entry for each sample, or mark it: Shared(value)."
            if argument == "context"
            else "Give it one."
        )
        fail("HierarchicalCELMoE", argument, f"a leading axis of {rows} samples", describe(value), fix)


def split_context(context: Any, rows: int) -> tuple[list[Any], list[Any], Any]:
    """Return the leaves that each sample has its own of, those that are shared, and how they go together."""
    leaves, structure = jax.tree.flatten(context, is_leaf=lambda leaf: isinstance(leaf, Shared))
    flags = tuple(isinstance(leaf, Shared) for leaf in leaves)
    for leaf, flag in zip(leaves, flags, strict=True):
        if not flag:
            check_leading("context", leaf, rows)
    own = [jnp.asarray(leaf) for leaf, flag in zip(leaves, flags, strict=True) if not flag]
    shared = [jax.tree.map(jnp.asarray, leaf.value) for leaf, flag in zip(leaves, flags, strict=True) if flag]
    return own, shared, (structure, flags)


def check_shape(level: HierarchyLevelConfig, hidden: jax.Array, width: int, new: jax.Array) -> None:
    """Check that an expert kept all axes of its input but the last, and gave the width of its level."""
    expected = (*hidden.shape[:-1], width)
    if new.shape != expected:
        fix = "Change the expert, or set hidden_size on the level."
        fail("HierarchicalCELMoE", level.name, f"hidden of shape {list(expected)}", describe(new), fix)
