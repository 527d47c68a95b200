"""The hull: `VectorHull`, and the pure functions `init` and `apply` over nested dicts of parameters."""

from .legacy import NonConvexHull
from .module import (
    FoldedHull,
    VectorHull,
    Winners,
    apply,
    averaged,
    checked_params,
    compiled_apply,
    flatten,
    fold_parameters,
    fused,
    fused_petals,
    half_square,
    init,
    nest,
    normalized_rows,
    rescaled,
    winners,
)

__all__ = [
    "FoldedHull",
    "NonConvexHull",
    "VectorHull",
    "Winners",
    "apply",
    "averaged",
    "checked_params",
    "compiled_apply",
    "flatten",
    "fold_parameters",
    "fused",
    "fused_petals",
    "half_square",
    "init",
    "nest",
    "normalized_rows",
    "rescaled",
    "winners",
]
