"""A hull as an expression of CVXPY."""

from .programs import set_context, set_weights, to_cvxpy

__all__ = ["set_context", "set_weights", "to_cvxpy"]
