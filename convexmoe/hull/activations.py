"""The activations of a hull, a row each: all that the house knows about one of them stands in its row.

Every activation is convex and non-decreasing, with slopes in [0, 1]. It is a maximum of affine functions,
`act(u) = max_s s u + gain(s)` over slopes s, where `-gain` is its convex conjugate: lower bounds are made of that.

To add one, write a row here, and a line with its function in `convexmoe_jax/hull/petals.py` and in
`convexmoe_torch/hull/petals.py` (docs/pages/activations.md). The proof of convexity does not read this table: it
recognizes functions on its own (`convexmoe/convexity/scalars.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..arrays import Array, library, namespace

# Share of a layer's variance that comes through its non-negative weights; the rest comes through its signed ones.
POSITIVE_SHARE = 0.5


class Smooth(NamedTuple):
    """A smooth activation at u: value, slope in [0, 1], curvature >= 0, and how value and slope move with log w."""

    value: Array
    slope: Array
    curvature: Array
    value_drift: Array
    slope_drift: Array


@dataclass(frozen=True)
class Activation:
    """What the house knows about an activation.

    Args:
        mean, deviation: of `act(u)` at u ~ N(0, 1). Standardization by them removes the mean shift that non-negative
            weights would add up; an affine map with positive slope keeps convexity.
        value, slope, curvature: `act(u)` and its derivatives, elementwise; at a kink any slope of the two sides.
        gain: slope in [0, 1] -> the largest c with `act(u) >= slope u + c` for every u: minus the convex conjugate.
        atom: (cvxpy, u) -> the same function as an expression of CVXPY.
        smooth: (u, width) -> a smooth stand-in whose limit at width 0 is `act`; None for one without kinks.
    """

    mean: float
    deviation: float
    value: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    curvature: Callable[[Array], Array]
    gain: Callable[[Array], Array]
    atom: Callable[[Any, Any], Any]
    smooth: Callable[[Array, Array], Smooth] | None = None

    def standardize(self, value: Array) -> Array:
        """Return `act(u)` at mean 0 and deviation 1 for u ~ N(0, 1)."""
        return (value - self.mean) * (1.0 / self.deviation)

    def bend(self, u: Array, width: Array) -> Smooth:
        """Return the smooth activation of width `width` at `u`, not standardized."""
        if self.smooth is not None:
            return self.smooth(u, width)
        still = namespace(u).zeros_like(u)
        return Smooth(self.value(u), self.slope(u), self.curvature(u), still, still)


def _softplus(u: Array) -> Array:
    xp = namespace(u)
    return xp.logaddexp(u, xp.zeros_like(u))


def _huber_relu(u: Array) -> Array:
    xp = namespace(u)
    risen = xp.clip(xp.clip(u, max=1.0) + 1.0, min=0.0)
    return xp.where(u < 1.0, risen * risen * 0.25, u)


def _smooth_relu(u: Array, width: Array) -> Smooth:
    """Return `(u + sqrt(u^2 + 4 w^2)) / 2` and its derivatives, without cancellation below 0.

    Up to terms that do not bend, it is `min_z z - w log z - w log(z - u)`: relu with a barrier in place of its kink.
    """
    xp = namespace(u)
    root = xp.sqrt(u * u + 4 * width * width)
    small = 2 * width * width / (root + xp.abs(u))
    value = xp.where(u < 0, small, (u + root) / 2)
    slope, curvature = value / root, 2 * width * width / (root * root * root)
    return Smooth(value, slope, curvature, value - slope * u, -curvature * u)


def _smooth_huber_relu(u: Array, width: Array) -> Smooth:
    """Return the mean of the smooth relu over [u - 1, u + 1], as `huber_relu` is that of relu."""
    xp = namespace(u)
    upper, lower = _smooth_relu(u + 1, width), _smooth_relu(u - 1, width)

    def integral(at: Array, value: Array) -> Array:
        return 0.5 * at * value + width * width * xp.asinh(at / (2 * width))

    value = 0.5 * (integral(u + 1, upper.value) - integral(u - 1, lower.value))
    slope = xp.clip(0.5 * (upper.value - lower.value), min=0.0, max=1.0)
    curvature = xp.clip(0.5 * (upper.slope - lower.slope), min=0.0)
    still = xp.zeros_like(u)
    return Smooth(value, slope, curvature, still, still)


def _huber_atom(cp: Any, u: Any) -> Any:
    """Return `huber_relu` in the form that solvers take best; for a curved u in one that is known to increase."""
    return (cp.huber(u) + 1) / 4 + u / 2 if u.is_affine() else cp.huber(cp.pos(u + 1), 2) / 4


ACTIVATIONS = {
    "softplus": Activation(
        mean=0.80605918334743978,
        deviation=0.52107053438143932,
        value=_softplus,
        slope=lambda u: library(u).sigmoid(u),
        curvature=lambda u: library(u).sigmoid(u) * (1 - library(u).sigmoid(u)),
        gain=lambda slope: -library(slope).xlogy(slope, slope) - library(slope).xlogy(1 - slope, 1 - slope),
        atom=lambda cp, u: cp.logistic(u),
    ),
    "relu": Activation(
        mean=0.39894228040143268,
        deviation=0.58381937010354895,
        value=lambda u: namespace(u).where(u <= 0, 0.0, u),
        slope=lambda u: namespace(u).where(u > 0, 1.0, namespace(u).zeros_like(u)),
        curvature=lambda u: namespace(u).zeros_like(u),
        gain=lambda slope: namespace(slope).zeros_like(slope),
        atom=lambda cp, u: cp.pos(u),
        smooth=_smooth_relu,
    ),
    # 0 below -1, (u + 1)^2 / 4 between -1 and 1, u above: a relu with a continuous derivative
    "huber_relu": Activation(
        mean=0.46233010832811462,
        deviation=0.55775834939574297,
        value=_huber_relu,
        slope=lambda u: namespace(u).clip(0.5 * (u + 1.0), min=0.0, max=1.0),
        curvature=lambda u: namespace(u).where((u > -1) & (u < 1), 0.5, namespace(u).zeros_like(u)),
        gain=lambda slope: slope * (1 - slope),
        atom=_huber_atom,
        smooth=_smooth_huber_relu,
    ),
}
