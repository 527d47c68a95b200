"""The rules of layers, at the name that the documentation has: see `files/layers.py`."""

from .files.layers import RULES, channels_first, same, transposed

__all__ = ["RULES", "channels_first", "same", "transposed"]
