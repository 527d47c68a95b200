"""Products of arrays, summed over shared axes, and what is known of them.

Letters: B batch, M rows of the left, N columns of the right, K summed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .calculus import linear, multiply_elements, sum_over
from .facts import Array, Value, nothing

# Products of elements; above, one factor must be constant, and bounds are signs only.
LARGEST_EXPANSION = 200_000


class Axes(NamedTuple):
    """Which axes of the left and of the right are summed, and which are batch axes."""

    sum_left: tuple[int, ...]
    sum_right: tuple[int, ...]
    batch_left: tuple[int, ...] = ()
    batch_right: tuple[int, ...] = ()


def contract(left: Value, right: Value, axes: Axes, same: bool = False) -> Value:
    """Return the sum over K of left * right, `[batch..., rest of left..., rest of right...]`.

    Args:
        left, right: the factors.
        axes: as `jax.lax.dot_general` has them.
        same: both factors are the same value, so that products of an element with itself are squares.
    """
    rows = _plan_axes(left.shape, axes.batch_left, axes.sum_left)
    columns = _plan_axes(right.shape, axes.batch_right, axes.sum_right)
    shape = (*rows.batch, *rows.others, *columns.others)
    B, M, K, N = (int(np.prod(s)) for s in (rows.batch, rows.others, rows.summed, columns.others))

    def index(plan: _Plan, size: int) -> Array:
        return np.arange(int(np.prod(plan.shape))).reshape(plan.shape).transpose(plan.order).reshape(B, size, K)

    left_BMK, right_BNK = index(rows, M), index(columns, N)
    if B * M * N * K <= LARGEST_EXPANSION:
        one = left.take(np.ascontiguousarray(np.broadcast_to(left_BMK[:, :, None], (B, M, N, K))))
        two = right.take(np.ascontiguousarray(np.broadcast_to(right_BNK[:, None], (B, M, N, K))))
        squares = np.broadcast_to(left_BMK[:, :, None] == right_BNK[:, None], (B, M, N, K)) & same
        return sum_over(multiply_elements(one, two, squares), (3,)).reshape(*shape)

    def product(first: Array, second: Array) -> Array:
        """The same contraction of two arrays of numbers: `first` goes with `left`."""
        return np.matmul(first.reshape(-1)[left_BMK], second.reshape(-1)[right_BNK].swapaxes(1, 2))

    if left.constant.all():
        return linear(left, right, product).reshape(*shape)
    if right.constant.all():
        return linear(right, left, lambda first, second: product(second, first)).reshape(*shape)
    return nothing(shape)


class _Plan(NamedTuple):
    shape: tuple[int, ...]
    batch: tuple[int, ...]
    others: tuple[int, ...]
    summed: tuple[int, ...]
    order: tuple[int, ...]


def _plan_axes(shape: tuple[int, ...], batch: tuple[int, ...], summed: tuple[int, ...]) -> _Plan:
    """Return the sizes and the order of the axes of one factor: batch, others, summed."""
    others = tuple(axis for axis in range(len(shape)) if axis not in (*batch, *summed))

    def sizes(axes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(shape[axis] for axis in axes)

    return _Plan(shape, sizes(batch), sizes(others), sizes(summed), (*batch, *others, *summed))
