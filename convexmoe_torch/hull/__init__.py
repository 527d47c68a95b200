"""The hull: `VectorHull`, and the pure functions `init` and `apply` over nested dicts of parameters."""

from convexmoe.hull.parameters import flatten, nest

from .forward import Winners, apply, at, averaged, fold_parameters, init, units_of, winners
from .legacy import NonConvexHull
from .module import FoldedHull, HullModule, VectorHull, module_of

__all__ = [
    "FoldedHull",
    "HullModule",
    "NonConvexHull",
    "VectorHull",
    "Winners",
    "apply",
    "at",
    "averaged",
    "flatten",
    "fold_parameters",
    "init",
    "module_of",
    "nest",
    "units_of",
    "winners",
]
