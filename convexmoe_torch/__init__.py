"""Convex mixtures of experts in PyTorch: the twin of `convexmoe_jax`, file by file and name by name."""

from importlib import import_module as _import_module
from importlib.util import find_spec as _find_spec
from typing import Any as _Any

if _find_spec("torch") is None:
    raise ImportError('convexmoe_torch needs PyTorch; in a clone of convexmoe: pip install -e ".[torch]"')

from convexmoe.hierarchy import (
    BridgeLossCallable,
    CELMoEConfig,
    CELMoEOutput,
    ExpertAux,
    ExpertBatch,
    ExpertConfig,
    ExpertContext,
    ExpertMetadata,
    ExpertResult,
    HierarchyLevelConfig,
    LevelLossCallable,
    LevelOutput,
    LevelRouting,
    LossCallable,
    LossMap,
    LossResult,
    LossTerm,
    Shared,
    merge_routing,
    routing_constant,
    validate_routing_length,
)
from convexmoe.hull.config import HullConfig, Normalization
from convexmoe.minimization.prediction import predict
from convexmoe.minimization.sets import Ball, Box, Polytope, Simplex
from convexmoe.training import Expectile, History, Huber, Quantile, Stream

from . import hull
from .convexity import Certificate, Violation, certify, find_violation
from .files import (
    OptimizerState,
    load,
    load_optimizer,
    load_pretrained,
    read_notes,
    read_optimizer,
    save,
    save_pretrained,
)
from .hierarchy import (
    CELMoELossAPI,
    ExpertModule,
    FixedHierarchy,
    HierarchicalCELMoE,
    HullExpert,
    LearnedFusion,
    LinearExpert,
    LossBundle,
    MLPExpert,
    PositionAwareFusion,
    constant_routes,
    encode_routes,
    freeze,
    grouped_matmul,
    merged_routes,
    routing_summary,
    sample_dropout,
    unfreeze,
)
from .hull import FoldedHull, NonConvexHull, VectorHull, Winners
from .minimization import (
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
from .training import FitResult, FitState, Fold, compare_curvature, fit, train

__all__ = [
    "Ball",
    "Box",
    "BridgeLossCallable",
    "CELMoEConfig",
    "CELMoELossAPI",
    "CELMoEOutput",
    "Certificate",
    "Conjugate",
    "Expectile",
    "ExpertAux",
    "ExpertBatch",
    "ExpertConfig",
    "ExpertContext",
    "ExpertMetadata",
    "ExpertModule",
    "ExpertResult",
    "FitResult",
    "FitState",
    "FixedHierarchy",
    "Fold",
    "FoldedHull",
    "HierarchicalCELMoE",
    "HierarchyLevelConfig",
    "History",
    "Huber",
    "HullConfig",
    "HullExpert",
    "LearnedFusion",
    "LevelLossCallable",
    "LevelOutput",
    "LevelRouting",
    "LinearExpert",
    "LossBundle",
    "LossCallable",
    "LossMap",
    "LossResult",
    "LossTerm",
    "MLPExpert",
    "MaxAffine",
    "Maximum",
    "Minimum",
    "NonConvexHull",
    "Normalization",
    "OptimizerState",
    "Polytope",
    "PositionAwareFusion",
    "Quantile",
    "Shared",
    "Simplex",
    "Stream",
    "VectorHull",
    "Violation",
    "Winners",
    "certify",
    "compare_curvature",
    "conjugate",
    "constant_routes",
    "encode_routes",
    "find_violation",
    "fit",
    "freeze",
    "grouped_matmul",
    "hull",
    "inverse_gradient",
    "load",
    "load_optimizer",
    "load_pretrained",
    "max_affine",
    "maximize",
    "merge_routing",
    "merged_routes",
    "minimize",
    "parallel",
    "predict",
    "read_notes",
    "read_optimizer",
    "routing_constant",
    "routing_summary",
    "sample_dropout",
    "save",
    "save_pretrained",
    "train",
    "unfreeze",
    "validate_routing_length",
]


def __getattr__(name: str) -> _Any:
    if name == "parallel":  # on demand: importing torch.distributed takes a second
        return _import_module("convexmoe_torch.parallel")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
