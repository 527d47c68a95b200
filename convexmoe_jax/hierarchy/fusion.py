"""The fusion of the levels' outputs into one: `LearnedFusion`, `PositionAwareFusion`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from convexmoe import hierarchy as core
from convexmoe.errors import share, whole_number

from ..hull.initialization import Rngs, check_rngs
from ..settings import on_any_mesh
from .dropout import sample_dropout
from .finite import keep_apart

Widths = int | Sequence[int]


class LearnedFusion(nnx.Module):
    """`dropout(LayerNorm(mean over levels of h_l W_l))`, with W_l (width of the level, hidden_size).

    Args:
        hidden_size: width of the fused output.
        num_levels: the number of levels, of outputs `hidden_size` wide; or the width of each level's output.
        dropout: share of the units that are dropped where a key is given.
        dtype: floating dtype of the parameters.
        rngs: the source of the initial values.
    """

    def __init__(
        self, hidden_size: int, num_levels: Widths, dropout: float = 0.0, *, dtype: Any = jnp.float32, rngs: Rngs = None
    ) -> None:
        self.dropout = share("LearnedFusion", "dropout", dropout)
        widths = core.level_widths("LearnedFusion", hidden_size, num_levels)
        self.gates = nnx.data(_gates("LearnedFusion", rngs, widths, hidden_size, dtype))
        self.norm = nnx.data(_norm(hidden_size, dtype))

    @on_any_mesh
    def __call__(self, hiddens: Sequence[jax.Array], key: jax.Array | None = None) -> jax.Array:
        """Return the fusion of the levels' outputs, `[rows, ..., hidden_size]`."""
        core.check_levels("LearnedFusion", hiddens, len(self.gates))

        def fuse(*hiddens: jax.Array) -> jax.Array:
            projected = [hidden @ self.gates[str(i)]["weight"][...] for i, hidden in enumerate(hiddens)]
            return _normalize(sum(projected[1:], start=projected[0]) / len(projected), self.norm)

        return sample_dropout(keep_apart(fuse, *hiddens), self.dropout, key)


class PositionAwareFusion(nnx.Module):
    """A convex combination of the levels' outputs at each position, then LayerNorm and dropout.

    `w_tl = softmax over l of (g_l . h_tl + position_bias_tl)`, `dropout(LayerNorm(sum_l w_tl h_tl))`: level l is
    weighted by its own hidden and by the position t in the sequence, which is 0 where there is none.

    Args:
        hidden_size: width of the levels' outputs and of the fused one.
        num_levels: the number of levels.
        dropout: share of the units that are dropped where a key is given.
        max_positions: the longest sequence.
        dtype: floating dtype of the parameters.
        rngs: the source of the initial values.
    """

    def __init__(
        self,
        hidden_size: int,
        num_levels: int,
        dropout: float = 0.0,
        *,
        max_positions: int = 512,
        dtype: Any = jnp.float32,
        rngs: Rngs = None,
    ) -> None:
        number = whole_number("PositionAwareFusion", "num_levels", num_levels, 1)
        self.max_positions = whole_number("PositionAwareFusion", "max_positions", max_positions, 1)
        self.dropout = share("PositionAwareFusion", "dropout", dropout)
        self.gates = nnx.data(_gates("PositionAwareFusion", rngs, (hidden_size,) * number, 1, dtype))
        self.position_bias = nnx.Param(jnp.zeros((self.max_positions, number), dtype))
        self.norm = nnx.data(_norm(hidden_size, dtype))

    def check_length(self, hidden: jax.Array) -> int:
        """Return the number of positions of `hidden`, `[rows, hidden_size]` or `[rows, length, hidden_size]`."""
        return core.check_length(hidden, self.max_positions)

    @on_any_mesh
    def __call__(self, hiddens: Sequence[jax.Array], key: jax.Array | None = None) -> jax.Array:
        """Return the fusion of the levels' outputs, `[rows, ..., hidden_size]`."""
        core.check_levels("PositionAwareFusion", hiddens, len(self.gates))
        length, bias = self.check_length(hiddens[0]), self.position_bias[...]
        bias = bias[:length] if hiddens[0].ndim == 3 else bias[0]

        def fuse(*hiddens: jax.Array) -> jax.Array:
            scores = [hidden @ self.gates[str(i)]["weight"][...] for i, hidden in enumerate(hiddens)]
            weights = jnp.split(jax.nn.softmax(jnp.concatenate(scores, axis=-1) + bias, axis=-1), len(scores), -1)
            parts = [weight * hidden for weight, hidden in zip(weights, hiddens, strict=True)]
            return _normalize(sum(parts[1:], start=parts[0]), self.norm)

        return sample_dropout(keep_apart(fuse, *hiddens), self.dropout, key)


def _gates(owner: str, rngs: Rngs, widths: Sequence[int], out_dim: int, dtype: Any) -> dict[str, Any]:
    """Return one weight (width, out_dim) a level, drawn from N(0, 1 / width)."""
    weights = [
        jax.random.normal(check_rngs(owner, rngs).params(), (width, out_dim), dtype) / width**0.5 for width in widths
    ]
    return {str(i): {"weight": nnx.Param(weight)} for i, weight in enumerate(weights)}


def _norm(hidden_size: int, dtype: Any) -> dict[str, Any]:
    """Return the parameters of a LayerNorm."""
    ones, zeros = jnp.ones(hidden_size, dtype), jnp.zeros(hidden_size, dtype)
    return {"weight": nnx.Param(ones), "bias": nnx.Param(zeros)}


def _normalize(x: jax.Array, norm: Any) -> jax.Array:
    """Return LayerNorm of `x`, with the variance in two passes."""
    centered = x - jnp.mean(x, axis=-1, keepdims=True)
    deviation = jnp.sqrt(jnp.mean(centered**2, axis=-1, keepdims=True) + core.EPSILON)
    return centered / deviation * norm["weight"][...] + norm["bias"][...]
