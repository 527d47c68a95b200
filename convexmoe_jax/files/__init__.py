"""The neutral file that both packages read and write."""

from .models import load, load_optimizer, load_pretrained, read_notes, read_optimizer, save, save_pretrained
from .optimizer import OptimizerState

__all__ = [
    "OptimizerState",
    "load",
    "load_optimizer",
    "load_pretrained",
    "read_notes",
    "read_optimizer",
    "save",
    "save_pretrained",
]
