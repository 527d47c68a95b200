"""Raw parameters (trained, stored, of any sign) and the non-negative weights made of them."""

from __future__ import annotations

import torch
from torch import Tensor

from convexmoe.hull.parameters import positive_scale


def softplus(u: Tensor) -> Tensor:
    """Return `log(1 + exp(u))` without overflow and with its exact second derivative everywhere.

    The threshold of PyTorch's own default, 20, leaves an error of 2e-9 in float64; above 34 log(1 + exp(u))
    and u are the same float64.
    """
    return torch.nn.functional.softplus(u, threshold=34.0)


def positive_weight(raw: Tensor, fan_in: int) -> Tensor:
    """Return `softplus(raw) * sqrt(POSITIVE_SHARE / fan_in)`, which is >= 0 for every raw value."""
    return softplus(raw) * positive_scale(fan_in)


def signed_weight(raw: Tensor, signs: tuple[int, ...], axis: int = 0, offset: float = 0.0) -> Tensor:
    """Return a weight on inputs with the sign of each: `sign * positive_weight(raw + offset)`, as it is where it is 0.

    Args:
        raw: `[..., in_dim, ...]`, the inputs along `axis`; signs: -1, 0 or 1 for each input.
    """
    sign = torch.tensor(signs, dtype=raw.dtype, device=raw.device).reshape(-1, *[1] * (raw.ndim - 1 - axis))
    return torch.where(sign == 0, raw, sign * positive_weight(raw + offset, len(signs)))


def add_rows(weight: Tensor, rows: list[int], change: Tensor) -> Tensor:
    """Return a weight with a change added to some of its rows."""
    return weight.index_add(0, torch.tensor(rows, device=weight.device), change.to(weight.dtype))
