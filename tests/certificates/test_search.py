"""The search for a counterexample: what random segments miss, what rounding pretends, what takes no float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convexmoe.convexity import search, segments
from convexmoe.convexity.segments import BATCH, between, draw_segments
from convexmoe_jax import VectorHull, certify, find_violation
from convexmoe_jax.convexity import search as violation

SIZE = 24
AXIS = np.ones(SIZE, np.float32) / np.sqrt(np.float32(SIZE))


def saddle(x):
    """Convex in all directions but those near one: a random segment in 24 dimensions is never near it."""
    return jnp.sum(x**2, axis=1) - 1.6 * (x @ AXIS) ** 2


def test_the_ascent_finds_what_random_segments_miss(monkeypatch):
    points = jnp.asarray([[-1.0] * SIZE, [1.0] * SIZE])
    found = find_violation(saddle, points, segments=5_000)
    assert found is not None and found.gap > 0.1 and found.dtype == "float64"
    direction = (found.right - found.left) / np.linalg.norm(found.right - found.left)
    assert abs(direction @ AXIS) > 0.75
    monkeypatch.setattr(search, "_climb", lambda function, candidates: candidates)
    assert find_violation(saddle, points, segments=5_000) is None


def test_the_ascent_stays_in_the_box_and_does_not_lower_the_gap(monkeypatch):
    points = jnp.asarray([[-1.0, -1.0], [1.0, 1.0]])
    found = find_violation(lambda x: -jnp.sum(x**4, axis=1), points, segments=1_000)
    assert (np.abs([found.left, found.right]) <= 2.0 + 1e-6).all()
    monkeypatch.setattr(search, "_climb", lambda function, candidates: candidates)
    assert found.gap >= find_violation(lambda x: -jnp.sum(x**4, axis=1), points, segments=1_000).gap


def test_rounding_in_float32_is_no_violation(monkeypatch):
    def rough(x):
        return jnp.sum(x + jnp.exp(x + 10.0) - jnp.exp(x) * jnp.exp(jnp.asarray(10.0, x.dtype)), axis=1)

    points = jnp.asarray([[-1.0, -1.0], [1.0, 1.0]])
    assert find_violation(rough, points, segments=2_000) is None

    def refuse(function):
        def wide(x):
            raise TypeError("float32 only")

        return wide

    monkeypatch.setattr(violation, "widen", refuse)
    assert find_violation(rough, points, segments=2_000) is None  # its gaps do not stay
    monkeypatch.setattr(
        segments, "_survive_perturbation", lambda candidates, *rest: np.ones(len(candidates.gap), bool)
    )
    assert find_violation(rough, points, segments=2_000).dtype == "float32"


def test_a_function_that_takes_no_float64_says_so():
    hull = VectorHull(3, petals=2, rngs=nnx.Rngs(0))
    points = jnp.eye(3)
    found = find_violation(lambda x: -hull(x), points, segments=2_000)
    assert found.dtype == "float32" and found.gap > 0
    assert find_violation(lambda x: -jnp.abs(x), points, segments=2_000).dtype == "float64"


def test_a_function_without_gradients_is_searched():
    @jax.custom_vjp
    def stubborn(x):
        return -jnp.abs(x)

    def refuse(*given):
        raise NotImplementedError("no gradient")

    stubborn.defvjp(refuse, refuse)
    assert find_violation(stubborn, jnp.eye(2), segments=2_000).gap > 0


@pytest.mark.parametrize("segments", [1, 2, BATCH + 1])
def test_any_number_of_segments(segments):
    points = np.array([[0.0, 1.0], [2.0, 5.0]])
    assert sum(len(left) for left, _, _ in draw_segments(points, segments, 0)) == segments
    find_violation(lambda x: jnp.sum(x, axis=1), jnp.asarray(points, jnp.float32), segments=segments)


def test_the_values_of_a_violation_are_those_of_the_function():
    found = find_violation(lambda x: jnp.sin(x) * 3.0, jnp.asarray([[-1.0], [4.0]]), segments=3_000)
    at = between(found.left, found.right, np.float64(found.weight))
    assert found.value_left == pytest.approx(3 * np.sin(found.left[0]), rel=1e-9)
    assert found.value_right == pytest.approx(3 * np.sin(found.right[0]), rel=1e-9)
    assert found.value == pytest.approx(3 * np.sin(at[0]), rel=1e-9)
    chord = found.weight * found.value_left + (1 - found.weight) * found.value_right
    assert found.gap == pytest.approx(found.value - chord)


def variance(z):
    """Convex, and lost in rounding where the mean is large."""
    return jnp.mean(z**2, axis=-1) - jnp.mean(z, axis=-1) ** 2


def test_what_rounding_makes_refutes_nothing(monkeypatch):
    data = jnp.asarray(np.random.default_rng(0).normal(100.0, 1.0, (30, 100)), jnp.float32)
    assert certify(lambda w: variance(w @ data), jnp.ones(30)).verdict != "refuted"
    points = jnp.stack([jnp.full(30, -1.0), jnp.full(30, 3.0)])
    assert find_violation(lambda w: variance(w @ data), points, segments=20_000) is None

    def refuse(function):
        def wide(x):
            raise TypeError("float32 only")

        return wide

    monkeypatch.setattr(violation, "widen", refuse)
    monkeypatch.setattr(
        segments, "_survive_perturbation", lambda candidates, *rest: np.ones(len(candidates.gap), bool)
    )
    assert find_violation(lambda w: variance(w @ data), points, segments=20_000) is not None


@pytest.mark.parametrize("waves", [30.0, 1000.0])
def test_short_waves_are_refuted_though_the_segment_is_shaken(waves):
    assert certify(lambda x: jnp.sin(waves * x), jnp.ones(3)).verdict == "refuted"
