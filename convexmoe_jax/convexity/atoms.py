"""The functions whose bodies do not compose, as they are written in JAX; the core recognizes them in a program."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import rel_entr, xlogy

from convexmoe.convexity import Graph, Kind, atoms, calculus, scalars

from .trace import trace

Function = Callable[..., Any]


def _trace(function: Function, kinds: tuple[Kind, ...]) -> Graph:
    wide = any("64" in dtype for _, dtype in kinds)
    return _trace_once(function, kinds, wide or bool(jax.config.read("jax_enable_x64")))


@lru_cache(maxsize=4096)
def _trace_once(function: Function, kinds: tuple[Kind, ...], wide: bool) -> Graph:
    with jax.enable_x64(wide):
        return trace(function, *(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in kinds))


def _softplus_by_log1p(u: Any) -> Any:
    return jnp.maximum(u, 0) + jnp.log1p(jnp.exp(-jnp.abs(u)))


def _guarded_x_log_x(u: Any) -> Any:
    return jnp.where(u > 0, u * jnp.log(jnp.where(u > 0, u, 1.0)), 0.0)


ELEMENTWISE = (
    ("softplus", "log_sum_exp", lambda u: jnp.logaddexp(u, jnp.zeros((), u.dtype)), atoms.as_softplus),
    ("softplus", "log_sum_exp", _softplus_by_log1p, atoms.as_softplus),
    ("xlogy", "entropy", lambda u: xlogy(u, u), atoms.as_relative_entropy),
    ("xlogy", "entropy", lambda u: jnp.where(u > 0, u * jnp.log(u), 0.0), atoms.as_relative_entropy),
    ("xlogy", "entropy", _guarded_x_log_x, atoms.as_relative_entropy),
)
PAIRS = (
    ("logaddexp", "log_sum_exp", jnp.logaddexp, atoms.as_log_add),
    ("rel_entr", "entropy", rel_entr, atoms.as_relative_entropy),
    ("xlogy", "product", xlogy, lambda values: calculus.multiply(values[0], scalars.apply("log", values[1]))),
)


def _smooth_maximum(g: Any, temperature: Any) -> Any:
    """T log mean exp(g / T) over the last axis but one; above T = 16 by way of expm1 and log1p."""
    wide = g.astype(jnp.promote_types(g.dtype, jnp.float32))
    T = jnp.asarray(temperature, wide.dtype)
    top = jnp.max(wide, axis=-2, keepdims=True)
    u = (wide - top) / T

    def steep() -> Any:
        return jnp.log(jnp.sum(jnp.exp(u), axis=-2)) - math.log(u.shape[-2])

    def flat() -> Any:
        return jnp.log1p(jnp.mean(jnp.expm1(u), axis=-2))

    if isinstance(temperature, float):
        mean = flat() if temperature > 16.0 else steep()
    else:
        mean = jnp.where(temperature > 16.0, flat(), steep())
    return (top.squeeze(-2) + T * mean).astype(g.dtype)


FORMS = atoms.Forms(
    trace=_trace, sum="reduce_sum", elementwise=ELEMENTWISE, pairs=PAIRS, smooth_maximum=_smooth_maximum
)
# The last primitive of an atom -> what it may be.
FAMILIES = {
    "select_n": (atoms.elementwise_atoms,),
    "add": (atoms.elementwise_atoms, atoms.smooth_maxima),
    "convert_element_type": (atoms.smooth_maxima,),
}
recognize = partial(atoms.recognize_atoms, FORMS, FAMILIES)
