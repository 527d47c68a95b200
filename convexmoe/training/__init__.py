"""What a fit does that touches no tensor: rows, rates, history, starts, and the run itself."""

from .data import fingerprint, given_rows
from .fit import HullEngine
from .history import History
from .parts import Parts
from .run import Engine, FitResult, FitState, Fold, check_finite, run
from .schedule import ADAM_DECAYS, EVALUATIONS, Schedule, learning_rates
from .start import Weights

__all__ = [
    "ADAM_DECAYS",
    "EVALUATIONS",
    "Engine",
    "FitResult",
    "FitState",
    "Fold",
    "History",
    "HullEngine",
    "Parts",
    "Schedule",
    "Weights",
    "check_finite",
    "fingerprint",
    "given_rows",
    "learning_rates",
    "run",
]
