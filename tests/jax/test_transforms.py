"""The hull under every transformation of JAX: each gives what the plain call gives."""

import functools

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from backends import BACKENDS
from tolerances import VALUES, relative_error

from convexmoe_jax import hull

pytestmark = pytest.mark.usefixtures("quick_compilation")

HULLS = {
    "hard": cases.fields(gate=True, trunk="private", activation="huber_relu"),
    "smooth": cases.fields(normalization=cases.UNITS, temperature="learned", depth=2),
}
CLOSE = VALUES["float64"]


@pytest.fixture(scope="module", params=HULLS)
def built(request):
    fields = HULLS[request.param]
    with jax.enable_x64(True):
        return BACKENDS[0].model(fields, cases.random_weights(fields))


@pytest.fixture
def model(built, x64):
    return built


@functools.cache
def plain(config):
    """The plain call, compiled once a hull: operation by operation each of them would be compiled alone."""
    return jax.jit(lambda params, x: hull.apply(params, x, config))


def call(model, x):
    return plain(model.config)(model.params, x)


def rows_of(model, rows=cases.ROWS):
    units = model.config.normalization
    fields = {"in_dim": model.config.in_dim, "normalization": None if units is None else vars(units)}
    return jnp.array(cases.random_inputs(fields, (rows,)))


def close(got, wanted):
    return got.shape == wanted.shape and got.dtype == wanted.dtype and relative_error(got, wanted) < CLOSE


def test_jit_and_vmap(model):
    x = rows_of(model)
    y = call(model, x)
    assert close(jax.jit(jax.vmap(model))(x), y)
    assert close(jax.jit(jax.vmap(model, in_axes=1, out_axes=1))(x.T), y.T)
    assert not close(y[::-1], y)  # control


def test_vmap_over_weights(model):
    x, config = rows_of(model), model.config
    stack = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf, -leaf]), model.params)
    together = jax.jit(jax.vmap(lambda params: hull.apply(params, x, config)))(stack)
    for i in range(3):
        assert close(together[i], plain(config)(jax.tree.map(lambda leaf: leaf[i], stack), x))  # noqa: B023


def test_forward_and_reverse_jacobians_agree(model):
    row = rows_of(model)[0]
    forward, reverse = jax.jit(jax.jacfwd(model))(row), jax.jit(jax.jacrev(model))(row)
    assert forward.shape == (model.config.out_dim, model.config.in_dim)
    assert relative_error(forward, reverse) < CLOSE
    step = 1e-6 * jnp.abs(row).max() * jnp.eye(len(row))
    above, below = (jax.jit(model)(row + sign * step) for sign in (1, -1))
    differences = (above - below).T / (2 * step.max())
    assert relative_error(forward, differences) < 1e-6


def test_hessian_is_symmetric_and_positive(model):
    row = rows_of(model)[0]
    found = np.asarray(jax.jit(jax.hessian(model))(row))
    scale = np.sqrt(np.abs(np.einsum("oii->oi", found)).max(0))
    found = found / (scale[:, None] * scale)
    assert np.allclose(found, found.swapaxes(1, 2), atol=1e-12)
    assert np.linalg.eigvalsh(found).min() > -1e-12
    assert np.linalg.eigvalsh(found).max() > 1e-3  # control: not all zero, so that the sign means something


def test_grad_of_grad(model):
    x, config = rows_of(model), model.config

    def penalty(params):
        slopes = jax.grad(lambda at: hull.apply(params, at, config).sum())(x)
        return jnp.mean((slopes * x) ** 2)

    gradients = jax.jit(jax.grad(penalty))(model.params)
    flat = hull.flatten(gradients)
    assert all(np.isfinite(value).all() for value in flat.values())
    # the slopes know the weights of x, and of the constants only through who wins, and by how much
    assert flat["readout.weight"].any()
    assert flat["readout.bias"].any() == (config.temperature != 0.0)


def test_scan(model):
    x, config = rows_of(model), model.config
    square = min(config.in_dim, config.out_dim)

    def step(carry, row):
        y = hull.apply(model.params, carry + row, config)
        return 0.1 * carry + 0.01 * jnp.zeros_like(carry).at[:square].set(y[:square]), y

    start = jnp.zeros(config.in_dim, x.dtype)
    last, outputs = jax.jit(lambda: jax.lax.scan(step, start, x))()
    carry, one = start, jax.jit(step)
    for row, wanted in zip(x, outputs, strict=True):
        carry, y = one(carry, row)
        assert close(y, wanted)
    assert close(carry, last)


def test_checkpoint_recomputes_the_same_gradients(model):
    x, config = rows_of(model), model.config

    def total(apply):
        return lambda params: jnp.sum(apply(params, x) ** 2)

    wanted = jax.jit(jax.grad(total(plain(config))))(model.params)
    got = jax.jit(jax.grad(total(jax.checkpoint(plain(config)))))(model.params)
    for first, second in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert close(first, second)


def test_eval_shape_touches_no_numbers(model):
    config = model.config
    params = jax.eval_shape(lambda key: hull.init(config, key, dtype=jnp.float64), jax.random.key(0))
    assert jax.tree.map(lambda leaf: leaf.shape, params) == jax.tree.map(lambda leaf: leaf.shape, model.params)
    x = jax.ShapeDtypeStruct((17, cases.ROWS, config.in_dim), jnp.float64)
    y = jax.eval_shape(lambda params, x: hull.apply(params, x, config), params, x)
    assert (y.shape, y.dtype) == ((17, cases.ROWS, config.out_dim), jnp.float64)


def test_checks_survive_tracing(model):
    x = jnp.zeros((cases.ROWS, 7), jnp.float64)
    for transformed in (jax.jit(lambda x: model(x)), jax.vmap(lambda x: model(x)), jax.jacrev(lambda x: model(x))):
        with pytest.raises(ValueError, match=r"VectorHull\.x: expected last axis in_dim="):
            transformed(x)


def test_without_jit_numpy_input_is_taken(model):
    x = rows_of(model)
    assert close(model(np.asarray(x)), call(model, x))


class EveryVariant(chex.TestCase):
    """With and without jit, on the device and from numpy: `apply` gives what the naive reference gives."""

    @chex.variants(with_jit=True, without_jit=True, with_device=True, without_device=True)
    def test_apply(self):
        fields = cases.fields()
        weights, x = cases.random_weights(fields), cases.random_inputs(fields).astype(np.float32)
        model = BACKENDS[0].model(fields, weights, "float32")
        y = self.variant(lambda params, rows: hull.apply(params, rows, model.config))(model.params, x)
        chex.assert_shape(y, (*x.shape[:-1], model.config.out_dim))
        chex.assert_type(y, jnp.float32)
        assert relative_error(np.asarray(y), reference.hull(weights, x, fields)) < VALUES["float32"]
        assert relative_error(np.asarray(y), reference.hull(weights, x + 1, fields)) > VALUES["float32"]  # control
