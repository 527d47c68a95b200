"""The rules of layers, at the name that the documentation has: see `files/layers.py`."""

from .files.layers import RULES

__all__ = ["RULES"]
