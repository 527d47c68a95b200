"""What a hull is: its config, the names, shapes and laws of its parameters."""

from .config import HullConfig, Normalization

__all__ = ["HullConfig", "Normalization"]
