"""Minimization and maximization with a certified gap, tangents and conjugates of hulls in JAX.

The solver stands in `convexmoe.minimization`. Here stands how it computes with hulls of JAX: in numpy where all values
are known, which needs no compilation; compiled where something is traced.

>>> from flax import nnx
>>> from convexmoe_jax import Box, VectorHull, conjugate, max_affine, minimize
>>> hull = VectorHull(2, petals=3, out_dim=1, strong_convexity=0.5, rngs=nnx.Rngs(0))
>>> minimum = minimize(hull, Box([-1.0, -1.0], [1.0, 1.0]))
>>> bool(minimum.gap <= 1e-6 * (1 + abs(minimum.value)))
True
>>> conjugate(hull, jnp.zeros((4, 2))).x.shape, max_affine(hull, jnp.eye(2)).slopes.shape
((4, 2), (2, 2))
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from convexmoe.errors import fail
from convexmoe.hull.config import HullConfig
from convexmoe.hull.parameters import Tree, averaged, check_parameters, effective, map_tree, neighbor_means
from convexmoe.hull.weights import NUMPY
from convexmoe.minimization import (
    Conjugate,
    MaxAffine,
    Maximum,
    Minimum,
    conjugate,
    inverse_gradient,
    max_affine,
    maximize,
    minimize,
)
from convexmoe.minimization.solver import Arrays, Record, solver_of

from . import arrays as _arrays  # noqa: F401  (it registers JAX)
from .hull import FoldedHull, VectorHull, compiled_apply, fusion, petals
from .settings import P, by_compiler, leading_spec, standard_promotion, vary

__all__ = [
    "Conjugate",
    "MaxAffine",
    "Maximum",
    "Minimum",
    "conjugate",
    "inverse_gradient",
    "max_affine",
    "maximize",
    "minimize",
]

Items = tuple[tuple[str, Any], ...]  # of a dict, to be hashed


class HullSolver:
    """How JAX computes with its hulls; see `convexmoe.minimization.solver.Solver`."""

    def parameters(self, model: Any) -> Tree:
        return model.params

    def known(self, value: Any) -> np.ndarray | None:
        return None if isinstance(value, jax.core.Tracer) else np.asarray(value, np.float64)

    def is_finite(self, value: Any) -> bool | None:
        known = self.known(value)
        return None if known is None else bool(np.isfinite(known).all())

    def precision(self, value: Any) -> float | None:
        return float(jnp.finfo(value.dtype).eps) if jnp.issubdtype(value.dtype, jnp.floating) else None

    def values(self, model: Any, config: HullConfig, z: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        with jax.enable_x64(True), np.errstate(over="ignore"):
            z, context = jax.tree.map(lambda rows: rows.astype(model.params["shifts"].dtype), (z, context))
            return np.asarray(compiled_apply(model.params, z, config, context), np.float64)

    @standard_promotion
    def solve(
        self, function: Callable[..., Record], model: Any, arrays: Arrays, static: dict[str, Any], beside: Any = None
    ) -> Record:
        check_parameters(model.config, model.params)
        given = (model.params, arrays)
        with jax.enable_x64(True):
            if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(given)):
                names = tuple(static.items())
                # a batch of numpy in float64 is traced as float32 where that is switched off
                arrays = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), arrays)
                record = _trace(model.params, arrays, function, model.config, names, differentiable=beside is not None)
            else:
                params, arrays = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), given)
                record = _compute(params, arrays, function, model.config, static)
            if beside is None:
                return record
            floating = (jnp.issubdtype(part.dtype, jnp.floating) for part in record)
            parts = zip(record, floating, strict=True)
            return type(record)(*(part.astype(beside.dtype) if cast else part for part, cast in parts))


def _compute(params: Tree, arrays: Arrays, function: Callable, config: HullConfig, static: dict[str, Any]) -> Any:
    """Return what `function` computes in numpy, as arrays of JAX."""
    with np.errstate(all="ignore"):
        weights = effective(params, config, NUMPY)
        weights, config = averaged(weights, config, partial(neighbor_means, roll=np.roll))
        record = function(weights, *arrays, config=config, **static)
    return type(record)(*(jax.device_put(part) for part in record))


@partial(jax.jit, static_argnames=("function", "config", "static", "differentiable"))
def _trace(
    params: Tree, arrays: Arrays, function: Callable, config: HullConfig, static: Items, differentiable: bool
) -> Any:
    """Return what `function` computes, compiled."""
    if not differentiable:
        params, arrays = _constant((params, arrays))

    def run(given: Any) -> Any:
        params, arrays = vary(given, given)
        params = map_tree(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        weights, own_config = averaged(petals.effective(params, config), config, fusion.neighbor_means)
        return function(weights, *arrays, config=own_config, **dict(static))

    problems = dict(static).get("problems") or (arrays[0].shape[:-1] if differentiable else ())
    spec = leading_spec(arrays, problems[0]) if problems else P()
    return by_compiler(run, (params, arrays), spec)


@jax.custom_jvp
def _constant(values: Any) -> Any:
    """Return them as they are; they have no derivative."""
    return values


@_constant.defjvp
def _refuse_derivative(primals: Any, tangents: Any) -> NoReturn:
    fix = "Put jax.lax.stop_gradient around them; `conjugate` has derivatives."
    fail("minimize", "model", "weights and a set that no derivative is taken by", "a derivative by them", fix)


solver_of.register(VectorHull, lambda model: HullSolver())
solver_of.register(FoldedHull, lambda model: HullSolver())
