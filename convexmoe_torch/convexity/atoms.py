"""The functions whose bodies do not compose, as they are written in PyTorch; the core recognizes them in a program.

What PyTorch has as one operator, such as softplus, log-sum-exp and log-softmax, has a rule of its own (`rules.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor

from convexmoe.convexity import Graph, Kind, atoms

from .trace import trace_reference

Function = Callable[..., Tensor]


@lru_cache(maxsize=4096)
def _trace(function: Function, kinds: tuple[Kind, ...]) -> Graph:
    return trace_reference(function, *kinds)


def _log_add(a: Tensor, b: Tensor) -> Tensor:
    top = torch.maximum(a, b)
    return top + torch.log1p(torch.exp(-torch.abs(a - b)))


def _softplus_by_log1p(u: Tensor) -> Tensor:
    return torch.relu(u) + torch.log1p(torch.exp(-torch.abs(u)))


def _guarded_x_log_x(u: Tensor) -> Tensor:
    return torch.where(u > 0, u * torch.log(torch.where(u > 0, u, 1.0)), 0.0)


ELEMENTWISE = (
    ("softplus", "log_sum_exp", _softplus_by_log1p, atoms.as_softplus),
    ("xlogx", "entropy", lambda u: torch.where(u > 0, u * torch.log(u), 0.0), atoms.as_relative_entropy),
    ("xlogx", "entropy", _guarded_x_log_x, atoms.as_relative_entropy),
)


def _smooth_maximum(g: Tensor, temperature: Tensor | float) -> Tensor:
    """T log mean exp(g / T) over the last axis but one; above T = 16 by way of expm1 and log1p."""
    wide = g.to(torch.promote_types(g.dtype, torch.float32))
    T = temperature.to(wide.dtype) if isinstance(temperature, Tensor) else temperature
    top = torch.amax(wide, dim=-2, keepdim=True)
    u = (wide - top) / T

    def steep() -> Tensor:
        return torch.log(torch.sum(torch.exp(u), dim=-2)) - math.log(u.shape[-2])

    def flat() -> Tensor:
        return torch.log1p(torch.mean(torch.expm1(u), dim=-2))

    if isinstance(temperature, float):
        mean = flat() if temperature > 16.0 else steep()
    else:
        mean = torch.where(temperature > 16.0, flat(), steep())
    return (top.squeeze(-2) + T * mean).to(g.dtype)


FORMS = atoms.Forms(
    trace=_trace,
    sum="sum",
    elementwise=ELEMENTWISE,
    pairs=(("logaddexp", "log_sum_exp", _log_add, atoms.as_log_add),),
    smooth_maximum=_smooth_maximum,
)
# The last operation of an atom -> what it may be.
FAMILIES = {
    "where": (atoms.elementwise_atoms,),
    "add": (atoms.elementwise_atoms, atoms.smooth_maxima),
    "to": (atoms.smooth_maxima,),
}
recognize = partial(atoms.recognize_atoms, FORMS, FAMILIES)
