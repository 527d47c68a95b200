"""The state of an optimizer by the names of the neutral file: the rule, the steps taken, a moment for each parameter.

Rates, decays and schedules are not state: the program that goes on states its own.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from convexmoe.errors import fail
from convexmoe.files import MOMENTS, OptimizerState, check_state, steps_taken

from ..hull.module import VectorHull
from .layers import fill, neutral_arrays

KINDS = (np.ndarray, jax.Array)
to_numpy = moment_of = np.asarray
RULES = {optax.ScaleByAdamState: "adam", optax.TraceState: "sgd"}
# States with nothing of their own but moments and steps, beside those whose one field is a count. Others are refused.
KNOWN = (optax.EmptyState, optax.MaskedState, optax.schedules.InjectStatefulHyperparamsState, *RULES)


def optimizer_state(state: Any, model: Any, *, step: int | None = None) -> OptimizerState:
    """Return a copy of the state of an optax optimizer, moments by name.

    Args:
        state: of optax, with Adam's or the momentum's state anywhere in it; its trees are like the model's parameters.
            Of an `nnx.Optimizer`, its `opt_state`. Rules that keep Adam's state under its name (nadam, adamax, radam,
            yogi, lamb) or the momentum's (lars) cannot be told from Adam and SGD.
        model: the hull or hierarchy that it trains.
        step: the steps taken, for a state that does not count them (SGD without a schedule).

    Raises:
        TypeError: another rule than these, or a state that has more to remember than moments and steps.
        ValueError: the moments and the parameters differ in names or shapes (all differences are listed); two counts
            differ, or `step` differs from them.
    """
    rule, holder = _moments_of(state)
    moments = {name: neutral_of(model, getattr(holder, name)) for name in MOMENTS[rule]}
    counts = {int(jax.tree.leaves(part.count)[0]) for part in _states(state) if "count" in part._fields}
    saved = OptimizerState(rule, steps_taken(counts, step, "Begin with a fresh state."), moments)
    check_state(saved, neutral_arrays(model), KINDS)
    return saved


def restore(state: Any, model: Any, saved: OptimizerState) -> Any:
    """Return `state` with the moments and counts of `saved`, schedules' counts included.

    Args:
        state: `init(params)` of the optax optimizer that goes on, or the `opt_state` of an `nnx.Optimizer`.
        model: the hull or hierarchy that it trains.
        saved: what `optimizer_state` or `read_optimizer` gave.

    Raises:
        TypeError: the rules differ, or one is unknown.
        ValueError: names or shapes differ; all differences are listed.
    """
    rule, holder = _moments_of(state)
    check_state(saved, neutral_arrays(model), KINDS, rule)
    moments = {name: tree_like(model, getattr(holder, name), saved.moments[name]) for name in MOMENTS[rule]}

    def replace(part: Any) -> Any:
        """Return a part of the state with the new count, and the new moments where it holds them."""
        if isinstance(part, dict):
            return {name: replace(value) for name, value in part.items()}
        if not isinstance(part, tuple):
            return part
        if not hasattr(part, "_fields"):
            return tuple(replace(value) for value in part)
        new = {name: replace(getattr(part, name)) for name in part._fields if name not in moments}
        if "count" in new:
            new["count"] = jax.tree.map(lambda leaf: jnp.full_like(leaf, saved.step), part.count)
        return type(part)(**(new | moments)) if part is holder else type(part)(**new)

    return replace(state)


def _states(state: Any) -> list[Any]:
    """Return every named tuple in an optax state, outermost first; the moments are not looked into."""
    if isinstance(state, dict):
        return [inner for part in state.values() for inner in _states(part)]
    if not isinstance(state, tuple):
        return []
    own = [state] if hasattr(state, "_fields") else []
    return own + ([] if type(state) in RULES else [inner for part in state for inner in _states(part)])


def _moments_of(state: Any) -> tuple[str, Any]:
    """Return the rule of an optax state, and the part of it that holds the moments."""
    states = _states(state)
    if not states or isinstance(state, optax.GradientTransformation):
        rule, got = "the state of an optax optimizer", f"an instance of {type(state).__name__}"
        made = "Pass what init(params) of the optimizer gave" + ", here opt_state." * isinstance(state, nnx.Optimizer)
        fail("OptimizerState", "optimizer", rule, got, made, TypeError)
    known = [part for part in states if type(part) in RULES]
    unlike = [type(p).__name__ for p in states if type(p) not in KNOWN and p._fields != ("count",)]
    if len(known) != 1 or unlike:
        got = ", ".join([*unlike, *(type(part).__name__ for part in known)]) or "none of them"
        rule = "one ScaleByAdamState (Adam, AdamW) or TraceState (SGD with momentum), and beside it steps alone"
        fix = "Use convexmoe_jax.adam, adamw or optax.sgd(rate, momentum), in a chain."
        fail("OptimizerState", "optimizer", rule, got, fix, TypeError)
    return RULES[type(known[0])], known[0]


def by_path(tree: Any) -> dict[tuple[str, ...], Any]:
    """Return path -> leaf of a tree of parameters; of an NNX state as of plain dicts."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    keys = [tuple(str(getattr(key, "key", "")) for key in path if hasattr(key, "key")) for path, _ in leaves]
    return dict(zip(keys, (leaf for _, leaf in leaves), strict=True))


def neutral_of(model: Any, tree: Any) -> dict[str, np.ndarray]:
    """Return neutral name -> copy of the array of a tree like the parameters of a model."""
    if isinstance(model, VectorHull):
        return {".".join(path): np.array(leaf, order="C", copy=True) for path, leaf in by_path(tree).items()}
    return neutral_arrays(_with(model, tree))


def _with(model: Any, tree: Any) -> Any:
    """Return a copy of a hierarchy with the leaves of a tree for its parameters."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    given, own = by_path(tree), by_path(params)
    if given.keys() != own.keys():
        others = sorted(given.keys() ^ own.keys())[:4]
        fix = "Pass the model that the state is of."
        fail("OptimizerState", "optimizer", "trees like the model's parameters", f"others at {others}", fix)
    filled = jax.tree.unflatten(jax.tree.structure(params), [given[path] for path in own])
    return nnx.merge(graph, filled, rest)


def tree_like(model: Any, tree: Any, arrays: dict[str, Any]) -> Any:
    """Return neutral arrays as a tree like `tree`, in its dtypes."""
    if isinstance(model, VectorHull):
        new: dict[tuple[str, ...], Any] = {tuple(name.split(".")): value for name, value in arrays.items()}
    else:
        copy = _with(model, jax.tree.map(jnp.array, tree))
        fill(copy, arrays)
        new = by_path(nnx.state(copy, nnx.Param))
    leaves = [jnp.array(new[path], leaf.dtype) for path, leaf in by_path(tree).items()]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)
