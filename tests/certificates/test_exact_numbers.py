"""The arithmetic under a proof: bounds that hold for the real numbers, semidefiniteness without rounding, and sums of
products that are the same however they are counted. Held against rational numbers."""

import math
from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from convexmoe.convexity import contraction, factors, intervals, scalars
from convexmoe.convexity import facts as curvature
from convexmoe.convexity.contraction import Axes, contract
from convexmoe.convexity.facts import (
    AFFINE,
    CONCAVE,
    CONVEX,
    FALLING,
    LOG_CONVEX,
    NONZERO,
    QUADRATIC,
    REAL,
    RISING,
    ROOT_CONVEX,
    settle,
)
from convexmoe.convexity.semidefinite import is_semidefinite

NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-10, 10),
    st.sampled_from([0.0, -0.0, 5e-324, -5e-324, 1e-200, 1e200, 1.0, -1.0, 0.1, 1 / 3, 2.0**53, 1.5e308]),
)
BOUNDS = st.tuples(NUMBERS, NUMBERS).map(sorted)


def exact(number):
    return Fraction(float(number)) if math.isfinite(number) else number


@hypothesis.settings(max_examples=500)
@hypothesis.given(NUMBERS, NUMBERS)
def test_bounds_of_sums(a, b):
    true = Fraction(a) + Fraction(b)
    low, high = (intervals.add_down(np.float64(a), np.float64(b)), intervals.add_up(np.float64(a), np.float64(b)))
    assert exact(low) <= true <= exact(high)
    if Fraction(float(np.float64(a) + 0.0)) + Fraction(b) == exact(a + b) and math.isfinite(a + b):
        assert low == high == a + b  # what is exact stays exact: a sign is not lost


@hypothesis.settings(max_examples=500)
@hypothesis.given(BOUNDS, BOUNDS)
def test_bounds_of_products(a, b):
    low, high = intervals.multiply(*(np.float64(end) for end in (*a, *b)))
    products = [Fraction(x) * Fraction(y) for x in a for y in b]
    assert exact(low) <= min(products) and max(products) <= exact(high)
    if min(products) >= 0:
        assert low >= -5e-324
    if a[0] == a[1] == b[0] == b[1] == 3.0:
        assert low == high == 9.0


def test_products_of_float32_are_exact():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 1000)).astype(np.float32).astype(np.float64)
    low, high = intervals.multiply(a, a, b, b)
    assert (low == high).all()


@hypothesis.settings(max_examples=300)
@hypothesis.given(st.lists(NUMBERS, max_size=9))
def test_bounds_of_totals(numbers):
    array = np.array(numbers, np.float64)
    low, high = intervals.total(array, array, (0,))
    true = sum(map(Fraction, numbers), Fraction(0))
    assert exact(low) <= true <= exact(high)
    if all(number >= 0 for number in numbers):
        assert low >= 0


def test_control_a_sum_that_is_rounded_to_nearest_is_not_a_bound():
    a, b = np.float64(0.1), np.float64(0.2)
    assert Fraction(float(a + b)) != Fraction(float(a)) + Fraction(float(b))
    assert intervals.add_down(a, b) < intervals.add_up(a, b)


@pytest.mark.parametrize("name", [name for name, scalar in scalars.SCALARS.items() if scalar.value is not None])
def test_bounds_of_functions(name):
    """Bounds at a point hold for the function in 80 bits, where numpy has it, and are narrow."""
    scalar = scalars.SCALARS[name]
    low = max(scalar.domain[0], -30.0)
    at = np.concatenate([np.linspace(low + 1e-3, 30, 997), [1e-300, 1.0, 0.5]])
    value = scalars.apply(name, curvature.literal(at))
    wide = np.asarray(scalar.value(at.astype(np.longdouble)), np.longdouble)
    assert value.has(REAL).all() and (value.lower <= wide).all() and (wide <= value.upper).all()
    assert (value.upper - value.lower <= 1e-13 * np.abs(value.upper) + 1e-299).all()


@hypothesis.settings(max_examples=300)
@hypothesis.given(st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_semidefinite_matrices(n, seed):
    rng = np.random.default_rng(seed)
    factor = rng.integers(-4, 5, size=(rng.integers(0, n + 1), n)).astype(np.float64)
    gram = factor.T @ factor  # whole numbers: exact, and singular as often as not
    assert is_semidefinite(gram, gram)
    below = gram.copy()
    if len(factor) < n:  # singular, so that the least bit less on the diagonal is too much
        null = np.linalg.svd(factor, full_matrices=True)[2][-1] if len(factor) else np.eye(n)[0]
        place = int(np.argmax(np.abs(null)))
        below[place, place] -= 2.0**-30
        assert not is_semidefinite(below, below)
    assert not is_semidefinite(gram - 1e-9, gram) or len(factor) >= n  # unsure is no


def test_a_large_singular_or_endless_matrix_is_not_decided():
    eye, ones = np.eye(80), np.ones((80, 80))
    assert is_semidefinite(eye, eye) and is_semidefinite(ones[:60, :60], ones[:60, :60])
    assert not is_semidefinite(ones, ones) and not is_semidefinite(eye - 2.0**-40 - ones / 80, eye - ones / 80)
    endless = np.array([[np.inf]])
    assert not is_semidefinite(endless, endless)


FACTS = (REAL, NONZERO, CONVEX, CONCAVE, RISING, FALLING, LOG_CONVEX, ROOT_CONVEX, QUADRATIC)


def random_value(rng, shape):
    facts = np.full(shape, REAL, np.uint16)
    for fact in FACTS:
        facts |= np.where(rng.random(shape) < 0.6, np.uint16(fact), np.uint16(0))
    positive = rng.random(shape) < 0.5
    facts &= ~np.where(positive, np.uint16(0), np.uint16(LOG_CONVEX | ROOT_CONVEX))
    return settle(np.where(positive, 0.0, -np.inf), np.where(rng.random(shape) < 0.2, 0.0, np.inf), facts)


@hypothesis.settings(max_examples=100)
@hypothesis.given(st.integers(0, 2**32 - 1))
def test_counting_terms_claims_no_more_than_adding_them(seed):
    rng = np.random.default_rng(seed)
    weights = curvature.literal(rng.choice([-1.0, 0.0, 2.0, 0.5], size=(2, 3, 4), p=[0.15, 0.25, 0.3, 0.3]))
    value = random_value(rng, (2, 4, 5))
    axes = Axes((2,), (1,), (0,), (0,))
    added = contract(weights, value, axes)
    limit = contraction.LARGEST_EXPANSION
    try:
        contraction.LARGEST_EXPANSION = 0
        counted = contract(weights, value, axes)
        turned = contract(value, weights, Axes((1,), (2,), (0,), (0,)))
    finally:
        contraction.LARGEST_EXPANSION = limit
    assert (counted.facts & ~added.facts == 0).all()
    for fact in (REAL, AFFINE, CONVEX, CONCAVE, RISING, FALLING):
        assert (counted.has(fact) == added.has(fact)).all()
    assert (counted.lower <= added.lower).all() and (counted.upper >= added.upper).all()
    assert (turned.facts == counted.facts.swapaxes(1, 2)).all()


@pytest.mark.parametrize("n", [2, 5, 9, 11])
def test_what_is_computed_encloses_what_it_stands_for(n, monkeypatch):
    """Inverses of Hilbert's matrices, whose condition number grows by 30 with each row."""
    hilbert = curvature.literal(1.0 / (1 + np.add.outer(np.arange(n), np.arange(n))))
    exact = factors.invert(hilbert)

    def encloses():
        [found] = factors.compute(lambda given: [np.linalg.inv(*given)], [hilbert], ["float64"], of_matrices=True)
        return bool(((found.lower <= exact.upper) & (found.upper >= exact.lower)).all())

    assert encloses()
    monkeypatch.setattr(factors, "NOISE", 0.0)
    assert encloses() == (n < 9)  # a control: without a look at the condition it would not


def test_whole_numbers_are_computed_of_what_is_known_alone():
    known = np.full(2, curvature.REAL | curvature.CONSTANT)
    near = curvature.settle(np.array([1.0 - 1e-12, 2.0]), np.array([1.0 + 1e-12, 2.0]), known)
    with pytest.raises(ValueError, match="no numbers"):
        factors.compute(lambda given: [np.argsort(*given)], [near], ["float64"], of_matrices=False)
