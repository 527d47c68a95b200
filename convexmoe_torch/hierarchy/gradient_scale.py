"""The gradient from an expert to the level before it: whole, scaled, or none. Values are never changed."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..settings import is_transforming


class _Scale(torch.autograd.Function):
    """The identity on `x`, whose gradient is `factor` times the one that it gets."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, factor: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * ctx.saved_tensors[0], None


class _ScaleBothWays(_Scale):
    """The same with forward mode, which `torch.compile` does not take."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return tangents[0] * ctx.saved_tensors[0]


def _scale(x: Tensor, factor: Tensor) -> Tensor:
    function = _Scale if torch.compiler.is_compiling() else _ScaleBothWays
    return function.apply(x, factor)


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """Return `x`, of whose gradient the share `scale` in [0, 1] is passed on; nothing at 0, not even a NaN."""
    if scale == 1.0:
        return x
    if scale == 0.0:
        return x.detach()
    if torch.compiler.is_exporting():  # a program of PyTorch's own operators alone; x - x is 0 where x is finite
        return x.detach() + scale * (x - x.detach())
    return _scale(x, x.new_full((), scale))


@functools.lru_cache(256)
def _scale_table(scales: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the scales of a level on a device, copied there once."""
    with torch.inference_mode(False):
        return torch.tensor(scales, dtype=dtype, device=device)


def scale_gradient_of_rows(x: Tensor, routes: Tensor, scales: Sequence[float]) -> Tensor:
    """Return `x`, `[rows, ...]`, of whose rows' gradients the shares `scales[route]` are passed on.

    A route outside [0, len(scales)) is that of a row whose gradient is 0 anyway.
    """
    if len(set(scales)) == 1:
        return scale_gradient(x, scales[0])
    # kept on the device for plain tensors alone: what is traced or transformed makes its own
    keeps = type(x) is Tensor and not torch.compiler.is_compiling() and not is_transforming()
    table = _scale_table(tuple(scales), x.dtype, x.device) if keeps else x.new_tensor(scales)
    factor = table[routes.clamp(0, len(scales) - 1)].reshape(-1, *[1] * (x.ndim - 1))
    if 0.0 in scales:
        x = torch.where(factor == 0, x.detach(), x)
    return x if set(scales) <= {0.0, 1.0} else _scale(x, factor)
