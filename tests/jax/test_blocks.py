"""Many rows are taken block by block on a CPU: the same numbers, remainder rows included."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from backends import BACKENDS
from tolerances import relative_error

from convexmoe_jax import hull

BLOCK = 13
FIELDS = cases.HULLS["units_smooth"]


def loops(function, x):
    """Whether the program of `function(x)` has a loop in it."""
    return "scan[" in str(jax.make_jaxpr(function)(x))


@pytest.fixture
def model(x64):
    return BACKENDS[0].model(FIELDS, cases.random_weights(FIELDS))


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(hull, "CPU_ROWS", BLOCK)
    monkeypatch.setattr(hull, "CPU_VALUES", 1)


@pytest.mark.parametrize("rows", [2 * BLOCK, 5 * BLOCK - 1])
def test_blocks_give_what_one_product_gives(model, rows, monkeypatch):
    x = jnp.array(cases.random_inputs(FIELDS, (rows,)))

    def value_and_slope(x):
        return jax.value_and_grad(
            lambda x: jnp.sum(jnp.cos(jnp.arange(rows * 2.0).reshape(rows, 2)) * model(x))
        )(x)

    whole, slope = jax.jit(lambda x: value_and_slope(x))(x)
    assert not loops(model, x)
    monkeypatch.setattr(hull, "CPU_ROWS", BLOCK)
    monkeypatch.setattr(hull, "CPU_VALUES", 1)
    assert loops(lambda x: model(x), x)
    blocks, block_slope = jax.jit(lambda x: value_and_slope(x))(x)
    assert relative_error(blocks, whole) < 1e-13
    assert relative_error(block_slope, slope) < 1e-13
    # control: the rows past the last whole block matter
    changed = jax.jit(lambda x: value_and_slope(x))(x.at[-1].set(0.0))
    assert not np.isclose(changed[0], whole)


def test_every_row_comes_back_in_its_place(model, small_blocks):
    x = jnp.array(cases.random_inputs(FIELDS, (4, 17)))
    together = jax.jit(lambda x: model(x))(x)
    alone = jax.jit(jax.vmap(jax.vmap(lambda row: model(row))))(x)
    assert together.shape == alone.shape and relative_error(together, alone) < 1e-13


@pytest.mark.parametrize("rows", [0, 1, BLOCK, 2 * BLOCK - 1])
def test_few_rows_take_no_loop(model, small_blocks, rows):
    assert not loops(lambda x: model(x), jnp.zeros((rows, FIELDS["in_dim"]), jnp.float64))


def test_the_real_limits_are_reached_by_large_batches():
    fields = cases.fields(petals=67, out_dim=71)
    model = BACKENDS[0].model(fields, cases.random_weights(fields), "float32")
    x = jnp.array(cases.random_inputs(fields, (523,)), jnp.float32)
    assert loops(model, x) and not loops(model, x[:251])
    whole = jax.jit(lambda x: model(x))(x)
    parts = jnp.concatenate([jax.jit(lambda x: model(x))(x[a : a + 251]) for a in range(0, 523, 251)])
    assert relative_error(whole, parts) < 2e-6
