"""What a hull is compared with: a plane of the same loss, an MLP with as many parameters, and boosted trees."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convexmoe.hull import HullConfig, Normalization
from convexmoe.training import Quantile
from convexmoe.training.losses import ABSOLUTE, SQUARED, objective_of
from convexmoe.training.start import fit_plane

from .. import is_installed
from ..frameworks import Framework
from .dataset import Dataset

Rows = NDArray[np.float64]
HELD_OUT = 0.15  # of the rows that an MLP and trees are fitted to: they choose the best step
LEAST_LEAF = 20  # rows, of scikit-learn's trees
MLP_LEARNING_RATE = 1e-2  # three times it is worse for the MLP on the embedded data


# Rows `[N, in_dim]` to `[N]`, both in original units, and how many numbers were trained.
Baseline = tuple[Callable[[Rows], Rows], int]


def fit_linear(x: Rows, y: Rows, weight: Rows | None = None, loss: Any = SQUARED) -> Baseline:
    """Return the plane, with intercept, through rows `[N, in_dim]` and targets `[N]`: of least squares, or of a loss.

    Args:
        x, y: the rows; weight: `[N]`, how much each counts, or None.
        loss: as `fit` takes it; for another than the square by `fit_plane`, as a start is fitted.

    >>> rows = np.arange(6.0).reshape(3, 2)
    >>> predict, _ = fit_linear(rows, rows[:, 0] - 2)
    >>> bool(np.allclose(predict(rows), rows[:, 0] - 2))
    True
    """
    mean, scale = x.mean(axis=0), _scale(x)

    def design(rows: Rows) -> Rows:
        return np.column_stack([(rows - mean) / scale, np.ones(len(rows))])

    if loss != SQUARED:
        units = Normalization((), (), (float(y.mean()),), (float(y.std()) if np.ptp(y) > 0 else 1.0,))
        z, config = (y - units.output_mean[0]) / units.output_scale[0], HullConfig(x.shape[1], 1, 1)
        plane = fit_plane(design(x)[:, :-1], z[:, None], objective_of(loss, units, 1), weight, config)
        solution: Any = units.output_scale[0] * np.append(plane.slopes[:, 0], plane.offsets[0])
        solution[-1] += units.output_mean[0]
    else:
        root: Rows | float = 1.0 if weight is None else np.sqrt(weight)[:, None]
        solution = np.linalg.lstsq(root * design(x), (root * y[:, None])[:, 0], rcond=None)[0]
    return lambda rows: design(rows) @ solution, solution.size


def mlp_width(in_dim: int, num_parameters: int) -> int:
    """Return the width H of two hidden layers whose `H^2 + (in_dim + 3) H + 1` is nearest to `num_parameters`.

    >>> mlp_width(6, 1313)
    32
    """
    middle = (in_dim + 3) / 2
    return max(1, round(math.sqrt(middle**2 + max(0, num_parameters - 1)) - middle))


def fit_mlp(
    framework: Framework, x: Rows, y: Rows, validation: tuple[Rows, Rows], *, num_parameters: int, steps: int, seed: int
) -> Baseline:
    """Return an MLP of two hidden ReLU layers on normalized data, trained and stopped early as the hull is.

    Args:
        framework: trains it.
        x, y: `[N, in_dim]` and `[N]`.
        validation: the same for the rows that choose the best step.
        num_parameters: how many it should have, as nearly as its width allows.
        steps, seed: as for the hull.
    """
    mean, scale, y_mean, y_scale = x.mean(axis=0), _scale(x), y.mean(), y.std() if np.ptp(y) > 0 else 1.0

    def normalize(rows: Rows, targets: Rows) -> tuple[Rows, Rows]:
        return (rows - mean) / scale, ((targets - y_mean) / y_scale)[:, None]

    weights = _initial_weights(x.shape[1], mlp_width(x.shape[1], num_parameters), seed)
    schedule = {"steps": steps, "seed": seed, "learning_rate": MLP_LEARNING_RATE}
    forward = framework.train_mlp(weights, *normalize(x, y), validation=normalize(*validation), **schedule)
    size = sum(value.size for value in weights.values())
    return lambda rows: forward((rows - mean) / scale)[:, 0] * y_scale + y_mean, size


def fit_baselines(
    framework: Framework, data: Dataset, rest: NDArray[np.int64], num_parameters: int, steps: int, seed: int
) -> dict[str, tuple[Callable[[Rows], Rows], int | None]]:
    """Return a plane, an MLP and boosted trees that are fitted to some rows, and how many numbers each has, if known.

    The MLP learns by squares, and from all rows alike: it is left out where the hull does not. Of trees
    `reason_against_boosting` says where they are.

    Args:
        framework: trains the MLP; data, rest: the table, and the rows to fit to.
        num_parameters: of the hull; steps, seed: as for the hull.
    """
    function, weights = data.function, data.weights
    found: dict[str, tuple[Callable[[Rows], Rows], int | None]] = {}
    found["linear"] = fit_linear(*data.rows(rest), weights(rest), function.objective)
    held_out, learned = rows_to_learn(data, rest)
    rows, judges = data.rows(learned), data.rows(held_out)
    if function.is_plain:
        found["mlp"] = fit_mlp(framework, *rows, judges, num_parameters=num_parameters, steps=steps, seed=seed)
    if reason_against_boosting(function.objective, len(learned)) is None:
        signs = np.zeros(len(data.columns), int)
        signs[: len(data.inputs)] = function.signs(data.inputs) or 0
        counts = weights(learned), weights(held_out)
        found["boosting"] = fit_boosting(*rows, judges, signs, counts, function.objective, seed), None
    return found


def rows_to_learn(data: Dataset, rest: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the rows that stop an MLP and trees, and those they learn from, of the `rest` of a fold that count."""
    weight = data.weights(rest)
    counted = rest if weight is None else rest[weight > 0]
    return np.split(counted, [max(1, round(HELD_OUT * len(counted)))])


def reason_against_boosting(loss: Any, rows: int) -> str | None:
    """Return why no boosted trees are fitted, None where they are: scikit-learn is optional, and has not every loss.

    Args:
        loss: as `fit` takes it; rows: to learn from. Of fewer than two leaves' no tree would have a split.
    """
    if rows < 2 * LEAST_LEAF:
        return f"{rows} rows to learn from in a fold are too few for a split, of {LEAST_LEAF} rows on each side"
    if not (isinstance(loss, Quantile) or loss in (SQUARED, ABSOLUTE)):
        return "scikit-learn has none of this loss"
    if not is_installed("sklearn") or tuple(map(int, version("scikit-learn").split(".")[:2])) < (1, 7):
        return 'scikit-learn 1.7 or newer is not installed (in a clone: pip install -e ".[sklearn]")'
    return None


def fit_boosting(
    x: Rows,
    y: Rows,
    validation: tuple[Rows, Rows],
    signs: NDArray[np.int64],
    weights: tuple[Rows | None, Rows | None],
    loss: Any,
    seed: int,
) -> Callable[[Rows], Rows]:
    """Return boosted trees with the options that scikit-learn has unless told otherwise, stopped early.

    Args:
        x, y: `[N, D]` and `[N]`; validation: the same for the rows that stop it.
        signs: of each column: 1 where the trees rise with it, -1 where they fall, else 0.
        weights: of both kinds of rows, or None twice.
        loss: as `fit` takes it, one of scikit-learn's too; seed: of the trees.
    """
    from sklearn.ensemble import HistGradientBoostingRegressor

    name = {SQUARED: "squared_error", ABSOLUTE: "absolute_error"}.get(loss, "quantile")
    level = loss.level if isinstance(loss, Quantile) else None
    options = {"monotonic_cst": signs, "early_stopping": True, "random_state": seed}
    trees = HistGradientBoostingRegressor(loss=name, quantile=level, **options)
    trees.fit(x, y, weights[0], X_val=validation[0], y_val=validation[1], sample_weight_val=weights[1])
    return trees.predict


def _scale(x: Rows) -> Rows:
    """Return the deviation of each column, infinite for a constant one, which then has no effect."""
    return np.where(np.ptp(x, axis=0) > 0, x.std(axis=0), np.inf)


def _initial_weights(in_dim: int, width: int, seed: int) -> dict[str, Any]:
    """Return He's normal initialization (arXiv 1502.01852), drawn by numpy: the same in both frameworks."""
    rng = np.random.default_rng(seed)
    weights: dict[str, Any] = {}
    for k, (fan_in, fan_out) in enumerate([(in_dim, width), (width, width), (width, 1)]):
        deviation = math.sqrt((2.0 if k < 2 else 1.0) / fan_in)
        weights[f"weight_{k}"] = rng.normal(scale=deviation, size=(fan_in, fan_out)).astype(np.float32)
        weights[f"bias_{k}"] = np.zeros(fan_out, np.float32)
    return weights
