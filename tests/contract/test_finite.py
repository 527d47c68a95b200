"""Outputs and gradients are finite for inputs up to 1e4, in float16 up to 1e2."""

import backends
import cases
import numpy as np
import pytest

LARGEST = {"float64": 1e4, "float32": 1e4, "bfloat16": 1e4, "float16": 1e2}
WIDE = {"in_dim": 17, "hidden_dim": 67, "petals": 13}
HULLS = {
    "hard": cases.fields(**WIDE, depth=2, trunk="private"),
    "nearly_hard": cases.fields(**WIDE, temperature=1e-3, activation="huber_relu", gate=True),
    "learned": cases.fields(**WIDE, temperature="learned", activation="relu", group_size=1),
}


def inputs(in_dim, largest, seed):
    """Rows of the size of 0, 1 and `largest`: dense, along one axis, all of one sign."""
    rng = np.random.default_rng(seed)
    dense = rng.uniform(-1, 1, (7, in_dim))
    extreme = np.sign(rng.standard_normal((7, in_dim)))
    rows = [np.zeros((1, in_dim)), np.eye(in_dim)[:3], np.ones((1, in_dim)), dense, extreme]
    return np.concatenate([*rows, *(-largest * part for part in rows), *(largest * part for part in rows)])


def all_finite(backend, model, dtype, seed=0):
    x = inputs(model.config.in_dim, LARGEST[dtype], seed).astype(backends.NAMES[dtype])
    c = np.full((len(x), model.config.out_dim), 1 / len(x))  # of the mean over rows, as a loss is
    y, gradients = backend.value_and_gradients(model, x, c)
    values = [y, *gradients.values()]
    assert {str(value.dtype) for value in values} == {dtype}
    return all(np.isfinite(value.astype(np.float64)).all() for value in values)


def initial_weights(fields, seed):
    """Weights as one package draws them, for both."""
    torch_backend = backends.BACKENDS[1]
    return torch_backend.weights(torch_backend.fresh(fields, seed))


@pytest.mark.parametrize("dtype", LARGEST)
@pytest.mark.parametrize("hull", HULLS)
def test_outputs_and_gradients_are_finite(backend, hull, dtype):
    for seed in cases.SEEDS:
        model = backend.model(HULLS[hull], initial_weights(HULLS[hull], seed), dtype)
        assert all_finite(backend, model, dtype, seed)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_control_a_smooth_maximum_that_does_not_subtract_the_largest_is_seen(backend, dtype, replace):
    def naive(g, temperature):
        import jax.numpy as jnp
        import torch

        xp, axis = (torch, {"dim": -2}) if backend.name == "torch" else (jnp, {"axis": -2})
        return temperature * xp.log(xp.sum(xp.exp(g / temperature), **axis))

    fields = HULLS["nearly_hard"]
    weights = initial_weights(fields, 0)
    replace(backend.package.hull.forward, "smooth_maximum", naive)
    assert not all_finite(backend, backend.model(fields, weights, dtype), dtype)


@pytest.mark.parametrize("size", [-60.0, 60.0])
def test_extreme_raw_weights_leave_all_finite(backend, size):
    """softplus of the raw weights is 1e-26 or 60: neither its value nor its logarithm's detour may overflow."""
    fields = HULLS["learned"]
    weights = cases.random_weights(fields)
    extreme = {name: np.full_like(value, size) if "raw" in name else value for name, value in weights.items()}
    assert all_finite(backend, backend.model(fields, extreme, "float32"), "float32")
