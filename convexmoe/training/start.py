"""Where a fit starts, and what it is drawn back to: a hull scaled and tilted to the data, and a plane.

Letters: N rows, D in, C context, O out. Columns are those of x and of the context, D + C. A hull f stays one as

    c f(x) + a' x + b,  c >= 0                   for each output

with V_out, A_out, b_out (and the shifts, a learned temperature, and what the context adds) times c, A_out plus a, b_out
plus b; a plane leans on the context by the part of b that does. Slopes on monotone inputs keep their sign.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ..hull.config import LEARNED, LEAST_TEMPERATURE, HullConfig
from ..hull.parameters import positive_scale, signed_weight
from ..hull.weights import NUMPY
from .losses import Objective

Weights = dict[str, np.ndarray]
FACTORS = (0.02, 50.0)
ROWS = 10_000
PENALTIES = np.geomspace(1e-6, 1e6, 49)
LEAST = 1e-12  # of what a plane leaves, and of degrees of freedom
LEAST_SLOPE = 1e-2  # on a monotone input at the start, in units of `positive_scale`: a raw one must not die
NOWHERE = -1e4  # raw, of a slope that is zero in every dtype
SWEEPS, ROUNDS = 200, 20


class Plane(NamedTuple):
    """`slopes' x + offsets`.

    Args:
        slopes: `[D + C, O]`; offsets: `[O]`.
        penalty: `[O]`, on the squared slopes, that of the whole sum of squares.
    """

    slopes: np.ndarray
    offsets: np.ndarray
    penalty: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return `[N, O]` values at `[N, D + C]`."""
        return x @ self.slopes + self.offsets


def ridge(
    x: np.ndarray,
    y: np.ndarray,
    penalty: np.ndarray | None = None,
    *,
    weight: np.ndarray | None = None,
    signs: tuple[int, ...] | None = None,
) -> Plane:
    """Return the plane of ridge regression, its penalty by generalized cross-validation of each output.

    Source: Golub, Heath and Wahba, Generalized cross-validation as a method for choosing a good ridge parameter,
    Technometrics 21, 1979. Errors of leaving one row out depend on single rows far from the others too much.

    Args:
        x, y: `[N, D]` and `[N, O]`; columns of x in units of their deviations, or of one kind.
        penalty: `[O]`, in place of a choice.
        weight: `[N]`, of the rows, >= 0; signs: of the slopes on the first columns, 0 for any.
    """
    share = None if weight is None else weight / weight.sum()
    mean_x, mean_y = (part.mean(axis=0) if share is None else share @ part for part in (x, y))
    apart, off = x - mean_x, y - mean_y
    if share is not None:
        root = np.sqrt(len(x) * share)[:, None]
        apart, off = root * apart, root * off
    gram = apart.T @ apart
    squares, axes = np.linalg.eigh(gram)
    squares = np.maximum(squares, 0.0)
    along = axes.T @ (apart.T @ off)
    if penalty is None:
        unit = float(squares.mean()) / len(x) or 1.0
        kept = 1.0 / (squares[:, None] + unit * PENALTIES)  # (D, K)
        freedom = len(x) - 1.0 - squares @ kept
        total = np.sum(off**2, axis=0)
        explained = np.einsum("do,dk->ko", along**2, 2.0 * kept - squares[:, None] * kept**2)
        errors = np.maximum(total - explained, LEAST * total) / np.maximum(freedom, LEAST)[:, None] ** 2
        penalty = unit * PENALTIES[len(PENALTIES) - 1 - np.argmin(errors[::-1], axis=0)]  # of equal ones the largest
    slopes = axes @ (along / (squares[:, None] + penalty))
    if signs is not None:
        slopes = keep_signs(slopes, gram, apart.T @ off, penalty, signs)
    return Plane(slopes, mean_y - mean_x @ slopes, penalty)


def keep_signs(
    slopes: np.ndarray, gram: np.ndarray, along: np.ndarray, penalty: np.ndarray, signs: tuple[int, ...]
) -> np.ndarray:
    """Return the slopes of ridge regression whose signs are given, by descent along one coordinate after the other.

    Args:
        slopes: `[columns, O]`, without regard to signs; gram: `[columns, columns]`; along: `[columns, O]`.
        penalty: `[O]`; signs: of the first columns, 0 for any.
    """
    sign = np.zeros(len(slopes))
    sign[: len(signs)] = signs
    if not (sign[:, None] * slopes < 0).any():
        return slopes
    slopes = np.where(sign[:, None] * slopes < 0, 0.0, slopes)
    for _ in range(SWEEPS):
        before = slopes.copy()
        for j, own in enumerate(sign):
            rest = along[j] - gram[j] @ slopes + gram[j, j] * slopes[j]
            slopes[j] = rest / np.maximum(gram[j, j] + penalty, LEAST)
            slopes[j] = own * np.maximum(own * slopes[j], 0.0) if own else slopes[j]
        if np.abs(slopes - before).max() <= 1e-9 * np.abs(slopes).max():
            break
    return slopes


def fit_plane(
    x: np.ndarray, y: np.ndarray, objective: Objective, weight: np.ndarray | None, config: HullConfig
) -> Plane:
    """Return the plane of ridge regression for a loss, by least squares that are weighted again and again.

    Args:
        x, y: `[N, D + C]` and `[N, O]`, normalized, y without the part of strong convexity.
        objective: the loss; that of a function is taken as the square.
        weight: `[N]`, or None; config: the hull, for its signs.
    """
    plane = ridge(x, y, weight=weight, signs=config.signs)
    if objective.is_squared or objective.curve(y[:1]) is None:
        return plane
    x, y, *weights = spread_rows(x, y, *(() if weight is None else (weight,)))
    for _ in range(ROUNDS):
        curve = objective.curve(y - plane(x))
        assert curve is not None
        total = curve * weights[0][:, None] if weights else curve
        ones = [ridge(x, y[:, [o]], weight=total[:, o], signs=config.signs) for o in range(y.shape[1])]
        plane = Plane(*(np.concatenate(parts, axis=-1) for parts in zip(*ones, strict=True)))
    return plane


def along_spread(weights: Weights, x: np.ndarray, config: HullConfig) -> Weights:
    """Return weights that read the inputs by the root of their spread along each principal axis, as much in all.

    Where the rows hardly differ, they cannot teach a steep slope away, and a row that does differ there would meet it.

    Args:
        weights: of a new hull, by dotted name; config: theirs. Weights on monotone inputs stay.
        x: `[N, D]`.
    """
    free = config.free_inputs
    if not free:
        return weights
    x = x[:, free] if len(free) < config.in_dim else x
    squares, axes = np.linalg.eigh(covariance(x - x.mean(axis=0)))
    squares = np.maximum(squares, 0.0)
    size = np.sqrt(squares.sum() / np.maximum(np.sum(squares**2), np.finfo(np.float64).tiny))
    turn = (axes * (size * np.sqrt(squares))) @ axes.T

    def turned(name: str, weight: np.ndarray) -> np.ndarray:
        if not name.endswith(".weight") or (name.startswith("context.") and not name.startswith("context.trunk")):
            return weight
        if len(weight) == len(free):
            return np.tensordot(turn, weight, 1)
        weight = weight.copy()
        weight[free] = np.tensordot(turn, weight[free], 1)
        return weight

    return {name: turned(name, weight) for name, weight in weights.items()}


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
    x = x[:, : config.in_dim]
    return 0.5 * config.strong_convexity * np.sum(x * x, axis=1, keepdims=True)


def scales_apart(config: HullConfig, weights: Weights) -> bool:
    """Return whether each output can be scaled by a factor of its own: several ones may share shifts."""
    shared = [weights[name] for name in ("shifts", "context.readout.shifts") if name in weights]
    return config.out_dim == 1 or not any(map(np.any, shared))


def scales(config: HullConfig) -> bool:
    """Return whether the hull can be scaled at all: a fixed temperature is part of its config."""
    return config.temperature in (0.0, LEARNED)


def start_at(
    weights: Weights,
    config: HullConfig,
    f: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    objective: Objective | None = None,
    weight: np.ndarray | None = None,
) -> Weights:
    """Return the weights of `c f + a' x + b` in which c fits what is bent of `y`, and ridge regression the rest.

    c is 1 where it would change more than the size of an output. Weights whose values are not finite are returned as
    they are.

    Args:
        weights: every parameter by dotted name.
        config: the hull they belong to, without normalization.
        f: `[N, O]`, the values of the hull at x.
        x, y: `[N, D + C]` and `[N, O]`, normalized.
        objective, weight: the loss, None for the square, and the weights of the rows, `[N]`, or None.
    """
    if not np.isfinite(f).all():
        return weights
    square = half_square(config, x)
    f, y, factor = f - square, y - square, np.ones(config.out_dim)
    if scales(config) and scales_apart(config, weights):
        little = np.full(config.out_dim, float(x.shape[1]))  # a prior of variance 1 / D
        bent_f, bent_y = (part - ridge(x, part, little)(x) for part in (f, y))
        tiny = np.finfo(np.float64).tiny
        factor = np.clip(np.sum(bent_f * bent_y, axis=0) / (np.sum(bent_f**2, axis=0) + tiny), *FACTORS)
    rest = fit_plane(x, y - factor * f, objective or Objective(), weight, replace(config, monotone=None))
    return tilt(weights, config, factor, rest.slopes, rest.offsets, LEAST_SLOPE)


def draw_back(weights: Weights, config: HullConfig, share: np.ndarray, plane: Plane) -> Weights:
    """Return the weights of `share f + (1 - share) plane`, but for the part of strong convexity, which stays."""
    rest = 1.0 - share
    return tilt(weights, config, share, rest * plane.slopes, rest * plane.offsets) if rest.any() else weights


def tilt(
    weights: Weights, config: HullConfig, factor: np.ndarray, slope: np.ndarray, offset: np.ndarray, least: float = 0.0
) -> Weights:
    """Return the weights of `factor f + slope' x + offset`, without the part of strong convexity.

    Args:
        weights: every parameter by dotted name; config: the hull they belong to.
        factor: `[O]`, >= 0, the same where outputs share shifts; at a fixed temperature 0 or 1.
        slope, offset: `[D + C, O]` and `[O]`.
        least: of a slope on a monotone input, in units of `positive_scale`; what would have the wrong sign becomes it.
    """
    D, signs = config.in_dim, config.signs
    new = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    read = new["readout.weight"] if signs is None else signed_weight(new["readout.weight"], signs, NUMPY)
    if not np.array_equal(factor, np.ones(config.out_dim)):
        new["readout.raw_weight"] = scale_softplus(new["readout.raw_weight"], factor)
        read = read * factor
        for name in ("readout.bias", "context.readout.weight", "context.readout.bias"):
            new |= {name: new[name] * factor} if name in new else {}
        for name in ("shifts", "context.readout.shifts"):  # all zero where the outputs scale apart
            new |= {name: new[name] * factor[0]} if name in new else {}
        if config.temperature == LEARNED:
            T = np.logaddexp(new["raw_temperature"], 0.0) + LEAST_TEMPERATURE
            new["raw_temperature"] = inverse_softplus(T * factor - LEAST_TEMPERATURE)
    read = read + slope[:D, None, :]
    new["readout.bias"] = new["readout.bias"] + offset
    if config.context_dim:
        head = new["context.readout.bias"].copy()
        head[: config.context_dim] += slope[D:]
        new["context.readout.bias"] = head
    new["readout.weight"] = read if signs is None else raw_weight(read, signs, least)
    return new


def raw_weight(weight: np.ndarray, signs: tuple[int, ...], least: float) -> np.ndarray:
    """Return what is stored for a weight on inputs, `[D, ...]`, some of them of a sign."""
    sign = np.reshape(signs, (-1, *[1] * (weight.ndim - 1)))
    return np.where(sign, inverse_softplus(np.maximum(sign * weight / positive_scale(len(signs)), least)), weight)


def ignore_columns(weights: Weights, config: HullConfig, constant: np.ndarray) -> Weights:
    """Return weights that do not read some columns, `bool[D + C]`: without gradients there they never will."""
    if not constant.any():
        return weights
    free = config.free_inputs
    of_x, of_c = constant[: config.in_dim], np.flatnonzero(constant[config.in_dim :])
    idle = np.flatnonzero(of_x)
    monotone = [] if config.signs is None else [j for j in idle if config.signs[j]]
    new = {name: value.copy() for name, value in weights.items()}
    for name, value in new.items():
        if not name.startswith("context."):
            if name.endswith(".weight"):
                value[idle], value[monotone] = 0.0, NOWHERE
        elif name.startswith("context.trunk") and name.endswith("weight"):
            value[of_x[free]], value[:, of_c] = 0.0, 0.0
        elif name == "context.readout.weight":
            value[:, of_x[free]], value[of_c] = 0.0, 0.0
        elif name.startswith(("context.trunk", "context.readout")) or name == "context.0.weight":
            value[of_c] = 0.0
    return new


def spread_rows(*arrays: Any) -> tuple[Any, ...]:
    """Return `ROWS` rows at most, drawn once and for all, of arrays of any kind."""
    if len(arrays[0]) <= ROWS:
        return arrays
    rows = np.sort(np.random.default_rng(0).choice(len(arrays[0]), ROWS, replace=False))
    return tuple(array[rows] for array in arrays)


def scale_softplus(raw: np.ndarray, factor: np.ndarray | float) -> np.ndarray:
    """Return the raw values whose softplus is `factor` times that of `raw`."""
    return inverse_softplus(np.logaddexp(raw, 0.0) * factor)


def inverse_softplus(value: np.ndarray) -> np.ndarray:
    """Return raw with `softplus(raw) = value`; values that are too small for one become the smallest of float32."""
    value = np.maximum(value, np.finfo(np.float32).tiny)
    return value + np.log(-np.expm1(-value))
