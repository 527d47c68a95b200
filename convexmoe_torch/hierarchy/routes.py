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
    if not isinstance(routes, torch.Tensor):
        return torch.from_numpy(np.array(routes, np.int64))
    return routes.to(torch.int64)  # what it does not hold becomes negative, which is no expert's


def read_on_host(routes: Any) -> np.ndarray | None:
    """Return the values of routes, None while they are traced, and on a device, where a look would be a wait."""
    on_device = isinstance(routes, torch.Tensor) and routes.device.type != "cpu"
    return None if on_device else read_values(routes)


_functions = RouteFunctions(read_values, _as_tensor, torch.cat)
encode_routes, constant_routes = _functions.encode_routes, _functions.constant_routes
encode_given = RouteFunctions(read_on_host, _as_tensor, torch.cat).encode_routes  # of a call of a model
merged_routes, routing_summary = _functions.merged_routes, _functions.routing_summary
