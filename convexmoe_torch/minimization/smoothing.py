"""Smooth stand-ins for the activations and for the maximum, as interior-point methods take them.

A barrier replaces each kink: `relu(u)` by `min_z z - w log z - w log(z - u)`, up to terms that do not bend, and
`max_i g_i` by `min_t t - w sum_i log(t - g_i)`. They are self-concordant, so that Newton's method follows their
minimiser as the width w falls to 0 (Nesterov and Nemirovskii, 1994). Softplus and log-sum-exp stay as they are.

Letters: N rows, P groups.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

ROUNDS = 12  # of Newton's method for the barrier of a maximum; each doubles the digits


class Bent(NamedTuple):
    """A smooth activation at u: value, slope in [0, 1], curvature >= 0, and how value and slope move with log w."""

    value: Tensor
    slope: Tensor
    curvature: Tensor
    value_drift: Tensor
    slope_drift: Tensor


class Fused(NamedTuple):
    """A smooth maximum of g, (N, P): value (N,), weights (sum 1), their curvature factors, their move with log w."""

    value: Tensor
    weights: Tensor
    curvature: Tensor
    weight_drift: Tensor


def bent_relu(u: Tensor, width: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return `(u + sqrt(u^2 + 4 w^2)) / 2`, its slope and its curvature, without cancellation below 0."""
    root = torch.sqrt(u * u + 4 * width * width)
    small = 2 * width * width / (root + torch.abs(u))
    value = torch.where(u < 0, small, (u + root) / 2)
    return value, value / root, 2 * width * width / (root * root * root)


def bent(u: Tensor, activation: str, width: Tensor) -> Bent:
    """Return the smooth activation of width `width` at `u`; not standardised."""
    still = torch.zeros_like(u)
    if activation == "softplus":
        slope = torch.sigmoid(u)
        return Bent(torch.logaddexp(u, still), slope, slope * (1 - slope), still, still)
    if activation == "relu":
        value, slope, curvature = bent_relu(u, width)
        return Bent(value, slope, curvature, value - slope * u, -curvature * u)
    # huber_relu is the mean of relu over [u - 1, u + 1]: so is this of the smooth one
    (high, rise, _), (low, fall, _) = bent_relu(u + 1, width), bent_relu(u - 1, width)

    def integral(at: Tensor, value: Tensor) -> Tensor:
        return 0.5 * at * value + width * width * torch.asinh(at / (2 * width))

    value = 0.5 * (integral(u + 1, high) - integral(u - 1, low))
    slope = torch.clamp(0.5 * (high - low), 0.0, 1.0)
    return Bent(value, slope, torch.clamp(0.5 * (rise - fall), min=0.0), still, still)


def gain(slope: Tensor, activation: str) -> Tensor:
    """Return c with `act(u) >= slope u + c` for every u, with equality where `slope` is the derivative.

    It is minus the convex conjugate of the activation: the entropy of `slope` for softplus, 0 for relu,
    `slope (1 - slope)` for huber_relu; slopes are in [0, 1].
    """
    if activation == "softplus":
        rest = 1 - slope
        return -torch.xlogy(slope, slope) - torch.xlogy(rest, rest)
    return torch.zeros_like(slope) if activation == "relu" else slope * (1 - slope)


def bent_maximum(g_NP: Tensor, width: Tensor, temperature: Tensor | None) -> Fused:
    """Return the smooth maximum of width w, (N,); with a temperature T that is `log_mean_exp` from `w <= T` on."""
    w = width[:, None]
    top = torch.amax(g_NP, dim=-1, keepdim=True)
    below = top - g_NP
    t = w
    for _ in range(ROUNDS):
        share = w / (t + below)
        total = torch.sum(share, dim=-1, keepdim=True)
        t = t + total * (total - 1) * w / torch.sum(share * share, dim=-1, keepdim=True)
    share = w / (t + below)
    value = (top + t)[:, 0] + width * torch.sum(torch.log(share), dim=-1)
    weights = share / torch.sum(share, dim=-1, keepdim=True)
    curvature = weights * weights / w
    drift = -curvature * centred(g_NP, curvature)
    if temperature is None:
        return Fused(value, weights, curvature, drift)
    exact = width <= temperature
    soft = torch.softmax(g_NP / temperature, dim=-1)
    mean = temperature * (torch.logsumexp(g_NP / temperature, dim=-1) - math.log(g_NP.shape[-1]))
    return Fused(
        torch.where(exact, mean, value),
        torch.where(exact[:, None], soft, weights),
        torch.where(exact[:, None], soft / temperature, curvature),
        torch.where(exact[:, None], torch.zeros_like(drift), drift),
    )


def centred(values: Tensor, weights_NP: Tensor) -> Tensor:
    """Return `values`, (N, P) or (N, D, P), less their mean by the weights over the last axis."""
    shares = weights_NP / torch.sum(weights_NP, dim=-1, keepdim=True)
    shares = shares if values.ndim == shares.ndim else shares[:, None]
    return values - torch.sum(values * shares, dim=-1, keepdim=True)
