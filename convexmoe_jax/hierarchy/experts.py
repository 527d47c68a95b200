"""The contract of an expert, and experts ready for use.

In JAX an expert is a function of one sample: it is vmapped inside the dispatch, and cannot see other samples.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from convexmoe.hierarchy import ExpertBatch, ExpertResult, hull_context

from ..hull.initialization import Rngs, check_rngs
from ..hull.module import VectorHull
from .grouped import Groups


class ExpertModule(nnx.Module):
    """The contract of an expert: `__call__(batch: ExpertBatch) -> ExpertResult`, pure, for one sample."""

    def __call__(self, batch: ExpertBatch) -> ExpertResult:
        raise NotImplementedError(f"{type(self).__name__} must define __call__(batch) -> ExpertResult")


def draw_weight(owner: str, rngs: Rngs, in_dim: int, out_dim: int, dtype: Any) -> nnx.Param:
    """Return a weight (in, out) drawn from N(0, 1 / in_dim)."""
    draws = jax.random.normal(check_rngs(owner, rngs).params(), (in_dim, out_dim), dtype)
    return nnx.Param(draws / jnp.sqrt(jnp.asarray(in_dim, dtype)))


class LinearExpert(ExpertModule):
    """`hidden @ weight + bias`.

    Args:
        in_dim: width of the input.
        out_dim: width of the output; None means in_dim.
        dtype: floating dtype of the parameters.
        rngs: the source of the initial values.
    """

    def __init__(self, in_dim: int, out_dim: int | None = None, *, dtype: Any = jnp.float32, rngs: Rngs = None) -> None:
        out_dim = in_dim if out_dim is None else out_dim
        self.weight = draw_weight("LinearExpert", rngs, in_dim, out_dim, dtype)
        self.bias = nnx.Param(jnp.zeros(out_dim, dtype))

    def __call__(self, batch: ExpertBatch) -> ExpertResult:
        return ExpertResult(batch.hidden @ self.weight[...] + self.bias[...])

    def run_grouped(self, x: jax.Array, groups: Groups) -> jax.Array:
        """Return the outputs of stacked experts for sorted rows, `[B, in_dim]` -> `[B, out_dim]`."""
        return groups.linear(x, self.weight[...], self.bias[...])


class MLPExpert(ExpertModule):
    """`gelu(hidden @ weight_1 + bias_1) @ weight_2 + bias_2`, with the exact GELU (not its tanh form).

    Args:
        in_dim: width of the input.
        hidden_dim: number of hidden units.
        out_dim: width of the output; None means in_dim.
        dtype: floating dtype of the parameters.
        rngs: the source of the initial values.
    """

    def __init__(
        self, in_dim: int, hidden_dim: int, out_dim: int | None = None, *, dtype: Any = jnp.float32, rngs: Rngs = None
    ) -> None:
        out_dim = in_dim if out_dim is None else out_dim
        self.weight_1 = draw_weight("MLPExpert", rngs, in_dim, hidden_dim, dtype)
        self.bias_1 = nnx.Param(jnp.zeros(hidden_dim, dtype))
        self.weight_2 = draw_weight("MLPExpert", rngs, hidden_dim, out_dim, dtype)
        self.bias_2 = nnx.Param(jnp.zeros(out_dim, dtype))

    def __call__(self, batch: ExpertBatch) -> ExpertResult:
        z = jax.nn.gelu(batch.hidden @ self.weight_1[...] + self.bias_1[...], approximate=False)
        return ExpertResult(z @ self.weight_2[...] + self.bias_2[...])

    def run_grouped(self, x: jax.Array, groups: Groups) -> jax.Array:
        """Return the outputs of stacked experts for sorted rows, `[B, in_dim]` -> `[B, out_dim]`."""
        z = jax.nn.gelu(groups.linear(x, self.weight_1[...], self.bias_1[...]), approximate=False)
        return groups.linear(z, self.weight_2[...], self.bias_2[...])


class HullExpert(ExpertModule):
    """A `VectorHull` as an expert: its output is convex in `hidden`, or concave where the hull is.

    A hull with a context gets that of the batch, or of a mapping the entry "hull": `[rows, context_dim]`, or one a
    position, or `Shared` and `[context_dim]`.

    Args:
        hull: the hull; its widths are those of the level's input and output.
    """

    def __init__(self, hull: VectorHull) -> None:
        self.hull = hull

    def __call__(self, batch: ExpertBatch) -> ExpertResult:
        return ExpertResult(self.hull(batch.hidden, hull_context(self.hull.config, batch.context)))
