"""Functions as in `reference_tricks` that only JAX has: modules of Flax whose parameter is named "p", and others."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from reference_tricks import SIZE, Trick, ones, turn


class Scaling(nnx.Module):
    """w relu(x), with a parameter of its own."""

    def __init__(self):
        self.w = nnx.Param(jnp.ones(SIZE))

    def __call__(self, x):
        return self.w[...] * jax.nn.relu(x)

    def train_away(self):
        self.w[...] = -self.w[...]


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        return self.param("w", linen.initializers.ones, (SIZE,)) * jax.nn.relu(x)


ANOTHER = Scaling()


class Static(nnx.Module):
    """exp(p) held(x), where what is held is static to Flax."""

    def __init__(self, held):
        self.p, self.held = nnx.Param(jnp.zeros(SIZE)), held

    def __call__(self, x):
        return jnp.exp(self.p[...]) * self.held(x)


def held_statically(hold, is_cached=False):
    def make():
        other = Scaling()
        return Trick(Static(hold(other)), None if is_cached else other.train_away)

    return make


def jax_function(take, is_cached=False):
    """A trick of a function of x that a module gives."""

    def make():
        other = Scaling()
        inner = take(other)
        return Trick(lambda p, x: inner(x) * jnp.exp(p), None if is_cached else other.train_away)

    return make


def bound_module_of_linen():
    bound = Linen().bind({"params": {"w": ones()}})
    return Trick(lambda p, x: bound(x) * jnp.exp(p), lambda: turn(bound.variables["params"]["w"]))


def an_array_of_params_itself():
    params = {"p": jnp.zeros(SIZE), "w": jnp.ones(SIZE)}
    return Trick(lambda p, x: params["w"] * jax.nn.relu(x) * jnp.exp(p), lambda: params.update(w=-params["w"]))


JAX = {
    "a static lambda": held_statically(lambda other: lambda x: other(x)),
    "a static bound method": held_statically(lambda other: other.__call__),
    "a static partial": held_statically(lambda other: functools.partial(Scaling.__call__, other)),
    "a static object": held_statically(lambda other: types.SimpleNamespace(other=other).other.__call__),
    "a static jit": held_statically(lambda other: jax.jit(lambda x: other(x)), is_cached=True),
    "a global module": lambda: Trick(Static(lambda x: ANOTHER(x)), ANOTHER.train_away),
    "a module in a closure": jax_function(lambda other: other),
    "a bound method": jax_function(lambda other: other.__call__),
    "a variable": jax_function(lambda other: lambda x, w=other.w: w[...] * jax.nn.relu(x)),
    "jit of nnx": jax_function(lambda other: nnx.jit(lambda x: other(x)), is_cached=True),
    "a number at each call": jax_function(
        lambda other: lambda x: float(np.asarray(other.w.get_value())[0]) * jax.nn.relu(x)
    ),
    "vmap": jax_function(lambda other: jax.vmap(lambda x: other.w[0] * jax.nn.relu(x))),
    "a bound module of Linen": bound_module_of_linen,
    "an array of params": an_array_of_params_itself,
}
