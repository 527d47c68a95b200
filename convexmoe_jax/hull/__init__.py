"""The hull: `VectorHull`, and the pure functions `init` and `apply` over nested dicts of parameters."""

from convexmoe.hull.parameters import flatten, nest

from .forward import Winners, apply, at, averaged, compiled_apply, fold_parameters, init, winners
from .legacy import NonConvexHull
from .module import FoldedHull, VectorHull

__all__ = [
    "FoldedHull",
    "NonConvexHull",
    "VectorHull",
    "Winners",
    "apply",
    "at",
    "averaged",
    "compiled_apply",
    "flatten",
    "fold_parameters",
    "init",
    "nest",
    "winners",
]
