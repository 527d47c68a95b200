"""What a hierarchy is: its config, routes as lists, the forms of losses."""

from .config import CELMoEConfig, ExpertConfig, ExpertMetadata, HierarchyLevelConfig
from .route_lists import LevelRouting, merge_routing, routing_constant, validate_routing_length

__all__ = [
    "CELMoEConfig",
    "ExpertConfig",
    "ExpertMetadata",
    "HierarchyLevelConfig",
    "LevelRouting",
    "merge_routing",
    "routing_constant",
    "validate_routing_length",
]
