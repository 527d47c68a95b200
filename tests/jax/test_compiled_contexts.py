"""Contexts that JAX traces: a compiled batch of them, and derivatives of conjugates by them, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from backends import BACKENDS
from shaped_hulls import LOWER, OUTPUT, UPPER, contexts, shaped, values

import convexmoe_jax

pytestmark = pytest.mark.usefixtures("quick_compilation", "x64")

BACKEND = BACKENDS[0]


@pytest.mark.parametrize(
    "name, vectorize", [("nonpositive", True), pytest.param("everything", False, marks=pytest.mark.release)]
)
def test_traced_contexts_give_what_known_ones_give(name, vectorize):
    model = shaped(BACKEND, name, context_dim=2).fold()
    C, box = contexts(model, 3), convexmoe_jax.Box(LOWER, UPPER)
    function = convexmoe_jax.maximize if model.config.is_concave else convexmoe_jax.minimize

    def solve(context):
        return function(model, box, output=OUTPUT, context=context)

    traced = jax.jit(jax.vmap(solve) if vectorize else solve)(jnp.asarray(C))
    known = solve(C)
    assert not np.asarray(traced.status).any()
    assert np.max(np.abs(traced.value - known.value) - np.asarray(traced.gap + known.gap)) <= 0
    with pytest.raises(ValueError, match="no derivative is taken by"):
        jax.grad(lambda context: solve(context).value)(jnp.asarray(C[0]))


def test_a_conjugate_has_derivatives_by_the_context():
    model = shaped(BACKEND, "context", strong_convexity=0.5).fold()
    c, y = contexts(model, 1)[0], jnp.asarray([0.3, -0.2])

    def dual(y, context):
        return convexmoe_jax.conjugate(model, y, output=OUTPUT, context=context)

    by_y, by_context = jax.jit(jax.grad(lambda *given: dual(*given).value, argnums=(0, 1)))(y, jnp.asarray(c))
    at_once = dual(y, c)
    np.testing.assert_allclose(by_y, at_once.x, atol=1e-4)
    step = 1e-3 * np.eye(len(c))
    slopes = [(dual(y, c + h).value - dual(y, c - h).value) / 2e-3 for h in step]
    np.testing.assert_allclose(by_context, slopes, atol=1e-4)
    x = np.asarray(at_once.x)[None]
    moved = [(values(BACKEND, model, x, c - h) - values(BACKEND, model, x, c + h))[0] / 2e-3 for h in step]
    np.testing.assert_allclose(by_context, moved, atol=1e-4)  # Danskin
