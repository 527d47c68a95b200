"""The state of an optimizer by the names of the neutral file: the rule, the steps taken, a moment for each parameter.

Rates, decays and schedules are not state: the program that goes on states its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from ._checks import dtype_name, fail, same_keys, whole_number
from .hull import VectorHull
from .names import fill, neutral_arrays

MOMENTS = {"adam": ("mu", "nu"), "sgd": ("trace",)}
RULES = {optax.ScaleByAdamState: "adam", optax.TraceState: "sgd"}


class OptimizerState(NamedTuple):
    """What an optimizer remembers.

    Args:
        rule: "adam" (Adam, AdamW) or "sgd" (with momentum).
        step: steps taken, >= 0.
        moments: moment -> neutral name -> array, each shaped as its parameter; the moments are `MOMENTS[rule]`.
    """

    rule: str
    step: int
    moments: dict[str, dict[str, np.ndarray]]


def optimizer_state(state: Any, model: Any, *, step: int | None = None) -> OptimizerState:
    """Return a copy of the state of an optax optimizer, moments by name.

    Args:
        state: of optax, with Adam's or the momentum's state anywhere in it; its trees are like the model's parameters.
        model: the hull or hierarchy that it trains.
        step: the steps taken, for a state that does not count them (SGD without a schedule); otherwise its own count.

    Raises:
        TypeError: another rule than these.
        ValueError: the moments and the parameters differ in names or shapes; all differences are listed.
    """
    rule, found = _found(state)
    moments = {name: neutral_of(model, getattr(found, name)) for name in MOMENTS[rule]}
    check_moments(moments, neutral_of(model, parameters_of(model)))
    if step is not None:
        whole_number("OptimizerState", "step", step, 0)
    counts = [int(part.count) for part in _states(state) if "count" in part._fields]
    return OptimizerState(rule, max(counts, default=step or 0), moments)


def restored(state: Any, model: Any, saved: OptimizerState) -> Any:
    """Return `state` with the moments and counts of `saved`, schedules' counts included.

    Args:
        state: `init(params)` of the optax optimizer that goes on.
        model: the hull or hierarchy that it trains.
        saved: what `optimizer_state` gave, in either package.

    Raises:
        TypeError: the rules differ, or one is unknown.
        ValueError: names or shapes differ; all differences are listed.
    """
    rule, found = _found(state)
    if rule != saved.rule:
        fix = "Make the optimizer that the state is of."
        fail("OptimizerState", "rule", f"{rule!r}, as the optimizer has", repr(saved.rule), fix, TypeError)
    check_moments(saved.moments, neutral_of(model, parameters_of(model)))
    moments = {name: tree_like(model, getattr(found, name), saved.moments[name]) for name in MOMENTS[rule]}

    def counted(leaf: Any) -> Any:
        """Return a state with its count, and its moments where it is the one."""
        if isinstance(leaf, tuple) and hasattr(leaf, "_fields"):
            new = {name: counted(getattr(leaf, name)) for name in leaf._fields}
            if "count" in new:
                new["count"] = jnp.full_like(new["count"], saved.step)
            return type(leaf)(**(new | moments)) if leaf is found else type(leaf)(**new)
        if isinstance(leaf, tuple):
            return tuple(counted(part) for part in leaf)
        return leaf

    return counted(state)


def check_moments(moments: dict[str, dict[str, Any]], parameters: dict[str, Any]) -> None:
    """Check that there is a moment for each parameter, of its shape; all differences are reported at once."""
    expected: dict[str, tuple] = {}
    got: dict[str, tuple] = {}
    for moment, arrays in moments.items():
        expected |= {f"{moment}/{name}": (tuple(p.shape), None) for name, p in parameters.items()}
        got |= {f"{moment}/{name}": (tuple(v.shape), dtype_name(v.dtype)) for name, v in arrays.items()}
    same_keys("OptimizerState", expected, got)


def _states(state: Any) -> list[Any]:
    """Return every named tuple in an optax state, outermost first."""
    inside = [part for part in state if isinstance(part, tuple)] if isinstance(state, tuple) else []
    return [state] * hasattr(state, "_fields") + [found for part in inside for found in _states(part)]


def _found(state: Any) -> tuple[str, Any]:
    """Return the rule of an optax state, and the part of it that holds the moments."""
    states = _states(state)
    known = [part for part in states if type(part) in RULES]
    unlike = [type(part).__name__ for part in states if _has_moments(part) and type(part) not in RULES]
    if len(known) != 1 or unlike:
        got = ", ".join([*unlike, *(type(part).__name__ for part in known)]) or "none of them"
        rule = "one ScaleByAdamState (Adam, AdamW) or TraceState (SGD with momentum)"
        fix = "Use convexmoe_jax.adam, adamw or optax.sgd(rate, momentum)."
        fail("OptimizerState", "optimizer", rule, got, fix, TypeError)
    return RULES[type(known[0])], known[0]


def _has_moments(state: Any) -> bool:
    """Return whether a state holds trees of arrays, as moments are."""
    own = [getattr(state, name) for name in state._fields]
    leaves = jax.tree.leaves([part for part in own if not isinstance(part, tuple)])
    return any(getattr(leaf, "ndim", 0) > 0 for leaf in leaves)


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
