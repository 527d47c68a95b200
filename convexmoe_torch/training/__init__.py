"""Training: `fit`, and the loop that it runs."""

from .engine import FitResult, FitState, Fold, compare_curvature, fit, train

__all__ = ["FitResult", "FitState", "Fold", "compare_curvature", "fit", "train"]
