"""Which way a function is bent: a hull of y, one of -y, and a plane, judged by the same rows held out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .parts import ROUNDS

CONVEX, CONCAVE, NEITHER = "convex", "concave", "neither"
STANDARD_ERRORS, LEAST_GAIN = 2.0, 0.05


class Judged(NamedTuple):
    """Squared errors on each row held out, in units of the deviation of y, the mean over outputs, `[n]`.

    Args:
        hull: of what a fit gives back; plane: of ridge regression alone.
    """

    hull: np.ndarray
    plane: np.ndarray


class Curvature(NamedTuple):
    """What rows held out say of the curvature, from short fits.

    Args:
        convex, concave, plane: root mean squared errors of a hull of y, of one of -y, and of a plane, in units of the
            deviation of y.
        shown: "convex" or "concave" where that one errs less than both others, by a twentieth and by twice the standard
            error of the mean difference; else "neither".
    """

    convex: float
    concave: float
    plane: float
    shown: str

    def words(self) -> str:
        """Return what the rows speak for, in words, and how much more the others err."""
        if self.shown == NEITHER:
            return "neither a convex nor a concave function: on rows held out none is clearly ahead"
        best, other = sorted((self.convex, self.concave))
        times = [f"{error / best:.2g}" if error < 100 * best else "over 100" for error in (other, self.plane)]
        minus = CONVEX if self.shown == CONCAVE else CONCAVE
        return f"a {self.shown} function: a {minus} one errs {times[0]} times as much, a linear one {times[1]} times"


def compare_errors(convex: Judged, concave: Judged) -> Curvature:
    """Return what the same rows held out say of a hull of y and of one of -y."""
    best, other = sorted((convex, concave), key=lambda one: one.hull.mean())
    first, second, third = (float(np.sqrt(e.mean())) for e in (convex.hull, concave.hull, convex.plane))
    shown = min(first, second) < (1.0 - LEAST_GAIN) * min(max(first, second), third)
    shown = shown and all(is_less(best.hull, errors) for errors in (other.hull, best.plane))
    return Curvature(first, second, third, (CONVEX if best is convex else CONCAVE) if shown else NEITHER)


def is_less(errors: np.ndarray, others: np.ndarray, standard_errors: float = STANDARD_ERRORS) -> bool:
    """Return whether errors are less than others on the same rows, beyond chance; a row may be there once a round."""
    gain = others - errors
    return bool(gain.mean() > standard_errors * gain.std() / np.sqrt(len(gain) / ROUNDS))
