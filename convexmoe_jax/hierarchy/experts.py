"""What an expert is given and gives, and experts ready for use.

In JAX an expert is a function of one sample: it is vmapped inside the dispatch, and cannot see other samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ..hull.module import VectorHull
from .selection import Whole, is_array, is_number, is_text

ExpertAux = Mapping[str, Any]


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True)
class ExpertBatch:
    """What an expert gets of one sample. A pytree: what is no array in context and state is part of its structure.

    Args:
        hidden: `[hidden_size]` or `[length, hidden_size]`.
        context: the sample's part of the context; whole what was marked `Shared` or is no array.
        mask: the sample's part of the mask.
        state: what the caller passed as `state`, and beside it "level", its name, and "expert", the index of the
            expert in it, a traced int32: experts of one structure share one trace.
        key: the sample's own PRNG key, None outside training; it does not depend on other samples or routes.
    """

    hidden: jax.Array
    context: Any = None
    mask: Any = None
    state: Any = None
    key: Any = None

    def tree_flatten(self) -> Any:
        return (self.hidden, _with_marks(self.context), self.mask, _with_marks(self.state), self.key), None

    @classmethod
    def tree_unflatten(cls, _: None, children: Any) -> ExpertBatch:
        hidden, context, mask, state, key = children
        return cls(hidden, _without_marks(context), mask, _without_marks(state), key)


def _with_marks(tree: Any) -> Any:
    """Return a tree with what JAX cannot trace as `Whole`, which has no leaves."""
    return jax.tree.map(lambda leaf: Whole(leaf) if _is_fixed(leaf) else leaf, tree)


def _without_marks(tree: Any) -> Any:
    """Return the tree that `_with_marks` was given."""

    def is_whole(value: Any) -> bool:
        return isinstance(value, Whole)

    return jax.tree.map(lambda leaf: leaf.value if is_whole(leaf) else leaf, tree, is_leaf=is_whole)


def _is_fixed(leaf: Any) -> bool:
    """Return whether a leaf is text or another object, which JAX cannot trace."""
    # a plain object stands for a leaf where JAX asks for the structure alone
    return is_text(leaf) or not (is_array(leaf) or is_number(leaf) or leaf is None or type(leaf) is object)


@partial(jax.tree_util.register_dataclass, data_fields=["hidden", "losses", "aux"], meta_fields=[])
@dataclass(frozen=True)
class ExpertResult:
    """What an expert gives for one sample.

    Args:
        hidden: `[..., width of the level]`.
        losses: name -> scalar; averaged over the rows of the expert.
        aux: whatever else, arrays; the level collects it by expert.
    """

    hidden: jax.Array
    losses: Mapping[str, jax.Array] = field(default_factory=dict)
    aux: Any = field(default_factory=dict)


class ExpertModule(nnx.Module):
    """The contract of an expert: `__call__(batch: ExpertBatch) -> ExpertResult`, pure, for one sample."""

    def __call__(self, batch: ExpertBatch) -> ExpertResult:
        raise NotImplementedError(f"{type(self).__name__} must define __call__(batch) -> ExpertResult")


def normal(rngs: nnx.Rngs, in_dim: int, out_dim: int, dtype: Any) -> nnx.Param:
    """Return a weight (in, out) drawn from N(0, 1 / in_dim)."""
    return nnx.Param(
        jax.random.normal(rngs.params(), (in_dim, out_dim), dtype) / jnp.sqrt(jnp.asarray(in_dim, dtype))
    )


class LinearExpert(ExpertModule):
    """`hidden @ weight + bias`.

    Args:
        in_dim, out_dim: widths; out_dim None means in_dim.
        dtype: floating dtype of the parameters.
        rngs: the source of the initial values.
    """

    def __init__(
        self, in_dim: int, out_dim: int | None = None, *, dtype: Any = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        out_dim = in_dim if out_dim is None else out_dim
        self.weight = normal(rngs, in_dim, out_dim, dtype)
        self.bias = nnx.Param(jnp.zeros(out_dim, dtype))

    def __call__(self, batch: ExpertBatch) -> ExpertResult:
        return ExpertResult(batch.hidden @ self.weight[...] + self.bias[...])


class MLPExpert(ExpertModule):
    """`gelu(hidden @ weight_1 + bias_1) @ weight_2 + bias_2`, with the exact GELU (not its tanh form).

    Args:
        in_dim, hidden_dim, out_dim: widths; out_dim None means in_dim.
        dtype: floating dtype of the parameters.
        rngs: the source of the initial values.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int,
        out_dim: int | None = None,
        *,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        out_dim = in_dim if out_dim is None else out_dim
        self.weight_1, self.bias_1 = (
            normal(rngs, in_dim, hidden_dim, dtype),
            nnx.Param(jnp.zeros(hidden_dim, dtype)),
        )
        self.weight_2, self.bias_2 = (
            normal(rngs, hidden_dim, out_dim, dtype),
            nnx.Param(jnp.zeros(out_dim, dtype)),
        )

    def __call__(self, batch: ExpertBatch) -> ExpertResult:
        z = jax.nn.gelu(batch.hidden @ self.weight_1[...] + self.bias_1[...], approximate=False)
        return ExpertResult(z @ self.weight_2[...] + self.bias_2[...])


class HullExpert(ExpertModule):
    """A `VectorHull` as an expert: its output is convex in `hidden`.

    Args:
        hull: the hull; its widths are those of the level's input and output.
    """

    def __init__(self, hull: VectorHull) -> None:
        self.hull = hull

    def __call__(self, batch: ExpertBatch) -> ExpertResult:
        return ExpertResult(self.hull(batch.hidden))
