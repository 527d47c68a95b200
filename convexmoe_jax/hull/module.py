"""VectorHull: P convex networks on one input, fused into one convex function of it.

Letters: N rows, D in, P petals (and groups), O out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convexmoe.errors import dtype_name, fail, last_axis, same_dtype
from convexmoe.hull import parameters
from convexmoe.hull.config import HullConfig, Normalization, refuse_inversion
from convexmoe.hull.parameters import Tree, parameter_shapes
from convexmoe.hull.parameters import flatten as flatten
from convexmoe.hull.parameters import nest as nest
from convexmoe.hull.rows import warn_of_rounding

from ..settings import by_compiler, on_any_mesh, standard_promotion
from .fusion import group_values, learned_temperature, maximum, smooth_maximum
from .initialization import Rngs, check_rngs, initial_parameters
from .petals import effective, petal_values


class Winners(NamedTuple):
    """Which group is the maximum where.

    Args:
        group: index of the winning group, int32 `[..., out_dim]`; the first of a tie.
        margin: its lead over the second, `[..., out_dim]`, in units of the output; inf with one petal.
    """

    group: jax.Array
    margin: jax.Array


def init(config: HullConfig, key: jax.Array, *, dtype: Any = jnp.float32) -> Tree:
    """Return freshly drawn parameters, a nested dict of arrays (see `init.initial_law`)."""
    return nest(initial_parameters(config, key, dtype))


@on_any_mesh
def apply(params: Tree, x: jax.Array, config: HullConfig) -> jax.Array:
    """Return the hull of `x`.

    Guarantee: every coordinate of the output is a convex function of x, for all values of the parameters,
    in exact arithmetic (tests/properties/test_convexity.py).

    Args:
        params: the parameters, as `init` or `fold_parameters` gives them.
        x: `[..., in_dim]`, of the dtype of the parameters.
        config: the hull; static under jit.

    Returns:
        `[..., out_dim]`, of the dtype of the parameters.

    Raises:
        TypeError: x is no array, or has another dtype than the parameters.
        ValueError: the last axis of x is not in_dim wide, or the parameters are not those of the config.

    >>> config = HullConfig(3, petals=4, out_dim=2)
    >>> apply(init(config, jax.random.key(0)), jnp.ones((5, 3)), config).shape
    (5, 2)
    """
    params = effective(params, config)
    x_ND = normalized_rows(params, x, config)
    # a symbolic number of rows is no int, and cannot be compared
    many = isinstance(x_ND.shape[0], int) and x_ND.shape[0] > config.in_dim + config.hidden_dim
    y_NO = fused_petals(*(averaged(params, config) if many else (params, config)), x_ND)
    if config.strong_convexity > 0:
        y_NO = y_NO + half_square(x_ND, config.strong_convexity)
    return rescaled(y_NO, config.normalization).reshape(*x.shape[:-1], config.out_dim)


compiled_apply = jax.jit(apply, static_argnums=2)


def fused_petals(params: Tree, config: HullConfig, x_ND: jax.Array) -> jax.Array:
    """Return the fused petals, (N, O), from effective parameters, in normalized units."""
    f_NPO = petal_values(params, x_ND, config)
    if config.petals == 1:
        return f_NPO[:, 0]
    g_NPO = group_values(f_NPO, params["shifts"], config.group_size)
    if config.temperature == 0.0:
        return maximum(g_NPO)
    if isinstance(config.temperature, str):  # LEARNED
        return smooth_maximum(g_NPO, learned_temperature(params["raw_temperature"]))
    return smooth_maximum(g_NPO, config.temperature)


def half_square(x_ND: jax.Array, factor: float) -> jax.Array:
    """Return `factor / 2 ||x||^2`, (N, 1); half precision is widened inside, where it would overflow."""
    wide = x_ND.astype(jnp.promote_types(x_ND.dtype, jnp.float32))
    return (0.5 * factor * jnp.sum(wide * wide, axis=-1, keepdims=True)).astype(x_ND.dtype)


@on_any_mesh
def winners(params: Tree, x: Any, config: HullConfig) -> Winners:
    """Return which group is the maximum at `x` and by how much (arguments as for `apply`)."""
    tree = effective(params, config)
    x_ND = normalized_rows(tree, x, config)
    f_NPO = petal_values(tree, x_ND, config)
    g_NPO = f_NPO if config.petals == 1 else group_values(f_NPO, tree["shifts"], config.group_size)
    group = jnp.argmax(g_NPO, axis=-2)
    won = jnp.arange(config.petals)[:, None] == group[:, None, :]
    margin = jnp.max(g_NPO, axis=-2) - jnp.max(jnp.where(won, -math.inf, g_NPO), axis=-2)
    if config.normalization is not None:
        margin = margin * jnp.asarray(config.normalization.output_scale, margin.dtype)
    shape = (*x.shape[:-1], config.out_dim)
    return Winners(group.astype(jnp.int32).reshape(shape), margin.reshape(shape))


def averaged(params: Tree, config: HullConfig) -> tuple[Tree, HullConfig]:
    """Return effective parameters, and a config without means, that give the same function."""

    def roll(weight: jax.Array, *where: int) -> jax.Array:
        return by_compiler(lambda w: jnp.roll(w, *where), weight, jax.typeof(weight).sharding.spec)

    return parameters.averaged(params, config, roll)


@standard_promotion
def fold_parameters(params: Tree, config: HullConfig) -> tuple[Tree, HullConfig]:
    """Return effective parameters and a config for inference that give the same function.

    Non-negative weights are computed once; with a shared trunk the read-outs are `averaged` as well.
    """
    return averaged(effective(params, config), config)


def checked_params(config: HullConfig, params: Tree) -> dict[str, jax.Array]:
    """Return a copy of the parameters by dotted name after their checks: names, shapes, one floating dtype."""
    flat = parameters.check_parameters(config, params, (jax.Array, np.ndarray))
    copies = {name: jnp.array(value) for name, value in flat.items()}
    if copies["shifts"].dtype != flat["shifts"].dtype:
        fix = 'Call jax.config.update("jax_enable_x64", True) first.'
        fail("VectorHull", "params", "a dtype that JAX has switched on", dtype_name(flat["shifts"].dtype), fix)
    return copies


def normalized_rows(params: Tree, x: Any, config: HullConfig) -> jax.Array:
    """Return `x` after its checks as rows (N, D) in normalized units."""
    last_axis("VectorHull", "x", x, config.in_dim, (jax.Array, np.ndarray))
    same_dtype("VectorHull", "x", x, params["shifts"].dtype)
    x = jnp.asarray(x)
    x_ND = x.reshape(-1, config.in_dim)
    if config.normalization is None:
        return x_ND
    warn_of_rounding(config.normalization, x.dtype)
    mean, scale = config.normalization.input_mean, config.normalization.input_scale
    return (x_ND - jnp.asarray(mean, x.dtype)) / jnp.asarray(scale, x.dtype)


def rescaled(y_NO: jax.Array, normalization: Normalization | None) -> jax.Array:
    """Return `output_mean + output_scale * y`."""
    if normalization is None:
        return y_NO
    mean, scale = normalization.output_mean, normalization.output_scale
    return jnp.asarray(mean, y_NO.dtype) + jnp.asarray(scale, y_NO.dtype) * y_NO


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

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the hull of `x`, `[..., in_dim]` -> `[..., out_dim]`."""
        return apply(self.params, x, self.config)


class VectorHull(nnx.Module):
    """P convex networks ("petals") on one input, fused by an overlapping max-of-means.

    `y = max_i (f_i + f_{i+1 mod P}) / 2 + s_i`, coordinate by coordinate, with f_p the petals
    (`petals.py`) and s the learned shifts (`fusion.py`). At P = 2 both groups have the same mean, so that
    the maximum chooses between shifts only; at even P, adding `(-1)^p g(x)` to the petals changes nothing.

    Guarantee: every coordinate of the output is a convex function of x, for all values of the parameters,
    in exact arithmetic (tests/properties/test_convexity.py).

    Args:
        in_dim, petals, out_dim, hidden_dim, depth, trunk, group_size, temperature, activation, gate,
            strong_convexity, normalization: the fields of `HullConfig`.
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

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the hull of `x`, `[..., in_dim]` -> `[..., out_dim]`, of the dtype of the parameters."""
        return apply(self.params, x, self.config)

    def winners(self, x: jax.Array) -> Winners:
        """Return which group is the maximum at `x`, and its margin, for every output coordinate."""
        return winners(self.params, x, self.config)

    def fold(self) -> FoldedHull:
        """Return the same function for inference, with its weights computed once."""
        return FoldedHull(*fold_parameters(self.params, self.config))
