"""Overlapping max-of-means: the fusion of the petals into one convex function.

Letters: N rows, P petals (and groups), O out.

    g_i = (f_i + f_{i+1 mod P}) / 2 + s_i           group_size 2;  g_i = f_i + s_i at group_size 1
    y   = max_i g_i                                 temperature 0
    y   = T (log sum_i exp(g_i / T) - log P)        temperature T > 0

Both are non-decreasing and convex in f, so y is convex where every f_p is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from convexmoe.hull.config import LEAST_TEMPERATURE

from .positive import softplus

FLAT = 16.0  # the temperature from which `log_mean_exp` takes its form for small differences


def learned_temperature(raw: Tensor) -> Tensor:
    """Return `softplus(raw) + LEAST_TEMPERATURE`: positive for every raw value."""
    return softplus(raw) + LEAST_TEMPERATURE


def group_values(f_NPO: Tensor, shifts_P: Tensor, group_size: int) -> Tensor:
    """Return g, the shifted means of neighboring petals, (N, P, O)."""
    if group_size == 1:
        return shifts_P[:, None] + f_NPO
    return torch.add(shifts_P[:, None], f_NPO + torch.roll(f_NPO, -1, dims=-2), alpha=0.5)


def maximum(g_NPO: Tensor) -> Tensor:
    """Return the maximum over groups, (N, O). A tie shares the gradient evenly."""
    return torch.amax(g_NPO, dim=-2)


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
