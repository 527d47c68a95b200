"""softplus, which makes positive numbers of raw ones."""

from __future__ import annotations

import torch
from torch import Tensor


def softplus(u: Tensor) -> Tensor:
    """Return `log(1 + exp(u))` without overflow and with its exact second derivative everywhere.

    The threshold of PyTorch's own default, 20, leaves an error of 2e-9 in float64; above 34 log(1 + exp(u))
    and u are the same float64.
    """
    return torch.nn.functional.softplus(u, threshold=34.0)
