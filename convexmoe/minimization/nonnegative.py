"""A non-negative hull: the softplus of a hull, and beside it the square of a strongly convex one.

Softplus is a maximum of affine functions with slopes s in [0, 1], `softplus(h) >= s h + gain(s)`: an affine function
below h makes one below `softplus(h)`. As an increasing function of a hull it needs no smoothing of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..arrays import Array, eye, namespace
from ..hull.activations import ACTIVATIONS
from .scalar_hull import EPSILON, Expansion, ScalarHull, Tangent

SOFTPLUS = ACTIVATIONS["softplus"]


@dataclass(frozen=True, eq=False)
class NonnegativeHull(ScalarHull):
    """One output of a non-negative hull, from effective parameters in float64: the fields of `ScalarHull`."""

    @property
    def inner(self) -> ScalarHull:
        """The hull inside the softplus, without a square."""
        plain = replace(self.config, nonnegative=False, strong_convexity=0.0)
        return ScalarHull(**(vars(self) | {"config": plain}))

    def value(self, z_ND: Array) -> Array:
        """Return the hull, (N,)."""
        return SOFTPLUS.value(self.inner.value(z_ND)) + self._half_square(z_ND)

    def smooth(self, z_ND: Array, width_N: Array) -> Array:
        """Return the smooth hull, (N,)."""
        return SOFTPLUS.value(self.inner.smooth(z_ND, width_N)) + self._half_square(z_ND)

    def expand(self, z_ND: Array, width_N: Array) -> Expansion:
        """Return slope, curvature and drift of the smooth hull, and what `Tangent`s are made of."""
        at, mu = self.inner.expand(z_ND, width_N), self.config.strong_convexity
        share, bend = SOFTPLUS.slope(at.value), SOFTPLUS.curvature(at.value)
        moved, drift = bend[:, None] * at.slope, bend * at.value_drift
        curvature = share[:, None, None] * at.curvature + moved[:, :, None] * at.slope[:, None, :]
        return at._replace(
            slope=share[:, None] * at.slope + mu * z_ND,
            curvature=curvature + mu * eye(self.config.in_dim, z_ND),
            drift=share[:, None] * at.drift + drift[:, None] * at.slope,
            outer=(share, moved, drift),
        )

    def tangent(self, at: Expansion, z_ND: Array, step_ND: Array, change_N: Array) -> Tangent:
        """Return slopes and weights as they will be at `z + step` and at `change` more of log w, to first order."""
        assert at.outer is not None
        (share, moved, drift), xp = at.outer, namespace(z_ND)
        share = share + xp.sum(moved * step_ND, axis=-1) + change_N * drift
        return super().tangent(at, z_ND, step_ND, change_N)._replace(outer=xp.clip(share, min=0.0, max=1.0))

    def minorant(self, z_ND: Array, tangent: Tangent) -> tuple[Array, Array]:
        """Return value at z, (N,), and slope, (N, D), of an affine function below the hull without its square.

        Guarantee: it lies nowhere above the hull, in exact arithmetic, for slopes in [0, 1] and weights >= 0 of sum 1
        (tests/contract/test_maximize.py).
        """
        share, (value, slope) = tangent.outer, super().minorant(z_ND, tangent)
        assert share is not None
        return share * value + SOFTPLUS.gain(share), share[:, None] * slope

    def rounding(self, reach_ND: Array) -> Array:
        """Return a bound on the error of value, and of slope times reach, as of `ScalarHull`: softplus adds little."""
        return 1.25 * super().rounding(reach_ND) + 8 * EPSILON
