"""What a fit does that touches no tensor: rows, rates, history, starts."""

from .schedule import History

__all__ = [
    "History",
]
