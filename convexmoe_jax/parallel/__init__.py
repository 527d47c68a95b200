"""Many devices: a mesh with the axes `data` and `expert`, several processes, sharded checkpoints."""

from .checkpoints import Restored, latest_step, restore_sharded, save_sharded
from .mesh import gather, make_mesh, place, place_batch
from .processes import initialize

__all__ = [
    "Restored",
    "gather",
    "initialize",
    "latest_step",
    "make_mesh",
    "place",
    "place_batch",
    "restore_sharded",
    "save_sharded",
]
