"""A context: a second input, in which nothing is assumed. It moves the parameters of a hull, which stays convex in x.

Letters: M contexts, C wide, K hidden, F = C + K features, D in, H hidden, P petals, O out.

    h    = act(act(c W_0 + b_0) W_1 + b_1),    features (c, h)
    u_k  = slope_k(c) (A_k x + b_k) + (sum_i c_i B_ki) x + bias_k(c) + V_k z_{k-1},    z_k = scale_k(c) act(u_k)
    g_i  = ... + shifts_i(c),    y = fused(g) + weight(c)' x + bias(c)

Each head is a linear map of the features. slope and scale go through softplus, and are 1 where the head is 0: what
multiplies z is positive, and what multiplies an affine function of x may be anything. B turns the directions that units
look along, of inputs that are not monotone; without it quadratic forms x' C C' x with the context C err 13 times as
much (`benchmarks/shape.py`). The shifts are the gate over the petals: with a temperature T, `T log w_i(c)` for weights
w_i(c) of the groups. Only operators are used here, which arrays of every library have.

Source: Amos, Xu and Kolter, Input convex neural networks (arXiv 1609.07152), eq. 3. Differs from the source: a context
scales units before and after their activation, and turns them, so that a layer of one context is one of a plain hull.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

from ..errors import describe, fail
from .config import HullConfig
from .parameters import Operations, Tree, map_tree

ONE = math.log(math.expm1(1.0))  # softplus(ONE) = 1


def check_context(owner: str, config: HullConfig, context: Any, kinds: tuple[Any, ...]) -> None:
    """Check that a context is given where the hull has one, an array of its width, and only there."""
    C = config.context_dim
    if context is None:
        if C:
            rule = f"an array, [..., context_dim={C}]"
            fail(owner, "context", rule, "None", "Pass it: model(x, context).", TypeError)
        return
    if not C:
        fix = "Leave it out, or build the hull with context_dim."
        fail(owner, "context", "None for a hull without a context", type(context).__name__, fix, TypeError)
    if not isinstance(context, kinds):
        fix = "Convert it to an array of this framework first."
        fail(owner, "context", "an array", type(context).__name__, fix, TypeError)
    if len(context.shape) == 0 or context.shape[-1] != C:
        fail(owner, "context", f"last axis context_dim={C}", describe(context), "Give one number for each.")


def check_one_context(owner: str, config: HullConfig, context: Any, kinds: tuple[Any, ...]) -> None:
    """Check that a context is a single one, of a hull that has contexts."""
    if not config.context_dim:
        fail(owner, "at", "a hull with a context", "context_dim=0", "It is a plain hull already.")
    check_context(owner, config, context, kinds)
    if len(context.shape) != 1:
        rule, fix = f"one context, [context_dim={config.context_dim}]", "Pass one row of it."
        fail(owner, "context", rule, describe(context), fix)


def broadcast_axes(x: tuple[Any, ...], context: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what the leading axes of x and context are broadcast to; sizes may be symbols, equal or beside 1."""
    width, found = max(len(x), len(context)), []
    for sizes in zip(*((1,) * (width - len(axes)) + tuple(axes) for axes in (x, context)), strict=True):
        found.append(sizes[1] if sizes[0] == 1 else sizes[0])
        if any(size != 1 and size != found[-1] for size in sizes):
            got, fix = f"{list(context)} beside {list(x)} of x", "Give one context for all rows, or one a row."
            fail("VectorHull", "context", "leading axes that broadcast with those of x", got, fix)
    return tuple(found)


class Rows(NamedTuple):
    """What a hull is asked for.

    Args:
        params: effective parameters; config: theirs, without a context where all rows have the same.
        x_ND: rows in normalized units; heads: what the context of each makes of the parameters, or None.
        leading: the leading axes of the answer.
    """

    params: Tree
    config: HullConfig
    x_ND: Any
    heads: Tree | None
    leading: tuple[Any, ...]


def rows_in_context(
    params: Tree, config: HullConfig, x_ND: Any, leading: tuple[Any, ...], context: Any, operations: Operations
) -> Rows:
    """Return rows with what their contexts make of the parameters; one context for all is taken into these.

    Args:
        params: effective parameters; config: theirs.
        x_ND: rows in normalized units, with leading axes `leading`; context: `[..., context_dim]`, or None.
        operations: of the library of all of them.
    """
    if context is None:
        return Rows(params, config, x_ND, None, leading)
    own, D = tuple(context.shape[:-1]), config.in_dim
    shape, heads = broadcast_axes(leading, own), context_heads(params, config, context, operations)
    if shape != leading:
        x_ND = operations.broadcast(x_ND.reshape(*leading, D), (*shape, D)).reshape(-1, D)
    if math.prod(own) == 1:
        return Rows(*at_context(params, config, heads, operations), x_ND, None, shape)

    def spread(head: Any) -> Any:
        rest = tuple(head.shape[1:])
        return operations.broadcast(head.reshape(*own, *rest), (*shape, *rest)).reshape(-1, *rest)

    return Rows(params, config, x_ND, heads if shape == own else map_tree(spread, heads), shape)


def context_heads(params: Tree, config: HullConfig, context: Any, operations: Operations) -> Tree:
    """Return what each context makes of the parameters: arrays `(M, ...)` by the names under `context`.

    Args:
        params: effective parameters; config: theirs.
        context: `[..., context_dim]`, in original units; operations: of its library.
    """
    c_MC, units = context.reshape(-1, config.context_dim), config.normalization
    if units is not None and units.context_mean:
        mean, scale = (operations.constant(n, c_MC) for n in (units.context_mean, units.context_scale))
        c_MC = (c_MC - mean) / scale
    net, C = params["context"], config.context_dim
    h_MK = c_MC
    for k in ("0", "1"):
        h_MK = operations.act(h_MK @ net[k]["weight"] + net[k]["bias"], config.activation)

    def head(weight: Any) -> Any:
        flat = weight.reshape(weight.shape[0], -1)
        return (c_MC @ flat[:C] + h_MK @ flat[C:]).reshape(c_MC.shape[0], *weight.shape[1:])

    def layer(heads: Tree) -> Tree:
        slope, scale = (operations.softplus(head(heads[name]) + ONE) for name in ("slope", "scale"))
        return {"slope": slope, "bias": head(heads["bias"]), "scale": scale}

    readout = {name: head(weight) for name, weight in net["readout"].items()}
    trunk = {str(k): layer(net["trunk"][str(k)]) for k in range(config.depth)}
    return {"context": c_MC, "trunk": trunk, "readout": readout}


def free_inputs(x_ND: Any, config: HullConfig) -> Any:
    """Return the inputs that are not monotone, (N, free)."""
    free = config.free_inputs
    return x_ND if len(free) == config.in_dim else x_ND[:, free]


def mixed_inputs(x_ND: Any, heads: Tree, config: HullConfig) -> Any:
    """Return the products of inputs that are not monotone with the context of their row, (N, free C)."""
    mixed = free_inputs(x_ND, config)[:, :, None] * heads["context"][:, None, :]
    return mixed.reshape(x_ND.shape[0], len(config.free_inputs) * config.context_dim)


def add_readout(y_NO: Any, x_ND: Any, heads: Tree, config: HullConfig) -> Any:
    """Return fused petals, (N, O), with the plane in x that the context of each row adds."""
    head = heads["readout"]
    if "weight" in head:
        y_NO = y_NO + (free_inputs(x_ND, config)[:, :, None] * head["weight"]).sum(1)
    return y_NO + head["bias"]


def at_context(weights: Tree, config: HullConfig, heads: Tree, operations: Operations) -> tuple[Tree, HullConfig]:
    """Return the effective parameters and the config of the plain hull that a hull is at one context.

    Args:
        weights: effective parameters of the hull; config: theirs.
        heads: of `context_heads` at one context, M = 1; operations: of their library.
    """
    D, free, c = config.in_dim, config.free_inputs, heads["context"][0]
    private = config.trunk == "private"
    trunk: Tree = {}
    scale: Any = None

    def placed(rows: Any) -> Any:
        """Return an array of all inputs from its rows of those that are not monotone."""
        if len(free) == D:
            return rows
        places = operations.constant([[float(j == i) for i in free] for j in range(D)], rows)
        return (places @ rows.reshape(len(free), -1)).reshape(D, *rows.shape[1:])

    def scaled(positive: Any) -> Any:
        """Return the weights that read units, times the scales of these."""
        if not private:
            return positive * scale.reshape(-1, *[1] * (len(positive.shape) - 1))
        by_unit = scale.swapaxes(0, 1)  # (H, P)
        return positive * by_unit.reshape(*by_unit.shape, *[1] * (len(positive.shape) - 2))

    for k in range(config.depth):
        layer, head = weights["trunk"][str(k)], {name: part[0] for name, part in heads["trunk"][str(k)].items()}
        weight = layer["weight"] * head["slope"]
        if free:
            turn = weights["context"]["trunk"][str(k)]["weight"]
            turn = (turn * c.reshape(-1, *[1] * (len(turn.shape) - 2))).sum(1)
            weight = weight + placed(turn)
        trunk[str(k)] = {"weight": weight, "bias": layer["bias"] * head["slope"] + head["bias"]}
        if "positive_weight" in layer:
            trunk[str(k)]["positive_weight"] = scaled(layer["positive_weight"])
        scale = head["scale"]
    readout, head = weights["readout"], {name: part[0] for name, part in heads["readout"].items()}
    weight = readout["weight"]
    new = {
        "positive_weight": scaled(readout["positive_weight"]),
        "weight": weight + placed(head["weight"])[:, None, :] if free else weight,
        "bias": readout["bias"] + head["bias"],
    }
    plain = {name: part for name, part in weights.items() if name != "context"}
    plain |= {"trunk": trunk, "readout": new, "shifts": weights["shifts"] + head["shifts"]}
    return plain, without_context(config)


def without_context(config: HullConfig) -> HullConfig:
    """Return the config of the hull at one context."""
    units = config.normalization
    units = units and replace(units, context_mean=(), context_scale=())
    return replace(config, context_dim=0, context_hidden_dim=None, normalization=units)
