"""Convex mixtures of experts in JAX: pure functions over dicts of arrays, and Flax NNX modules that hold them."""

from importlib.util import find_spec as _find_spec

if any(_find_spec(_name) is None for _name in ("jax", "flax", "optax")):
    raise ImportError('convexmoe_jax needs JAX: pip install "convexmoe[jax]"')

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
