"""Minimization and maximization with a certified gap, tangents and conjugates of hulls in PyTorch.

The solver stands in `convexmoe.minimization`. Here stands how it computes with hulls of PyTorch: on their device.

>>> from convexmoe_torch import Box, VectorHull, conjugate, max_affine, minimize
>>> hull = VectorHull(2, petals=3, out_dim=1, strong_convexity=0.5)
>>> minimum = minimize(hull, Box([-1.0, -1.0], [1.0, 1.0]))
>>> bool(minimum.gap <= 1e-6 * (1 + abs(minimum.value)))
True
>>> conjugate(hull, torch.zeros(4, 2)).x.shape, max_affine(hull, torch.eye(2)).slopes.shape
(torch.Size([4, 2]), torch.Size([2, 2]))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convexmoe.hull import HullConfig
from convexmoe.hull.parameters import Tree, averaged, map_tree
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

from . import arrays as _arrays  # noqa: F401  (it registers PyTorch)
from .hull import HullModule, apply
from .hull.fusion import neighbor_means
from .hull.petals import effective

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


class HullSolver:
    """How PyTorch computes with its hulls; see `convexmoe.minimization.solver.Solver`."""

    def parameters(self, model: Any) -> Tree:
        return model.tree

    def known(self, value: Any) -> np.ndarray:
        if not isinstance(value, Tensor):
            return np.asarray(value, np.float64)
        value = value.detach().to("cpu", torch.float64)
        try:
            return value.numpy()
        except RuntimeError:  # inside a transform of torch.func
            return np.array(value.tolist())

    def is_finite(self, value: Any) -> bool:
        return bool(torch.isfinite(torch.as_tensor(value)).all())

    def precision(self, value: Any) -> float | None:
        dtype = torch.as_tensor(value).dtype
        return torch.finfo(dtype).eps if dtype.is_floating_point else None

    @torch.no_grad()
    def values(self, model: Any, config: HullConfig, z: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        own = None if context is None else torch.tensor(context).to(model.shifts)
        y = apply(model.tree, torch.tensor(z).to(model.shifts), config, own)
        return y.double().cpu().numpy()

    def solve(
        self, function: Callable[..., Record], model: Any, arrays: Arrays, static: dict[str, Any], beside: Any = None
    ) -> Record:
        with torch.set_grad_enabled(beside is not None and torch.is_grad_enabled()):
            weights = map_tree(Tensor.double, model.tree)
            weights, config = averaged(effective(weights, model.config), model.config, neighbor_means)
            known = [np.array(v) if hasattr(v, "__array__") and not isinstance(v, Tensor) else v for v in arrays]
            kinds, like = (Tensor, np.ndarray), weights["shifts"]
            given = [torch.as_tensor(value).to(like) if isinstance(value, kinds) else value for value in known]
            record = function(weights, *given, config=config, **static)
            if beside is None:
                return record
            dtype = torch.as_tensor(beside).dtype
            return type(record)(*(part.to(dtype) if part.is_floating_point() else part for part in record))


solver_of.register(HullModule, lambda model: HullSolver())
