"""Convex mixtures of experts in JAX: pure functions over dicts of arrays, and Flax NNX modules that hold them."""

from importlib.util import find_spec as _find_spec

if any(_find_spec(_name) is None for _name in ("jax", "flax", "optax")):
    raise ImportError('convexmoe_jax needs JAX: pip install "convexmoe[jax]"')

from . import hull
from .config import HullConfig, Normalization
from .hull import FoldedHull, VectorHull, Winners

__all__ = ["FoldedHull", "HullConfig", "Normalization", "VectorHull", "Winners", "hull"]
