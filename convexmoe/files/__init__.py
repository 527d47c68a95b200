"""The neutral file: its form, its checks, how it is written, and what of a model is in it."""

from .models import (
    Package,
    check_own_parts,
    describe_parts,
    make_expert,
    read_notes,
)
from .optimizer import MOMENTS, OptimizerState, check_state, steps_taken

__all__ = [
    "MOMENTS",
    "OptimizerState",
    "Package",
    "check_own_parts",
    "check_state",
    "describe_parts",
    "make_expert",
    "read_notes",
    "steps_taken",
]
