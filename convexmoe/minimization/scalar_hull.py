"""One output of a hull in float64: its value, its smooth form with two derivatives, and affine functions below it.

Every activation is a maximum of affine functions, `act(u) = max_s s u + gain(s)` over slopes s in [0, 1], and so is the
fusion, `max_q q . g - T sum_i q_i log(P q_i)` over weights q >= 0 of sum 1. As the weights between layers are
non-negative, any choice of slopes and weights gives an affine function that lies nowhere above the hull, whatever
method has found it: that is what makes a lower bound certain (`ScalarHull.minorant`).

A hull with a context is one hull a problem: what the context moves, biases, shifts and the weights on x, and the scales
that it gives to units, have a leading axis of B problems, and rows are B equal groups, those of one problem together.

Letters: N rows, B problems, D in, H hidden, P petals (and groups). z is x in normalized units, and so is y here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..arrays import Array, einsum, eye, library, namespace
from ..hull.activations import ACTIVATIONS, Activation, Smooth
from ..hull.config import HullConfig
from .smoothing import center, smooth_maximum

EPSILON = 2.0**-52
UNIT_WIDTH = 0.3  # of a unit of weight 1, in units of the width of the maximum; measured
LEAST_SHARE = 1e-3  # units that weigh less are smoothed no more widely than one of this weight


class Tangent(NamedTuple):
    """What names an affine function below a hull.

    Args:
        slopes: of each layer of units, in [0, 1], the gate's first; weights: of the groups, (N, P), >= 0, sum 1.
        anchor: where the square of a strongly convex hull is touched, (N, D).
        outer: of a non-negative hull the slope of its last softplus, (N,), in [0, 1].
    """

    slopes: list[Array]
    weights: Array
    anchor: Array
    outer: Array | None = None


class Expansion(NamedTuple):
    """A smooth hull around rows z.

    Args:
        slope: its gradient, (N, D).
        curvature: its Hessian, (N, D, D), positive semidefinite.
        drift: how the gradient moves with the logarithm of the width, (N, D).
        layers: of each layer of units the derivative of what enters, what the activation gives, and its inner drift.
        jacobian: of the groups, (N, D, P); weights, weight_curvature, weight_drift: theirs, (N, P).
        value, value_drift: of the smooth maximum of the groups, (N,).
        outer: of a non-negative hull the slope of its last softplus, (N,), and how z and log w move it, (N, D), (N,).
    """

    slope: Array
    curvature: Array
    drift: Array
    layers: list[tuple[Array, Smooth, Array]]
    jacobian: Array
    weights: Array
    weight_curvature: Array
    weight_drift: Array
    value: Array
    value_drift: Array
    outer: tuple[Array, Array, Array] | None = None


@dataclass(frozen=True, eq=False)
class ScalarHull:
    """One output of a hull, from effective parameters in float64.

    Args:
        config: the hull; layers: weight and bias, and positive_weight but for the first, the gate before them.
        positive_weight, weight, bias: the read-out, `([P,] H, P)` -> (H, P), (D, P), (P,).
        shifts: (P,); temperature: () or None for the maximum.
        input_mean, input_scale: (D,); output_mean, output_scale: (): the change of units.
        widths: by how much each unit is smoothed, in units of the width of the maximum.
        per_problem: whether weight, bias and shifts, those of the layers and their scales, and widths begin with (B,).
    """

    config: HullConfig
    layers: list[dict[str, Array]]
    positive_weight: Array
    weight: Array
    bias: Array
    shifts: Array
    temperature: Array | None
    input_mean: Array
    input_scale: Array
    output_mean: Array
    output_scale: Array
    widths: list[Array]
    per_problem: bool = False

    @property
    def activation(self) -> Activation:
        """The row of its activation."""
        return ACTIVATIONS[self.config.activation]

    @property
    def can_fall(self) -> bool:
        """Whether there may be directions in which it falls without end."""
        return self.config.strong_convexity == 0 and not self.config.nonnegative

    def twice(self) -> ScalarHull:
        """Return the hull for its problems and, after them, for the same ones again."""
        if not self.per_problem:
            return self

        def double(part: Array) -> Array:
            return namespace(part).concat([part, part])

        moved = ("weight", "bias", "scale")
        layers = [{n: double(part) if n in moved else part for n, part in layer.items()} for layer in self.layers]
        own = {name: double(getattr(self, name)) for name in ("weight", "bias", "shifts")}
        return replace(self, layers=layers, widths=[double(width) for width in self.widths], **own)

    def value(self, z_ND: Array) -> Array:
        """Return the hull, (N,)."""
        act = self.activation
        petals = self._through(z_ND, lambda k, u: self._rescale(k, act.standardize(act.value(u))), self._fuse)
        return petals + self._half_square(z_ND)

    def smooth(self, z_ND: Array, width_N: Array) -> Array:
        """Return the smooth hull, (N,)."""

        def fuse(g_NP: Array) -> Array:
            return g_NP[:, 0] if self.config.petals == 1 else smooth_maximum(g_NP, width_N, self.temperature).value

        return self._through(z_ND, lambda k, u: self._unit(k, u, width_N)[0], fuse) + self._half_square(z_ND)

    def expand(self, z_ND: Array, width_N: Array) -> Expansion:
        """Return slope, curvature and drift of the smooth hull, and what `Tangent`s are made of."""
        xp = namespace(z_ND)
        N, D = z_ND.shape
        layers: list[tuple[Array, Smooth, Array]] = []
        h = moved = jacobian = None
        for k, layer in enumerate(self.layers):
            u = self._entering(k, z_ND, h)
            weight = layer["weight"]
            into = self._each(weight, N) if self.per_problem else xp.broadcast_to(weight, (N, *weight.shape))
            inner = xp.zeros_like(u)
            if h is not None and moved is not None and jacobian is not None:
                into = into + self._rows(jacobian, lambda rows, k=k: self._mixed(k, rows))
                inner = inner + self._mixed(k, moved)
            h, unit = self._unit(k, u, width_N)
            layers.append((into, unit, unit.curvature * inner + unit.slope_drift))
            jacobian = into * self._scaled(k, unit.slope)[:, None]
            moved = self._scaled(k, unit.slope * inner + unit.value_drift)
        assert h is not None and moved is not None and jacobian is not None
        g_NP = self._groups(z_ND, h)
        slopes = self._paired(self.weight) + self._rows(jacobian, lambda rows: self._paired(self._read(rows)))
        stirred = self._paired(self._read(moved))
        if self.config.petals == 1:
            weights, bend, drift = xp.ones_like(g_NP), xp.zeros_like(g_NP), xp.zeros_like(g_NP)
            value, value_drift, among = g_NP[:, 0], stirred[:, 0], xp.zeros_like(slopes)
        else:
            value, weights, bend, drift, value_drift = smooth_maximum(g_NP, width_N, self.temperature)
            drift = drift + bend * center(stirred, bend)
            value_drift = value_drift + xp.sum(weights * stirred, axis=-1)
            among = center(slopes, bend)
        slope = xp.sum(slopes * weights[:, None], axis=-1)
        curvature = einsum("ndp,np,nep->nde", among, bend, among)
        total = einsum("ndp,np->nd", slopes, drift)
        shares = self._shares([unit.slope for _, unit, _ in layers], weights)
        for share, (into, unit, inner) in zip(shares, layers, strict=True):
            flat = into.reshape(N, D, -1)
            bends = (share * unit.curvature).reshape(N, 1, -1)
            curvature = curvature + (flat * bends) @ flat.mT
            total = total + einsum("ndh,nh->nd", flat, (share * inner).reshape(N, -1))
        mu = self.config.strong_convexity
        curvature = curvature + mu * eye(D, z_ND)
        return Expansion(slope + mu * z_ND, curvature, total, layers, slopes, weights, bend, drift, value, value_drift)

    def tangent(self, at: Expansion, z_ND: Array, step_ND: Array, change_N: Array) -> Tangent:
        """Return slopes and weights as they will be at `z + step` and at `change` more of log w, to first order."""
        xp = namespace(z_ND)
        slopes = []
        for into, unit, inner in at.layers:
            change = change_N.reshape(-1, *[1] * (unit.slope.ndim - 1))
            moved = einsum("nd...,nd->n...", into, step_ND)
            slopes.append(xp.clip(unit.slope + unit.curvature * moved + change * inner, min=0.0, max=1.0))
        weights = at.weights
        if self.config.petals > 1:
            moved = center(einsum("ndp,nd->np", at.jacobian, step_ND), at.weight_curvature)
            weights = weights + at.weight_curvature * moved + change_N[:, None] * at.weight_drift
            weights = xp.clip(weights, min=0.0)
            weights = weights / xp.sum(weights, axis=-1, keepdims=True)
        return Tangent(slopes, weights, z_ND + step_ND)

    def minorant(self, z_ND: Array, tangent: Tangent) -> tuple[Array, Array]:
        """Return value at z, (N,), and slope, (N, D), of an affine function below the hull without its square.

        Guarantee: it lies nowhere above the hull, in exact arithmetic, for slopes in [0, 1] and weights >= 0 of sum 1
        (tests/contract/test_minimize.py).
        """
        xp = namespace(z_ND)
        slopes, weights = tangent.slopes, tangent.weights
        act = self.activation

        def line(k: int, u: Array) -> Array:
            return self._scaled(k, slopes[k] * u + act.gain(slopes[k]) - act.mean)

        value = self._through(z_ND, line, lambda g_NP: xp.sum(weights * g_NP, axis=-1))
        if self.temperature is not None and self.config.petals > 1:
            entropy = xp.sum(library(weights).xlogy(weights, weights * self.config.petals), axis=-1)
            value = value - self.temperature * entropy
        slope = self._on_input(self._unpaired(weights), self.weight)
        for k, share in enumerate(self._shares(slopes, weights)):
            slope = slope + self._on_input(share * slopes[k], self.layers[k]["weight"])
        return value, slope

    def square(self, z_ND: Array, tangent: Tangent) -> tuple[Array, Array]:
        """Return value at z and slope of the tangent to `mu / 2 ||z||^2` at the anchor."""
        xp = namespace(z_ND)
        slope = self.config.strong_convexity * tangent.anchor
        return xp.sum(slope * (z_ND - 0.5 * tangent.anchor), axis=-1), slope

    def rounding(self, reach_ND: Array) -> Array:
        """Return a bound, to first order in the unit of rounding, on the error of value, and of slope times reach.

        An offset of the inputs only moves z, by the rounding of x, so it counts times a bound on the slope: that of
        the square is `mu reach`. The computation itself goes on in z, and `x - mean` is rounded in units of its result.

        Args:
            reach_ND: the largest size of each coordinate of z, and of what it is computed from but the mean.
        """
        xp, act = namespace(reach_ND), self.activation
        config, size = self.config, None
        offset = 2 * xp.abs(self.input_mean / self.input_scale)
        far_ND = reach_ND + offset
        for k, layer in enumerate(self.layers):
            u = self._affine(far_ND, xp.abs(layer["weight"]), xp.abs(layer["bias"]))
            u = u if size is None else u + self._mixed(k, size)
            size = self._scaled(k, u + math.log(2.0) + act.mean)
        assert size is not None
        g_NP = self._affine(far_ND, xp.abs(self.weight), xp.abs(self.bias)) + self._read(size) + xp.abs(self.shifts)
        square = 0.5 * config.strong_convexity * xp.sum(reach_ND * (reach_ND + 2 * offset), axis=-1)
        entropy = 0.0 if self.temperature is None else self.temperature * (math.log(config.petals) + 1)
        operations = 2 * (config.in_dim + config.hidden_dim + 8) * (len(self.layers) + 1) + 4 * config.petals
        own = EPSILON * operations * (xp.max(g_NP, axis=-1) + square + entropy)
        return own + 4 * EPSILON * xp.abs(self.output_mean / self.output_scale)

    def normalize(self, x_ND: Array) -> Array:
        """Return x in normalized units."""
        return (x_ND - self.input_mean) / self.input_scale

    def _through(self, z_ND: Array, unit: Callable[[int, Array], Array], fuse: Callable[[Array], Array]) -> Array:
        """Return the hull with `unit(k, u)` as its standardized activations and `fuse` as its maximum."""
        h = None
        for k in range(len(self.layers)):
            h = unit(k, self._entering(k, z_ND, h))
        return fuse(self._groups(z_ND, h))

    def _entering(self, k: int, z_ND: Array, h: Array | None) -> Array:
        """Return what enters the activation of layer k, from what the layer before has given."""
        u = self._affine(z_ND, self.layers[k]["weight"], self.layers[k]["bias"])
        return u if h is None else u + self._mixed(k, h)

    def _mixed(self, k: int, h: Array) -> Array:
        """Return the part of what enters layer k that comes from the layer before; that of a gate enters as it is."""
        private = self.config.trunk == "private"
        if "positive_weight" not in self.layers[k]:
            return h[:, None] if private else h
        weight = self.layers[k]["positive_weight"]
        return einsum("nph,hpk->npk", h, weight) if private else h @ weight

    def _unmixed(self, k: int, share: Array) -> Array:
        """Return the transpose of `_mixed`: shares of what enters layer k -> of what the layer before gives."""
        xp = namespace(share)
        private = self.config.trunk == "private"
        if "positive_weight" not in self.layers[k]:
            return xp.sum(share, axis=1) if private else share
        weight = self.layers[k]["positive_weight"]
        return einsum("npk,hpk->nph", share, weight) if private else share @ weight.T

    def _shares(self, slopes: list[Array], weights_NP: Array) -> list[Array]:
        """Return by how much each activation weighs in the output, layer by layer."""
        weights = self._unpaired(weights_NP)
        private = self.config.trunk == "private"
        share = weights[:, :, None] * self.positive_weight.T if private else weights @ self.positive_weight.T
        shares = []
        for k in reversed(range(len(self.layers))):
            shares.append(self._scaled(k, share))
            share = self._unmixed(k, shares[-1] * slopes[k]) if k else share
        return shares[::-1]

    def _groups(self, z_ND: Array, h: Any) -> Array:
        """Return g, (N, P), from the last layer of units."""
        f_NP = self._affine(z_ND, self.weight, self.bias) + self._read(h)
        return self._paired(f_NP) + self._each(self.shifts, z_ND.shape[0])

    def _read(self, h: Array) -> Array:
        if self.config.trunk == "private":
            return einsum("nph,hp->np", h, self.positive_weight)
        return h @ self.positive_weight

    def _paired(self, f: Array) -> Array:
        """Return the means of neighboring petals, where the read-out does not have them already."""
        xp = namespace(f)
        return 0.5 * (f + xp.roll(f, -1, axis=-1)) if self.config.group_size == 2 else f

    def _unpaired(self, weights_NP: Array) -> Array:
        """Return the transpose of `_paired`."""
        xp = namespace(weights_NP)
        if self.config.group_size == 1:
            return weights_NP
        return 0.5 * (weights_NP + xp.roll(weights_NP, 1, axis=-1))

    def _unit(self, k: int, u: Array, width_N: Array) -> tuple[Array, Smooth]:
        """Return the smooth activation of layer k, standardized, and as it is."""
        width = namespace(u).reshape(width_N, (-1, *[1] * (u.ndim - 1))) * self._each(self.widths[k], u.shape[0])
        unit = self.activation.bend(u, width)
        return self._scaled(k, unit.value - self.activation.mean), unit

    def _scaled(self, k: int, value: Array) -> Array:
        """Return values of layer k, (N, ...), in units of the activation's deviation, times the scales of the units."""
        return self._rescale(k, value / self.activation.deviation)

    def _rescale(self, k: int, value: Array) -> Array:
        """Return what the units of layer k give, (N, ...), times the scales that a context gives them."""
        scale = self.layers[k].get("scale")
        return value if scale is None else self._each(scale, value.shape[0]) * value

    def _each(self, part: Array, rows: int) -> Array:
        """Return a parameter of each row, (N, ...), from one of each problem, (B, ...); others as they are."""
        problems = part.shape[0]
        if not self.per_problem or problems == rows:
            return part
        shape = (problems, rows // problems, *part.shape[1:])
        return namespace(part).broadcast_to(part[:, None], shape).reshape(rows, *part.shape[1:])

    def _affine(self, z_ND: Array, weight: Array, bias: Array) -> Array:
        """Return `z weight + bias`, (N, ...)."""
        N, D = z_ND.shape
        if not self.per_problem:
            return bias + (z_ND @ weight.reshape(D, -1)).reshape(N, *weight.shape[1:])
        B = weight.shape[0]
        product = z_ND.reshape(B, -1, D) @ weight.reshape(B, D, -1)
        return self._each(bias, N) + product.reshape(N, *weight.shape[2:])

    def _on_input(self, share: Array, weight: Array) -> Array:
        """Return the transpose of `_affine` without its bias: shares, (N, ...), of what enters -> slopes, (N, D)."""
        N, D = share.shape[0], self.config.in_dim
        if not self.per_problem:
            return share.reshape(N, -1) @ weight.reshape(D, -1).T
        flat = weight.reshape(weight.shape[0], D, -1)
        return einsum("nk,ndk->nd", share.reshape(N, -1), self._each(flat, N))

    def _rows(self, jacobian: Array, function: Any) -> Array:
        """Apply a function of rows to the rows of every derivative, (N, D, ...)."""
        moved = function(jacobian.reshape(-1, *jacobian.shape[2:]))
        return moved.reshape(*jacobian.shape[:2], *moved.shape[1:])

    def _fuse(self, g_NP: Array) -> Array:
        xp = namespace(g_NP)
        if self.temperature is None or self.config.petals == 1:
            return xp.max(g_NP, axis=-1)
        T = self.temperature
        return T * (library(g_NP).logsumexp(g_NP / T) - math.log(self.config.petals))

    def _half_square(self, z_ND: Array) -> Array:
        xp = namespace(z_ND)
        return 0.5 * self.config.strong_convexity * xp.sum(z_ND * z_ND, axis=-1)
