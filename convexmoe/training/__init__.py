"""What a fit does that touches no tensor: rows, rates, history, starts, and the run itself."""

from .data import fingerprint
from .fit import HullFit
from .history import History
from .losses import Expectile, Huber, Objective, Quantile
from .parts import Parts
from .run import Engine, FitResult, FitState, Fold, check_finite, given_rows, run
from .schedule import ADAM_DECAYS, EVALUATIONS, Schedule, learning_rates
from .start import Weights
from .stream import Position, Stream

__all__ = [
    "ADAM_DECAYS",
    "EVALUATIONS",
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
    "fingerprint",
    "given_rows",
    "learning_rates",
    "run",
]
