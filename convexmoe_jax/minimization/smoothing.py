"""Smooth stand-ins for the activations and for the maximum, as interior-point methods take them.

A barrier replaces each kink: `relu(u)` by `min_z z - w log z - w log(z - u)`, up to terms that do not bend, and
`max_i g_i` by `min_t t - w sum_i log(t - g_i)`. They are self-concordant, so that Newton's method follows their
minimiser as the width w falls to 0 (Nesterov and Nemirovskii, 1994). Softplus and log-sum-exp stay as they are.

Letters: N rows, P groups.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

ROUNDS = 12  # of Newton's method for the barrier of a maximum; each doubles the digits


class Bent(NamedTuple):
    """A smooth activation at u: value, slope in [0, 1], curvature >= 0, and how value and slope move with log w."""

    value: jax.Array
    slope: jax.Array
    curvature: jax.Array
    value_drift: jax.Array
    slope_drift: jax.Array


class Fused(NamedTuple):
    """A smooth maximum of g, (N, P): value (N,), weights (sum 1), their curvature factors, their move with log w."""

    value: jax.Array
    weights: jax.Array
    curvature: jax.Array
    weight_drift: jax.Array


def bent_relu(u: jax.Array, width: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return `(u + sqrt(u^2 + 4 w^2)) / 2`, its slope and its curvature, without cancellation below 0."""
    root = jnp.sqrt(u * u + 4 * width * width)
    small = 2 * width * width / (root + jnp.abs(u))
    value = jnp.where(u < 0, small, (u + root) / 2)
    return value, value / root, 2 * width * width / (root * root * root)


def bent(u: jax.Array, activation: str, width: jax.Array) -> Bent:
    """Return the smooth activation of width `width` at `u`; not standardised."""
    still = jnp.zeros_like(u)
    if activation == "softplus":
        slope = jax.nn.sigmoid(u)
        return Bent(jnp.logaddexp(u, still), slope, slope * (1 - slope), still, still)
    if activation == "relu":
        value, slope, curvature = bent_relu(u, width)
        return Bent(value, slope, curvature, value - slope * u, -curvature * u)
    # huber_relu is the mean of relu over [u - 1, u + 1]: so is this of the smooth one
    (high, rise, _), (low, fall, _) = bent_relu(u + 1, width), bent_relu(u - 1, width)

    def integral(at: jax.Array, value: jax.Array) -> jax.Array:
        return 0.5 * at * value + width * width * jnp.arcsinh(at / (2 * width))

    value = 0.5 * (integral(u + 1, high) - integral(u - 1, low))
    slope = jnp.clip(0.5 * (high - low), 0.0, 1.0)
    return Bent(value, slope, jnp.clip(0.5 * (rise - fall), 0.0), still, still)


def gain(slope: jax.Array, activation: str) -> jax.Array:
    """Return c with `act(u) >= slope u + c` for every u, with equality where `slope` is the derivative.

    It is minus the convex conjugate of the activation: the entropy of `slope` for softplus, 0 for relu,
    `slope (1 - slope)` for huber_relu; slopes are in [0, 1].
    """
    if activation == "softplus":
        rest = 1 - slope
        return -jax.scipy.special.xlogy(slope, slope) - jax.scipy.special.xlogy(rest, rest)
    return jnp.zeros_like(slope) if activation == "relu" else slope * (1 - slope)


def bent_maximum(g_NP: jax.Array, width: jax.Array, temperature: jax.Array | None) -> Fused:
    """Return the smooth maximum of width w, (N,); with a temperature T that is `log_mean_exp` from `w <= T` on."""
    w = width[:, None]
    top = jnp.max(g_NP, axis=-1, keepdims=True)
    below = top - g_NP

    def improved(_: int, t: jax.Array) -> jax.Array:
        share = w / (t + below)
        total = jnp.sum(share, axis=-1, keepdims=True)
        return t + total * (total - 1) * w / jnp.sum(share * share, axis=-1, keepdims=True)

    t = jax.lax.fori_loop(0, ROUNDS, improved, w)
    share = w / (t + below)
    value = (top + t)[:, 0] + width * jnp.sum(jnp.log(share), axis=-1)
    weights = share / jnp.sum(share, axis=-1, keepdims=True)
    curvature = weights * weights / w
    drift = -curvature * centred(g_NP, curvature)
    if temperature is None:
        return Fused(value, weights, curvature, drift)
    exact = width <= temperature
    soft = jax.nn.softmax(g_NP / temperature, axis=-1)
    mean = temperature * (jax.nn.logsumexp(g_NP / temperature, axis=-1) - math.log(g_NP.shape[-1]))
    return Fused(
        jnp.where(exact, mean, value),
        jnp.where(exact[:, None], soft, weights),
        jnp.where(exact[:, None], soft / temperature, curvature),
        jnp.where(exact[:, None], jnp.zeros_like(drift), drift),
    )


def centred(values: jax.Array, weights_NP: jax.Array) -> jax.Array:
    """Return `values`, (N, P) or (N, D, P), less their mean by the weights over the last axis."""
    shares = weights_NP / jnp.sum(weights_NP, axis=-1, keepdims=True)
    shares = shares if values.ndim == shares.ndim else shares[:, None]
    return values - jnp.sum(values * shares, axis=-1, keepdims=True)
