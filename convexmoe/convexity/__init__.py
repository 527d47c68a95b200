"""The calculus of convexity, of a graph of operations that either framework makes."""

from .certificate import Certificate, Output
from .segments import Violation

__all__ = [
    "Certificate",
    "Output",
    "Violation",
]
