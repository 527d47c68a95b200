"""The state of an optimizer from optax to `torch.optim` and back: moments by the name of their parameter, and counts.

Rates, decays and schedules are not state: each side states its own. `convexmoe_jax.adam` and `adamw` take the steps of
`torch.optim.Adam` and `AdamW`; `optax.sgd(rate, momentum)` those of `torch.optim.SGD`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from .named import neutral_of, parameters_of, tree_like
from .weights import array_of, tensor_of

# What is carried: kind -> (moment in optax, moment in PyTorch)
MOMENTS = {
    "adam": (("mu", "exp_avg"), ("nu", "exp_avg_sq")),
    "sgd": (("trace", "momentum_buffer"),),
}
STATES = {optax.ScaleByAdamState: "adam", optax.TraceState: "sgd"}
OPTIMIZERS = {torch.optim.Adam: "adam", torch.optim.AdamW: "adam", torch.optim.SGD: "sgd"}
PLAIN = {
    "amsgrad": False,
    "maximize": False,
    "dampening": 0,
}  # options that change the rule, and their one value


def adam_to_torch(state: Any, model: Any, optimizer: torch.optim.Optimizer, twin: torch.nn.Module) -> int:
    """Put the state of an optax optimizer into a torch one: Adam, AdamW, or SGD with momentum.

    Args:
        state: of optax, with Adam's or the momentum's state anywhere in it; its trees are like the model's parameters.
        model: the JAX hull or hierarchy that it trains.
        optimizer: of the twin's parameters; its own state is replaced, its rates and decays stay.
        twin: `to_torch(model)`.

    Returns:
        The number of steps taken, for the schedule that goes on (`last_epoch`). 0 for SGD without a schedule, which
        counts none.

    Raises:
        TypeError: another rule than these, on either side.
        ValueError: the moments and the parameters differ in names or shapes; all differences are listed.
    """
    kind, found = _found(state)
    _check_optimizer(optimizer, kind)
    steps = _steps(state)
    parameters = parameters_of(twin)
    moments = {}
    for ours, theirs in MOMENTS[kind]:
        moments[theirs] = neutral_of(model, getattr(found, ours))
        _check_names(
            moments[theirs], {name: tuple(p.shape) for name, p in parameters.items()}, "adam_to_torch"
        )
    groups = _groups(optimizer)
    for name, parameter in parameters.items():
        if parameter not in groups:
            continue
        own = {m: tensor_of(arrays[name]).to(parameter) for m, arrays in moments.items()}
        if kind == "adam":
            device = (
                parameter.device
                if groups[parameter].get("capturable") or groups[parameter].get("fused")
                else "cpu"
            )
            own["step"] = torch.tensor(float(steps), device=device)
        optimizer.state[parameter] = own
    return steps


def adam_to_optax(
    optimizer: torch.optim.Optimizer,
    twin: torch.nn.Module,
    state: Any,
    model: Any,
    *,
    steps: int | None = None,
) -> Any:
    """Return `state` with the moments and counts of a torch optimizer: Adam, AdamW, or SGD with momentum.

    Args:
        optimizer: of the twin's parameters.
        twin: the torch hull or hierarchy that it trains.
        state: `init(params)` of the optax optimizer that goes on, with Adam's or the momentum's state anywhere in it;
            schedules in it get the count, too.
        model: `to_jax(twin)`.
        steps: the steps taken; needed for SGD with a schedule only, as torch's SGD counts none.

    Raises:
        TypeError: another rule than these, on either side.
        ValueError: names or shapes differ, or the parameters have taken different numbers of steps, which optax,
            with one count for all, cannot say.
    """
    kind, found = _found(state)
    _check_optimizer(optimizer, kind)
    parameters = parameters_of(twin)
    taken = {
        name: int(own["step"])
        for name, p in parameters.items()
        if "step" in (own := optimizer.state.get(p, {}))
    }
    if len(set(taken.values())) > 1:
        few, many = min(taken, key=taken.get), max(taken, key=taken.get)  # type: ignore[arg-type]
        raise ValueError(
            f"adam_to_optax.optimizer: expected one number of steps for all parameters; got {taken[few]} for {few} and "
            f"{taken[many]} for {many}. Hand over before a part is frozen, or begin with a fresh state."
        )
    steps = next(iter(taken.values()), 0) if steps is None else steps
    moments = {}
    for ours, theirs in MOMENTS[kind]:
        arrays = {}
        for name, parameter in parameters.items():
            moment = optimizer.state.get(parameter, {}).get(theirs)
            arrays[name] = np.asarray(array_of(torch.zeros_like(parameter) if moment is None else moment))
        shapes = {name: value.shape for name, value in neutral_of(model, getattr(found, ours)).items()}
        _check_names(arrays, shapes, "adam_to_optax")
        moments[ours] = tree_like(model, getattr(found, ours), arrays)

    def counted(leaf: Any) -> Any:
        """Return a state with its count, and its moments where it is the one."""
        if isinstance(leaf, tuple) and hasattr(leaf, "_fields"):
            new = {name: counted(getattr(leaf, name)) for name in leaf._fields}
            if "count" in new:
                new["count"] = jnp.full_like(new["count"], steps)
            return type(leaf)(**(new | moments)) if leaf is found else type(leaf)(**new)
        if isinstance(leaf, tuple):
            return tuple(counted(part) for part in leaf)
        return leaf

    return counted(state)


def _states(state: Any) -> list[Any]:
    """Return every named tuple in an optax state, outermost first."""
    inside = [part for part in state if isinstance(part, tuple)] if isinstance(state, tuple) else []
    return [state] * hasattr(state, "_fields") + [found for part in inside for found in _states(part)]


def _found(state: Any) -> tuple[str, Any]:
    """Return the kind of an optax state, and the part of it that holds the moments."""
    states = _states(state)
    known = [part for part in states if type(part) in STATES]
    unlike = [type(part).__name__ for part in states if _has_moments(part) and type(part) not in STATES]
    if len(known) != 1 or unlike:
        got = ", ".join([*unlike, *(type(part).__name__ for part in known)]) or "none of them"
        raise TypeError(
            f"state: expected one ScaleByAdamState (Adam, AdamW) or TraceState (SGD with momentum); got {got}. "
            "Use convexmoe_jax.adam, adamw or optax.sgd(rate, momentum)."
        )
    return STATES[type(known[0])], known[0]


def _has_moments(state: Any) -> bool:
    """Return whether a state holds trees of arrays, as moments are."""
    own = [getattr(state, name) for name in state._fields]
    inner = [part for part in own if not (isinstance(part, tuple) and hasattr(part, "_fields"))]
    return any(
        getattr(leaf, "ndim", 0) > 0
        for leaf in jax.tree.leaves([p for p in inner if not isinstance(p, tuple)])
    )


def _steps(state: Any) -> int:
    """Return the largest count in an optax state."""
    return max((int(part.count) for part in _states(state) if "count" in part._fields), default=0)


def _check_optimizer(optimizer: torch.optim.Optimizer, kind: str) -> None:
    """Check that a torch optimizer is of the kind, with no option that changes its rule."""
    fix = "Use torch.optim.Adam, AdamW or SGD(momentum=...)."
    name = type(optimizer).__name__
    if OPTIMIZERS.get(type(optimizer)) != kind:
        wanted = [k.__name__ for k, v in OPTIMIZERS.items() if v == kind]
        raise TypeError(
            f"optimizer: expected torch.optim.{' or '.join(wanted)}, as the optax state is; got {name}. {fix}"
        )
    for group in optimizer.param_groups:
        for option, value in PLAIN.items():
            if group.get(option, value) != value:
                raise TypeError(
                    f"optimizer: expected {option}={value}; got {name} with {option}={group[option]}. {fix}"
                )


def _groups(optimizer: torch.optim.Optimizer) -> dict[torch.nn.Parameter, dict[str, Any]]:
    return {parameter: group for group in optimizer.param_groups for parameter in group["params"]}


def _check_names(arrays: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]], owner: str) -> None:
    """Check that moments and parameters have the same names and shapes, and list all differences."""
    faults = [f"missing {name}" for name in sorted(shapes.keys() - arrays.keys())]
    faults += [f"unexpected {name}" for name in sorted(arrays.keys() - shapes.keys())]
    for name in sorted(shapes.keys() & arrays.keys()):
        if tuple(arrays[name].shape) != tuple(shapes[name]):
            faults.append(f"{name} has shape {list(arrays[name].shape)}, not {list(shapes[name])}")
    if faults:
        raise ValueError(
            f"{owner}: expected a moment for each parameter; got {'; '.join(faults)}. Pass the twins."
        )
