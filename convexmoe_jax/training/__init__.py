"""Training: `fit`, and the loop that it runs."""

from .engine import FitResult, FitState, Fold, compare_curvature, fit, train
from .optimizers import adam, adamw

__all__ = ["FitResult", "FitState", "Fold", "adam", "adamw", "compare_curvature", "fit", "train"]
