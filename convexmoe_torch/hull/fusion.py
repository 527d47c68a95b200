"""Overlapping max-of-means: the fusion of the petals into one convex function.

Letters: N rows, P petals (and groups), O out.

    g_i = (f_i + f_{i+1 mod P}) / 2 + s_i           group_size 2;  g_i = f_i + s_i at group_size 1
    y   = max_i g_i                                 temperature 0
    y   = T (log sum_i exp(g_i / T) - log P)        temperature T > 0

Both are non-decreasing and convex in f, so y is convex where every f_p is.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from convexmoe.hull import parameters
from convexmoe.hull.config import LEAST_TEMPERATURE

from ..settings import is_plain_eager, is_transforming
from .positive import softplus

FLAT = 16.0  # the temperature from which `log_mean_exp` takes its form for small differences
LARGE = 2**17  # numbers from which a function with a gradient of its own is faster than what it is made of


def learned_temperature(raw: Tensor) -> Tensor:
    """Return `softplus(raw) + LEAST_TEMPERATURE`: positive for every raw value."""
    return softplus(raw) + LEAST_TEMPERATURE


def group_values(f_NPO: Tensor, shifts_P: Tensor, group_size: int) -> Tensor:
    """Return g, the shifted means of neighboring petals, (N, P, O)."""
    if group_size == 1:
        return shifts_P[:, None] + f_NPO
    if is_plain_eager(f_NPO):
        return _NeighborMeans.apply(f_NPO, shifts_P)
    return shifts_P[:, None] + parameters.neighbor_means(f_NPO, torch.roll)


def neighbor_means(weight: Tensor) -> Tensor:
    """Return the means of each petal and the next one in a circle, of the axis before the last."""
    if weight.numel() > LARGE and is_plain_eager(weight):
        return _NeighborMeans.apply(weight, None)
    return parameters.neighbor_means(weight, torch.roll)


class _NeighborMeans(torch.autograd.Function):
    """The means of neighbors, shifted where there are shifts, in one array: `roll` and two sums need three."""

    @staticmethod
    def forward(ctx: Any, f_NPO: Tensor, shifts_P: Tensor | None) -> Tensor:
        g_NPO = sums_of_neighbors(f_NPO, 1)
        return g_NPO.mul_(0.5) if shifts_P is None else torch.add(shifts_P[:, None], g_NPO, alpha=0.5, out=g_NPO)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (grad_NPO,) = grads
        of_f, of_shifts = ctx.needs_input_grad
        shifts_P = grad_NPO.sum(-1).sum(0) if of_shifts else None
        if not of_f:
            return None, shifts_P
        if is_differentiated(grad_NPO):
            return 0.5 * (grad_NPO + torch.roll(grad_NPO, 1, dims=-2)), shifts_P
        return sums_of_neighbors(grad_NPO, -1).mul_(0.5), shifts_P


def is_differentiated(grad: Tensor) -> bool:
    """Return whether a backward pass is itself differentiated or transformed: it takes PyTorch's own operators then."""
    return torch.is_grad_enabled() or is_transforming() or torch._C._functorch.is_legacy_batchedtensor(grad)


def sums_of_neighbors(f_NPO: Tensor, step: int) -> Tensor:
    """Return the sums of each petal and the next one in a circle, or with a step of -1 the one before, (N, P, O)."""
    sums_NPO = torch.empty_like(f_NPO)
    inner, (end, start) = (slice(None, -1), (-1, 0)) if step == 1 else (slice(1, None), (0, -1))
    torch.add(f_NPO[..., :-1, :], f_NPO[..., 1:, :], out=sums_NPO[..., inner, :])
    torch.add(f_NPO[..., end, :], f_NPO[..., start, :], out=sums_NPO[..., end, :])
    return sums_NPO


def maximum(g_NPO: Tensor) -> Tensor:
    """Return the maximum over groups, (N, O). A tie shares the gradient evenly."""
    return _Maximum.apply(g_NPO) if is_plain_eager(g_NPO) else torch.amax(g_NPO, dim=-2)


class _Maximum(torch.autograd.Function):
    """The maximum, whose gradient needs one array of the groups' dtype beside a mask; PyTorch's own needs more."""

    @staticmethod
    def forward(ctx: Any, g_NPO: Tensor) -> Tensor:
        y_NO = torch.amax(g_NPO, dim=-2)
        ctx.save_for_backward(g_NPO, y_NO)
        return y_NO

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad_NO,), (g_NPO, y_NO) = grads, ctx.saved_tensors
        won_NPO = (g_NPO == y_NO[..., None, :]).to(g_NPO.dtype)
        share_NO = grad_NO / won_NPO.sum(-2)
        if is_differentiated(grad_NO):
            return won_NPO * share_NO[..., None, :]
        return won_NPO.mul_(share_NO[..., None, :])


def smooth_maximum(g_NPO: Tensor, temperature: Tensor | float) -> Tensor:
    """Return `T (log sum_i exp(g_i / T) - log P)`, (N, O): below the maximum by at most `T log P`.

    Half precision is widened to float32 inside, where `g / T` would overflow.

    Args:
        g_NPO: group values.
        temperature: T > 0, a number or one an output, (O,).
    """
    dtype = g_NPO.dtype
    wide = g_NPO.to(torch.promote_types(dtype, torch.float32))
    T = temperature.to(wide.dtype) if isinstance(temperature, Tensor) else temperature
    top = torch.amax(wide, dim=-2, keepdim=True).detach()
    mean = log_mean_exp((wide - top) / T, temperature)
    return (top.squeeze(-2) + T * mean).to(dtype)


def log_mean_exp(u_NPO: Tensor, temperature: Tensor | float) -> Tensor:
    """Return `log mean_i exp(u_i)` for u <= 0, (N, O).

    Above `FLAT` all u are near 0, where the difference of two logarithms would cancel, and T would magnify what is
    left: there it is `log1p(mean_i expm1(u_i))`.
    """

    def steep() -> Tensor:
        return torch.log(torch.sum(torch.exp(u_NPO), dim=-2)) - math.log(u_NPO.shape[-2])

    def flat() -> Tensor:
        if torch.jit.is_tracing():  # whose exporter to ONNX has no expm1
            return torch.log1p(torch.mean(torch.tanh(0.5 * u_NPO) * (torch.exp(u_NPO) + 1), dim=-2))
        return torch.log1p(torch.mean(torch.expm1(u_NPO), dim=-2))

    if isinstance(temperature, float):
        return flat() if temperature > FLAT else steep()
    return torch.where(temperature > FLAT, flat(), steep())
