"""The hull: `VectorHull`, and the pure functions `init` and `apply` over nested dicts of parameters."""

from .legacy import NonConvexHull
from .module import (
    FoldedHull,
    HullModule,
    VectorHull,
    Winners,
    apply,
    averaged,
    flatten,
    fold_parameters,
    init,
    module_of,
    nest,
    units_of,
    winners,
)

__all__ = [
    "FoldedHull",
    "HullModule",
    "NonConvexHull",
    "VectorHull",
    "Winners",
    "apply",
    "averaged",
    "flatten",
    "fold_parameters",
    "init",
    "module_of",
    "nest",
    "units_of",
    "winners",
]
