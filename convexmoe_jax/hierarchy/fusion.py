"""The fusion of the levels' outputs into one: `LearnedFusion`, `PositionAwareFusion`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from convexmoe.errors import describe, fail, share, whole_number
from convexmoe.hierarchy.config import POSITION_AWARE, CELMoEConfig, check_levels, level_widths

from .dropout import sample_dropout

EPSILON = 1e-5  # of the LayerNorm


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
        self,
        hidden_size: int,
        num_levels: int | Sequence[int],
        dropout: float = 0.0,
        *,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.dropout = share("LearnedFusion", "dropout", dropout)
        widths = level_widths("LearnedFusion", hidden_size, num_levels)
        self.gates = nnx.data(_gates(widths, hidden_size, dtype, rngs))
        self.norm = nnx.data(_norm(hidden_size, dtype))

    def __call__(self, hiddens: Sequence[jax.Array], key: jax.Array | None = None) -> jax.Array:
        """Return the fusion of the levels' outputs, `[rows, ..., hidden_size]`."""
        check_levels("LearnedFusion", hiddens, len(self.gates))
        mixed = [hidden @ self.gates[str(i)]["weight"][...] for i, hidden in enumerate(hiddens)]
        mean = sum(mixed[1:], start=mixed[0]) / len(mixed)
        return sample_dropout(_normalized(mean, self.norm), self.dropout, key)


class PositionAwareFusion(nnx.Module):
    """A convex combination of the levels' outputs at each position, then LayerNorm and dropout.

    `w_tl = softmax over l of (g_l . h_tl + position_bias_tl)`, `dropout(LayerNorm(sum_l w_tl h_tl))`: level l is
    weighed by its own hidden and by the position t in the sequence, which is 0 where there is none.

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
        rngs: nnx.Rngs,
    ) -> None:
        number = whole_number("PositionAwareFusion", "num_levels", num_levels, 1)
        self.max_positions = whole_number("PositionAwareFusion", "max_positions", max_positions, 1)
        self.dropout = share("PositionAwareFusion", "dropout", dropout)
        self.gates = nnx.data(_gates((hidden_size,) * number, 1, dtype, rngs))
        self.position_bias = nnx.Param(jnp.zeros((self.max_positions, number), dtype))
        self.norm = nnx.data(_norm(hidden_size, dtype))

    def check_length(self, hidden: jax.Array) -> int:
        """Return the number of positions of `hidden`, `[rows, hidden_size]` or `[rows, length, hidden_size]`."""
        length = hidden.shape[1] if hidden.ndim == 3 else 1
        if length > self.max_positions:
            rule, fix = f"at most {self.max_positions} positions", "Raise fusion_max_positions."
            fail("PositionAwareFusion", "hiddens", rule, describe(hidden), fix)
        return length

    def __call__(self, hiddens: Sequence[jax.Array], key: jax.Array | None = None) -> jax.Array:
        """Return the fusion of the levels' outputs, `[rows, ..., hidden_size]`."""
        check_levels("PositionAwareFusion", hiddens, len(self.gates))
        length, bias = self.check_length(hiddens[0]), self.position_bias[...]
        bias = bias[:length] if hiddens[0].ndim == 3 else bias[0]
        scores = [hidden @ self.gates[str(i)]["weight"][...] for i, hidden in enumerate(hiddens)]
        weights = jnp.split(jax.nn.softmax(jnp.concatenate(scores, axis=-1) + bias, axis=-1), len(scores), -1)
        mixed = [weight * hidden for weight, hidden in zip(weights, hiddens, strict=True)]
        return sample_dropout(_normalized(sum(mixed[1:], start=mixed[0]), self.norm), self.dropout, key)


def _gates(widths: Sequence[int], out_dim: int, dtype: Any, rngs: nnx.Rngs) -> dict[str, Any]:
    """Return one weight (width, out_dim) a level, drawn from N(0, 1 / width)."""
    draw = partial(jax.random.normal, dtype=dtype)
    weights = [draw(rngs.params(), (width, out_dim)) / width**0.5 for width in widths]
    return {str(i): {"weight": nnx.Param(weight)} for i, weight in enumerate(weights)}


def _norm(hidden_size: int, dtype: Any) -> dict[str, Any]:
    ones, zeros = jnp.ones(hidden_size, dtype), jnp.zeros(hidden_size, dtype)
    return {"weight": nnx.Param(ones), "bias": nnx.Param(zeros)}


def _normalized(x: jax.Array, norm: Any) -> jax.Array:
    """Return LayerNorm of `x`, with the variance in two passes."""
    centered = x - jnp.mean(x, axis=-1, keepdims=True)
    deviation = jnp.sqrt(jnp.mean(centered**2, axis=-1, keepdims=True) + EPSILON)
    return centered / deviation * norm["weight"][...] + norm["bias"][...]


def fusion_of(config: CELMoEConfig, rngs: nnx.Rngs) -> nnx.Module | None:
    """Return the fusion that a config asks for, None where the last level's output is the fused one."""
    if not config.use_learned_fusion:
        return None
    widths = [config.width_of(level) for level in config.enabled_levels]
    if config.fusion_type == POSITION_AWARE:
        return PositionAwareFusion(
            config.hidden_size,
            len(widths),
            config.fusion_dropout,
            max_positions=config.fusion_max_positions,
            rngs=rngs,
        )
    return LearnedFusion(config.hidden_size, widths, config.fusion_dropout, rngs=rngs)
