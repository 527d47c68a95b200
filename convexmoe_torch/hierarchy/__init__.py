"""The hierarchy: levels of named experts, routes, fusion, losses."""

from . import records as _records  # noqa: F401  (it registers them)
from .dropout import sample_dropout
from .experts import ExpertModule, HullExpert, LinearExpert, MLPExpert
from .fixed import FixedHierarchy
from .fusion import LearnedFusion, PositionAwareFusion
from .grouped import grouped_matmul
from .losses import CELMoELossAPI, LossBundle
from .module import HierarchicalCELMoE
from .routes import constant_routes, encode_routes, merged_routes, routing_summary
from .staging import freeze, unfreeze

__all__ = [
    "CELMoELossAPI",
    "ExpertModule",
    "FixedHierarchy",
    "HierarchicalCELMoE",
    "HullExpert",
    "LearnedFusion",
    "LinearExpert",
    "LossBundle",
    "MLPExpert",
    "PositionAwareFusion",
    "constant_routes",
    "encode_routes",
    "freeze",
    "grouped_matmul",
    "merged_routes",
    "routing_summary",
    "sample_dropout",
    "unfreeze",
]
