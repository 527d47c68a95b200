"""The functions of routes, for arrays of JAX and numpy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convexmoe.hierarchy import RouteFunctions


def read_values(routes: Any) -> np.ndarray | None:
    """Return the values of routes, None while they are traced."""
    if isinstance(routes, jax.core.Tracer):
        # vmap shows an array of numpy as int32, and has its values still
        routes = getattr(routes, "val", None)
        return routes if isinstance(routes, np.ndarray) else None
    return np.asarray(routes)


def _narrow(routes: Any) -> Any:
    """Return routes that may be wider as int32; those that int32 does not hold become -1, which is no expert's."""
    if isinstance(routes, jax.Array) and (routes.dtype.itemsize < 4 or routes.dtype == jnp.int32):
        return routes.astype(jnp.int32)
    if not isinstance(routes, jax.Array):
        routes = np.asarray(routes)
        return np.where((routes >= 0) & (routes < 2**31), routes, -1).astype(np.int32)
    with jax.enable_x64(True):  # without it JAX narrows what it compares
        return jnp.where((routes >= 0) & (routes < 2**31), routes, -1).astype(jnp.int32)


_functions = RouteFunctions(read_values, _narrow, np.concatenate)
encode_routes, constant_routes = _functions.encode_routes, _functions.constant_routes
merged_routes, routing_summary = _functions.merged_routes, _functions.routing_summary
