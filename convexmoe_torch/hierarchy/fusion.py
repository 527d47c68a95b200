"""The fusion of the levels' outputs into one: `LearnedFusion`, `PositionAwareFusion`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from convexmoe import hierarchy as core
from convexmoe.errors import share, whole_number

from .finite import keep_apart

Dtype = torch.dtype | None


class LearnedFusion(nn.Module):
    """`dropout(LayerNorm(mean over levels of W_l h_l))`, with W_l a Linear without bias.

    Args:
        hidden_size: width of the fused output.
        num_levels: the number of levels, of outputs `hidden_size` wide; or the width of each level's output.
        dropout: share of the units that training drops.
        dtype: floating dtype of the parameters.
    """

    def __init__(
        self, hidden_size: int, num_levels: int | Sequence[int], dropout: float = 0.0, *, dtype: Dtype = None
    ) -> None:
        super().__init__()
        widths = core.level_widths("LearnedFusion", hidden_size, num_levels)
        gates = [nn.Linear(width, hidden_size, bias=False, dtype=dtype) for width in widths]
        for gate, width in zip(gates, widths, strict=True):
            nn.init.normal_(gate.weight, std=width**-0.5)
        self.gates = nn.ModuleList(gates)
        self.norm = nn.LayerNorm(hidden_size, eps=core.EPSILON, dtype=dtype)
        self.dropout = nn.Dropout(share("LearnedFusion", "dropout", dropout))

    def forward(self, hiddens: Sequence[Tensor]) -> Tensor:
        """Return the fusion of the levels' outputs, `[rows, ..., hidden_size]`."""
        core.check_levels("LearnedFusion", hiddens, len(self.gates))

        def fuse(*hiddens: Tensor) -> Tensor:
            projected = [gate(hidden) for gate, hidden in zip(self.gates, hiddens, strict=True)]
            return self.norm(sum(projected[1:], start=projected[0]) / len(projected))

        return self.dropout(keep_apart(fuse, *hiddens))


class PositionAwareFusion(nn.Module):
    """A convex combination of the levels' outputs at each position, then LayerNorm and dropout.

    `w_tl = softmax over l of (g_l . h_tl + position_bias_tl)`, `dropout(LayerNorm(sum_l w_tl h_tl))`: level l is
    weighted by its own hidden and by the position t in the sequence, which is 0 where there is none.

    Args:
        hidden_size: width of the levels' outputs and of the fused one.
        num_levels: the number of levels.
        dropout: share of the units that training drops.
        max_positions: the longest sequence.
        dtype: floating dtype of the parameters.
    """

    def __init__(
        self, hidden_size: int, num_levels: int, dropout: float = 0.0, *, max_positions: int = 512, dtype: Dtype = None
    ) -> None:
        super().__init__()
        number = whole_number("PositionAwareFusion", "num_levels", num_levels, 1)
        self.max_positions = whole_number("PositionAwareFusion", "max_positions", max_positions, 1)
        gates = [nn.Linear(hidden_size, 1, bias=False, dtype=dtype) for _ in range(number)]
        for gate in gates:
            nn.init.normal_(gate.weight, std=hidden_size**-0.5)
        self.gates = nn.ModuleList(gates)
        self.position_bias = nn.Parameter(torch.zeros(self.max_positions, number, dtype=dtype))
        self.norm = nn.LayerNorm(hidden_size, eps=core.EPSILON, dtype=dtype)
        self.dropout = nn.Dropout(share("PositionAwareFusion", "dropout", dropout))

    def check_length(self, hidden: Tensor) -> int:
        """Return the number of positions of `hidden`, `[rows, hidden_size]` or `[rows, length, hidden_size]`."""
        return core.check_length(hidden, self.max_positions)

    def forward(self, hiddens: Sequence[Tensor]) -> Tensor:
        """Return the fusion of the levels' outputs, `[rows, ..., hidden_size]`."""
        core.check_levels("PositionAwareFusion", hiddens, len(self.gates))
        length = self.check_length(hiddens[0])
        bias = self.position_bias[:length] if hiddens[0].ndim == 3 else self.position_bias[0]

        def fuse(*hiddens: Tensor) -> Tensor:
            scores = [gate(hidden) for gate, hidden in zip(self.gates, hiddens, strict=True)]
            weights = torch.softmax(torch.cat(scores, dim=-1) + bias, dim=-1).split(1, dim=-1)
            parts = [weight * hidden for weight, hidden in zip(weights, hiddens, strict=True)]
            return self.norm(sum(parts[1:], start=parts[0]))

        return self.dropout(keep_apart(fuse, *hiddens))
