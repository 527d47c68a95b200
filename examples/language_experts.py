"""The experts of `language_hierarchy.py`, in both packages: with layers of the same names, so that weights go over.

An expert is causal self-attention, a feed-forward layer and an adapter that is told the language, each after a
LayerNorm and each added to what it is given.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import torch
from flax import nnx

import convexmoe_jax
import convexmoe_torch

EPSILON = 1e-5  # of LayerNorm, whose defaults differ: 1e-6 in Flax, 1e-5 in PyTorch


class Sizes(NamedTuple):
    """Widths and lengths."""

    hidden: int = 32
    heads: int = 4
    head_dim: int = 8
    inner: int = 64  # of the feed-forward layer
    adapter: int = 8
    language_dim: int = 6
    characters: int = 20
    length: int = 16
    rows: int = 32


class JaxExpert(convexmoe_jax.ExpertModule):
    """Self-attention, a feed-forward layer and an adapter; a function of one sample, `[length, hidden]`."""

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs) -> None:
        linear, wide = partial(nnx.Linear, rngs=rngs), sizes.heads * sizes.head_dim
        norm = partial(nnx.LayerNorm, sizes.hidden, epsilon=EPSILON, use_fast_variance=False, rngs=rngs)
        self.heads = sizes.heads
        self.attention_norm, self.inner_norm, self.adapter_norm = norm(), norm(), norm()
        # A bias of the keys has the gradient 0, of which Adam would make steps out of rounding errors.
        self.query, self.key = linear(sizes.hidden, wide), linear(sizes.hidden, wide, use_bias=False)
        self.value, self.out = linear(sizes.hidden, wide), linear(wide, sizes.hidden)
        self.expand, self.contract = linear(sizes.hidden, sizes.inner), linear(sizes.inner, sizes.hidden)
        self.condition = linear(sizes.language_dim, 2 * sizes.hidden)
        self.down, self.up = linear(sizes.hidden, sizes.adapter), linear(sizes.adapter, sizes.hidden)

    def __call__(self, batch: convexmoe_jax.ExpertBatch) -> convexmoe_jax.ExpertResult:
        attended, weights = self.attend(self.attention_norm(batch.hidden), batch.mask)
        x = batch.hidden + attended
        x = x + self.contract(nnx.silu(self.expand(self.inner_norm(x))))
        scale, shift = jnp.split(self.condition(batch.context["language_embedding"]), 2)
        x = x + self.up(nnx.silu(self.down(self.adapter_norm(x) * (1 + scale) + shift)))
        change = ((x - batch.hidden) ** 2).mean(axis=-1)
        losses = {"change": (change * batch.mask).sum() / batch.mask.sum()}
        return convexmoe_jax.ExpertResult(hidden=x, losses=losses, aux={"attention": weights})

    def attend(self, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the output and the weights, `[heads, length, length]`; a character sees those up to itself."""
        query, key, value = (layer(x).reshape(len(x), self.heads, -1) for layer in (self.query, self.key, self.value))
        scores = jnp.einsum("qhd,khd->hqk", query, key) / query.shape[-1] ** 0.5
        visible = jnp.tril(jnp.ones((len(x), len(x)), bool)) & mask
        weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1)
        return self.out(jnp.einsum("hqk,khd->qhd", weights, value).reshape(len(x), -1)), weights


class TorchExpert(convexmoe_torch.ExpertModule):
    """The same for all rows of the expert, `[rows, length, hidden]`; attributes have the same names."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        linear, wide = torch.nn.Linear, sizes.heads * sizes.head_dim
        norm = partial(torch.nn.LayerNorm, sizes.hidden, eps=EPSILON)
        self.heads = sizes.heads
        self.attention_norm, self.inner_norm, self.adapter_norm = norm(), norm(), norm()
        self.query, self.key = linear(sizes.hidden, wide), linear(sizes.hidden, wide, bias=False)
        self.value, self.out = linear(sizes.hidden, wide), linear(wide, sizes.hidden)
        self.expand, self.contract = linear(sizes.hidden, sizes.inner), linear(sizes.inner, sizes.hidden)
        self.condition = linear(sizes.language_dim, 2 * sizes.hidden)
        self.down, self.up = linear(sizes.hidden, sizes.adapter), linear(sizes.adapter, sizes.hidden)

    def forward(self, batch: convexmoe_torch.ExpertBatch) -> convexmoe_torch.ExpertResult:
        attended, weights = self.attend(self.attention_norm(batch.hidden), batch.mask)
        x = batch.hidden + attended
        x = x + self.contract(torch.nn.functional.silu(self.expand(self.inner_norm(x))))
        scale, shift = self.condition(batch.context["language_embedding"])[:, None].chunk(2, dim=-1)
        x = x + self.up(torch.nn.functional.silu(self.down(self.adapter_norm(x) * (1 + scale) + shift)))
        change = ((x - batch.hidden) ** 2).mean(dim=-1)
        losses = {"change": ((change * batch.mask).sum(dim=1) / batch.mask.sum(dim=1)).mean()}
        return convexmoe_torch.ExpertResult(hidden=x, losses=losses, aux={"attention": weights})

    def attend(self, x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the output and the weights, `[rows, heads, length, length]`."""
        rows, length, _ = x.shape
        query, key, value = (
            layer(x).reshape(rows, length, self.heads, -1) for layer in (self.query, self.key, self.value)
        )
        scores = torch.einsum("rqhd,rkhd->rhqk", query, key) / query.shape[-1] ** 0.5
        visible = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril() & mask[:, None, None]
        weights = torch.softmax(torch.where(visible, scores, -torch.inf), dim=-1)
        return self.out(torch.einsum("rhqk,rkhd->rqhd", weights, value).reshape(rows, length, -1)), weights


def jax_expert(level: str, expert: str, metadata: Any, *, rngs: nnx.Rngs) -> JaxExpert:
    """Return an expert by the metadata of its config, as `HierarchicalCELMoE` asks for it."""
    return JaxExpert(Sizes(**metadata), rngs)


def torch_expert(level: str, expert: str, metadata: Any) -> TorchExpert:
    """Return the same in PyTorch."""
    return TorchExpert(Sizes(**metadata))
