"""The proofs of convexity and the search for a counterexample; what is named here is what the package shows of them."""

from convexmoe.convexity.certificate import Certificate, Output
from convexmoe.convexity.segments import Violation

from .certify import certify
from .search import find_violation

__all__ = ["Certificate", "Output", "Violation", "certify", "find_violation"]
