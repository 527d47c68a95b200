"""What an expert is given and gives, and experts ready for use.

In PyTorch an expert gets all its rows at once. It must treat them one by one: what mixes samples (BatchNorm) would let
one sample's output depend on the routes of others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..hull.module import VectorHull
from .dispatch import grouped_linear

ExpertAux = Mapping[str, Any]


@dataclass(frozen=True)
class ExpertBatch:
    """What an expert gets: its rows.

    Args:
        hidden: `[rows, hidden_size]` or `[rows, length, hidden_size]`.
        context: the rows' part of the context; whole what was marked `Shared` or is no array.
        mask: the rows' part of the mask.
        state: what the caller passed as `state`, and beside it "level" and "expert", the names of both.
        key: the rows' own keys, int64 `[rows]`, for `sample_dropout`; None outside training. A row's key does not
            depend on other samples or routes.
    """

    hidden: Tensor
    context: Any = None
    mask: Any = None
    state: Any = None
    key: Tensor | None = None


@dataclass(frozen=True)
class ExpertResult:
    """What an expert gives for its rows.

    Args:
        hidden: `[rows, ..., width of the level]`.
        losses: name -> scalar, the mean over the rows.
        aux: whatever else.
    """

    hidden: Tensor
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    aux: Any = field(default_factory=dict)


class ExpertModule(nn.Module):
    """The contract of an expert: `forward(batch: ExpertBatch) -> ExpertResult`, row by row."""

    def forward(self, batch: ExpertBatch) -> ExpertResult:
        raise NotImplementedError(f"{type(self).__name__} must define forward(batch) -> ExpertResult")


# `run(experts, sorted rows [B, D], counts [E + 1]) -> [B, O]`: all experts of a level in a few operators.
Grouped = Callable[[Sequence[Any], Tensor, Tensor], Tensor]


def normal(in_dim: int, out_dim: int, dtype: torch.dtype | None) -> nn.Parameter:
    """Return a weight (in, out) drawn from N(0, 1 / in_dim)."""
    return nn.Parameter(torch.randn(in_dim, out_dim, dtype=dtype) / in_dim**0.5)


class LinearExpert(ExpertModule):
    """`hidden @ weight + bias`.

    Args:
        in_dim, out_dim: widths; out_dim None means in_dim.
        dtype: floating dtype of the parameters.
    """

    def __init__(self, in_dim: int, out_dim: int | None = None, *, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        out_dim = in_dim if out_dim is None else out_dim
        self.widths = (in_dim, out_dim)
        self.weight = normal(in_dim, out_dim, dtype)
        self.bias = nn.Parameter(torch.zeros(out_dim, dtype=dtype))

    def forward(self, batch: ExpertBatch) -> ExpertResult:
        return ExpertResult(nn.functional.linear(batch.hidden, self.weight.T, self.bias))

    @staticmethod
    def grouped(experts: Sequence[LinearExpert], x: Tensor, counts: Tensor) -> Tensor:
        """Return all experts' outputs for sorted rows, `[B, in_dim]` -> `[B, out_dim]`."""
        return cast_linear(x, counts, [e.weight for e in experts], [e.bias for e in experts])


class MLPExpert(ExpertModule):
    """`gelu(hidden @ weight_1 + bias_1) @ weight_2 + bias_2`, with the exact GELU (not its tanh form).

    Args:
        in_dim, hidden_dim, out_dim: widths; out_dim None means in_dim.
        dtype: floating dtype of the parameters.
    """

    def __init__(
        self, in_dim: int, hidden_dim: int, out_dim: int | None = None, *, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        out_dim = in_dim if out_dim is None else out_dim
        self.widths = (in_dim, hidden_dim, out_dim)
        self.weight_1, self.bias_1 = (
            normal(in_dim, hidden_dim, dtype),
            nn.Parameter(torch.zeros(hidden_dim, dtype=dtype)),
        )
        self.weight_2, self.bias_2 = (
            normal(hidden_dim, out_dim, dtype),
            nn.Parameter(torch.zeros(out_dim, dtype=dtype)),
        )

    def forward(self, batch: ExpertBatch) -> ExpertResult:
        z = nn.functional.gelu(nn.functional.linear(batch.hidden, self.weight_1.T, self.bias_1))
        return ExpertResult(nn.functional.linear(z, self.weight_2.T, self.bias_2))

    @staticmethod
    def grouped(experts: Sequence[MLPExpert], x: Tensor, counts: Tensor) -> Tensor:
        """Return all experts' outputs for sorted rows, `[B, in_dim]` -> `[B, out_dim]`."""
        z = nn.functional.gelu(
            cast_linear(x, counts, [e.weight_1 for e in experts], [e.bias_1 for e in experts])
        )
        return cast_linear(z, counts, [e.weight_2 for e in experts], [e.bias_2 for e in experts])


def cast_linear(x: Tensor, counts: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """Return `grouped_linear`, in the dtype of autocast where that is on, as a matrix product would be."""
    device = x.device.type
    if (
        x.dtype != torch.float64
        and torch.amp.is_autocast_available(device)
        and torch.is_autocast_enabled(device)
    ):
        dtype = torch.get_autocast_dtype(device)
        x, weights, biases = x.to(dtype), [w.to(dtype) for w in weights], [b.to(dtype) for b in biases]
    return grouped_linear(x, counts, weights, biases)


class HullExpert(ExpertModule):
    """A `VectorHull` as an expert: its output is convex in `hidden`.

    Args:
        hull: the hull; its widths are those of the level's input and output.
    """

    def __init__(self, hull: VectorHull) -> None:
        super().__init__()
        self.hull = hull

    def forward(self, batch: ExpertBatch) -> ExpertResult:
        return ExpertResult(self.hull(batch.hidden))
