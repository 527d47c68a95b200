"""The neutral file: its form, its checks, how it is written, and what of a model is in it."""

from .inspect import Inspection, inspect
from .models import Package, check_own_parts, describe_parts, make_expert, read_notes
from .optimizer import MOMENTS, OptimizerState, check_state, steps_taken

__all__ = [
    "MOMENTS",
    "Inspection",
    "OptimizerState",
    "Package",
    "check_own_parts",
    "check_state",
    "describe_parts",
    "inspect",
    "make_expert",
    "read_notes",
    "steps_taken",
]
