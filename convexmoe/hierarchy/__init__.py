"""What a hierarchy is and what both packages plan alike: its config, routes, records, losses and checks."""

from .checks import CONVERT, OWNER, check_expert_shape, check_hidden, check_model, check_module, check_result
from .config import CELMoEConfig, ExpertConfig, ExpertMetadata, HierarchyLevelConfig
from .contexts import hull_context
from .description import FUSIONS, USER, parameters_described_by
from .fixed_routes import LevelPlan, check_fixed_rows, plan_levels
from .fusion import EPSILON, build_fusion, check_length, check_levels, level_widths
from .grouped import tier_rows
from .losses import (
    RECORDS,
    BridgeLossCallable,
    CELMoELossAPI,
    LevelLossCallable,
    LossArrays,
    LossBundle,
    LossCallable,
    LossMap,
    LossResult,
    LossTerm,
)
from .module import Hierarchy
from .records import CELMoEOutput, ExpertAux, ExpertBatch, ExpertResult, LevelOutput
from .routes import LevelRouting, RouteFunctions, merge_routing, routing_constant, validate_routing_length
from .selection import ExpertContext, Shared, check_inputs, is_array, map_leaves
from .staging import select_parts

__all__ = [
    "CONVERT",
    "EPSILON",
    "FUSIONS",
    "OWNER",
    "RECORDS",
    "USER",
    "BridgeLossCallable",
    "CELMoEConfig",
    "CELMoELossAPI",
    "CELMoEOutput",
    "ExpertAux",
    "ExpertBatch",
    "ExpertConfig",
    "ExpertContext",
    "ExpertMetadata",
    "ExpertResult",
    "Hierarchy",
    "HierarchyLevelConfig",
    "LevelLossCallable",
    "LevelOutput",
    "LevelPlan",
    "LevelRouting",
    "LossArrays",
    "LossBundle",
    "LossCallable",
    "LossMap",
    "LossResult",
    "LossTerm",
    "RouteFunctions",
    "Shared",
    "build_fusion",
    "check_expert_shape",
    "check_fixed_rows",
    "check_hidden",
    "check_inputs",
    "check_length",
    "check_levels",
    "check_model",
    "check_module",
    "check_result",
    "hull_context",
    "is_array",
    "level_widths",
    "map_leaves",
    "merge_routing",
    "parameters_described_by",
    "plan_levels",
    "routing_constant",
    "select_parts",
    "tier_rows",
    "validate_routing_length",
]
