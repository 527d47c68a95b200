"""What a fit minimizes: the loss of a row, and the weights of the rows.

Only operators and `abs` are used here, which arrays of every library have.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np

from ..errors import fail
from ..hull.config import Normalization
from ..hull.weights import NUMPY

Constant = Callable[[Any, Any], Any]
SQUARED, ABSOLUTE = "squared", "absolute"
ROUNDS, SLACK = 50, 1e-9  # of a search for an offset; of a share of rows that is summed
LEAST_RESIDUAL = 1e-3  # in deviations of y: a residual that is smaller weighs no more than this one


def _check(owner: str, name: str, value: Any, most: float, rule: str, fix: str) -> None:
    """Check that an option of a loss is a number between 0 and `most`."""
    if isinstance(value, bool) or not isinstance(value, Real):
        fail(owner, name, rule, repr(value), fix, TypeError)
    if not 0 < float(value) < most:
        fail(owner, name, rule, repr(value), fix)


@dataclass(frozen=True)
class Huber:
    """`r^2` up to |r| = delta, `delta (2 |r| - delta)` beyond it, for r = y - prediction.

    Source: Huber, Robust estimation of a location parameter, Annals of Mathematical Statistics 35, 1964.

    Args:
        delta: above 0, in the units of y.
    """

    delta: float

    def __post_init__(self) -> None:
        _check("Huber", "delta", self.delta, math.inf, "a finite number > 0", "Pass it in the units of y.")


@dataclass(frozen=True)
class Quantile:
    """`level r` for r = y - prediction >= 0, else `(level - 1) r`: its minimizer is the quantile of that level.

    Source: Koenker and Bassett, Regression quantiles, Econometrica 46, 1978.

    Args:
        level: between 0 and 1.
    """

    level: float

    def __post_init__(self) -> None:
        _check("Quantile", "level", self.level, 1.0, "a number between 0 and 1", "Pass 0.9, for example.")


@dataclass(frozen=True)
class Expectile:
    """`level r^2` for r = y - prediction >= 0, else `(1 - level) r^2`: its minimizer is the expectile of that level.

    Source: Newey and Powell, Asymmetric least squares estimation and testing, Econometrica 55, 1987.

    Args:
        level: between 0 and 1.
    """

    level: float

    def __post_init__(self) -> None:
        _check("Expectile", "level", self.level, 1.0, "a number between 0 and 1", "Pass 0.9, for example.")


def check_loss(loss: Any) -> Any:
    """Return a loss after its check."""
    known = loss in (SQUARED, ABSOLUTE) if isinstance(loss, str) else isinstance(loss, (Huber, Quantile, Expectile))
    if not known and (isinstance(loss, (str, type)) or not callable(loss)):
        rule = '"squared", "absolute", a Huber, Quantile or Expectile, or a function of prediction and y'
        fix = 'Pass "squared", or convexmoe.Quantile(0.9), for example.'
        fail("fit", "loss", rule, repr(loss), fix, ValueError if isinstance(loss, str) else TypeError)
    return loss


@dataclass(frozen=True)
class Objective:
    """The mean loss of predictions in normalized units.

    Args:
        loss: as `fit` is given it.
        mean, scale: of the output, for a function and for Huber's delta.
        sign: -1 for a hull that is fitted to -y.
    """

    loss: Any = SQUARED
    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    sign: int = 1

    @property
    def is_squared(self) -> bool:
        """Whether it is the squared error."""
        return isinstance(self.loss, str) and self.loss == SQUARED

    @property
    def is_function(self) -> bool:
        """Whether it is of a function that a user gave, of the framework's arrays."""
        return not isinstance(self.loss, (str, Huber, Quantile, Expectile))

    def negate(self) -> Objective:
        """Return the objective of minus the predictions and minus y."""
        return replace(self, mean=tuple(-m for m in self.mean), sign=-self.sign)

    def __call__(self, prediction: Any, target: Any, constant: Constant = NUMPY.constant) -> Any:
        """Return the loss of each row and output, `[..., O]`, times the weight of its row.

        Args:
            prediction: `[..., O]`; target: y, `[..., O]`, or `[..., O + 1]` with weights.
            constant: (numbers, like) -> an array as another.
        """
        outputs = prediction.shape[-1]
        if target.shape[-1] == outputs:
            return self.values(prediction, target, constant)
        return self.values(prediction, target[..., :outputs], constant) * target[..., outputs:]

    def values(self, prediction: Any, y: Any, constant: Constant) -> Any:
        """Return the loss of each row and output, `[..., O]`."""
        loss, r = self.loss, y - prediction
        if isinstance(loss, str):
            return r * r if self.is_squared else abs(r)
        if isinstance(loss, Huber):
            beyond = abs(r) - constant(loss.delta, r) / constant(self.scale, r)
            beyond = 0.5 * (beyond + abs(beyond))
            return r * r - beyond * beyond
        if isinstance(loss, (Quantile, Expectile)):
            lean = self.sign * (loss.level - 0.5)
            return 0.5 * abs(r) + lean * r if isinstance(loss, Quantile) else r * (0.5 * r + lean * abs(r))
        scale, mean, sign = constant(self.scale, r), constant(self.mean, r), self.sign
        found = loss(sign * (mean + scale * prediction), sign * (mean + scale * y))
        if tuple(getattr(found, "shape", ())) != tuple(r.shape):
            got, fix = f"shape {list(getattr(found, 'shape', ()))}", "Return the loss of each, without a mean."
            fail("fit", "loss", f"a function that returns {list(r.shape)}, as its arguments", got, fix)
        return found

    def curve(self, r: np.ndarray) -> np.ndarray | None:
        """Return `L'(r) / (2 r)`, `[N, O]`, the weights of least squares with the same minimum; None for a function.

        Source: Holland and Welsch, Robust regression using iteratively reweighted least-squares, 1977.
        """
        loss, size = self.loss, np.maximum(np.abs(r), LEAST_RESIDUAL)
        if isinstance(loss, str):
            return np.ones_like(r) if self.is_squared else 0.5 / size
        if isinstance(loss, Huber):
            return np.minimum(1.0, loss.delta / np.asarray(self.scale) / size)
        if isinstance(loss, (Quantile, Expectile)):
            side = 0.5 + self.sign * (loss.level - 0.5) * np.sign(r)
            return side if isinstance(loss, Expectile) else 0.5 * side / size
        return None

    def best_offset(self, r: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Return what to add to each output for the least mean loss, `[O]`; 0 for a function.

        Args:
            r: `[N, O]`, y - prediction; weight: of the rows, `[N, 1]`, or without columns for alike.
        """
        loss, weight = self.loss, weight if weight.shape[1] else np.ones((len(r), 1))
        offset = np.zeros(r.shape[1])
        if isinstance(loss, Quantile) or loss == ABSOLUTE:
            level = 0.5 + self.sign * (loss.level - 0.5) if isinstance(loss, Quantile) else 0.5
            order = np.argsort(r, axis=0, kind="stable")
            below = np.cumsum(weight[order, 0], axis=0) / weight.sum()
            first = np.argmax(below >= level - SLACK, axis=0)
            return r[order[first, np.arange(len(first))], np.arange(len(first))]
        for _ in range(ROUNDS):
            curve = self.curve(r - offset)
            if curve is None:
                break
            share = weight * curve
            offset = np.sum(share * r, axis=0) / share.sum(axis=0)
        return offset


def objective_of(loss: Any, units: Normalization, sign: int) -> Objective:
    """Return the objective of a loss for rows in these units; only what needs them is told them."""
    if isinstance(loss, (str, Quantile, Expectile)):
        return Objective(loss, sign=sign)
    return Objective(loss, units.output_mean, units.output_scale, sign)


def names_of(loss: Any) -> tuple[np.ndarray, ...]:
    """Return what a fingerprint has of a loss: none for the square, its numbers, or the name of a function."""
    if isinstance(loss, str) and loss == SQUARED:
        return ()
    text = getattr(loss, "__qualname__", None) or repr(loss)
    return (np.frombuffer(text.encode(), np.uint8),)
