"""Minimization with a certified gap, tangents, conjugates."""

from .conjugate import Conjugate, conjugate, inverse_gradient
from .minimum import Minimum, minimize
from .tangents import MaxAffine, max_affine

__all__ = [
    "Conjugate",
    "MaxAffine",
    "Minimum",
    "conjugate",
    "inverse_gradient",
    "max_affine",
    "minimize",
]
