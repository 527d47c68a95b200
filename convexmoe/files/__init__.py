"""The neutral file: its form, its checks, and how it is written."""

from .optimizer import OptimizerState

__all__ = ["OptimizerState"]
