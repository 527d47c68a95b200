"""VectorHull: P convex networks on one input, fused into one convex function of it.

Letters: N rows, D in, P petals (and groups), O out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from convexmoe.hull.context import at_context, broadcast_axes, check_context, check_one_context, context_heads
from convexmoe.hull.parameters import Tree, parameter_shapes
from convexmoe.hull.parameters import flatten as flatten
from convexmoe.hull.parameters import nest as nest
from convexmoe.hull.rows import warn_of_rounding

from ..settings import by_compiler, on_any_mesh, standard_promotion
from .fusion import group_values, learned_temperature, maximum, smooth_maximum
from .initialization import Rngs, check_rngs, initial_parameters
from .petals import act, effective, petal_values
from .positive import add_rows, signed_weight, softplus


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


class Rows(NamedTuple):
    """What a hull is asked for.

    Args:
        params: effective parameters; config: theirs, without a context where all rows have the same.
        x_ND: rows in normalized units; heads: what the context of each makes of the parameters, or None.
        leading: the leading axes of the answer.
    """

    params: Tree
    config: HullConfig
    x_ND: jax.Array
    heads: Tree | None
    leading: tuple[int, ...]


def given_rows(params: Tree, x: Any, config: HullConfig, context: Any) -> Rows:
    """Return the rows of x and context after their checks; one context is taken into the parameters."""
    x_ND, leading = normalized_rows(params, x, config), x.shape[:-1]
    check_context("VectorHull", config, context, (jax.Array, np.ndarray))
    if context is None:
        return Rows(params, config, x_ND, None, leading)
    leading, heads = broadcast_axes("VectorHull", x.shape, context.shape), heads_of(params, context, config)
    one = math.prod(context.shape[:-1]) == 1
    if leading != x.shape[:-1]:
        x_ND = jnp.broadcast_to(x_ND.reshape(x.shape), (*leading, config.in_dim)).reshape(-1, config.in_dim)
    if one:
        return Rows(*at_context(params, config, heads, add_rows), x_ND, None, leading)
    if leading != context.shape[:-1]:
        heads = jax.tree.map(lambda head: spread(head, context.shape[:-1], leading), heads)
    return Rows(params, config, x_ND, heads, leading)


def heads_of(params: Tree, context: Any, config: HullConfig) -> Tree:
    """Return what each context, `[..., context_dim]`, makes of the parameters, by the names under `context`."""
    same_dtype("VectorHull", "context", context, params["shifts"].dtype)
    c_MC = jnp.asarray(context).reshape(-1, config.context_dim)
    units = config.normalization
    if units is not None and units.context_mean:
        c_MC = (c_MC - jnp.asarray(units.context_mean, c_MC.dtype)) / jnp.asarray(units.context_scale, c_MC.dtype)
    return context_heads(params, config, c_MC, lambda u: act(u, config.activation), softplus, signed_weight)


def spread(head: jax.Array, own: tuple[int, ...], leading: tuple[int, ...]) -> jax.Array:
    """Return what belongs to contexts with leading axes `own`, one a row of the axes that they are broadcast to."""
    rest = head.shape[1:]
    return jnp.broadcast_to(head.reshape(*own, *rest), (*leading, *rest)).reshape(-1, *rest)


def fused_petals(rows: Rows) -> jax.Array:
    """Return the fused petals, (N, O), in normalized units."""
    params, config, x_ND, heads, _ = rows
    f_NPO = petal_values(params, x_ND, config, heads)
    y_NO = fuse(f_NPO, params, config, heads)
    if heads is None:
        return y_NO
    own = heads["readout"]
    return y_NO + jnp.einsum("nd,ndo->no", x_ND, own["weight"]) + own["bias"]


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
    return at_context(weights, config, heads_of(weights, context, config), add_rows)


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


def rescaled(y_NO: jax.Array, config: HullConfig) -> jax.Array:
    """Return `output_mean + output_scale * y`."""
    if config.normalization is None:
        return y_NO
    mean, scale = config.normalization.output_mean, config.normalization.output_scale
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
