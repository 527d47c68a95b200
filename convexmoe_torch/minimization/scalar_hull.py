"""One output of a hull in float64: its value, its smooth form with two derivatives, and affine functions below it.

Every activation is a maximum of affine functions, `act(u) = max_s s u + gain(s)` over slopes s in [0, 1], and so is the
fusion, `max_q q . g - T sum_i q_i log(P q_i)` over weights q >= 0 of sum 1. As the weights between layers are
non-negative, any choice of slopes and weights gives an affine function that lies nowhere above the hull, whatever
method has found it: that is what makes a lower bound certain (`ScalarHull.minorant`).

Letters: N rows, D in, H hidden, P petals (and groups). z is x in normalized units; y too is normalized here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from convexmoe.errors import fail, whole_number
from convexmoe.hull.activations import STANDARD
from convexmoe.hull.config import HullConfig

from ..hull.fusion import learned_temperature
from ..hull.module import FoldedHull, VectorHull, averaged, flatten, nest
from ..hull.petals import act, effective
from .smoothing import Bent, bent, bent_maximum, centred, gain

EPSILON = 2.0**-52
UNIT_WIDTH = 0.3  # of a unit of weight 1, in units of the width of the maximum; measured
LEAST_SHARE = 1e-3  # units that weigh less are smoothed no more widely than one of this weight


class Tangent(NamedTuple):
    """What names an affine function below a hull.

    Args:
        slopes: of each layer of units, in [0, 1], the gate's first; weights: of the groups, (N, P), >= 0, sum 1.
        anchor: where the square of a strongly convex hull is touched, (N, D).
    """

    slopes: list[Tensor]
    weights: Tensor
    anchor: Tensor


class Expansion(NamedTuple):
    """A smooth hull around rows z.

    Args:
        slope: its gradient, (N, D).
        curvature: its Hessian, (N, D, D), positive semidefinite.
        drift: how the gradient moves with the logarithm of the width, (N, D).
        layers: of each layer of units the derivative of what enters, what the activation gives, and its inner drift.
        jacobian: of the groups, (N, D, P); weights, weight_curvature, weight_drift: theirs, (N, P).
    """

    slope: Tensor
    curvature: Tensor
    drift: Tensor
    layers: list[tuple[Tensor, Bent, Tensor]]
    jacobian: Tensor
    weights: Tensor
    weight_curvature: Tensor
    weight_drift: Tensor


@dataclass(frozen=True, eq=False)
class ScalarHull:
    """One output of a hull, from effective parameters in float64.

    Args:
        config: the hull; layers: weight and bias, and positive_weight but for the first, the gate before them.
        positive_weight, weight, bias: the read-out, `([P,] H, P)` -> (H, P), (D, P), (P,).
        shifts: (P,); temperature: () or None for the maximum.
        input_mean, input_scale: (D,); output_mean, output_scale: (): the change of units.
        widths: by how much each unit is smoothed, in units of the width of the maximum.
    """

    config: HullConfig
    layers: list[dict[str, Tensor]]
    positive_weight: Tensor
    weight: Tensor
    bias: Tensor
    shifts: Tensor
    temperature: Tensor | None
    input_mean: Tensor
    input_scale: Tensor
    output_mean: Tensor
    output_scale: Tensor
    widths: list[Tensor]

    def value(self, z_ND: Tensor) -> Tensor:
        """Return the hull, (N,)."""
        return self._through(z_ND, lambda k, u: act(u, self.config.activation), self._fused) + self._square(
            z_ND
        )

    def smooth(self, z_ND: Tensor, width_N: Tensor) -> Tensor:
        """Return the smooth hull, (N,)."""

        def fuse(g_NP: Tensor) -> Tensor:
            return g_NP[:, 0] if self.config.petals == 1 else self._bent_maximum(g_NP, width_N).value

        return self._through(z_ND, lambda k, u: self._unit(k, u, width_N)[0], fuse) + self._square(z_ND)

    def expand(self, z_ND: Tensor, width_N: Tensor) -> Expansion:
        """Return slope, curvature and drift of the smooth hull, and what `Tangent`s are made of."""
        N, D = z_ND.shape
        layers: list[tuple[Tensor, Bent, Tensor]] = []
        h = moved = jacobian = None
        for k, layer in enumerate(self.layers):
            u = self._entering(k, z_ND, h)
            weight = layer["weight"]
            into = torch.broadcast_to(weight, (N, *weight.shape))
            inner = torch.zeros_like(u)
            if h is not None and moved is not None and jacobian is not None:
                into = into + self._rows(jacobian, lambda rows, k=k: self._mixed(k, rows))
                inner = inner + self._mixed(k, moved)
            h, unit = self._unit(k, u, width_N)
            layers.append((into, unit, unit.curvature * inner + unit.slope_drift))
            jacobian = into * self._scaled(unit.slope)[:, None]
            moved = self._scaled(unit.slope * inner + unit.value_drift)
        assert h is not None and moved is not None and jacobian is not None
        g_NP = self._groups(z_ND, h)
        slopes = self._paired(self.weight) + self._rows(jacobian, lambda rows: self._paired(self._read(rows)))
        if self.config.petals == 1:
            weights, bend, drift = torch.ones_like(g_NP), torch.zeros_like(g_NP), torch.zeros_like(g_NP)
            among = torch.zeros_like(slopes)
        else:
            _, weights, bend, drift = self._bent_maximum(g_NP, width_N)
            drift = drift + bend * centred(self._paired(self._read(moved)), bend)
            among = centred(slopes, bend)
        slope = torch.sum(slopes * weights[:, None], dim=-1)
        curvature = torch.einsum("ndp,np,nep->nde", among, bend, among)
        total = torch.einsum("ndp,np->nd", slopes, drift)
        shares = self._shares([unit.slope for _, unit, _ in layers], weights)
        for share, (into, unit, inner) in zip(shares, layers, strict=True):
            flat = into.reshape(N, D, -1)
            bends = (share * unit.curvature).reshape(N, 1, -1)
            curvature = curvature + (flat * bends) @ flat.transpose(1, 2)
            total = total + torch.einsum("ndh,nh->nd", flat, (share * inner).reshape(N, -1))
        mu = self.config.strong_convexity
        curvature = curvature + mu * torch.eye(D, dtype=z_ND.dtype, device=z_ND.device)
        return Expansion(slope + mu * z_ND, curvature, total, layers, slopes, weights, bend, drift)

    def tangent(self, at: Expansion, z_ND: Tensor, step_ND: Tensor, change_N: Tensor) -> Tangent:
        """Return slopes and weights as they will be at `z + step` and at `change` more of log w, to first order."""
        slopes = []
        for into, unit, inner in at.layers:
            change = change_N.reshape(-1, *[1] * (unit.slope.ndim - 1))
            moved = torch.einsum("nd...,nd->n...", into, step_ND)
            slopes.append(torch.clamp(unit.slope + unit.curvature * moved + change * inner, 0.0, 1.0))
        weights = at.weights
        if self.config.petals > 1:
            moved = centred(torch.einsum("ndp,nd->np", at.jacobian, step_ND), at.weight_curvature)
            weights = weights + at.weight_curvature * moved + change_N[:, None] * at.weight_drift
            weights = torch.clamp(weights, min=0.0)
            weights = weights / torch.sum(weights, dim=-1, keepdim=True)
        return Tangent(slopes, weights, z_ND + step_ND)

    def minorant(self, z_ND: Tensor, tangent: Tangent) -> tuple[Tensor, Tensor]:
        """Return value at z, (N,), and slope, (N, D), of an affine function below the hull without its square.

        Guarantee: it lies nowhere above the hull, in exact arithmetic, for slopes in [0, 1] and weights >= 0 of sum 1
        (tests/contract/test_minimize.py).
        """
        slopes, weights = tangent.slopes, tangent.weights
        mean, deviation = STANDARD[self.config.activation]

        def line(k: int, u: Tensor) -> Tensor:
            return (slopes[k] * u + gain(slopes[k], self.config.activation) - mean) / deviation

        value = self._through(z_ND, line, lambda g_NP: torch.sum(weights * g_NP, dim=-1))
        if self.temperature is not None and self.config.petals > 1:
            entropy = torch.sum(torch.xlogy(weights, weights * self.config.petals), dim=-1)
            value = value - self.temperature * entropy
        slope = self._unpaired(weights) @ self.weight.T
        for k, share in enumerate(self._shares(slopes, weights)):
            weight = self.layers[k]["weight"].reshape(self.config.in_dim, -1)
            slope = slope + (share * slopes[k]).reshape(len(z_ND), -1) @ weight.T
        return value, slope

    def square(self, z_ND: Tensor, tangent: Tangent) -> tuple[Tensor, Tensor]:
        """Return value at z and slope of the tangent to `mu / 2 ||z||^2` at the anchor."""
        slope = self.config.strong_convexity * tangent.anchor
        return torch.sum(slope * (z_ND - 0.5 * tangent.anchor), dim=-1), slope

    def rounding(self, reach_ND: Tensor) -> Tensor:
        """Return a bound, to first order in the unit of rounding, on the error of value, and of slope times reach.

        Args:
            reach_ND: the largest size of each coordinate of z, of what it is computed from too.
        """
        mean, deviation = STANDARD[self.config.activation]
        config, size = self.config, None
        for k, layer in enumerate(self.layers):
            u = _affine(reach_ND, layer["weight"].abs(), layer["bias"].abs())
            u = u if size is None else u + self._mixed(k, size)
            size = (u + math.log(2.0) + mean) / deviation
        assert size is not None
        g_NP = self.bias.abs() + reach_ND @ self.weight.abs() + self._read(size) + self.shifts.abs()
        square = 0.5 * config.strong_convexity * torch.sum(reach_ND * reach_ND, dim=-1)
        entropy = 0.0 if self.temperature is None else self.temperature * (math.log(config.petals) + 1)
        operations = 2 * (config.in_dim + config.hidden_dim + 8) * (len(self.layers) + 1) + 4 * config.petals
        own = EPSILON * operations * (torch.amax(g_NP, dim=-1) + square + entropy)
        return own + 4 * EPSILON * torch.abs(self.output_mean / self.output_scale)

    def normalized(self, x_ND: Tensor) -> Tensor:
        """Return x in normalized units."""
        return (x_ND - self.input_mean) / self.input_scale

    def _through(self, z_ND: Tensor, unit: Any, fuse: Any) -> Tensor:
        """Return the hull with `unit(k, u)` as its standardised activations and `fuse` as its maximum."""
        h = None
        for k in range(len(self.layers)):
            h = unit(k, self._entering(k, z_ND, h))
        return fuse(self._groups(z_ND, h))

    def _entering(self, k: int, z_ND: Tensor, h: Tensor | None) -> Tensor:
        """Return what enters the activation of layer k, from what the layer before has given."""
        u = _affine(z_ND, self.layers[k]["weight"], self.layers[k]["bias"])
        return u if h is None else u + self._mixed(k, h)

    def _mixed(self, k: int, h: Tensor) -> Tensor:
        """Return the part of what enters layer k that comes from the layer before; that of a gate enters as it is."""
        private = self.config.trunk == "private"
        if "positive_weight" not in self.layers[k]:
            return h[:, None] if private else h
        weight = self.layers[k]["positive_weight"]
        return torch.einsum("nph,hpk->npk", h, weight) if private else h @ weight

    def _unmixed(self, k: int, share: Tensor) -> Tensor:
        """Return the transpose of `_mixed`: shares of what enters layer k -> of what the layer before gives."""
        private = self.config.trunk == "private"
        if "positive_weight" not in self.layers[k]:
            return torch.sum(share, dim=1) if private else share
        weight = self.layers[k]["positive_weight"]
        return torch.einsum("npk,hpk->nph", share, weight) if private else share @ weight.T

    def _shares(self, slopes: list[Tensor], weights_NP: Tensor) -> list[Tensor]:
        """Return by how much each activation weighs in the output, layer by layer."""
        weights = self._unpaired(weights_NP)
        private = self.config.trunk == "private"
        share = weights[:, :, None] * self.positive_weight.T if private else weights @ self.positive_weight.T
        shares = []
        for k in reversed(range(len(self.layers))):
            shares.append(self._scaled(share))
            share = self._unmixed(k, shares[-1] * slopes[k]) if k else share
        return shares[::-1]

    def _groups(self, z_ND: Tensor, h: Any) -> Tensor:
        """Return g, (N, P), from the last layer of units."""
        return self._paired(self.bias + z_ND @ self.weight + self._read(h)) + self.shifts

    def _read(self, h: Tensor) -> Tensor:
        if self.config.trunk == "private":
            return torch.einsum("nph,hp->np", h, self.positive_weight)
        return h @ self.positive_weight

    def _paired(self, f: Tensor) -> Tensor:
        """Return the means of neighbouring petals, where the read-out does not have them already."""
        return 0.5 * (f + torch.roll(f, -1, dims=-1)) if self.config.group_size == 2 else f

    def _unpaired(self, weights_NP: Tensor) -> Tensor:
        """Return the transpose of `_paired`."""
        if self.config.group_size == 1:
            return weights_NP
        return 0.5 * (weights_NP + torch.roll(weights_NP, 1, dims=-1))

    def _unit(self, k: int, u: Tensor, width_N: Tensor) -> tuple[Tensor, Bent]:
        """Return the smooth activation of layer k, standardised, and as it is."""
        mean, _ = STANDARD[self.config.activation]
        found = bent(u, self.config.activation, width_N.reshape(-1, *[1] * (u.ndim - 1)) * self.widths[k])
        return self._scaled(found.value - mean), found

    def _scaled(self, value: Tensor) -> Tensor:
        return value / STANDARD[self.config.activation][1]

    def _rows(self, jacobian: Tensor, function: Any) -> Tensor:
        """Apply a function of rows to the rows of every derivative, (N, D, ...)."""
        moved = function(jacobian.reshape(-1, *jacobian.shape[2:]))
        return moved.reshape(*jacobian.shape[:2], *moved.shape[1:])

    def _bent_maximum(self, g_NP: Tensor, width_N: Tensor) -> Any:
        return bent_maximum(g_NP, width_N, self.temperature)

    def _fused(self, g_NP: Tensor) -> Tensor:
        if self.temperature is None or self.config.petals == 1:
            return torch.amax(g_NP, dim=-1)
        T = self.temperature
        return T * (torch.logsumexp(g_NP / T, dim=-1) - math.log(self.config.petals))

    def _square(self, z_ND: Tensor) -> Tensor:
        return 0.5 * self.config.strong_convexity * torch.sum(z_ND * z_ND, dim=-1)


def checked_output(owner: str, model: Any, output: int | None) -> int:
    """Return which output of a hull is meant; `output` may be None where there is only one.

    Raises:
        TypeError: the model is no hull.
        ValueError: it has several outputs and `output` names none of them.
    """
    if not isinstance(model, (VectorHull, FoldedHull)):
        fail(owner, "model", "a VectorHull or FoldedHull", type(model).__name__, "Pass a hull.", TypeError)
    out_dim = model.config.out_dim
    if output is None and out_dim > 1:
        fix = "Pass output=0, for example."
        fail(owner, "model", "a hull with out_dim=1, or an output of it", f"out_dim={out_dim}", fix)
    return 0 if output is None else whole_number(owner, "output", output, 0, out_dim - 1)


def checked_weights(owner: str, model: Any) -> None:
    """Check that the weights of a hull are finite."""
    if not all(bool(torch.isfinite(leaf).all()) for leaf in flatten(model.tree).values()):
        fail(owner, "model", "finite weights", "inf or nan", "Train it again.")


def scalar_hull(model: VectorHull | FoldedHull, o: int) -> ScalarHull:
    """Return output `o` of a hull."""
    params = nest({name: value.double() for name, value in flatten(model.tree).items()})
    is_folded = isinstance(model, FoldedHull)
    params, config = averaged(params if is_folded else effective(params, model.config), model.config)
    readout, trunk = params["readout"], params["trunk"]
    layers = ([params["gate"]] if config.gate else []) + [trunk[str(k)] for k in range(config.depth)]
    shifts = torch.zeros_like(params["shifts"]) if config.petals == 1 else params["shifts"]
    temperature = None
    if isinstance(config.temperature, str):
        temperature = learned_temperature(params["raw_temperature"])[o]
    elif config.temperature > 0:
        temperature = shifts.new_tensor(config.temperature)
    D, units = config.in_dim, config.normalization
    mean, scale, offset, factor = (0.0,) * D, (1.0,) * D, 0.0, 1.0
    if units is not None:
        mean, scale = units.input_mean, units.input_scale
        offset, factor = units.output_mean[o], units.output_scale[o]
    units_of_z = {"input_mean": mean, "input_scale": scale, "output_mean": offset, "output_scale": factor}
    numbers: Any = {name: shifts.new_tensor(value) for name, value in units_of_z.items()}
    read: Any = {name: readout[name][..., o] for name in ("positive_weight", "weight", "bias")}
    hull = ScalarHull(config, layers, shifts=shifts, temperature=temperature, widths=[], **read, **numbers)
    half = [torch.full_like(layer["bias"], 0.5)[None] for layer in layers]
    even = torch.full_like(shifts, 1.0 / config.petals)[None]
    shares = hull._shares(half, even)
    return replace(hull, widths=[UNIT_WIDTH / torch.clamp(share, min=LEAST_SHARE) for share in shares])


def _affine(z_ND: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    product = z_ND @ weight.reshape(weight.shape[0], -1)
    return bias + product.reshape(z_ND.shape[0], *weight.shape[1:])
