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

from convexmoe.errors import fail, whole_number
from convexmoe.files.optimizer import LARGEST_STEP, MOMENTS, OptimizerState
from convexmoe.files.optimizer import check_state as check_moments

from ..hull.module import VectorHull
from .layers import fill, neutral_arrays

KINDS = (np.ndarray, jax.Array)
RULES = {optax.ScaleByAdamState: "adam", optax.TraceState: "sgd"}
# States with nothing of their own but moments and steps, beside those whose one field is a count. Others are refused.
KNOWN = (
    optax.EmptyState,
    optax.MaskedState,
    optax.schedules.InjectStatefulHyperparamsState,
    *RULES,
)


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
    rule, found = _found(state)
    moments = {name: neutral_of(model, getattr(found, name)) for name in MOMENTS[rule]}
    counts = {int(jax.tree.leaves(part.count)[0]) for part in _states(state) if "count" in part._fields}
    if step is not None:
        whole_number("OptimizerState", "step", step, 0, LARGEST_STEP)
        counts.add(int(step))
    if len(counts) > 1:
        fix = "Begin with a fresh state."
        fail("OptimizerState", "step", "one number of steps", f"the counts {sorted(counts)}", fix)
    saved = OptimizerState(rule, next(iter(counts), 0), moments)
    check_state(saved, neutral_of(model, parameters_of(model)))
    return saved


def restored(state: Any, model: Any, saved: OptimizerState) -> Any:
    """Return `state` with the moments and counts of `saved`, schedules' counts included.

    Args:
        state: `init(params)` of the optax optimizer that goes on, or the `opt_state` of an `nnx.Optimizer`.
        model: the hull or hierarchy that it trains.
        saved: what `optimizer_state` or `read_optimizer` gave.

    Raises:
        TypeError: the rules differ, or one is unknown.
        ValueError: names or shapes differ; all differences are listed.
    """
    rule, found = _found(state)
    if rule != saved.rule:
        fix = "Make the optimizer that the state is of."
        fail("OptimizerState", "rule", f"{rule!r}, as the optimizer has", repr(saved.rule), fix, TypeError)
    check_state(saved, neutral_of(model, parameters_of(model)))
    moments = {name: tree_like(model, getattr(found, name), saved.moments[name]) for name in MOMENTS[rule]}

    def counted(part: Any) -> Any:
        """Return a state with its count, and its moments where it is the one."""
        if isinstance(part, dict):
            return {name: counted(value) for name, value in part.items()}
        if not isinstance(part, tuple):
            return part
        if not hasattr(part, "_fields"):
            return tuple(counted(value) for value in part)
        new = {name: counted(getattr(part, name)) for name in part._fields if name not in moments}
        if "count" in new:
            new["count"] = jax.tree.map(lambda leaf: jnp.full_like(leaf, saved.step), part.count)
        return type(part)(**(new | moments)) if part is found else type(part)(**new)

    return counted(state)


def check_state(saved: OptimizerState, parameters: dict[str, Any]) -> None:
    """Check that a state has its rule, its step, and a moment for each parameter, neutral name -> array."""
    check_moments(saved, parameters, KINDS)


def _states(state: Any) -> list[Any]:
    """Return every named tuple in an optax state, outermost first; the moments are not looked into."""
    if isinstance(state, dict):
        return [found for part in state.values() for found in _states(part)]
    if not isinstance(state, tuple):
        return []
    own = [state] if hasattr(state, "_fields") else []
    return own + ([] if type(state) in RULES else [found for part in state for found in _states(part)])


def _found(state: Any) -> tuple[str, Any]:
    """Return the rule of an optax state, and the part of it that holds the moments."""
    states = _states(state)
    known = [part for part in states if type(part) in RULES]
    unlike = [type(p).__name__ for p in states if type(p) not in KNOWN and p._fields != ("count",)]
    if len(known) != 1 or unlike:
        got = ", ".join([*unlike, *(type(part).__name__ for part in known)]) or "none of them"
        rule = (
            "one ScaleByAdamState (Adam, AdamW) or TraceState (SGD with momentum), and beside it steps alone"
        )
        fix = "Use convexmoe_jax.adam, adamw or optax.sgd(rate, momentum), in a chain; of nnx.Optimizer its opt_state."
        fail("OptimizerState", "optimizer", rule, got, fix, TypeError)
    return RULES[type(known[0])], known[0]


def parameters_of(model: Any) -> Any:
    """Return the parameters of a model as the tree that an optimizer is given."""
    return nnx.state(model, nnx.Param)


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
