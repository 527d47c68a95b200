"""One matrix product an expert, of the rows that are its own: a table of backends, and gradients of the same kind.

    y[r] = rows[r] @ weights[e]       for the rows r of expert e, which stand one expert after the other

Letters: B rows, E experts, I in, O out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from convexmoe.hierarchy import grouped as core

ALIGNMENT = 16  # bytes of which the stride of an operand of `grouped_mm` is a multiple


def grouped_matmul(rows: Tensor, weights: Tensor, sizes: Tensor, implementation: str | None = None) -> Tensor:
    """Return `rows[r] @ weights[e]` for the rows of each expert e, which stand one expert after the other.

    Guarantee: exact for all sizes, on a device without a wait for their values; rows after the last expert's give
    exactly 0, an expert without rows gets exactly 0 for a gradient, and a NaN in a row touches no other expert's values
    or gradients. In reverse mode of any order (tests/contract/test_grouped.py).

    Args:
        rows: `[B, I]`, of any floating dtype.
        weights: `[E, I, O]`, of the same dtype.
        sizes: the rows of each expert, integers `[E]` whose sum is at most B (looked at by "loop" alone: it is data).
        implementation: "loop" (a product an expert, whose sizes are read on the host), "blocks" (a batch of blocks of
            static shape, each with a copy of its expert's weight), or "grouped_mm" (PyTorch's own, which takes widths
            that are multiples of 16 bytes, on CUDA in bfloat16). None means what CONVEXMOE_GROUPED names, or else the
            best known for the device.

    Raises:
        TypeError, ValueError: an operand has another shape or dtype, or no backend of this name takes them.

    >>> x, w = torch.ones(5, 3), torch.ones(2, 3, 4)
    >>> grouped_matmul(x, w, torch.tensor([2, 1]))[:, 0].tolist()
    [3.0, 3.0, 3.0, 0.0, 0.0]
    """
    core.check_operands(rows, weights, sizes, (Tensor,))
    if implementation is not None:
        _choose(implementation, rows, weights)
    return _Product.apply(rows, weights, sizes, implementation)


def _order(x: Tensor) -> tuple[str, ...]:
    return ORDERS.get(x.device.type, ("blocks",))


def _choose(implementation: str | None, one: Tensor, other: Tensor) -> core.Backend:
    return BACKENDS[core.choose_backend(implementation, BACKENDS, _order(one), one, other)]


def runs_on_device(x: Tensor) -> bool:
    """Return whether the experts of a hierarchy take these products: on devices, where counts are not looked at."""
    return core.hierarchy_backend(BACKENDS, _order(x)) is not None


class _OfRows(torch.autograd.Function):
    """A function of two operands, sizes and the name of a backend, which its gradient needs again."""

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.implementation = inputs[3]


class _Product(_OfRows):
    """`grouped_matmul`; its gradients are products and outer products of the same rows."""

    @staticmethod
    def forward(rows: Tensor, weights: Tensor, sizes: Tensor, implementation: str | None) -> Tensor:
        if rows.numel() == 0:
            return rows.new_zeros(rows.shape[0], weights.shape[2])
        y = _choose(implementation, rows, weights).product(_owned(rows, sizes), weights, sizes)
        return _owned(y, sizes)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        rows, weights, sizes = ctx.saved_tensors
        by_rows = by_weights = None
        if ctx.needs_input_grad[0]:
            by_rows = _Product.apply(grads[0], weights.transpose(1, 2), sizes, ctx.implementation)
        if ctx.needs_input_grad[1]:
            by_weights = _Outer.apply(rows, grads[0], sizes, ctx.implementation)
        return by_rows, by_weights, None, None


class _Outer(_OfRows):
    """`[B, I]`, `[B, O]` -> `[E, I, O]`: the sum over an expert's rows of their outer products."""

    @staticmethod
    def forward(rows: Tensor, grads: Tensor, sizes: Tensor, implementation: str | None) -> Tensor:
        if rows.numel() == 0:
            return rows.new_zeros(len(sizes), rows.shape[1], grads.shape[1])
        sums = _choose(implementation, rows, grads).outer(_owned(rows, sizes), _owned(grads, sizes), sizes)
        return torch.where(sizes[:, None, None] > 0, sums, 0)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        rows, own, sizes = ctx.saved_tensors
        by_rows = _Product.apply(own, grads[0].transpose(1, 2), sizes, ctx.implementation)
        return by_rows, _Product.apply(rows, grads[0], sizes, ctx.implementation), None, None


def _owned(rows: Tensor, sizes: Tensor) -> Tensor:
    """Return rows with zeros, even for NaN, in those of no expert."""
    places = torch.arange(rows.shape[0], device=rows.device)
    return torch.where((places < sizes.sum())[:, None], rows, 0)


def _split(x: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
    counts = sizes.tolist()
    core.check_sum(counts, x.shape[0])
    return x.split([*counts, x.shape[0] - sum(counts)])


def _multiply_one_by_one(rows: Tensor, weights: Tensor, sizes: Tensor) -> Tensor:
    *parts, rest = _split(rows, sizes)
    products = [part @ weight for part, weight in zip(parts, weights, strict=True)]
    return torch.cat([*products, rest.new_zeros(len(rest), weights.shape[2])])


def _sum_one_by_one(rows: Tensor, grads: Tensor, sizes: Tensor) -> Tensor:
    parts = zip(_split(rows, sizes), _split(grads, sizes), strict=True)
    return torch.stack([part.T @ grad for part, grad in parts][:-1])


class _Blocks(NamedTuple):
    """Blocks of static shape, each of the rows of one expert.

    Args:
        expert: of each block, int64 `[blocks]`.
        row: that stands at each place, int64 `[blocks, size]`; B where none does.
        place: of each row, counted over all blocks, int64 `[B]`.
    """

    expert: Tensor
    row: Tensor
    place: Tensor


def _lay_out(sizes: Tensor, rows: int) -> _Blocks:
    number, size = core.block_shape(rows, len(sizes))
    sizes, last = sizes.to(torch.int64), len(sizes) - 1
    ends, block_ends = sizes.cumsum(0), ((sizes + size - 1) // size).cumsum(0)
    starts, block_starts = ends - sizes, block_ends - (sizes + size - 1) // size
    block, own = torch.arange(number, device=sizes.device), torch.arange(rows, device=sizes.device)
    expert = torch.searchsorted(block_ends, block, right=True).clamp(max=last)
    row = (starts[expert] + (block - block_starts[expert]) * size)[:, None] + own[:size]
    row = torch.where(row < ends[expert][:, None], row, rows)
    expert_of_row = torch.searchsorted(ends, own, right=True).clamp(max=last)
    place = block_starts[expert_of_row] * size + own - starts[expert_of_row]
    return _Blocks(expert, row, place.clamp(max=number * size - 1))


def _read_blocks(x: Tensor, blocks: _Blocks) -> Tensor:
    """Return the rows of all blocks, `[blocks, size, ...]`, with zeros where a block has none."""
    return torch.cat([x, x.new_zeros(1, x.shape[1])])[blocks.row]


def _multiply_blocks(rows: Tensor, weights: Tensor, sizes: Tensor) -> Tensor:
    blocks = _lay_out(sizes, len(rows))
    y = torch.bmm(_read_blocks(rows, blocks), weights[blocks.expert])
    return y.reshape(-1, y.shape[-1])[blocks.place]


def _sum_blocks(rows: Tensor, grads: Tensor, sizes: Tensor) -> Tensor:
    blocks = _lay_out(sizes, len(rows))
    parts = torch.bmm(_read_blocks(rows, blocks).transpose(1, 2), _read_blocks(grads, blocks))
    wide = torch.promote_types(rows.dtype, torch.float32)
    sums = torch.zeros(len(sizes), *parts.shape[1:], dtype=wide, device=rows.device)
    return sums.index_add(0, blocks.expert, parts.to(wide)).to(rows.dtype)


def _takes_grouped_mm(one: Tensor, other: Tensor) -> bool:
    """Return whether `grouped_mm` takes operands: not float64, on CUDA bfloat16 alone, and 16-byte strides."""
    on_host, widths = one.device.type == "cpu", (one.shape[-1], *other.shape[1:])
    dtypes = (torch.bfloat16, torch.float16, torch.float32) if on_host else (torch.bfloat16,)
    has_it = hasattr(torch.nn.functional, "grouped_mm") and (on_host or one.device.type == "cuda")
    return has_it and one.dtype in dtypes and not any(n * one.element_size() % ALIGNMENT for n in widths)


def _in_rows_or_columns(weights: Tensor) -> Tensor:
    """Return weights that are contiguous, or transposed views of such."""
    return weights if weights.transpose(1, 2).is_contiguous() else weights.contiguous()


def _run_grouped_mm(one: Tensor, other: Tensor, sizes: Tensor) -> Tensor:
    return torch.nn.functional.grouped_mm(one, other, offs=sizes.cumsum(0).to(torch.int32))


BACKENDS = {
    core.LOOP: core.Backend(_multiply_one_by_one, _sum_one_by_one),
    "blocks": core.Backend(_multiply_blocks, _sum_blocks),
    "grouped_mm": core.Backend(
        lambda rows, weights, sizes: _run_grouped_mm(rows.contiguous(), _in_rows_or_columns(weights), sizes),
        lambda rows, grads, sizes: _run_grouped_mm(rows.contiguous().T, grads.contiguous(), sizes),
        _takes_grouped_mm,
    ),
}
# The best first; other devices take blocks. Not measured on a device.
ORDERS = {"cpu": (core.LOOP,), "cuda": ("grouped_mm", "blocks")}
