"""Running each expert on its own rows: exact, without dropping rows.

Rows are sorted by expert once, and every expert works on a contiguous view of its rows. Linear maps of one shape run as
one operator, whose graph is the same for all routes: `torch.compile(fullgraph=True)` compiles it once.

Letters: B rows, E experts, D in, O out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .grouped import grouped_matmul, runs_on_device


class Plan(NamedTuple):
    """Where the rows go.

    Args:
        take: the row that stands at each sorted place, int64 `[B]`.
        back: the sorted place of each row, int64 `[B]`.
        counts: the rows of each expert, and last of those that have none, int64 `[E + 1]`.
    """

    take: Tensor
    back: Tensor
    counts: Tensor


def make_plan(routes: Tensor, num_experts: int) -> Plan:
    """Return the plan of integer `routes`, `[B]`; a route outside [0, E) has no expert."""
    valid = (routes >= 0) & (routes < num_experts)
    keys = torch.where(valid, routes, num_experts).to(torch.int64)
    take = torch.argsort(keys, stable=True)
    back = torch.empty_like(take).scatter_(0, take, torch.arange(len(routes), device=routes.device))
    counts = keys.new_zeros(num_experts + 1).scatter_add_(0, keys, torch.ones_like(keys))
    return Plan(take, back, counts)


class _Permute(torch.autograd.Function):
    """`x[take]`, whose transpose is the gather `g[back]`: indexing's own backward is a scatter."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, take: Tensor, back: Tensor) -> Tensor:
        return x.index_select(0, take)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        take, back = ctx.saved_tensors
        return permute_rows(grads[0], back, take), None, None


class _PermuteBothWays(_Permute):
    """The same with forward mode, which `torch.compile` does not take."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return permute_rows(tangents[0], *ctx.saved_tensors)


def permute_rows(x: Tensor, take: Tensor, back: Tensor) -> Tensor:
    """Return `x[take]` for a permutation and its inverse."""
    if x.requires_grad and torch.is_grad_enabled():
        function = _Permute if torch.compiler.is_compiling() else _PermuteBothWays
        return function.apply(x, take, back)
    return x.index_select(0, take)  # some times faster than x[take]


class _Connect(torch.autograd.Function):
    """The identity on `x`, which gives zero gradients, not None, to parameters that had no rows."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, *parameters: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.like = [(p.shape, p.dtype, p.device) for p in inputs[1:]]

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return tangents[0].view_as(tangents[0])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        zeros = [torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.like]
        return grads[0], *zeros


def connect(x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Return `x`, connected to `parameters`, so that their gradients are zero, not None."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return _Connect.apply(x, *trained) if trained and torch.is_grad_enabled() else x


def grouped_linear(x: Tensor, counts: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Return `x_e @ weights[e] + biases[e]` for the rows of each expert, which stand one expert after the other.

    Args:
        x: sorted rows `[B, D]`; those after the last expert's give zeros.
        counts: rows of each expert, `[E + 1]`.
        weights: `[D, O]` each.
        biases: `[O]` each.
    """
    if runs_on_device(x):
        sizes = counts[:-1]
        places = torch.arange(len(x), device=x.device)
        expert = torch.searchsorted(sizes.cumsum(0), places, right=True)
        bias = torch.stack([*biases, torch.zeros_like(biases[0])])[expert]  # the last for rows without an expert
        return grouped_matmul(x, torch.stack(list(weights)), sizes) + bias
    if torch.compiler.is_compiling():
        return compiled_linear(x, counts, weights, biases)
    return _GroupedLinear.apply(x, counts.tolist(), len(weights), *weights, *biases)


class _GroupedLinear(torch.autograd.Function):
    """`grouped_linear` in eager mode, where a custom operator would spend its time on lists of tensors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int], number: int, *parameters: Tensor) -> Tensor:
        weights = parameters[:number]
        ctx.sizes = sizes
        ctx.save_for_backward(x, *weights)
        return _outputs(x, sizes, weights, parameters[number:])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, *weights = ctx.saved_tensors
        by_x, by_weights, by_biases = _gradients(grads[0], x, ctx.sizes, weights)
        return by_x, None, None, *by_weights, *by_biases


def _outputs(x: Tensor, sizes: list[int], weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    y = x.new_empty(x.shape[0], weights[0].shape[1])
    *parts, tail = zip(x.split(sizes), y.split(sizes), strict=True)
    for (rows, out), weight, bias in zip(parts, weights, biases, strict=True):
        torch.addmm(bias, rows, weight, out=out)
    tail[1].zero_()
    return y


def _gradients(
    grad: Tensor, x: Tensor, sizes: list[int], weights: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return the gradients by x, by each weight and by each bias; zeros for an expert without rows."""
    *parts, (tail, _) = zip(x.split(sizes), grad.split(sizes), strict=True)
    by_x = [given @ weight.T for (_, given), weight in zip(parts, weights, strict=True)]
    by_weights = [rows.T @ given for rows, given in parts]
    return torch.cat([*by_x, torch.zeros_like(tail)]), by_weights, [given.sum(dim=0) for _, given in parts]


@torch.library.custom_op("convexmoe::grouped_linear", mutates_args=())
def compiled_linear(x: Tensor, counts: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Return `grouped_linear`; its graph is the same for all counts."""
    return _outputs(x, counts.tolist(), weights, biases)


@torch.library.custom_op("convexmoe::grouped_linear_backward", mutates_args=())
def compiled_gradients(
    grad: Tensor, x: Tensor, counts: Tensor, weights: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return the gradients of `compiled_linear`."""
    return _gradients(grad, x, counts.tolist(), weights)


@compiled_linear.register_fake
def _(x: Tensor, counts: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    return x.new_empty(x.shape[0], weights[0].shape[1])


@compiled_gradients.register_fake
def _(grad: Tensor, x: Tensor, counts: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    by_biases = [weight.new_empty(weight.shape[1]) for weight in weights]
    return torch.empty_like(x), [torch.empty_like(weight) for weight in weights], by_biases


def _save(ctx: Any, inputs: Any, output: Tensor) -> None:
    x, counts, weights, _ = inputs
    ctx.save_for_backward(x, counts, *weights)


def _backward(ctx: Any, grad: Tensor) -> Any:
    x, counts, *weights = ctx.saved_tensors
    by_x, by_weights, by_biases = compiled_gradients(grad.contiguous(), x, counts, weights)
    return by_x, None, by_weights, by_biases


compiled_linear.register_autograd(_backward, setup_context=_save)
