"""All petals in one batched map, (N, D) -> (N, P, O).

Letters: N rows, D in, H hidden, P petals, O out.

    z_1     = act(A_1 x + b_1)                              (+ act(G x + c) inside, with a gate)
    z_{k+1} = act(V_k z_k + A_{k+1} x + b_{k+1})            k = 1 .. depth-1
    f_p     = V_out,p z_depth + A_out,p x + b_out,p

with act convex and non-decreasing and V >= 0 (Amos, Xu and Kolter, Input convex neural networks,
arXiv 1609.07152, eq. 2). Differs from the source: no activation on f, which would bound it below.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from convexmoe.hull import parameters
from convexmoe.hull.activations import ACTIVATIONS
from convexmoe.hull.config import HullConfig
from convexmoe.hull.context import mixed_inputs
from convexmoe.hull.parameters import Operations, Tree

from ..settings import is_plain_eager
from .positive import softplus


def huber_relu(u: Tensor) -> Tensor:
    """Return 0 below -1, `(u + 1)^2 / 4` between -1 and 1, u above: a relu with a continuous derivative."""
    bent = torch.relu(torch.clamp(u, max=1.0) + 1.0)
    return torch.where(u < 1.0, bent * bent * 0.25, u)


FUNCTIONS = {"softplus": softplus, "relu": torch.relu, "huber_relu": huber_relu}


def act(u: Tensor, activation: str) -> Tensor:
    """Return the activation of `u`, standardized for u ~ N(0, 1). Convex and non-decreasing."""
    return ACTIVATIONS[activation].standardize(FUNCTIONS[activation](u))


def constant(numbers: Any, like: Tensor) -> Tensor:
    """Return numbers as a tensor of the dtype and on the device of another."""
    return torch.tensor(numbers, dtype=like.dtype, device=like.device)


OPERATIONS = Operations(softplus, act, constant, torch.broadcast_to)


def add_linear(start: Tensor, x_ND: Tensor, weight: Tensor) -> Tensor:
    """Return `start + x @ weight` over the first axis of `weight` as one matrix product, its other axes kept."""
    width = math.prod(weight.shape[1:])
    flat = start.reshape(*start.shape[: start.ndim - weight.ndim + 1], width)
    product = torch.addmm(flat, x_ND, weight.reshape(-1, width))
    return product.reshape(x_ND.shape[0], *weight.shape[1:])


def add_both(bias: Tensor, x_ND: Tensor, weight: Tensor, z_NH: Tensor, mix: Tensor) -> Tensor:
    """Return `bias + x @ weight + z @ mix`, (N, P, O), the second product added to the first in its place."""
    width = bias.numel()
    product = torch.addmm(bias.reshape(width), x_ND, weight.reshape(-1, width))
    add = _AddProduct.apply if is_plain_eager(product) else torch.addmm
    return add(product, z_NH, mix.reshape(-1, width)).reshape(-1, *bias.shape)


class _AddProduct(torch.autograd.Function):
    """`addmm_`, which counters of operations, that know `addmm` with `out`, see as well."""

    @staticmethod
    def forward(ctx: Any, start: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        ctx.mark_dirty(start)
        ctx.save_for_backward(x, weight)
        return torch.addmm(start, x, weight, out=start)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, weight), (_, of_x, of_weight) = grads, ctx.saved_tensors, ctx.needs_input_grad
        return grad, grad @ weight.T if of_x else None, x.T @ grad if of_weight else None


def add_mix(start: Tensor, z: Tensor, weight: Tensor, trunk: str) -> Tensor:
    """Return `start + V z` for hidden units that are shared, (N, H), or private, (N, P, H)."""
    if trunk == "shared":
        return add_linear(start, z, weight)
    return start + torch.einsum("nph,hpk->npk", z, weight)


def effective(params: Tree, config: HullConfig) -> Tree:
    """Return the tree with each `raw_weight` replaced by its `positive_weight`."""
    return parameters.effective(params, config, OPERATIONS)


def hidden_units(params: Tree, x_ND: Tensor, config: HullConfig, heads: Tree | None = None) -> Tensor:
    """Return the last hidden layer, (N, H) for a shared trunk and (N, P, H) for private ones."""
    z: Any = None
    mixed: Any = None if heads is None else mixed_inputs(x_ND, heads, config)
    for k in range(config.depth):
        layer = params["trunk"][str(k)]
        u = add_linear(layer["bias"], x_ND, layer["weight"])
        if heads is not None:
            u = moved_by_context(u, mixed, params["context"]["trunk"][str(k)], heads["trunk"][str(k)])
        if z is not None:
            u = add_mix(u, z, layer["positive_weight"], config.trunk)
        elif config.gate:
            gate = act(add_linear(params["gate"]["bias"], x_ND, params["gate"]["weight"]), config.activation)
            u = u + (gate if config.trunk == "shared" else gate[:, None, :])
        z = act(u, config.activation)
        z = z if heads is None else heads["trunk"][str(k)]["scale"] * z
    return z


def moved_by_context(u: Tensor, mixed: Tensor, turn: Tree, head: Tree) -> Tensor:
    """Return `slope (A x + b) + B(c) x + bias` from `A x + b`, the inputs times the context, and a layer's heads."""
    u = head["slope"] * u + head["bias"]
    return add_linear(u, mixed, turn["weight"].reshape(-1, *turn["weight"].shape[2:])) if "weight" in turn else u


def petal_values(params: Tree, x_ND: Tensor, config: HullConfig, heads: Tree | None = None) -> Tensor:
    """Return f, the value of every petal, (N, P, O), from `effective` parameters.

    Args:
        params, x_ND, config: of the hull.
        heads: what the context of each row makes of the parameters (`convexmoe.hull.context`); None without one.
    """
    z = hidden_units(params, x_ND, config, heads)
    readout = params["readout"]
    bias, weight, mix = readout["bias"], readout["weight"], readout["positive_weight"]
    if config.trunk == "shared":
        return add_both(bias, x_ND, weight, z, mix)
    return add_mix(add_linear(bias, x_ND, weight), z, mix, config.trunk)
