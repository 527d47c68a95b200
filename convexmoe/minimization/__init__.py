"""Minimization: the sets."""

from .sets import Ball, Box, Polytope, Simplex

__all__ = [
    "Ball",
    "Box",
    "Polytope",
    "Simplex",
]
