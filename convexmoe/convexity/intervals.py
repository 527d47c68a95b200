"""Bounds of sums and products of real numbers, in float64, rounded outward: they hold in exact arithmetic.

A lower bound is never +inf and an upper bound never -inf, since what they bound is a real number; 0 times an
unbounded number is 0 for the same reason.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

Array = np.ndarray

LARGEST = float(np.finfo(np.float64).max)
SAFE = 1e-280, 1e280  # products in this range lose nothing to underflow or overflow in `_product_error`
SPLIT = 134217729.0  # 2^27 + 1, cuts a float64 into two halves of 26 bits (Dekker 1971)
# Relative error of the elementary functions of numpy, with a margin: they are within a few units in the last place.
ELEMENTARY = 1e-14


def round_fraction(number: Fraction | float, end: float) -> float:
    """Return a rational number as a float, rounded towards an end."""
    near = float(number)
    return near if near == number else math.nextafter(near, end)


def add_up(a: Array, b: Array) -> Array:
    """Return an upper bound of a + b; the sum itself where that is a float64 (Knuth's two-sum)."""
    with np.errstate(all="ignore"):
        total = a + b
        part = total - a
        error = (a - (total - part)) + (b - part)
        total = np.where(error > 0, np.nextafter(total, np.inf), total)
    return np.maximum(np.where(np.isnan(total), np.inf, total), -LARGEST)


def add_down(a: Array, b: Array) -> Array:
    """Return a lower bound of a + b."""
    return -add_up(-a, -b)


def _product_error(a: Array, b: Array, product: Array) -> Array:
    """Return a * b - product, exactly; NaN where that cannot be told (Dekker's two-product)."""
    high_a, high_b = SPLIT * a, SPLIT * b
    high_a, high_b = high_a - (high_a - a), high_b - (high_b - b)
    low_a, low_b = a - high_a, b - high_b
    error = low_a * low_b - (((product - high_a * high_b) - low_a * high_b) - high_a * low_b)
    size = np.abs(product)
    return np.where((size > SAFE[0]) & (size < SAFE[1]), error, np.nan)


def multiply(a_lower: Array, a_upper: Array, b_lower: Array, b_upper: Array) -> tuple[Array, Array]:
    """Return bounds of a * b."""
    a = np.stack(np.broadcast_arrays(a_lower, a_lower, a_upper, a_upper))
    b = np.stack(np.broadcast_arrays(b_lower, b_upper, b_lower, b_upper))
    with np.errstate(all="ignore"):
        zero = (a == 0) | (b == 0)
        product = np.where(zero, 0.0, a * b)
        error = np.where(zero | np.isinf(a) | np.isinf(b), 0.0, _product_error(a, b, product))
        lower = np.where(error >= 0, product, np.nextafter(product, -np.inf))
        upper = np.where(error <= 0, product, np.nextafter(product, np.inf))
    return np.minimum(lower.min(axis=0), LARGEST), np.maximum(upper.max(axis=0), -LARGEST)


def total(lower: Array, upper: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Return bounds of the sum over `axes`."""
    count = math.prod(lower.shape[axis] for axis in axes)
    high = _sum_up(upper, axes, count)
    low = -_sum_up(-lower, axes, count)
    # Rounding never takes the sign from a sum of numbers of one sign.
    low = np.where((lower >= 0).all(axis=axes), np.maximum(low, 0.0), low)
    high = np.where((upper <= 0).all(axis=axes), np.minimum(high, 0.0), high)
    return np.minimum(low, LARGEST), np.maximum(high, -LARGEST)


def _sum_up(upper: Array, axes: tuple[int, ...], count: int) -> Array:
    with np.errstate(all="ignore"):
        summed = np.sum(upper, axis=axes)
        size = np.sum(np.abs(upper), axis=axes)
        scaled = upper * 2.0**30
        whole = (np.rint(scaled) == scaled).all(axis=axes) & (size * 2.0**30 < 2.0**53)  # summed exactly
        whole |= np.count_nonzero(upper, axis=axes) <= 1
        wide = np.nextafter(summed + 4.0 * count * 2.0**-53 * size, np.inf)
    result = np.where(whole | np.isinf(summed), summed, wide)
    return np.where(np.isnan(result), np.inf, result)


def matrix_product(a_lower: Array, a_upper: Array, b_lower: Array, b_upper: Array) -> tuple[Array, Array]:
    """Return bounds of a @ b.T; sums of short numbers, and single products by powers of 2, are exact."""
    with np.errstate(all="ignore"):
        (a, a_off), (b, b_off) = (
            (middle, np.nextafter(np.maximum(high - middle, middle - low), np.inf) * (high > low))
            for low, high in ((a_lower, a_upper), (b_lower, b_upper))
            for middle in ((low + high) / 2,)
        )
        product, size = a @ b.T, np.abs(a) @ np.abs(b.T)
        off = (np.abs(a) + a_off) @ b_off.T + a_off @ np.abs(b.T)
        single = ((a != 0) * 1.0) @ ((b != 0) * 1.0).T <= 1
        single &= any(np.isin(np.frexp(np.abs(part))[0], (0.0, 0.5)).all() for part in (a, b))
        whole = all((np.rint(part * 2.0**15) == part * 2.0**15).all() for part in (a, b)) & (size * 2.0**30 < 2.0**53)
        exact = (single | whole) & (off == 0)
        off = np.where(exact, 0.0, 1.01 * off + 4.0 * (a.shape[1] + 2) * 2.0**-53 * size + 1e-300)
        lower, upper = product - off, product + off
    return np.where(exact, product, np.nextafter(lower, -np.inf)), np.where(exact, product, np.nextafter(upper, np.inf))


def widen(lower: Array, upper: Array) -> tuple[Array, Array]:
    """Return bounds with room for the rounding of an elementary function."""
    with np.errstate(all="ignore"):
        low = lower - ELEMENTARY * np.abs(lower) - 1e-300
        high = upper + ELEMENTARY * np.abs(upper) + 1e-300
    low = np.where(np.isnan(low) | np.isneginf(lower), -np.inf, low)
    high = np.where(np.isnan(high) | np.isposinf(upper), np.inf, high)
    return np.minimum(low, LARGEST), np.maximum(high, -LARGEST)
