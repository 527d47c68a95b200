"""The forward pass of a hull as pure functions: P convex networks on one input, fused into one function of it.

Letters: N rows, D in, P petals (and groups), O out.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from convexmoe.errors import last_axis, same_dtype
from convexmoe.hull import parameters
from convexmoe.hull.config import HullConfig
from convexmoe.hull.context import (
    Rows,
    add_readout,
    at_context,
    check_context,
    check_one_context,
    context_heads,
    rows_in_context,
)
from convexmoe.hull.parameters import Tree
from convexmoe.hull.parameters import flatten as flatten
from convexmoe.hull.parameters import nest as nest
from convexmoe.hull.rows import row_blocks, warn_of_rounding

from ..settings import by_compiler, on_any_mesh, standard_promotion
from .fusion import group_values, learned_temperature, maximum, neighbor_means, smooth_maximum
from .initialization import initial_parameters
from .petals import OPERATIONS, effective, petal_values
from .positive import softplus


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
def apply(params: Tree, x: jax.Array, config: HullConfig, context: jax.Array | None = None) -> jax.Array:
    """Return the hull of `x`.

    Guarantee: every coordinate of the output is a convex function of x, concave where the config says so, for all
    values of the parameters and of the context, in exact arithmetic (tests/properties/test_convexity.py).

    Args:
        params: the parameters, as `init` or `fold_parameters` gives them.
        x: `[..., in_dim]`, of the dtype of the parameters.
        config: the hull; static under jit.
        context: `[..., context_dim]` for a hull that has one; the leading axes of both are broadcast.

    Returns:
        `[..., out_dim]`, of the dtype of the parameters.

    Raises:
        TypeError: x or context is no array, or has another dtype than the parameters, or a context is missing.
        ValueError: the last axis of x or context has another width, or the parameters are not those of the config.

    >>> config = HullConfig(3, petals=4, out_dim=2)
    >>> apply(init(config, jax.random.key(0)), jnp.ones((5, 3)), config).shape
    (5, 2)
    """
    rows = given_rows(effective(params, config), x, config, context)
    # a symbolic number of rows is no int, and cannot be compared
    number, many = rows.x_ND.shape[0], config.in_dim + config.hidden_dim
    if isinstance(number, int) and number > many:
        params, config = averaged(rows.params, rows.config)
        rows = rows._replace(params=params, config=config)
    y_NO = bent_part(rows, fused_petals(rows))
    return rescaled(y_NO, config).reshape(*rows.leading, config.out_dim)


compiled_apply = jax.jit(apply, static_argnums=2)


def given_rows(params: Tree, x: Any, config: HullConfig, context: Any) -> Rows:
    """Return the rows of x, and what their contexts make of the parameters, after all checks."""
    x_ND = normalized_rows(params, x, config)
    check_context("VectorHull", config, context, (jax.Array, np.ndarray))
    if context is not None:
        same_dtype("VectorHull", "context", context, params["shifts"].dtype)
        context = jnp.asarray(context)
    return rows_in_context(params, config, x_ND, x.shape[:-1], context, OPERATIONS)


def fused_petals(rows: Rows) -> jax.Array:
    """Return the fused petals, (N, O), in normalized units."""
    params, config, x_ND, heads, _ = rows
    blocks = 1 if heads is not None else row_blocks(x_ND.shape[0], config, x_ND.dtype.itemsize)
    if blocks > 1:
        return fuse_by_blocks(params, x_ND, config, blocks)
    f_NPO = petal_values(params, x_ND, config, heads)
    y_NO = fuse(f_NPO, params, config, heads)
    return y_NO if heads is None else add_readout(y_NO, x_ND, heads, config)


# Compiled by itself, so that calls outside jit compile once, too.
@partial(jax.jit, static_argnames=("config", "blocks"))
def fuse_by_blocks(params: Tree, x_ND: jax.Array, config: HullConfig, blocks: int) -> jax.Array:
    """Return the fused petals, (N, O), of one block of rows after the other, each computed again for the gradient."""

    @partial(jax.checkpoint, prevent_cse=False)
    def one_block(x_ND: jax.Array) -> jax.Array:
        return fuse(petal_values(params, x_ND, config), params, config, None)

    N, D = x_ND.shape
    # A block has rows of all places, so that rows that are divided over devices stay where they are.
    x_KBD = jnp.pad(x_ND, ((0, -N % blocks), (0, 0))).reshape(-1, blocks, D).swapaxes(0, 1)
    y_KBO = jax.lax.map(one_block, x_KBD)
    return y_KBO.swapaxes(0, 1).reshape(-1, config.out_dim)[:N]


def fuse(f_NPO: jax.Array, params: Tree, config: HullConfig, heads: Tree | None) -> jax.Array:
    """Return the fusion of petals, (N, O)."""
    if config.petals == 1:
        return f_NPO[:, 0]
    g_NPO = shifted_groups(f_NPO, params, config, heads)
    if config.temperature == 0.0:
        return maximum(g_NPO)
    if isinstance(config.temperature, str):  # LEARNED
        return smooth_maximum(g_NPO, learned_temperature(params["raw_temperature"]))
    return smooth_maximum(g_NPO, config.temperature)


def shifted_groups(f_NPO: jax.Array, params: Tree, config: HullConfig, heads: Tree | None) -> jax.Array:
    """Return the groups of petals, with the shifts that their context gives."""
    g_NPO = group_values(f_NPO, params["shifts"], config.group_size)
    return g_NPO if heads is None else g_NPO + heads["readout"]["shifts"][..., None]


def bent_part(rows: Rows, y_NO: jax.Array) -> jax.Array:
    """Return the output of a hull, (N, O), in normalized units, from its fused petals."""
    config = rows.config
    if config.nonnegative:
        y_NO = softplus(y_NO)
    if config.strong_convexity > 0:
        y_NO = y_NO + half_square(rows.x_ND, config.strong_convexity)
    return -y_NO if config.is_concave else y_NO


def half_square(x_ND: jax.Array, factor: float) -> jax.Array:
    """Return `factor / 2 ||x||^2`, (N, 1); half precision is widened inside, where it would overflow."""
    wide = x_ND.astype(jnp.promote_types(x_ND.dtype, jnp.float32))
    return (0.5 * factor * jnp.sum(wide * wide, axis=-1, keepdims=True)).astype(x_ND.dtype)


@on_any_mesh
def winners(params: Tree, x: Any, config: HullConfig, context: Any = None) -> Winners:
    """Return which group is the maximum at `x` and by how much (arguments as for `apply`)."""
    tree, config, x_ND, heads, leading = given_rows(effective(params, config), x, config, context)
    f_NPO = petal_values(tree, x_ND, config, heads)
    g_NPO = f_NPO if config.petals == 1 else shifted_groups(f_NPO, tree, config, heads)
    group = jnp.argmax(g_NPO, axis=-2)
    won = jnp.arange(config.petals)[:, None] == group[:, None, :]
    margin = jnp.max(g_NPO, axis=-2) - jnp.max(jnp.where(won, -math.inf, g_NPO), axis=-2)
    if config.normalization is not None:
        margin = margin * jnp.asarray(config.normalization.output_scale, margin.dtype)
    shape = (*leading, config.out_dim)
    return Winners(group.astype(jnp.int32).reshape(shape), margin.reshape(shape))


@standard_promotion
def at(params: Tree, config: HullConfig, context: Any) -> tuple[Tree, HullConfig]:
    """Return effective parameters and the config of the plain hull in x that a hull is at one context.

    Args:
        params, config: of the hull; context: `[context_dim]`, in original units.

    Raises:
        TypeError, ValueError: the hull has no context; it is no array, of another shape or dtype.
    """
    weights = effective(params, config)
    check_one_context("VectorHull", config, context, (jax.Array, np.ndarray))
    same_dtype("VectorHull", "context", context, weights["shifts"].dtype)
    heads = context_heads(weights, config, jnp.asarray(context), OPERATIONS)
    return at_context(weights, config, heads, OPERATIONS)


def averaged(params: Tree, config: HullConfig) -> tuple[Tree, HullConfig]:
    """Return effective parameters, and a config without means, that give the same function."""

    def means(weight: jax.Array) -> jax.Array:
        return by_compiler(neighbor_means, weight, jax.typeof(weight).sharding.spec)

    return parameters.averaged(params, config, means)


@standard_promotion
def fold_parameters(params: Tree, config: HullConfig) -> tuple[Tree, HullConfig]:
    """Return effective parameters and a config for inference that give the same function.

    Non-negative weights are computed once; with a shared trunk the read-outs are `averaged` as well.
    """
    return averaged(effective(params, config), config)


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


def rescaled(y_NO: jax.Array, config: HullConfig) -> jax.Array:
    """Return `output_mean + output_scale * y`."""
    if config.normalization is None:
        return y_NO
    mean, scale = config.normalization.output_mean, config.normalization.output_scale
    return jnp.asarray(mean, y_NO.dtype) + jnp.asarray(scale, y_NO.dtype) * y_NO
