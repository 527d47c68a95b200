"""The forward pass of a hull as pure functions: P convex networks on one input, fused into one function of it.

Letters: N rows, D in, P petals (and groups), O out.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

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
from convexmoe.hull.parameters import Tree, nest
from convexmoe.hull.rows import row_blocks, warn_of_rounding

from ..settings import is_traced, may_recompute
from .fusion import group_values, learned_temperature, maximum, neighbor_means, smooth_maximum
from .initialization import initial_parameters
from .petals import OPERATIONS, effective, petal_values
from .positive import softplus

Units = dict[str, Tensor]


class Winners(NamedTuple):
    """Which group is the maximum where.

    Args:
        group: index of the winning group, int32 `[..., out_dim]`; the first of a tie.
        margin: its lead over the second, `[..., out_dim]`, in units of the output; inf with one petal.
    """

    group: Tensor
    margin: Tensor


def init(config: HullConfig, *, dtype: torch.dtype | None = None) -> Tree:
    """Return freshly drawn parameters, a nested dict of tensors (see `init.initial_law`).

    Values come from PyTorch's default generator and device; dtype None means PyTorch's default dtype.
    """
    return nest(initial_parameters(config, dtype))


def apply(
    params: Tree, x: Tensor, config: HullConfig, context: Tensor | None = None, *, units: Units | None = None
) -> Tensor:
    """Return the hull of `x`.

    Guarantee: every coordinate of the output is a convex function of x, concave where the config says so, for all
    values of the parameters and of the context, in exact arithmetic (tests/properties/test_convexity.py).

    Args:
        params: the parameters, as `init` gives them.
        x: `[..., in_dim]`, of the dtype of the parameters.
        config: the hull.
        context: `[..., context_dim]` for a hull that has one; the leading axes of both are broadcast.
        units: the config's normalization as tensors; None makes them anew.

    Returns:
        `[..., out_dim]`, of the dtype of the parameters.

    Raises:
        TypeError: x or context is no tensor, or has another dtype than the parameters, or a context is missing.
        ValueError: the last axis of x or context has another width, or the parameters are not those of the config.

    >>> config = HullConfig(3, petals=4, out_dim=2)
    >>> apply(init(config), torch.ones(5, 3), config).shape
    torch.Size([5, 2])
    """
    return evaluate(checked_effective(params, config), x, config, context, units)


def checked_effective(params: Tree, config: HullConfig) -> Tree:
    """Return what `effective` does of parameters that are the config's by name and shape."""
    if not torch.compiler.is_compiling():
        parameters.check_parameters(config, params)
    return effective(params, config)


def evaluate(
    params: Tree, x: Any, config: HullConfig, context: Tensor | None = None, units: Units | None = None
) -> Tensor:
    """Return the hull of `x` from `effective` parameters."""
    units = units_of(config, params["shifts"]) if units is None else units
    rows = given_rows(params, x, config, context, units)
    # a compiler fuses the mean over values, and may not know the number of rows; nor does a trace
    eager = not (torch.compiler.is_compiling() or torch.jit.is_tracing())
    if eager and rows.x_ND.shape[0] > config.in_dim + config.hidden_dim:
        params, config = averaged(rows.params, rows.config)
        rows = rows._replace(params=params, config=config)
    y_NO = bent_part(rows, fused_petals(rows))
    return rescaled(y_NO, units).reshape(*rows.leading, config.out_dim)


def given_rows(params: Tree, x: Any, config: HullConfig, context: Any, units: Units | None) -> Rows:
    """Return the rows of x, and what their contexts make of the parameters, after all checks."""
    x_ND = normalized_rows(params, x, config, units)
    check_context("VectorHull", config, context, (Tensor,))
    if context is not None:
        check_dtype("context", context, params)
    return rows_in_context(params, config, x_ND, tuple(x.shape[:-1]), context, OPERATIONS)


def fused_petals(rows: Rows) -> Tensor:
    """Return the fused petals, (N, O), in normalized units."""
    params, config, x_ND, heads, _ = rows
    whole = heads is not None or torch.compiler.is_compiling()  # which must not look at the number of rows
    blocks = 1 if whole else row_blocks(x_ND.shape[0], config, x_ND.element_size())
    if blocks > 1 and not is_traced() and may_recompute():
        return fuse_by_blocks(params, x_ND, config, blocks)
    y_NO = fuse(params, x_ND, config, heads)
    return y_NO if heads is None else add_readout(y_NO, x_ND, heads, config)


def fuse_by_blocks(params: Tree, x_ND: Tensor, config: HullConfig, blocks: int) -> Tensor:
    """Return the fused petals, (N, O), of one block of rows after the other, each computed again for the gradient."""

    def one_block(x_ND: Tensor) -> Tensor:
        return fuse(params, x_ND, config, None)

    parts = x_ND.tensor_split(blocks)
    if torch.is_grad_enabled():
        run = partial(checkpoint, one_block, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([run(part) for part in parts])
    return torch.cat([one_block(part) for part in parts])


def fuse(params: Tree, x_ND: Tensor, config: HullConfig, heads: Tree | None) -> Tensor:
    """Return the petals, fused, (N, O)."""
    g_NPO = groups(params, x_ND, config, heads)
    if config.petals == 1:
        return g_NPO[:, 0]
    if config.temperature == 0.0:
        return maximum(g_NPO)
    if isinstance(config.temperature, str):  # LEARNED
        return smooth_maximum(g_NPO, learned_temperature(params["raw_temperature"]))
    return smooth_maximum(g_NPO, config.temperature)


def groups(params: Tree, x_ND: Tensor, config: HullConfig, heads: Tree | None) -> Tensor:
    """Return the groups of petals, (N, P, O), with the shifts that their context gives; one petal has none."""
    if config.petals == 1:
        return petal_values(params, x_ND, config, heads)
    if config.group_size == 1:  # the shifts are part of the biases
        readout = params["readout"]
        bias = readout["bias"] + params["shifts"][:, None]
        own = {name: bias if name == "bias" else readout[name] for name in readout}
        g_NPO = petal_values({**params, "readout": own}, x_ND, config, heads)
    else:
        g_NPO = group_values(petal_values(params, x_ND, config, heads), params["shifts"], config.group_size)
    return g_NPO if heads is None else g_NPO + heads["readout"]["shifts"][..., None]


def bent_part(rows: Rows, y_NO: Tensor) -> Tensor:
    """Return the output of a hull, (N, O), in normalized units, from its fused petals."""
    config = rows.config
    if config.nonnegative:
        y_NO = softplus(y_NO)
    if config.strong_convexity > 0:
        y_NO = y_NO + half_square(rows.x_ND, config.strong_convexity)
    return -y_NO if config.is_concave else y_NO


def half_square(x_ND: Tensor, factor: float) -> Tensor:
    """Return `factor / 2 ||x||^2`, (N, 1); half precision is widened inside, where it would overflow."""
    wide = x_ND.to(torch.promote_types(x_ND.dtype, torch.float32))
    return (0.5 * factor * torch.sum(wide * wide, dim=-1, keepdim=True)).to(x_ND.dtype)


def winners(
    params: Tree, x: Any, config: HullConfig, context: Tensor | None = None, *, units: Units | None = None
) -> Winners:
    """Return which group is the maximum at `x` and by how much (arguments as for `apply`)."""
    units = units_of(config, params["shifts"]) if units is None else units
    tree, config, x_ND, heads, leading = given_rows(checked_effective(params, config), x, config, context, units)
    g_NPO = groups(tree, x_ND, config, heads)
    group = torch.argmax(g_NPO, dim=-2)
    won = torch.arange(config.petals, device=group.device)[:, None] == group[:, None, :]
    margin = torch.amax(g_NPO, dim=-2) - torch.amax(g_NPO.masked_fill(won, -math.inf), dim=-2)
    if units is not None:
        margin = margin * units["output_scale"]
    shape = (*leading, config.out_dim)
    return Winners(group.to(torch.int32).reshape(shape), margin.reshape(shape))


def at(params: Tree, config: HullConfig, context: Any) -> tuple[Tree, HullConfig]:
    """Return effective parameters and the config of the plain hull in x that a hull is at one context.

    Args:
        params, config: of the hull; context: `[context_dim]`, in original units.

    Raises:
        TypeError, ValueError: the hull has no context; it is no array, of another shape or dtype.
    """
    weights = checked_effective(params, config)
    check_one_context("VectorHull", config, context, (Tensor,))
    same_dtype("VectorHull", "context", context, weights["shifts"].dtype)
    heads = context_heads(weights, config, context, OPERATIONS)
    return at_context(weights, config, heads, OPERATIONS)


def averaged(params: Tree, config: HullConfig) -> tuple[Tree, HullConfig]:
    """Return effective parameters, and a config without means, that give the same function."""
    return parameters.averaged(params, config, neighbor_means)


def fold_parameters(params: Tree, config: HullConfig) -> tuple[Tree, HullConfig]:
    """Return effective parameters and a config for inference that give the same function.

    Non-negative weights are computed once; with a shared trunk the read-outs are `averaged` as well.
    """
    return averaged(checked_effective(params, config), config)


def units_of(config: HullConfig, like: Tensor) -> Units | None:
    """Return the config's normalization as tensors of the dtype and device of `like`."""
    if config.normalization is None:
        return None
    values = asdict(config.normalization).items()
    return {name: torch.tensor(own, dtype=like.dtype, device=like.device) for name, own in values if own}


def normalized_rows(params: Tree, x: Any, config: HullConfig, units: Units | None) -> Tensor:
    """Return `x` after its checks as rows (N, D) in normalized units."""
    last_axis("VectorHull", "x", x, config.in_dim, (Tensor,))
    check_dtype("x", x, params)
    x_ND = x.reshape(-1, config.in_dim)
    if units is None:
        return x_ND
    if config.normalization is not None and not torch.compiler.is_compiling():
        warn_of_rounding(config.normalization, x.dtype)
    return (x_ND - units["input_mean"]) / units["input_scale"]


def check_dtype(argument: str, value: Tensor, params: Tree) -> None:
    """Check that a tensor has the dtype of the parameters, where autocast does not give it another."""
    device = value.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        same_dtype("VectorHull", argument, value, params["shifts"].dtype)


def rescaled(y_NO: Tensor, units: Units | None) -> Tensor:
    """Return `output_mean + output_scale * y`."""
    if units is None:
        return y_NO
    return units["output_mean"] + units["output_scale"] * y_NO
