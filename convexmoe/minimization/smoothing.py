"""A smooth stand-in for the maximum, as interior-point methods take it.

A barrier replaces the kinks: `max_i g_i` by `min_t t - w sum_i log(t - g_i)`, up to terms that do not bend. It is
self-concordant, so that Newton's method follows its minimizer as the width w falls to 0 (Nesterov and Nemirovskii,
1994). The activations have theirs in `convexmoe/hull/activations.py`. Log-sum-exp stays as it is.

Letters: N rows, P groups.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ..arrays import Array, library, namespace

ROUNDS = 12  # of Newton's method for the barrier of a maximum; each doubles the digits


class SmoothMaximum(NamedTuple):
    """A smooth maximum of g, (N, P).

    Args:
        value: (N,); weights: (N, P), of sum 1; curvature: their factors.
        weight_drift, value_drift: how weights and value move with log w.
    """

    value: Array
    weights: Array
    curvature: Array
    weight_drift: Array
    value_drift: Array


def smooth_maximum(g_NP: Array, width: Array, temperature: Array | None) -> SmoothMaximum:
    """Return the smooth maximum of width w, (N,); with a temperature T that is `log_mean_exp` from `w <= T` on."""
    xp, own = namespace(g_NP), library(g_NP)
    w = width[:, None]
    top = xp.max(g_NP, axis=-1, keepdims=True)
    below = top - g_NP

    def improve(t: Array) -> Array:
        share = w / (t + below)
        total = xp.sum(share, axis=-1, keepdims=True)
        return t + total * (total - 1) * w / xp.sum(share * share, axis=-1, keepdims=True)

    t = own.repeat(ROUNDS, improve, w)
    share = w / (t + below)
    logarithms = xp.sum(xp.log(share), axis=-1)
    value, value_drift = (top + t)[:, 0] + width * logarithms, width * (logarithms + g_NP.shape[-1])
    weights = share / xp.sum(share, axis=-1, keepdims=True)
    curvature = weights * weights / w
    drift = -curvature * center(g_NP, curvature)
    if temperature is None:
        return SmoothMaximum(value, weights, curvature, drift, value_drift)
    exact = width <= temperature
    soft = own.softmax(g_NP / temperature)
    mean = temperature * (own.logsumexp(g_NP / temperature) - math.log(g_NP.shape[-1]))
    return SmoothMaximum(
        xp.where(exact, mean, value),
        xp.where(exact[:, None], soft, weights),
        xp.where(exact[:, None], soft / temperature, curvature),
        xp.where(exact[:, None], xp.zeros_like(drift), drift),
        xp.where(exact, xp.zeros_like(value_drift), value_drift),
    )


def center(values: Array, weights_NP: Array) -> Array:
    """Return `values`, (N, P) or (N, D, P), less their mean by the weights over the last axis."""
    xp = namespace(values)
    shares = weights_NP / xp.sum(weights_NP, axis=-1, keepdims=True)
    shares = shares if values.ndim == shares.ndim else shares[:, None]
    return values - xp.sum(values * shares, axis=-1, keepdims=True)
