"""Rows that cross processes: gathered from all of a group, and handed back; each is the other's transpose."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

from convexmoe import hierarchy as core
from convexmoe.errors import fail

from ..hierarchy.dispatch import connect

Group = distributed.ProcessGroup
# the names of both since PyTorch 2.13, and before
_gather_into: Any = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
_reduce_into: Any = getattr(distributed, "reduce_scatter_single", None) or distributed.reduce_scatter_tensor


def _all_gather(x: Tensor, group: Group) -> Tensor:
    gathered = x.new_empty((x.shape[0] * group.size(), *x.shape[1:]))
    _gather_into(gathered, x.contiguous(), group=group)
    return gathered


def _reduce_scatter(x: Tensor, group: Group) -> Tensor:
    own = x.new_empty((x.shape[0] // group.size(), *x.shape[1:]))
    _reduce_into(own, x.contiguous(), group=group)
    return own


class _Gather(torch.autograd.Function):
    """All-gather of several tensors; backward is one reduce-scatter each.

    They go through one node, whose backward runs on every process that uses any of them: the collectives of all
    processes come in one order, whatever their experts use.
    """

    @staticmethod
    def forward(ctx: Any, group: Group, *xs: Tensor) -> tuple[Tensor, ...]:
        ctx.group = group
        gathered = tuple(_all_gather(x, group) for x in xs)
        ctx.mark_non_differentiable(*(x for x in gathered if not x.is_floating_point()))
        return gathered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        needed = zip(grads, ctx.needs_input_grad[1:], strict=True)
        return None, *(_reduce_scatter(grad, ctx.group) if need else None for grad, need in needed)


class _Return(torch.autograd.Function):
    """Reduce-scatter; backward is an all-gather."""

    @staticmethod
    def forward(ctx: Any, group: Group, x: Tensor) -> Tensor:
        ctx.group = group
        return _reduce_scatter(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        return None, _all_gather(grads[0], ctx.group)


def gather_rows(xs: Sequence[Tensor], most: int, group: Group) -> tuple[Tensor, ...]:
    """Return tensors `[rows, ...]` of all processes, `[size * most, ...]`: those of each padded to `most` rows.

    Padding is 0, in signed integers -1, which is the route of a row without an expert.
    """
    padded = []
    for x in xs:
        fill = -1 if x.dtype.is_signed and not x.is_floating_point() else 0
        more = x.new_full((most - x.shape[0], *x.shape[1:]), fill)
        padded.append(torch.cat([x, more]) if len(more) else x)
    return _Gather.apply(group, *padded)


def return_rows(x: Tensor, rows: int, group: Group) -> Tensor:
    """Return the sum over all processes of the own part, `[rows, ...]`, of `[size * most, ...]`."""
    return _Return.apply(group, x)[:rows]


def count_rows(hidden: Tensor, group: Group) -> int:
    """Return the largest number of rows of a process.

    Raises:
        ValueError: processes have sequences of different lengths; all of them raise it.
    """
    sizes = _all_gather(torch.tensor([hidden.shape[:-1]], dtype=torch.int64, device=hidden.device), group)
    lengths = sorted({tuple(shape) for shape in sizes[:, 1:].tolist()})
    if len(lengths) > 1:
        got = f"the lengths {[length for (length,) in lengths]}"
        fail(core.OWNER, "hidden", "sequences of one length on all processes", got, "Pad them, and pass a mask.")
    return int(sizes[:, 0].max())


def share_losses(losses: Mapping[str, Tensor], like: Tensor, group: Group) -> dict[str, Tensor]:
    """Return the losses of the experts of all processes; the gradient of each is the sum over all of them.

    Args:
        losses: name -> scalar, of the own experts.
        like: a tensor of the level, whose device they have, and whose dtype, or float32 where that is narrower.
        group: the processes.
    """
    text = torch.tensor(list(json.dumps(list(losses)).encode()), dtype=torch.int32, device=like.device)
    sizes = torch.tensor([[len(text), len(losses)]], dtype=torch.int64, device=like.device)
    longest, count = _all_gather(sizes, group).amax(0).tolist()
    if count == 0:
        return {}
    dtype = torch.promote_types(like.dtype, torch.float32)
    own = torch.cat([like.new_empty(0, dtype=dtype), *(v.to(like.device, dtype).reshape(1) for v in losses.values())])
    anchor = own.new_zeros((), requires_grad=True)  # so that backward runs on every process
    texts, values = gather_rows([text], longest, group)[0], gather_rows([connect(own, [anchor])], count, group)[0]
    names = [json.loads(bytes(code for code in row if code >= 0)) for row in texts.reshape(-1, longest).tolist()]
    return {name: values[r * count + i] for r, own_names in enumerate(names) for i, name in enumerate(own_names)}
