"""The start of a fit: a new hull, scaled and tilted to the data by least squares, and still a hull.

Letters: N rows, D in, P petals, O out.

    y ~ c f(x) + a' x + b,  c > 0                for each output

is a hull again: V_out, A_out, b_out (and the shifts and a learned temperature) times c, A_out plus a, b_out plus b.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...hull.config import LEARNED, LEAST_TEMPERATURE, HullConfig

Weights = dict[str, np.ndarray]
FACTORS = (0.02, 50.0)
ROWS = 10_000


def calibrate(weights: Weights, config: HullConfig, f: np.ndarray, x: np.ndarray, y: np.ndarray) -> Weights:
    """Return the weights of `c f + a' x + b` fitted to `y`: the same values but for rounding.

    c is 1 where it would change more than the size of an output: at a fixed temperature, and for several outputs that
    share shifts. Weights whose values are not finite are returned as they are.

    Args:
        weights: every parameter by dotted name.
        config: the hull they belong to.
        f: `[N, O]`, the values of the hull at x, in normalized units.
        x, y: `[N, D]` and `[N, O]`, normalized.
    """
    new = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    if not np.isfinite(f).all():
        return new
    shared = config.out_dim > 1 and bool(np.any(new["shifts"]))
    fixed = isinstance(config.temperature, float) and config.temperature > 0.0
    square = 0.5 * config.strong_convexity * np.sum(x * x, axis=1, keepdims=True)
    factor, slope, offset = correction(f - square, x, y - square, scaled=not (shared or fixed))
    if not np.array_equal(factor, np.ones(config.out_dim)):
        new["readout.raw_weight"] = scale_softplus(new["readout.raw_weight"], factor)
        new["readout.weight"] = new["readout.weight"] * factor
        new["readout.bias"] = new["readout.bias"] * factor
        new["shifts"] = new["shifts"] * factor[0]  # all zero for several outputs
        if config.temperature == LEARNED:
            T = np.logaddexp(new["raw_temperature"], 0.0) + LEAST_TEMPERATURE
            new["raw_temperature"] = inverse_softplus(T * factor - LEAST_TEMPERATURE)
    new["readout.weight"] = new["readout.weight"] + slope[:, None, :]
    new["readout.bias"] = new["readout.bias"] + offset
    return new


def spread_rows(x: Any, y: Any) -> tuple[Any, Any]:
    """Return `ROWS` rows at most, drawn once and for all, of arrays of any kind."""
    if len(x) <= ROWS:
        return x, y
    rows = np.sort(np.random.default_rng(0).choice(len(x), ROWS, replace=False))
    return x[rows], y[rows]


def correction(f: np.ndarray, x: np.ndarray, y: np.ndarray, scaled: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return c (O,), a (D, O) and b (O,) by least squares, a with the ridge of a prior of variance 1 / D."""
    design = np.column_stack([x, np.ones(len(x))])
    width = x.shape[1]
    gram = design.T @ design + np.diag([float(width)] * width + [0.0])
    plane_f, plane_y = (np.linalg.solve(gram, design.T @ values) for values in (f, y))
    bent_f, bent_y = f - design @ plane_f, y - design @ plane_y
    factor = np.ones(y.shape[1])
    if scaled:
        tiny = np.finfo(np.float64).tiny
        factor = np.clip(np.sum(bent_f * bent_y, axis=0) / (np.sum(bent_f**2, axis=0) + tiny), *FACTORS)
    plane = plane_y - factor * plane_f
    return factor, plane[:-1], plane[-1]


def scale_softplus(raw: np.ndarray, factor: np.ndarray | float) -> np.ndarray:
    """Return the raw values whose softplus is `factor` times that of `raw`."""
    return inverse_softplus(np.logaddexp(raw, 0.0) * factor)


def inverse_softplus(value: np.ndarray) -> np.ndarray:
    """Return raw with `softplus(raw) = value`; values that are too small for one become the smallest of float32."""
    value = np.maximum(value, np.finfo(np.float32).tiny)
    return value + np.log(-np.expm1(-value))
