"""Convex mixtures of experts in PyTorch: the twin of `convexmoe_jax`, file by file and name by name."""

from importlib.util import find_spec as _find_spec

if _find_spec("torch") is None:
    raise ImportError('convexmoe_torch needs PyTorch: pip install "convexmoe[torch]"')

from . import hull
from .checkpoint import load, load_optimizer, read_notes, read_optimizer, save
from .config import HullConfig, Normalization
from .conjugation import Conjugate, conjugate, inverse_gradient
from .contexts import ExpertContext
from .convexity import Certificate, Violation, certify, find_violation
from .deployment import FixedHierarchy
from .dropout import sample_dropout
from .experts import (
    ExpertAux,
    ExpertBatch,
    ExpertModule,
    ExpertResult,
    HullExpert,
    LinearExpert,
    MLPExpert,
)
from .hierarchy import CELMoEOutput, HierarchicalCELMoE, LevelOutput
from .hierarchy_config import CELMoEConfig, ExpertConfig, ExpertMetadata, HierarchyLevelConfig
from .hull import FoldedHull, VectorHull, Winners
from .legacy import NonConvexHull
from .level_fusion import LearnedFusion, PositionAwareFusion
from .losses import (
    BridgeLossCallable,
    CELMoELossAPI,
    LevelLossCallable,
    LossBundle,
    LossCallable,
    LossMap,
    LossResult,
    LossTerm,
)
from .minimization import Minimum, minimize
from .moments import OptimizerState
from .route_lists import LevelRouting, merge_routing, routing_constant, validate_routing_length
from .routing import Shared, constant_routes, encode_routes, merged_routes, routing_summary
from .schedule import History
from .sets import Ball, Box, Polytope, Simplex
from .staging import freeze, unfreeze
from .tangents import MaxAffine, max_affine
from .training import FitResult, FitState, fit, train

__all__ = [
    "Ball",
    "Box",
    "BridgeLossCallable",
    "CELMoEConfig",
    "CELMoELossAPI",
    "CELMoEOutput",
    "Certificate",
    "Conjugate",
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
    "FoldedHull",
    "HierarchicalCELMoE",
    "HierarchyLevelConfig",
    "History",
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
    "Minimum",
    "NonConvexHull",
    "Normalization",
    "OptimizerState",
    "Polytope",
    "PositionAwareFusion",
    "Shared",
    "Simplex",
    "VectorHull",
    "Violation",
    "Winners",
    "certify",
    "conjugate",
    "constant_routes",
    "encode_routes",
    "find_violation",
    "fit",
    "freeze",
    "hull",
    "inverse_gradient",
    "load",
    "load_optimizer",
    "max_affine",
    "merge_routing",
    "merged_routes",
    "minimize",
    "read_notes",
    "read_optimizer",
    "routing_constant",
    "routing_summary",
    "sample_dropout",
    "save",
    "train",
    "unfreeze",
    "validate_routing_length",
]
