"""Of 128 petals a gradient needs at most 1.2 times the memory of 8, by XLA's analysis; derivatives of any order."""

from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from compilations import compilations

from convexmoe.hull import rows as core
from convexmoe_jax import HullConfig
from convexmoe_jax.hull import apply, forward, init

ROWS, IN, HIDDEN, OUT = 4096, 3, 5, 32


def memory(petals, options):
    """Bytes that a compiled gradient by parameters and rows needs beside its arguments and results."""
    config = HullConfig(IN, petals=petals, hidden_dim=HIDDEN, out_dim=OUT, **options)
    params = jax.eval_shape(lambda key: init(config, key), jax.random.key(0))
    x, c = (jax.ShapeDtypeStruct((ROWS, width), jnp.float32) for width in (IN, OUT))

    def loss(params, x, c):
        return jnp.sum(c * apply(params, x, config))

    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(params, x, c).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": "learned"}, {"trunk": "private"}],
    ids=["maximum", "learned temperature", "private trunks"],
)
def test_128_petals_need_the_memory_of_8(options):
    assert memory(128, options) < 1.2 * memory(8, options)


def test_control_in_one_block_they_need_much_more():
    with mock.patch.object(forward, "row_blocks", lambda *_: 1):
        assert memory(128, {}) > 10 * memory(8, {})


def test_calls_outside_jit_compile_once_too():
    config = HullConfig(2, petals=17, hidden_dim=3)
    params, x = init(config, jax.random.key(0)), jnp.ones((7, 2))
    with mock.patch.object(core, "LARGE_VALUES", 0):
        assert compilations(lambda: apply(params, x, config)) > 0
        assert compilations(lambda: apply(params, x, config)) == 0


def test_a_hessian_and_forward_mode_are_those_of_one_block(x64):
    config = HullConfig(2, petals=17, hidden_dim=3, out_dim=2, temperature="learned")
    params = init(config, jax.random.key(0), dtype=jnp.float64)
    x = jax.random.normal(jax.random.key(1), (7, 2), jnp.float64)

    def total(x):
        return jnp.sum(apply(params, x, config) ** 2)

    def both():
        call = jax.jit(lambda x: (jax.hessian(total)(x), jax.jvp(total, (x,), (x,))[1]))
        return call(x)

    wanted = both()
    with mock.patch.object(core, "LARGE_VALUES", 0):
        found = both()
    for got, value in zip(found, wanted, strict=True):
        assert float(jnp.max(jnp.abs(got - value))) < 1e-12 * float(jnp.max(jnp.abs(value)))
