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
    keys, take = torch.sort(torch.where(valid, routes, num_experts), stable=True)
    places = torch.arange(len(routes), device=routes.device)
    back = torch.empty_like(take).scatter_(0, take, places)
    ends = torch.searchsorted(keys, places.new_tensor(range(num_experts + 1)), right=True)
    return Plan(take, back, torch.diff(ends, prepend=ends.new_zeros(1)))


class _Permuted(torch.autograd.Function):
    """`x[take]`, whose transpose is the gather `g[back]`: indexing's own backward is a scatter."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, take: Tensor, back: Tensor) -> Tensor:
        return x.index_select(0, take)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        take, back = ctx.saved_tensors
        return permuted(grads[0], back, take), None, None


def permuted(x: Tensor, take: Tensor, back: Tensor) -> Tensor:
    """Return `x[take]` for a permutation and its inverse."""
    if x.requires_grad and torch.is_grad_enabled():
        return _Permuted.apply(x, take, back)
    return x.index_select(0, take)  # some times faster than x[take]


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


def grouped_linear(x: Tensor, counts: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Return `x_e @ weights[e] + biases[e]` for the rows of each expert, which stand one expert after the other.

    Args:
        x: sorted rows `[B, D]`; those after the last expert's give zeros.
        counts: rows of each expert, `[E + 1]`.
        weights: `[D, O]` each.
        biases: `[O]` each.
    """
    if torch.compiler.is_compiling():
        return compiled_linear(x, counts, weights, biases)
    return _GroupedLinear.apply(x, counts, len(weights), *weights, *biases)


def _outputs(x: Tensor, counts: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    y = x.new_empty(x.shape[0], weights[0].shape[1])
    *own, rest = counts.tolist()
    *parts, tail = zip(x.split([*own, rest]), y.split([*own, rest]), strict=True)
    for (rows, out), weight, bias in zip(parts, weights, biases, strict=True):
        if len(rows):
            torch.addmm(bias, rows, weight, out=out)
    tail[1].zero_()
    return y


def _gradients(
    grad: Tensor, x: Tensor, counts: Tensor, weights: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return the gradients by x, by each weight and by each bias; zeros for an expert without rows."""
    by_x = torch.empty_like(x)
    sizes = counts.tolist()
    *parts, tail = zip(x.split(sizes), grad.split(sizes), by_x.split(sizes), strict=True)
    by_weights, by_biases = [], []
    for (rows, given, out), weight in zip(parts, weights, strict=True):
        torch.mm(given, weight.T, out=out)
        by_weights.append(torch.mm(rows.T, given))
        by_biases.append(given.sum(dim=0))
    tail[2].zero_()
    return by_x, by_weights, by_biases


class _GroupedLinear(torch.autograd.Function):
    """`grouped_linear` outside `torch.compile`: a custom operator takes its time to look at lists of tensors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: Tensor, number: int, *parameters: Tensor) -> Tensor:
        weights = parameters[:number]
        ctx.save_for_backward(x, counts, *weights)
        return _outputs(x, counts, weights, parameters[number:])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, counts, *weights = ctx.saved_tensors
        gradients = compiled_gradients if torch.is_grad_enabled() else _gradients
        by_x, by_weights, by_biases = gradients(grads[0].contiguous(), x, counts, weights)
        return by_x, None, None, *by_weights, *by_biases


compiled_linear = torch.library.custom_op("convexmoe::grouped_linear", _outputs, mutates_args=())
compiled_gradients = torch.library.custom_op(
    "convexmoe::grouped_linear_backward", _gradients, mutates_args=()
)


@compiled_linear.register_fake
def _(x: Tensor, counts: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    return x.new_empty(x.shape[0], weights[0].shape[1])


@compiled_gradients.register_fake
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
    by_x, by_weights, by_biases = compiled_gradients(grad.contiguous(), x, counts, weights)
    return by_x, None, by_weights, by_biases


compiled_linear.register_autograd(_backward, setup_context=_save)


def _save_backward(ctx: Any, inputs: Any, output: Any) -> None:
    grad, x, counts, weights = inputs
    ctx.save_for_backward(grad, x, counts, *weights)


def _backward_twice(ctx: Any, of_x: Tensor, of_weights: list[Tensor], of_biases: list[Tensor]) -> Any:
    grad, x, counts, *weights = ctx.saved_tensors
    no_bias = [torch.zeros_like(bias) for bias in of_biases]
    by_grad = compiled_linear(of_x, counts, weights, of_biases)
    by_grad = by_grad + compiled_linear(x, counts, of_weights, no_bias)
    by_x, _, _ = compiled_gradients(grad, x, counts, of_weights)
    _, by_weights, _ = compiled_gradients(grad, of_x, counts, weights)
    return by_grad, by_x, None, by_weights


compiled_gradients.register_autograd(_backward_twice, setup_context=_save_backward)
