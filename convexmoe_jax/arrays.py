"""JAX as a library of arrays for the core, and the core's records as pytrees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax.linalg import triangular_solve

from convexmoe.arrays import Library, register
from convexmoe.minimization.sets import Ball, Box, Polytope, Simplex

from .settings import vary


def _factorize(system: jax.Array) -> Callable[[jax.Array], jax.Array]:
    root = jnp.linalg.cholesky(system)

    def solve(columns: jax.Array) -> jax.Array:
        half = triangular_solve(root, columns, left_side=True, lower=True)
        return triangular_solve(root, half, left_side=True, lower=True, transpose_a=True)

    return solve


def _register_set(kind: Any) -> None:
    """Make a kind of set a pytree, its fields the leaves; a transformation may put anything into them unchecked."""
    names = [field.name for field in fields(kind)]

    def unflatten(_: Any, values: Any) -> Any:
        entry = object.__new__(kind)
        for name, value in zip(names, values, strict=True):
            object.__setattr__(entry, name, value)
        return entry

    jax.tree_util.register_pytree_node(
        kind, lambda entry: (tuple(getattr(entry, name) for name in names), None), unflatten
    )


register(
    jnp,  # and no array of it, which would start JAX before `jax.distributed.initialize` can
    Library(
        while_loop=jax.lax.while_loop,
        repeat=lambda times, advance, array: jax.lax.fori_loop(0, times, lambda _, value: advance(value), array),
        factorize=_factorize,
        sigmoid=jax.nn.sigmoid,
        xlogy=jax.scipy.special.xlogy,
        logsumexp=lambda u: jax.nn.logsumexp(u, axis=-1),
        softmax=lambda u: jax.nn.softmax(u, axis=-1),
        stop_gradient=jax.lax.stop_gradient,
        gradient=lambda function, z: jax.grad(lambda at: jnp.sum(function(at)))(z),
        place=vary,
    ),
)
for _kind in (Ball, Box, Polytope, Simplex):
    _register_set(_kind)
