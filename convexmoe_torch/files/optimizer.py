"""The state of an optimizer by the names of the neutral file: the rule, the steps taken, a moment for each parameter.

Rates, decays and schedules are not state: the program that goes on states its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from convexmoe.errors import fail
from convexmoe.files import MOMENTS, OptimizerState, check_state, steps_taken

from .layers import from_numpy as moment_of
from .layers import parameters_of, to_numpy

__all__ = ["KINDS", "OptimizerState", "moment_of", "optimizer_state", "parameters_of", "restore", "to_numpy"]

KINDS = (Tensor,)
# What PyTorch calls each moment
KEYS = {"mu": "exp_avg", "nu": "exp_avg_sq", "trace": "momentum_buffer"}
RULES = {torch.optim.Adam: "adam", torch.optim.AdamW: "adam", torch.optim.SGD: "sgd"}
# Options that change the rule, and the value at which they do not
PLAIN = {"amsgrad": False, "maximize": False, "dampening": 0}


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module, *, step: int | None = None) -> OptimizerState:
    """Return a copy of the state of an optimizer on the CPU, moments by name.

    Args:
        optimizer: Adam, AdamW, or SGD with momentum, of the model's parameters; a parameter that it has not stepped
            yet has moments of zero.
        model: the hull or hierarchy that it trains.
        step: the steps taken, for an optimizer that does not count them (SGD).

    Raises:
        TypeError: another rule than these.
        ValueError: the parameters have taken different numbers of steps, which optax, with one count for all, cannot
            say; none of them is the model's; or `step` is not their count.
    """
    return state_of(optimizer, model, step, lambda value: moment_of(to_numpy(value)))


def state_of(
    optimizer: torch.optim.Optimizer, model: nn.Module, step: int | None, take: Callable[[Tensor], Tensor]
) -> OptimizerState:
    """Return what `optimizer_state` does, of what `take` makes of each moment: a copy, or what it is."""
    rule = _rule(optimizer)
    parameters = parameters_of(model)
    _check_owner(optimizer, parameters)
    taken = {name: int(own["step"]) for name, p in parameters.items() if "step" in (own := optimizer.state.get(p, {}))}
    if len(set(taken.values())) > 1:
        few, many = min(taken, key=taken.get), max(taken, key=taken.get)  # type: ignore[arg-type]
        got = f"{taken[few]} for {few} and {taken[many]} for {many}"
        fix = "Hand over before a part is frozen, or begin with a fresh state."
        fail("OptimizerState", "optimizer", "one number of steps for all parameters", got, fix)
    count = steps_taken(set(taken.values()), step, "Leave step out: the optimizer counts its steps.")
    moments: dict[str, dict[str, Tensor]] = {moment: {} for moment in MOMENTS[rule]}
    for name, parameter in parameters.items():
        own = optimizer.state.get(parameter, {})
        for moment, arrays in moments.items():
            value = own.get(KEYS[moment])
            value = torch.zeros_like(parameter) if value is None else value
            arrays[name] = take(value)
    return OptimizerState(rule, count, moments)


def restore(optimizer: torch.optim.Optimizer, model: nn.Module, saved: OptimizerState) -> torch.optim.Optimizer:
    """Put the moments and counts of `saved` into an optimizer, and return it; its rates and decays stay.

    Args:
        optimizer: the one that goes on; parameters that it does not have keep out of it.
        model: the hull or hierarchy that it trains.
        saved: what `optimizer_state` or `read_optimizer` gave.

    Raises:
        TypeError: the rules differ, or one is unknown.
        ValueError: names or shapes differ; all differences are listed.
    """
    rule = _rule(optimizer)
    parameters = parameters_of(model)
    check_state(saved, parameters, KINDS, rule)
    _check_owner(optimizer, parameters)
    groups = _groups(optimizer)
    for name, parameter in parameters.items():
        if parameter not in groups:
            continue
        moments = {KEYS[m]: saved.moments[m][name].detach().clone().to(parameter) for m in MOMENTS[rule]}
        if rule == "adam":
            on_device = groups[parameter].get("capturable") or groups[parameter].get("fused")
            device = parameter.device if on_device else "cpu"
            moments["step"] = torch.tensor(float(saved.step), device=device)
        optimizer.state[parameter] = moments
    return optimizer


def _check_owner(optimizer: torch.optim.Optimizer, parameters: dict[str, Tensor]) -> None:
    """Check that an optimizer has parameters of the model: those of a copy are others."""
    if not _groups(optimizer).keys() & set(parameters.values()):
        fix = "Pass the model that the optimizer was made for."
        fail("OptimizerState", "optimizer", "an optimizer of the model's parameters", "one of others", fix)


def _groups(optimizer: torch.optim.Optimizer) -> dict[Tensor, dict[str, Any]]:
    """Return parameter -> its group."""
    return {parameter: group for group in optimizer.param_groups for parameter in group["params"]}


def _rule(optimizer: torch.optim.Optimizer) -> str:
    """Return the rule of an optimizer, and check that no option changes it."""
    fix = "Use torch.optim.Adam, AdamW or SGD(momentum=...)."
    name = type(optimizer).__name__
    if type(optimizer) not in RULES:
        fail("OptimizerState", "optimizer", "torch.optim.Adam, AdamW or SGD", name, fix, TypeError)
    for group in optimizer.param_groups:
        for option, value in PLAIN.items():
            if group.get(option, value) != value:
                got = f"{name} with {option}={group[option]}"
                fail("OptimizerState", "optimizer", f"{option}={value}", got, fix, TypeError)
        if group.get("momentum") == 0:
            got = f"{name} with momentum=0"
            fail("OptimizerState", "optimizer", "momentum > 0", got, fix, TypeError)
    return RULES[type(optimizer)]
