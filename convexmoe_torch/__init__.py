"""Convex mixtures of experts in PyTorch: the twin of `convexmoe_jax`, file by file and name by name."""

from importlib.util import find_spec as _find_spec

if _find_spec("torch") is None:
    raise ImportError('convexmoe_torch needs PyTorch: pip install "convexmoe[torch]"')

from . import hull
from .config import HullConfig, Normalization
from .hull import FoldedHull, VectorHull, Winners

__all__ = ["FoldedHull", "HullConfig", "Normalization", "VectorHull", "Winners", "hull"]
