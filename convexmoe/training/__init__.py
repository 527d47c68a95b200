"""What a fit does that touches no tensor: rows, rates, history, starts, and the run itself."""

from .data import given_rows
from .history import History
from .run import Engine, FitResult, FitState, HullEngine, check_finite, run
from .schedule import ADAM_DECAYS, EVALUATIONS, Schedule, learning_rates
from .starts import Weights, choose_start

__all__ = [
    "ADAM_DECAYS",
    "EVALUATIONS",
    "Engine",
    "FitResult",
    "FitState",
    "History",
    "HullEngine",
    "Schedule",
    "Weights",
    "check_finite",
    "choose_start",
    "given_rows",
    "learning_rates",
    "run",
]
