"""Minimization and maximization of hulls with a certified gap, tangents, conjugates, sets, and predictions."""

from .conjugate import Conjugate, conjugate, inverse_gradient
from .maximum import Maximum, maximize
from .minimum import Minimum, minimize
from .prediction import predict
from .sets import Ball, Box, Polytope, Simplex
from .tangents import MaxAffine, max_affine

__all__ = [
    "Ball",
    "Box",
    "Conjugate",
    "MaxAffine",
    "Maximum",
    "Minimum",
    "Polytope",
    "Simplex",
    "conjugate",
    "inverse_gradient",
    "max_affine",
    "maximize",
    "minimize",
    "predict",
]
