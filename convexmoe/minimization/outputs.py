"""One output of a hull, at one context or at one context a problem, as the solver computes with it.

Letters: B problems, C context, D in, H hidden, P petals.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from ..arrays import Array, as_array, einsum, namespace
from ..hull.activations import ACTIVATIONS
from ..hull.config import LEAST_TEMPERATURE, HullConfig
from ..hull.context import at_context, context_heads, without_context
from ..hull.parameters import Operations, Tree, map_tree
from ..hull.weights import act
from .nonnegative import NonnegativeHull
from .scalar_hull import LEAST_SHARE, UNIT_WIDTH, ScalarHull

OPERATIONS = Operations(  # of any library
    softplus=ACTIVATIONS["softplus"].value,
    act=act,
    constant=as_array,
    broadcast=lambda array, shape: namespace(array).broadcast_to(array, shape),
)


def scalar_hull(
    weights: Tree, config: HullConfig, output: int, context: Array | None = None, problems: tuple[int, ...] = ()
) -> ScalarHull:
    """Return one output of a hull; of a concave one minus it, which is convex.

    Args:
        weights: effective parameters in float64, nested, as `fold` of a hull gives them; config: theirs.
        output: its index.
        context: `[..., context_dim]`, in original units, where the hull has one; its leading axes are broadcast to
            `problems`. One context is taken into the weights, for any rows; of several each belongs to a problem.
    """
    config = config.negate() if config.is_concave else config
    weights, per_problem = only_output(weights, output), False
    if context is not None:
        context = as_array(context, weights["shifts"])
        own, heads = tuple(context.shape[:-1]), context_heads(weights, config, context, OPERATIONS)
        per_problem = math.prod(own) != 1
        if per_problem:
            weights = at_contexts(weights, config, map_tree(lambda head: spread(head, own, problems), heads))
            config = without_context(config)
        else:
            weights, config = at_context(weights, config, heads, OPERATIONS)
    return one_output(weights, config, output, per_problem)


def only_output(weights: Tree, output: int) -> Tree:
    """Return weights whose read-outs are those of one output, `[..., 1]`."""
    one = slice(output, output + 1)
    weights = {**weights, "readout": {name: part[..., one] for name, part in weights["readout"].items()}}
    if "context" not in weights:
        return weights
    net = weights["context"]
    readout = {name: part if name == "shifts" else part[..., one] for name, part in net["readout"].items()}
    return {**weights, "context": {**net, "readout": readout}}


def spread(head: Array, own: tuple[int, ...], problems: tuple[int, ...]) -> Array:
    """Return what each context gives, (M, ...), M of leading axes `own`, for each problem, (B, ...)."""
    rest = tuple(head.shape[1:])
    return namespace(head).broadcast_to(head.reshape(*own, *rest), (*problems, *rest)).reshape(-1, *rest)


def at_contexts(weights: Tree, config: HullConfig, heads: Tree) -> Tree:
    """Return the weights of the plain hulls that a hull is at B contexts: what those move begins with (B,).

    The scales of units stand beside them: (B, H, H) weights between layers would be too many.

    Args:
        weights: effective parameters of the hull; config: theirs.
        heads: of `context_heads`, one row a problem.
    """
    c_BC, D, free = heads["context"], config.in_dim, config.free_inputs
    trunk: Tree = {}

    def placed(rows: Array) -> Array:
        """Return (B, D, ...) from (B, free, ...): what belongs to inputs that are not monotone among all."""
        if len(free) == D:
            return rows
        places = as_array([[float(j == i) for i in free] for j in range(D)], c_BC)
        return einsum("df,bfu->bdu", places, rows)

    for k in map(str, range(config.depth)):
        layer, head = weights["trunk"][k], heads["trunk"][k]
        weight = layer["weight"] * head["slope"][:, None]
        if free:
            turn = weights["context"]["trunk"][k]["weight"]
            turned = einsum("bc,fcu->bfu", c_BC, turn.reshape(len(free), c_BC.shape[-1], -1))
            weight = weight + placed(turned).reshape(weight.shape)
        bias = layer["bias"] * head["slope"] + head["bias"]
        trunk[k] = {**layer, "weight": weight, "bias": bias, "scale": head["scale"]}
    readout, head = weights["readout"], heads["readout"]
    weight, bias = readout["weight"], readout["bias"] + head["bias"][:, None]
    weight = OPERATIONS.broadcast(weight, (len(c_BC), *weight.shape))
    weight = weight + placed(head["weight"])[:, :, None] if free else weight
    readout, gate = {**readout, "weight": weight, "bias": bias}, {}
    if config.gate:
        B = c_BC.shape[0]
        gate = {"gate": map_tree(lambda w: OPERATIONS.broadcast(w, (B, *w.shape)), weights["gate"])}
    return {**weights, **gate, "trunk": trunk, "readout": readout, "shifts": weights["shifts"] + head["shifts"]}


def one_output(weights: Tree, config: HullConfig, output: int, per_problem: bool) -> ScalarHull:
    """Return one output of a convex hull without a context, or of B of them (`at_contexts`), from `only_output`."""
    readout, trunk, xp = weights["readout"], weights["trunk"], namespace(weights["shifts"])
    layers = ([weights["gate"]] if config.gate else []) + [trunk[str(k)] for k in range(config.depth)]
    shifts = xp.zeros_like(weights["shifts"]) if config.petals == 1 else weights["shifts"]
    temperature = None
    if isinstance(config.temperature, str):
        raw = weights["raw_temperature"]
        temperature = (ACTIVATIONS["softplus"].value(raw) + LEAST_TEMPERATURE)[output]
    elif config.temperature > 0:
        temperature = as_array(config.temperature, shifts)
    D, units = config.in_dim, config.normalization
    mean, scale, offset, factor = (0.0,) * D, (1.0,) * D, 0.0, 1.0
    if units is not None:
        mean, scale = units.input_mean, units.input_scale
        offset, factor = units.output_mean[output], units.output_scale[output]
    hull = (NonnegativeHull if config.nonnegative else ScalarHull)(
        config,
        layers,
        positive_weight=readout["positive_weight"][..., 0],
        weight=readout["weight"][..., 0],
        bias=readout["bias"][..., 0],
        shifts=shifts,
        temperature=temperature,
        input_mean=as_array(mean, shifts),
        input_scale=as_array(scale, shifts),
        output_mean=as_array(offset, shifts),
        output_scale=as_array(factor, shifts),
        widths=[],
        per_problem=per_problem,
    )
    rows: Any = slice(None) if per_problem else None
    half = [xp.full_like(layer["bias"], 0.5)[rows] for layer in layers]
    even = xp.full_like(shifts, 1.0 / config.petals)[rows]
    shares = hull._shares(half, even)
    return replace(hull, widths=[UNIT_WIDTH / xp.clip(share, min=LEAST_SHARE) for share in shares])
