"""The functions of routes, for arrays of JAX and numpy."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from convexmoe.hierarchy import RouteFunctions


def read_values(routes: Any) -> np.ndarray | None:
    """Return the values of routes, None while they are traced."""
    return None if isinstance(routes, jax.core.Tracer) else np.asarray(routes)


_functions = RouteFunctions(read_values, lambda routes: routes, np.concatenate)
encode_routes, constant_routes = _functions.encode_routes, _functions.constant_routes
merged_routes, routing_summary = _functions.merged_routes, _functions.routing_summary
