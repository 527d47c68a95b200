"""A row with a NaN or an infinity touches no other, not even by the gradients of the weights that all rows share.

Where a loss leaves such a row out, the gradient that comes back to it is 0, and 0 times NaN would be NaN in the sum
over rows that is a weight's gradient. A row that the loss does not leave out gives NaN there, as it should.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..settings import is_transforming


class _Replace(torch.autograd.Function):
    """`x` with `value` in the rows that are `bad`, whose gradients are NaN unless they are 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bad: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(bad)
        return torch.where(bad, value, x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return torch.where(ctx.saved_tensors[0] & (grads[0] != 0), math.nan, grads[0]), None, None


def keep_apart(function: Callable[..., Tensor], *arrays: Tensor) -> Tensor:
    """Return `function(*arrays)`, which works row by row, so that rows that are not finite touch no other's gradients.

    On CPUs it costs a look at the output. Elsewhere that would be a wait: there the function is given zeros in these
    rows, and they are NaN in what it returns.

    Args:
        function: draws no random numbers, as it may be called twice.
        arrays: `[..., width]` each.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_exporting() or torch.jit.is_tracing():
        return function(*arrays)
    traced, value, rows = torch.compiler.is_compiling() or is_transforming(), arrays[0].new_full((), math.nan), arrays
    if not traced and value.device.type == "cpu":
        y = function(*arrays)
        if math.isfinite(y.detach().sum(dtype=torch.promote_types(y.dtype, torch.float32))):
            return y
        value, rows = y.detach(), (*arrays, y)
    bad = ~torch.stack([torch.isfinite(x).all(-1, keepdim=True) for x in rows]).all(0)
    if traced:  # a sum: what comes back as NaN is not swallowed
        y = function(*(torch.where(bad, 0.0, x) for x in arrays))
        return y + torch.where(bad, math.nan, 0.0).to(y.dtype)
    zeroed = (_Replace.apply(x, bad, x.new_zeros(())) for x in arrays)
    return _Replace.apply(function(*zeroed), bad, value)
