"""Many processes: a mesh with the axes `data` and `expert`, experts divided over it, checkpoints of wrapped models."""

from .checkpoint import restore, save
from .mesh import PlacedHierarchy, average_gradients, make_mesh, place
from .sharded import latest_step, restore_sharded, save_sharded

__all__ = [
    "PlacedHierarchy",
    "average_gradients",
    "latest_step",
    "make_mesh",
    "place",
    "restore",
    "restore_sharded",
    "save",
    "save_sharded",
]
