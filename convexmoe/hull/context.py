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
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..errors import describe, fail
from .config import HullConfig
from .parameters import Tree

ONE = math.log(math.expm1(1.0))  # softplus(ONE) = 1
RAW = -4.0  # what a raw slope on a monotone input starts from: nearly none


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


def broadcast_axes(owner: str, x: tuple[Any, ...], context: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the leading axes that those of x and context are broadcast to."""
    try:
        return broadcast_shapes(x[:-1], context[:-1])
    except ValueError:
        got, fix = f"{list(context[:-1])} beside {list(x[:-1])} of x", "Give one context for all rows, or one a row."
        fail(owner, "context", "leading axes that broadcast with those of x", got, fix)


def broadcast_shapes(*shapes: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what shapes are broadcast to; sizes may be symbols, which are equal or one of them is 1."""
    width = max(map(len, shapes))
    padded = [(1,) * (width - len(shape)) + tuple(shape) for shape in shapes]
    found = []
    for sizes in zip(*padded, strict=True):
        size = next((size for size in sizes if size != 1), 1)
        if any(other not in (1, size) for other in sizes):
            raise ValueError(shapes)
        found.append(size)
    return tuple(found)


def context_heads(
    params: Tree,
    config: HullConfig,
    c_MC: Any,
    act: Callable[[Any], Any],
    softplus: Callable[[Any], Any],
    signed_weight: Callable[..., Any],
) -> Tree:
    """Return what each context makes of the parameters: arrays `(M, ...)` by the names under `context`.

    Args:
        params: of the hull; config: theirs.
        c_MC: contexts in normalized units.
        act, softplus, signed_weight: in the library of the parameters.
    """
    net, C = params["context"], config.context_dim
    h_MK = c_MC
    for k in ("0", "1"):
        h_MK = act(h_MK @ net[k]["weight"] + net[k]["bias"])

    def head(weight: Any) -> Any:
        flat = weight.reshape(weight.shape[0], -1)
        return (c_MC @ flat[:C] + h_MK @ flat[C:]).reshape(c_MC.shape[0], *weight.shape[1:])

    def layer(heads: Tree) -> Tree:
        slope, scale = (softplus(head(heads[name]) + ONE) for name in ("slope", "scale"))
        return {"slope": slope, "bias": head(heads["bias"]), "scale": scale}

    readout = {name: head(weight) for name, weight in net["readout"].items()}
    if config.signs is not None:
        readout["weight"] = signed_weight(readout["weight"], config.signs, 1, RAW)
    trunk = {str(k): layer(net["trunk"][str(k)]) for k in range(config.depth)}
    return {"context": c_MC, "trunk": trunk, "readout": readout}


def mixed_inputs(x_ND: Any, heads: Tree, config: HullConfig) -> Any:
    """Return the products of inputs that are not monotone with the context of their row, (N, D C)."""
    free = config.free_inputs
    x_free = x_ND if len(free) == config.in_dim else x_ND[:, free]
    return (x_free[:, :, None] * heads["context"][:, None, :]).reshape(x_ND.shape[0], len(free) * config.context_dim)


def at_context(
    weights: Tree, config: HullConfig, heads: Tree, add_rows: Callable[[Any, list[int], Any], Any]
) -> tuple[Tree, HullConfig]:
    """Return the effective parameters and the config of the plain hull that a hull is at one context.

    Args:
        weights: effective parameters of the hull; config: theirs.
        heads: of `context_heads` at one context, M = 1.
        add_rows: (array, rows, what to add to these rows) -> array.
    """
    free, c = config.free_inputs, heads["context"][0]
    private = config.trunk == "private"
    trunk: Tree = {}
    scale: Any = None

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
            weight = add_rows(weight, free, (turn * c.reshape(-1, *[1] * (len(turn.shape) - 2))).sum(1))
        trunk[str(k)] = {"weight": weight, "bias": layer["bias"] * head["slope"] + head["bias"]}
        if "positive_weight" in layer:
            trunk[str(k)]["positive_weight"] = scaled(layer["positive_weight"])
        scale = head["scale"]
    readout, head = weights["readout"], {name: part[0] for name, part in heads["readout"].items()}
    new = {
        "positive_weight": scaled(readout["positive_weight"]),
        "weight": readout["weight"] + head["weight"][:, None, :],
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
