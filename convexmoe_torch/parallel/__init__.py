"""Many processes: a mesh with the axes `data` and `expert`, experts divided over it, checkpoints of wrapped models."""

from .checkpoint import restore, save
from .mesh import PlacedHierarchy, average_gradients, make_mesh, place

__all__ = ["PlacedHierarchy", "average_gradients", "make_mesh", "place", "restore", "save"]
