"""Products of arrays, summed over shared axes, and what is known of them.

Letters: B batch, M rows of the left, N columns of the right, K summed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .calculus import Bilinear, linear, multiply_elements, sum_over
from .facts import Array, Value, nothing
from .graph import Operation

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
    shape = shape_of_product(left.shape, right.shape, axes)
    left_BMK = _index(left.shape, axes.batch_left, axes.sum_left)
    right_BNK = _index(right.shape, axes.batch_right, axes.sum_right)
    if left_BMK.size * right_BNK.shape[1] <= LARGEST_EXPANSION:
        at_left, at_right = pair_places(left.shape, right.shape, axes)
        products = multiply_elements(left.take(at_left), right.take(at_right), (at_left == at_right) & same)
        return sum_over(products, (1,)).reshape(*shape)

    def product(first: Array, second: Array) -> Array:
        """The same contraction of two arrays of numbers: `first` goes with `left`."""
        return np.matmul(first.reshape(-1)[left_BMK], second.reshape(-1)[right_BNK].swapaxes(1, 2))

    return bilinear(left, right, product, shape)


def pair_places(left: tuple[int, ...], right: tuple[int, ...], axes: Axes) -> tuple[Array, Array]:
    """Return the places of the elements that a product multiplies and sums, `[elements of the product, K]` each."""
    left_BMK = _index(left, axes.batch_left, axes.sum_left)
    right_BNK = _index(right, axes.batch_right, axes.sum_right)
    pair = np.broadcast_arrays(left_BMK[:, :, None], right_BNK[:, None])
    one, two = (np.ascontiguousarray(part).reshape(-1, left_BMK.shape[2]) for part in pair)
    return one, two


def axes_of(operation: Operation) -> Axes:
    """Return the axes of a product, as either package has them."""
    if "axes" in operation.params:
        return operation.params["axes"]
    (sum_left, sum_right), (batch_left, batch_right) = operation.params["dimension_numbers"]
    return Axes(tuple(sum_left), tuple(sum_right), tuple(batch_left), tuple(batch_right))


def contract_factors(operation: Operation, left: Value, right: Value) -> Value:
    """Return what is known of a product of two values."""
    return contract(left, right, axes_of(operation), operation.inputs[0] == operation.inputs[1])


def bilinear(left: Value, right: Value, product: Bilinear, shape: tuple[int, ...]) -> Value:
    """Return `product(left, right)`, of which one factor is constant, in a shape; nothing is known of others."""
    if left.constant.all():
        return linear(left, right, product).reshape(*shape)
    if right.constant.all():
        return linear(right, left, lambda first, second: product(second, first)).reshape(*shape)
    return nothing(shape)


def shape_of_product(left: tuple[int, ...], right: tuple[int, ...], axes: Axes) -> tuple[int, ...]:
    """Return `[batch..., rest of left..., rest of right...]`."""
    batch = tuple(left[axis] for axis in axes.batch_left)
    rows = (size for k, size in enumerate(left) if k not in (*axes.sum_left, *axes.batch_left))
    return (*batch, *rows, *(size for k, size in enumerate(right) if k not in (*axes.sum_right, *axes.batch_right)))


def _index(shape: tuple[int, ...], batch: tuple[int, ...], summed: tuple[int, ...]) -> Array:
    """Return the places of the elements of one factor, `[B, others, K]`."""
    others = [axis for axis in range(len(shape)) if axis not in (*batch, *summed)]
    sizes = [math.prod(shape[axis] for axis in axes) for axes in (batch, others, summed)]
    return np.arange(math.prod(shape)).reshape(shape).transpose(*batch, *others, *summed).reshape(sizes)
