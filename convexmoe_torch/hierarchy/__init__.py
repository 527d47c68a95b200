"""The hierarchy: levels of named experts, routes, fusion, losses."""

from .dropout import sample_dropout
from .experts import ExpertAux, ExpertBatch, ExpertModule, ExpertResult, HullExpert, LinearExpert, MLPExpert
from .fixed import FixedHierarchy
from .fusion import LearnedFusion, PositionAwareFusion
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
from .module import CELMoEOutput, HierarchicalCELMoE, LevelOutput
from .routes import Shared, constant_routes, encode_routes, merged_routes, routing_summary
from .selection import ExpertContext
from .staging import freeze, unfreeze

__all__ = [
    "BridgeLossCallable",
    "CELMoELossAPI",
    "CELMoEOutput",
    "ExpertAux",
    "ExpertBatch",
    "ExpertContext",
    "ExpertModule",
    "ExpertResult",
    "FixedHierarchy",
    "HierarchicalCELMoE",
    "HullExpert",
    "LearnedFusion",
    "LevelLossCallable",
    "LevelOutput",
    "LinearExpert",
    "LossBundle",
    "LossCallable",
    "LossMap",
    "LossResult",
    "LossTerm",
    "MLPExpert",
    "PositionAwareFusion",
    "Shared",
    "constant_routes",
    "encode_routes",
    "freeze",
    "merged_routes",
    "routing_summary",
    "sample_dropout",
    "unfreeze",
]
