"""The hull: `VectorHull`, and the pure functions `init` and `apply` over nested dicts of parameters."""

from .legacy import NonConvexHull
from .module import (
    FoldedHull,
    VectorHull,
    Winners,
    apply,
    averaged,
    compiled_apply,
    flatten,
    fold_parameters,
    init,
    nest,
    winners,
)

__all__ = [
    "FoldedHull",
    "NonConvexHull",
    "VectorHull",
    "Winners",
    "apply",
    "averaged",
    "compiled_apply",
    "flatten",
    "fold_parameters",
    "init",
    "nest",
    "winners",
]
