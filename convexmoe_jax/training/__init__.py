"""Training: `fit`, and the loop that it runs."""

from .engine import FitResult, FitState, fit, train
from .optimizers import adam, adamw

__all__ = ["FitResult", "FitState", "adam", "adamw", "fit", "train"]
