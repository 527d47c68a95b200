"""The proofs of convexity and the search for a counterexample; what is named here is what the package shows of them."""

from .certificate import certify
from .segments import Violation
from .verdict import Certificate, Output
from .violation import find_violation

__all__ = ["Certificate", "Output", "Violation", "certify", "find_violation"]
