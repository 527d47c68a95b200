"""The functions of routes, for tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from convexmoe.hierarchy import RouteFunctions


def read_values(routes: Any) -> np.ndarray | None:
    """Return the values of routes, None while they are traced."""
    if not isinstance(routes, torch.Tensor):
        return np.asarray(routes)
    if torch.compiler.is_compiling():
        return None
    try:
        return routes.cpu().numpy()
    except RuntimeError:  # inside a transform of torch.func
        return np.array(routes.tolist())


def _as_tensor(routes: Any) -> torch.Tensor:
    return routes if isinstance(routes, torch.Tensor) else torch.from_numpy(np.array(routes, np.int64))


_functions = RouteFunctions(read_values, _as_tensor, lambda parts: torch.cat([torch.as_tensor(p) for p in parts]))
encode_routes, constant_routes = _functions.encode_routes, _functions.constant_routes
merged_routes, routing_summary = _functions.merged_routes, _functions.routing_summary
