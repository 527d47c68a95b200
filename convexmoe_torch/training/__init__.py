"""Training: `fit`, and the loop that it runs."""

from .engine import FitResult, FitState, fit, train

__all__ = ["FitResult", "FitState", "fit", "train"]
