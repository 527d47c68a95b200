"""The search in JAX: what random segments miss, what rounding pretends, what takes no float64.

What the core alone decides is in test_torch_search.py, where nothing is compiled.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convexmoe.convexity import search, segments
from convexmoe_jax import certify, find_violation
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
    monkeypatch.setattr(search, "_climb", lambda function, candidates, *rest: candidates)
    assert find_violation(saddle, points, segments=5_000) is None


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
    monkeypatch.setattr(segments, "_survive_perturbation", lambda candidates, *rest: np.ones(len(candidates.gap), bool))
    assert find_violation(rough, points, segments=2_000).dtype == "float32"


def test_a_function_that_takes_no_float64_says_so():
    def narrow(x):
        if x.dtype != jnp.float32:
            raise TypeError("float32 only")
        return -jnp.abs(x)

    points = jnp.eye(3)
    found = find_violation(narrow, points, segments=2_000)
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
    monkeypatch.setattr(segments, "_survive_perturbation", lambda candidates, *rest: np.ones(len(candidates.gap), bool))
    assert find_violation(lambda w: variance(w @ data), points, segments=20_000) is not None


@pytest.mark.parametrize("waves", [30.0, 1000.0])
def test_short_waves_are_refuted_though_the_segment_is_shaken(waves):
    assert certify(lambda x: jnp.sin(waves * x), jnp.ones(3)).verdict == "refuted"
