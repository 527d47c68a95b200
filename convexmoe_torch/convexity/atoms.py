"""The functions whose bodies do not compose, as they are written in PyTorch; the core recognizes them in a program.

What PyTorch has as one operator, such as softplus, log-sum-exp and log-softmax, has a rule of its own (`rules.py`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
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


def _log_sum_exp_forms(axes: tuple[int, ...], given: tuple[int, ...], shape: tuple[int, ...]) -> Iterable[Function]:
    if not axes:
        return ()
    keep = shape != tuple(size for axis, size in enumerate(given) if axis not in axes)
    return _log_sum_exp_by_hand(axes, keep, len(axes) == len(given))


@lru_cache(maxsize=256)
def _log_sum_exp_by_hand(axes: tuple[int, ...], keep: bool, of_all: bool) -> tuple[Function, ...]:
    """Return ways of writing log-sum-exp over axes, with a maximum over them or over all."""

    def write(sum_first: bool, scalar: bool) -> Function:
        def form(a: Tensor) -> Tensor:
            if scalar:
                top = torch.max(a)
                log = torch.log(torch.sum(torch.exp(a - top)))
            else:
                top = torch.amax(a, dim=axes, keepdim=True)
                log = torch.log(torch.sum(torch.exp(a - top), dim=axes, keepdim=keep))
                top = top if keep else torch.squeeze(top, axes)
            return log + top if sum_first else top + log

        return form

    kinds = (False, True) if of_all else (False,)
    return tuple(write(sum_first, scalar) for scalar in kinds for sum_first in (False, True))


@lru_cache(maxsize=256)
def _weighted_forms(axes: tuple[int, ...], keep: bool) -> tuple[Function, ...]:
    """Return ways of writing log sum b exp(a): with either factor, and either term, first."""

    def write(weights_first: bool, sum_first: bool) -> Function:
        def form(a: Tensor, b: Tensor) -> Tensor:
            top = torch.amax(a, dim=axes, keepdim=True)
            powers = torch.exp(a - top)
            log = torch.log(torch.sum(b * powers if weights_first else powers * b, dim=axes, keepdim=keep))
            top = top if keep else torch.squeeze(top, axes)
            return log + top if sum_first else top + log

        return form

    return tuple(write(*order) for order in itertools.product((False, True), repeat=2)) if axes else ()


def _log_softmax(a: Tensor, axes: tuple[int, ...]) -> Tensor:
    centered = a - torch.amax(a, dim=axes, keepdim=True)
    return centered - torch.log(torch.sum(torch.exp(centered), dim=axes, keepdim=True))


@lru_cache(maxsize=256)
def _log_softmax_forms(axes: tuple[int, ...]) -> tuple[Function, ...]:
    return (partial(_log_softmax, axes=axes),) if axes else ()


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
    log_sum_exp=_log_sum_exp_forms,
    weighted=_weighted_forms,
    log_softmax=_log_softmax_forms,
    smooth_maximum=_smooth_maximum,
)
# The last operation of an atom -> what it may be.
FAMILIES = {
    "where": (atoms.elementwise_atoms,),
    "add": (atoms.elementwise_atoms, atoms.log_sum_exps, atoms.smooth_maxima),
    "sub": (atoms.log_softmaxes,),
    "to": (atoms.smooth_maxima,),
}
recognize = partial(atoms.recognize_atoms, FORMS, FAMILIES)
