"""VectorHull: P convex networks on one input, fused into one convex function of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convexmoe.errors import dtype_name, fail
from convexmoe.hull import parameters
from convexmoe.hull.config import HullConfig, Normalization, refuse_inversion
from convexmoe.hull.parameters import Tree, nest, parameter_shapes

from .forward import Winners, apply, at, fold_parameters, init, winners
from .initialization import Rngs, check_rngs


def checked_params(config: HullConfig, params: Tree) -> dict[str, jax.Array]:
    """Return a copy of the parameters by dotted name after their checks: names, shapes, one floating dtype."""
    flat = parameters.check_parameters(config, params, (jax.Array, np.ndarray))
    copies = {name: jnp.array(value) for name, value in flat.items()}
    if copies["shifts"].dtype != flat["shifts"].dtype:
        fix = 'Call jax.config.update("jax_enable_x64", True) first.'
        fail("VectorHull", "params", "a dtype that JAX has switched on", dtype_name(flat["shifts"].dtype), fix)
    return copies


@partial(jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["config"])
@dataclass(frozen=True, eq=False)
class FoldedHull:
    """A hull for inference: the same function, its weights computed once. A pytree.

    Args:
        params: effective parameters, a nested dict of arrays.
        config: the hull they belong to.
    """

    params: Tree
    config: HullConfig

    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        """Return the hull of `x`, `[..., in_dim]` and `[..., context_dim]` -> `[..., out_dim]`."""
        return apply(self.params, x, self.config, context)

    def at(self, context: jax.Array) -> FoldedHull:
        """Return the plain hull in x at one context, `[context_dim]`."""
        return FoldedHull(*at(self.params, self.config, context))


class VectorHull(nnx.Module):
    """P convex networks ("petals") on one input, fused by an overlapping max-of-means.

    `y = max_i (f_i + f_{i+1 mod P}) / 2 + s_i`, coordinate by coordinate, with f_p the petals
    (`petals.py`) and s the learned shifts (`fusion.py`). At P = 2 both groups have the same mean, so that
    the maximum chooses between shifts only; at even P, adding `(-1)^p g(x)` to the petals changes nothing.

    Guarantee: every coordinate of the output is a convex function of x (concave with `curvature="concave"`), for all
    values of the parameters and of the context, in exact arithmetic (tests/properties/test_convexity.py).

    Args:
        in_dim, petals, out_dim, hidden_dim, depth, trunk, group_size, temperature, activation, gate,
            strong_convexity, normalization, context_dim, context_hidden_dim, monotone, curvature, nonnegative: the
            fields of `HullConfig`.
        invert: an option of torch-mice 0.5, whose hull is another model: refused.
        dtype: floating dtype of the parameters; None means float32.
        rngs: the source of the initial values.

    Raises:
        TypeError, ValueError: a field is out of its range.

    >>> model = VectorHull(3, petals=4, rngs=nnx.Rngs(0))
    >>> model(jnp.ones((5, 3))).shape
    (5, 3)
    """

    def __init__(
        self,
        in_dim: int,
        petals: int,
        out_dim: int | None = None,
        *,
        hidden_dim: int | None = None,
        depth: int = 1,
        trunk: str = "shared",
        group_size: int = 2,
        temperature: float | str = 0.0,
        activation: str = "softplus",
        gate: bool = False,
        strong_convexity: float = 0.0,
        normalization: Normalization | None = None,
        context_dim: int = 0,
        context_hidden_dim: int | None = None,
        monotone: Sequence[int] | None = None,
        curvature: str = "convex",
        nonnegative: bool = False,
        invert: None = None,
        dtype: Any = None,
        rngs: Rngs = None,
    ) -> None:
        refuse_inversion(invert)
        self.config = HullConfig(
            in_dim=in_dim,
            petals=petals,
            out_dim=out_dim,  # type: ignore[arg-type]
            hidden_dim=hidden_dim,  # type: ignore[arg-type]
            depth=depth,
            trunk=trunk,
            group_size=group_size,
            temperature=temperature,
            activation=activation,
            gate=gate,
            strong_convexity=strong_convexity,
            normalization=normalization,
            context_dim=context_dim,
            context_hidden_dim=context_hidden_dim,
            monotone=monotone,  # type: ignore[arg-type]
            curvature=curvature,
            nonnegative=nonnegative,
        )
        tree = init(self.config, check_rngs("VectorHull", rngs).params(), dtype=jnp.float32 if dtype is None else dtype)
        for name, value in tree.items():
            setattr(self, name, nnx.data(jax.tree.map(nnx.Param, value)))

    @classmethod
    def from_config(cls, config: HullConfig, *, dtype: Any = None, rngs: Rngs = None) -> VectorHull:
        """Return a new hull with this config."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(config)}, dtype=dtype, rngs=rngs)

    @classmethod
    def from_params(cls, config: HullConfig, params: Tree) -> VectorHull:
        """Return a hull that holds a copy of these parameters, a nested dict as `init` gives it.

        Raises:
            ValueError: names or shapes differ from those of the config; all differences are listed.
        """
        flat = checked_params(config, params)
        model = nnx.eval_shape(lambda: cls.from_config(config, rngs=nnx.Rngs(0)))
        nnx.update(model, jax.tree.map(nnx.Param, nest(flat)))
        return model

    @property
    def params(self) -> Tree:
        """The parameters as a nested dict of arrays: what `hull.apply`, `jax.grad` and optax work on."""
        return nest({name: self._leaf(name) for name in parameter_shapes(self.config)})

    def _leaf(self, name: str) -> jax.Array:
        first, *path = name.split(".")
        value = getattr(self, first)
        for key in path:
            value = value[key]
        return value.get_value()

    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        """Return the hull of `x`, `[..., in_dim]` -> `[..., out_dim]`, of the dtype of the parameters.

        Args:
            x: `[..., in_dim]`; context: `[..., context_dim]` for a hull that has one, leading axes broadcast.
        """
        return apply(self.params, x, self.config, context)

    def winners(self, x: jax.Array, context: jax.Array | None = None) -> Winners:
        """Return which group is the maximum at `x`, and its margin, for every output coordinate."""
        return winners(self.params, x, self.config, context)

    def at(self, context: jax.Array) -> FoldedHull:
        """Return the plain hull in x at one context, `[context_dim]`: what is minimized, exported, proved."""
        return FoldedHull(*at(self.params, self.config, context))

    def fold(self) -> FoldedHull:
        """Return the same function for inference, with its weights computed once."""
        return FoldedHull(*fold_parameters(self.params, self.config))
