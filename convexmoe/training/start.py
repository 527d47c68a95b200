"""Where a fit starts, and what it is drawn back to: a hull scaled and tilted to the data, and a plane.

Letters: N rows, D in, O out. A hull f stays one as

    c f(x) + a' x + b,  c >= 0                   for each output

with V_out, A_out, b_out (and the shifts and a learned temperature) times c, A_out plus a, b_out plus b.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..hull.config import LEARNED, LEAST_TEMPERATURE, HullConfig

Weights = dict[str, np.ndarray]
FACTORS = (0.02, 50.0)
ROWS = 10_000
PENALTIES = np.geomspace(1e-6, 1e6, 49)
LEAST = 1e-12  # of what a plane leaves, and of degrees of freedom


class Plane(NamedTuple):
    """`slopes' x + offsets`.

    Args:
        slopes: `[D, O]`; offsets: `[O]`.
        penalty: `[O]`, on the squared slopes, that of the whole sum of squares.
    """

    slopes: np.ndarray
    offsets: np.ndarray
    penalty: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return `[N, O]` values at `[N, D]`."""
        return x @ self.slopes + self.offsets


def ridge(x: np.ndarray, y: np.ndarray, penalty: np.ndarray | None = None) -> Plane:
    """Return the plane of ridge regression, its penalty by generalized cross-validation of each output.

    Source: Golub, Heath and Wahba, Generalized cross-validation as a method for choosing a good ridge parameter,
    Technometrics 21, 1979. Errors of leaving one row out depend on single rows far from the others too much.

    Args:
        x, y: `[N, D]` and `[N, O]`; columns of x in units of their deviations, or of one kind.
        penalty: `[O]`, in place of a choice.
    """
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    squares, axes = np.linalg.eigh((x - mean_x).T @ (x - mean_x))
    squares = np.maximum(squares, 0.0)
    along = axes.T @ ((x - mean_x).T @ (y - mean_y))
    if penalty is None:
        unit = float(squares.mean()) / len(x) or 1.0
        kept = 1.0 / (squares[:, None] + unit * PENALTIES)  # (D, K)
        freedom = len(x) - 1.0 - squares @ kept
        total = np.sum((y - mean_y) ** 2, axis=0)
        explained = np.einsum("do,dk->ko", along**2, 2.0 * kept - squares[:, None] * kept**2)
        errors = np.maximum(total - explained, LEAST * total) / np.maximum(freedom, LEAST)[:, None] ** 2
        penalty = unit * PENALTIES[len(PENALTIES) - 1 - np.argmin(errors[::-1], axis=0)]  # of equal ones the largest
    slopes = axes @ (along / (squares[:, None] + penalty))
    return Plane(slopes, mean_y - mean_x @ slopes, penalty)


def along_spread(weights: Weights, x: np.ndarray) -> Weights:
    """Return weights that read the inputs by the root of their spread along each principal axis, as much in all.

    Where the rows hardly differ, they cannot teach a steep slope away, and a row that does differ there would meet it.

    Args:
        weights: of a new hull, by dotted name.
        x: `[N, D]`.
    """
    squares, axes = np.linalg.eigh(covariance(x - x.mean(axis=0)))
    squares = np.maximum(squares, 0.0)
    size = np.sqrt(squares.sum() / np.maximum(np.sum(squares**2), np.finfo(np.float64).tiny))
    turn = (axes * (size * np.sqrt(squares))) @ axes.T
    return {name: np.tensordot(turn, w, 1) if name.endswith(".weight") else w for name, w in weights.items()}


def covariance(x: np.ndarray) -> np.ndarray:
    """Return the covariances of columns of mean zero, drawn to a multiple of the identity as far as chance explains.

    Source: Ledoit and Wolf, A well-conditioned estimator for large-dimensional covariance matrices, Journal of
    Multivariate Analysis 88, 2004.
    """
    rows, dim = x.shape
    found = x.T @ x / rows
    alike = np.trace(found) / dim * np.eye(dim)
    apart = np.sum((found - alike) ** 2)
    chance = (np.mean(np.sum(x * x, axis=1) ** 2) - np.sum(found**2)) / rows
    share = min(chance / apart, 1.0) if apart > 0 else 1.0
    return share * alike + (1.0 - share) * found


def half_square(config: HullConfig, x: np.ndarray) -> np.ndarray:
    """Return the part of a hull that its strong convexity gives, `[N, 1]`."""
    return 0.5 * config.strong_convexity * np.sum(x * x, axis=1, keepdims=True)


def scales_apart(config: HullConfig, weights: Weights) -> bool:
    """Return whether each output can be scaled by a factor of its own: several ones may share shifts."""
    return config.out_dim == 1 or not np.any(weights["shifts"])


def scales(config: HullConfig) -> bool:
    """Return whether the hull can be scaled at all: a fixed temperature is part of its config."""
    return config.temperature in (0.0, LEARNED)


def start_at(weights: Weights, config: HullConfig, f: np.ndarray, x: np.ndarray, y: np.ndarray) -> Weights:
    """Return the weights of `c f + a' x + b` in which c fits what is bent of `y`, and ridge regression the rest.

    c is 1 where it would change more than the size of an output. Weights whose values are not finite are returned as
    they are.

    Args:
        weights: every parameter by dotted name.
        config: the hull they belong to, without normalization.
        f: `[N, O]`, the values of the hull at x.
        x, y: `[N, D]` and `[N, O]`, normalized.
    """
    if not np.isfinite(f).all():
        return weights
    square = half_square(config, x)
    f, y, factor = f - square, y - square, np.ones(config.out_dim)
    if scales(config) and scales_apart(config, weights):
        little = np.full(config.out_dim, float(config.in_dim))  # a prior of variance 1 / D
        bent_f, bent_y = (part - ridge(x, part, little)(x) for part in (f, y))
        tiny = np.finfo(np.float64).tiny
        factor = np.clip(np.sum(bent_f * bent_y, axis=0) / (np.sum(bent_f**2, axis=0) + tiny), *FACTORS)
    rest = ridge(x, y - factor * f)
    return tilt(weights, config, factor, rest.slopes, rest.offsets)


def draw_back(weights: Weights, config: HullConfig, share: np.ndarray, plane: Plane) -> Weights:
    """Return the weights of `share f + (1 - share) plane`, but for the part of strong convexity, which stays."""
    rest = 1.0 - share
    return tilt(weights, config, share, rest * plane.slopes, rest * plane.offsets) if rest.any() else weights


def tilt(weights: Weights, config: HullConfig, factor: np.ndarray, slope: np.ndarray, offset: np.ndarray) -> Weights:
    """Return the weights of `factor f + slope' x + offset`, without the part of strong convexity.

    Args:
        weights: every parameter by dotted name; config: the hull they belong to.
        factor: `[O]`, >= 0, the same where outputs share shifts; at a fixed temperature 0 or 1.
        slope, offset: `[D, O]` and `[O]`.
    """
    new = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    if not np.array_equal(factor, np.ones(config.out_dim)):
        new["readout.raw_weight"] = scale_softplus(new["readout.raw_weight"], factor)
        new["readout.weight"] = new["readout.weight"] * factor
        new["readout.bias"] = new["readout.bias"] * factor
        new["shifts"] = new["shifts"] * factor[0]  # all zero where the outputs scale apart
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


def scale_softplus(raw: np.ndarray, factor: np.ndarray | float) -> np.ndarray:
    """Return the raw values whose softplus is `factor` times that of `raw`."""
    return inverse_softplus(np.logaddexp(raw, 0.0) * factor)


def inverse_softplus(value: np.ndarray) -> np.ndarray:
    """Return raw with `softplus(raw) = value`; values that are too small for one become the smallest of float32."""
    value = np.maximum(value, np.finfo(np.float32).tiny)
    return value + np.log(-np.expm1(-value))
