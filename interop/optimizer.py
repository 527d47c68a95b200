"""The state of an optimizer from optax to `torch.optim` and back: moments by the name of their parameter, and counts.

Rates, decays and schedules are not state: each side states its own. `convexmoe_jax.adam` and `adamw` take the steps of
`torch.optim.Adam` and `AdamW`; `optax.sgd(rate, momentum)` those of `torch.optim.SGD`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from convexmoe.files import OptimizerState
from convexmoe_jax.files import optimizer as in_jax
from convexmoe_torch.files import optimizer as in_torch

from .weights import array_of, tensor_of


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
    saved = in_jax.optimizer_state(state, model)
    in_torch.restore(optimizer, twin, _with_moments(saved, tensor_of))
    return saved.step


def adam_to_optax(
    optimizer: torch.optim.Optimizer, twin: torch.nn.Module, state: Any, model: Any, *, steps: int | None = None
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
    saved = in_torch.optimizer_state(optimizer, twin, step=steps)
    return in_jax.restore(state, model, _with_moments(saved, lambda tensor: np.asarray(array_of(tensor))))


def _with_moments(saved: OptimizerState, copy: Callable[[Any], Any]) -> OptimizerState:
    """Return a state with a copy of each moment in the other framework."""
    pairs = saved.moments.items()
    return saved._replace(moments={moment: {name: copy(a) for name, a in of.items()} for moment, of in pairs})
