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
    places = torch.arange(len(routes), device=routes.device)
    back = torch.empty_like(take).scatter_(0, take, places)
    counts = torch.zeros(num_experts + 1, dtype=torch.int64, device=routes.device)
    return Plan(take, back, counts.scatter_add_(0, keys, torch.ones_like(keys)))


class _Permuted(torch.autograd.Function):
    """`x[take]`, whose transpose is the gather `g[back]`: indexing's own backward is a scatter."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, take: Tensor, back: Tensor) -> Tensor:
        return x[take]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        take, back = ctx.saved_tensors
        return _Permuted.apply(grads[0], back, take), None, None


def permuted(x: Tensor, take: Tensor, back: Tensor) -> Tensor:
    """Return `x[take]` for a permutation and its inverse."""
    return _Permuted.apply(x, take, back) if x.is_floating_point() else x[take]


class _Touched(torch.autograd.Function):
    """The identity on `x`, which gives zero gradients, not None, to parameters that had no rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.like = [(p.shape, p.dtype, p.device) for p in parameters]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        zeros = [torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.like]
        return grads[0], *zeros


def touched(x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Return `x`, with zero gradients to `parameters`."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return _Touched.apply(x, *trained) if trained and torch.is_grad_enabled() else x


@torch.library.custom_op("convexmoe::grouped_linear", mutates_args=())
def grouped_linear(x: Tensor, counts: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Return `x_e @ weights[e] + biases[e]` for the rows of each expert, which stand one expert after the other.

    Args:
        x: sorted rows `[B, D]`; those after the last expert's give zeros.
        counts: rows of each expert, `[E + 1]`.
        weights: `[D, O]` each.
        biases: `[O]` each.
    """
    y = x.new_zeros(x.shape[0], weights[0].shape[1])
    at = 0
    for count, weight, bias in zip(counts.tolist(), weights, biases, strict=False):
        if count:
            torch.addmm(bias, x[at : at + count], weight, out=y[at : at + count])
        at += count
    return y


@grouped_linear.register_fake
def _(x: Tensor, counts: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    return x.new_empty(x.shape[0], weights[0].shape[1])


@torch.library.custom_op("convexmoe::grouped_linear_backward", mutates_args=())
def grouped_linear_backward(
    grad: Tensor, x: Tensor, counts: Tensor, weights: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return the gradients by x, by each weight and by each bias; zeros for an expert without rows."""
    by_x = torch.zeros_like(x)
    by_weights = [torch.zeros_like(weight) for weight in weights]
    by_biases = [weight.new_zeros(weight.shape[1]) for weight in weights]
    at = 0
    for i, count in enumerate(counts.tolist()[:-1]):
        if count:
            rows = slice(at, at + count)
            torch.mm(grad[rows], weights[i].T, out=by_x[rows])
            torch.mm(x[rows].T, grad[rows], out=by_weights[i])
            by_biases[i] = grad[rows].sum(dim=0)
        at += count
    return by_x, by_weights, by_biases


@grouped_linear_backward.register_fake
def _(
    grad: Tensor, x: Tensor, counts: Tensor, weights: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    by_biases = [weight.new_empty(weight.shape[1]) for weight in weights]
    return torch.empty_like(x), [torch.empty_like(weight) for weight in weights], by_biases


def _save(ctx: Any, inputs: Any, output: Tensor) -> None:
    x, counts, weights, _ = inputs
    ctx.save_for_backward(x, counts, *weights)


def _backward(ctx: Any, grad: Tensor) -> Any:
    x, counts, *weights = ctx.saved_tensors
    by_x, by_weights, by_biases = grouped_linear_backward(grad.contiguous(), x, counts, weights)
    return by_x, None, by_weights, by_biases


grouped_linear.register_autograd(_backward, setup_context=_save)


def _save_backward(ctx: Any, inputs: Any, output: Any) -> None:
    grad, x, counts, weights = inputs
    ctx.save_for_backward(grad, x, counts, *weights)


def _backward_twice(ctx: Any, of_x: Tensor, of_weights: list[Tensor], of_biases: list[Tensor]) -> Any:
    grad, x, counts, *weights = ctx.saved_tensors
    no_bias = [torch.zeros_like(bias) for bias in of_biases]
    by_grad = grouped_linear(of_x, counts, weights, of_biases)
    by_grad = by_grad + grouped_linear(x, counts, of_weights, no_bias)
    by_x, _, _ = grouped_linear_backward(grad, x, counts, of_weights)
    _, by_weights, _ = grouped_linear_backward(grad, of_x, counts, weights)
    return by_grad, by_x, None, by_weights


grouped_linear_backward.register_autograd(_backward_twice, setup_context=_save_backward)
