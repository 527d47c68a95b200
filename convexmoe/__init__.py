"""What `convexmoe_jax` and `convexmoe_torch` have in common: plans, checks, descriptions. No framework is imported."""

from .convexity import Certificate, Output, Violation
from .files import inspect
from .hierarchy import CELMoEConfig, ExpertConfig, HierarchyLevelConfig
from .hull import HullConfig, Normalization
from .minimization import Ball, Box, Polytope, Simplex
from .training import Expectile, History, Huber, Quantile, Stream

__all__ = [
    "Ball",
    "Box",
    "CELMoEConfig",
    "Certificate",
    "Expectile",
    "ExpertConfig",
    "HierarchyLevelConfig",
    "History",
    "Huber",
    "HullConfig",
    "Normalization",
    "Output",
    "Polytope",
    "Quantile",
    "Simplex",
    "Stream",
    "Violation",
    "inspect",
]
