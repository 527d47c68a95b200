"""Where a fit starts: a new hull brought near the data without a step of training."""

from .affine import Weights, spread_rows
from .choose import STARTS, choose_start

__all__ = ["STARTS", "Weights", "choose_start", "spread_rows"]
