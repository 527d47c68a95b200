"""The contract of an expert, and experts ready for use.

In PyTorch an expert gets all its rows at once. It must treat them one by one: what mixes samples (BatchNorm) would let
one sample's output depend on the routes of others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from convexmoe.hierarchy import ExpertBatch, ExpertResult, hull_context

from ..hull.module import VectorHull
from .dispatch import grouped_linear
from .finite import keep_apart


class ExpertModule(nn.Module):
    """The contract of an expert: `forward(batch: ExpertBatch) -> ExpertResult`, row by row."""

    def forward(self, batch: ExpertBatch) -> ExpertResult:
        raise NotImplementedError(f"{type(self).__name__} must define forward(batch) -> ExpertResult")


def draw_weight(in_dim: int, out_dim: int, dtype: torch.dtype | None) -> nn.Parameter:
    """Return a weight (in, out) drawn from N(0, 1 / in_dim)."""
    return nn.Parameter(torch.randn(in_dim, out_dim, dtype=dtype) / in_dim**0.5)


class LinearExpert(ExpertModule):
    """`hidden @ weight + bias`.

    Args:
        in_dim: width of the input.
        out_dim: width of the output; None means in_dim.
        dtype: floating dtype of the parameters.
    """

    def __init__(self, in_dim: int, out_dim: int | None = None, *, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        out_dim = in_dim if out_dim is None else out_dim
        self.widths = (in_dim, out_dim)
        self.weight = draw_weight(in_dim, out_dim, dtype)
        self.bias = nn.Parameter(torch.zeros(out_dim, dtype=dtype))

    def forward(self, batch: ExpertBatch) -> ExpertResult:
        return ExpertResult(keep_apart(lambda x: nn.functional.linear(x, self.weight.T, self.bias), batch.hidden))

    @staticmethod
    def grouped(experts: Sequence[LinearExpert], x: Tensor, counts: Tensor) -> Tensor:
        """Return all experts' outputs for sorted rows, `[B, in_dim]` -> `[B, out_dim]`."""
        return cast_linear(x, counts, [e.weight for e in experts], [e.bias for e in experts])


class MLPExpert(ExpertModule):
    """`gelu(hidden @ weight_1 + bias_1) @ weight_2 + bias_2`, with the exact GELU (not its tanh form).

    Args:
        in_dim: width of the input.
        hidden_dim: number of hidden units.
        out_dim: width of the output; None means in_dim.
        dtype: floating dtype of the parameters.
    """

    def __init__(
        self, in_dim: int, hidden_dim: int, out_dim: int | None = None, *, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        out_dim = in_dim if out_dim is None else out_dim
        self.widths = (in_dim, hidden_dim, out_dim)
        self.weight_1 = draw_weight(in_dim, hidden_dim, dtype)
        self.bias_1 = nn.Parameter(torch.zeros(hidden_dim, dtype=dtype))
        self.weight_2 = draw_weight(hidden_dim, out_dim, dtype)
        self.bias_2 = nn.Parameter(torch.zeros(out_dim, dtype=dtype))

    def forward(self, batch: ExpertBatch) -> ExpertResult:
        def run(x: Tensor) -> Tensor:
            z = nn.functional.gelu(nn.functional.linear(x, self.weight_1.T, self.bias_1))
            return nn.functional.linear(z, self.weight_2.T, self.bias_2)

        return ExpertResult(keep_apart(run, batch.hidden))

    @staticmethod
    def grouped(experts: Sequence[MLPExpert], x: Tensor, counts: Tensor) -> Tensor:
        """Return all experts' outputs for sorted rows, `[B, in_dim]` -> `[B, out_dim]`."""
        first = cast_linear(x, counts, [e.weight_1 for e in experts], [e.bias_1 for e in experts])
        z = nn.functional.gelu(first)
        return cast_linear(z, counts, [e.weight_2 for e in experts], [e.bias_2 for e in experts])


def cast_linear(x: Tensor, counts: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """Return `grouped_linear`, in the dtype of autocast where that is on, as a matrix product would be."""
    device = x.device.type
    can_cast = x.dtype != torch.float64 and torch.amp.is_autocast_available(device)
    if can_cast and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weights, biases = x.to(dtype), [w.to(dtype) for w in weights], [b.to(dtype) for b in biases]
    return grouped_linear(x, counts, weights, biases)


class HullExpert(ExpertModule):
    """A `VectorHull` as an expert: its output is convex in `hidden`, or concave where the hull is.

    A hull with a context gets that of the batch, or of a mapping the entry "hull": `[rows, context_dim]`, or one a
    position, or `Shared` and `[context_dim]`.

    Args:
        hull: the hull; its widths are those of the level's input and output.
    """

    def __init__(self, hull: VectorHull) -> None:
        super().__init__()
        self.hull = hull

    def forward(self, batch: ExpertBatch) -> ExpertResult:
        context = hull_context(self.hull.config, batch.context)
        if not isinstance(context, Tensor) or context.ndim < 2:
            return ExpertResult(keep_apart(lambda x: self.hull(x, context), batch.hidden))
        rows, *inner, width = context.shape  # one a row, for all its positions, or one a position
        context = context.reshape(rows, *[1] * (batch.hidden.ndim - context.ndim), *inner, width)
        leading = torch.broadcast_shapes(context.shape[:-1], batch.hidden.shape[:-1])
        return ExpertResult(keep_apart(self.hull, batch.hidden, context.expand(*leading, width)))
