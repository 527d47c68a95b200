"""Repeated calls compile once: configs compare by value, weights are no constants."""

import cases
import jax
import numpy as np
from backends import BACKENDS
from compilations import compilations
from flax import nnx

import convexmoe_jax
from convexmoe_jax import hull

BACKEND = BACKENDS[0]


def random_model(seed, hull_name="default"):
    fields = cases.HULLS[hull_name]
    return BACKEND.model(fields, cases.random_weights(fields, seed), "float32")


X = np.ones((cases.ROWS, 5), np.float32)


def test_equal_configs_share_one_compilation():
    apply = jax.jit(hull.apply, static_argnames="config")
    models = [random_model(seed) for seed in cases.SEEDS]
    assert models[0].config is not models[1].config
    arguments = [(model.params, jax.numpy.array(X), model.config) for model in models]
    assert compilations(lambda: apply(*arguments[0])) == 1
    assert compilations(lambda: [apply(*a) for a in arguments * 3]) == 0
    # control: another shape, another config
    assert compilations(lambda: apply(models[0].params, jax.numpy.array(X[:7]), models[0].config)) >= 1
    other = random_model(0, "plain_max")
    assert compilations(lambda: apply(other.params, jax.numpy.array(X), other.config)) >= 1


def test_a_module_under_nnx_jit_compiles_once():
    apply = nnx.jit(lambda model, x: model(x))
    models = [random_model(seed) for seed in cases.SEEDS]
    x = jax.numpy.array(X)
    assert compilations(lambda: apply(models[0], x)) >= 1
    assert compilations(lambda: [apply(model, x) for model in models * 2]) == 0


def test_folded_hulls_share_one_compilation():
    apply = jax.jit(lambda folded, x: folded(x))
    folded = [random_model(seed).fold() for seed in cases.SEEDS]
    x = jax.numpy.array(X)
    assert compilations(lambda: apply(folded[0], x)) == 1
    assert compilations(lambda: [apply(one, x) for one in folded]) == 0


def test_a_second_fit_compiles_nothing():
    x = np.random.default_rng(0).normal(size=(37, 5))
    y = np.stack([np.abs(x).sum(1), (x**2).sum(1)], 1)

    def run(seed, rows=37):
        model = random_model(seed)
        return convexmoe_jax.fit(model, x[:rows], y[:rows], steps=80, batch_size=17, seed=seed).model.params

    assert compilations(lambda: run(0)) >= 1
    assert compilations(lambda: run(1)) == 0
    assert compilations(lambda: run(1, rows=31)) >= 1  # control
