"""Convex mixtures of experts in PyTorch: the twin of `convexmoe_jax`, file by file and name by name."""

from importlib.util import find_spec as _find_spec

if _find_spec("torch") is None:
    raise ImportError('convexmoe_torch needs PyTorch: pip install "convexmoe[torch]"')

from . import hull
from .certificate import Violation, find_violation
from .checkpoint import load, read_notes, save
from .config import HullConfig, Normalization
from .hull import FoldedHull, VectorHull, Winners
from .training import FitResult, History, fit, train

__all__ = [
    "FitResult",
    "FoldedHull",
    "History",
    "HullConfig",
    "Normalization",
    "VectorHull",
    "Violation",
    "Winners",
    "find_violation",
    "fit",
    "hull",
    "load",
    "read_notes",
    "save",
    "train",
]
