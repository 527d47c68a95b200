"""What a fit does that touches no tensor: rows, rates, history, starts, and the run itself."""

from .conformal import conformal_width
from .contrasts import ConvexityTest, convexity_test
from .data import fingerprint
from .fit import HullFit
from .history import History
from .losses import Expectile, Huber, Objective, Quantile
from .parts import Parts
from .run import Engine, FitResult, FitState, Fold, check_finite, given_rows, train
from .schedule import ADAM_DECAYS, EVALUATIONS, Schedule, learning_rates
from .start import Weights
from .stream import Position, Stream

__all__ = [
    "ADAM_DECAYS",
    "EVALUATIONS",
    "ConvexityTest",
    "Engine",
    "Expectile",
    "FitResult",
    "FitState",
    "Fold",
    "History",
    "Huber",
    "HullFit",
    "Objective",
    "Parts",
    "Position",
    "Quantile",
    "Schedule",
    "Stream",
    "Weights",
    "check_finite",
    "conformal_width",
    "convexity_test",
    "fingerprint",
    "given_rows",
    "learning_rates",
    "train",
]
