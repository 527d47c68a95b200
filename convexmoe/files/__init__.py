"""The neutral file: its form, its checks, how it is written, and what its header says."""

from .inspect import Inspection, inspect
from .optimizer import OptimizerState

__all__ = ["Inspection", "OptimizerState", "inspect"]
