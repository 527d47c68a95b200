"""Functions of a known shape for `shape.py`, with the protocols under which others published errors.

Letters: N rows, D in, C context.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from quality_tasks import Function, Task, columns

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]  # x [N, D], context [N, C], y [N]
HELD_OUT = 0.1  # of the parameters, to choose a setting by
BATTERY_UNIT = 1000.0
FRESH = 4000  # rows to judge by


class Parametric(NamedTuple):
    """A function of x and of parameters, in x convex for most of them.

    Args:
        name: of the task.
        train, held, test: rows of parameters that differ, y without noise.
        parts: of the test rows, bool `[N]` by name, which are judged apart.
        unit: errors are given over it.
    """

    name: str
    train: Rows
    held: Rows
    test: Rows
    parts: dict[str, np.ndarray]
    unit: float = 1.0


def unit_ball(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    """Return rows `[N, D]`, uniform in the ball of radius 1."""
    x = rng.normal(size=(count, dim))
    return x / np.linalg.norm(x, axis=1, keepdims=True) * rng.random((count, 1)) ** (1.0 / dim)


def quadratics(rng: np.random.Generator, count: int, points: int, by_factor: bool = False) -> Rows:
    """`x' theta x` with theta = A A' / 3, A uniform in [-1, 1]^(3 x 3); the context is theta, or A `by_factor`."""
    A = rng.uniform(-1, 1, (count, 3, 3))
    theta = A @ A.transpose(0, 2, 1) / 3
    x = unit_ball(rng, count * points, 3)
    context = np.repeat((A if by_factor else theta).reshape(count, 9), points, axis=0)
    own = x.reshape(count, points, 3)
    return x, context, np.einsum("kpi,kij,kpj->kp", own, theta, own).reshape(-1)


def battery(rng: np.random.Generator, count: int, points: int) -> Rows:
    """The law by which a battery ages: x = (charge q, current b) on a grid, the context (throughput A, degrees T)."""
    context = np.array([0.0, 10.0]) + np.array([50.0, 40.0]) * rng.random((count, 2))
    q, b = (part.ravel() for part in np.meshgrid(np.linspace(0.2, 0.8, points), np.linspace(0, 30, points)))
    x, context = np.tile(np.stack([q, b], axis=1), (count, 1)), np.repeat(context, points**2, axis=0)
    (q, b), (A, T), z = x.T, context.T, 0.6
    rate = np.exp((-31500 + 152.5 * b) / (8.3145 * (273.15 + T)))
    return x, context, BATTERY_UNIT * z * A ** (z - 1) * np.abs(b) * (28.966 * q + 74.112) * rate


def pieces(rng: np.random.Generator, count: int, points: int) -> Rows:
    """`s+ (x - m)_+ + s- (m - x)_+ + v` on a grid of [-1, 1], the context (s+, s-, m, v) uniform in [-1, 1]^4."""
    grid = np.linspace(-1, 1, points)
    context = np.repeat(rng.uniform(-1, 1, (count, 4)), points, axis=0)
    x, (right, left, m, v) = np.tile(grid, count), context.T
    return x[:, None], context, right * np.maximum(x - m, 0) + left * np.maximum(m - x, 0) + v


def parametric(name: str, quick: bool = False) -> Parametric:
    """Return a task of lpcf (Schaller, Bemporad and Boyd, arXiv 2506.04183, and its examples) by name."""
    draw, (count, points), (fresh, per_fresh), unit = PARAMETRIC[name]
    if quick:
        count, points, fresh, per_fresh = 20, min(points, 10), 10, 10
    held = max(1, round(HELD_OUT * count))
    rngs = [np.random.default_rng([list(PARAMETRIC).index(name), part]) for part in range(3)]
    train, held_rows = draw(rngs[0], count - held, points), draw(rngs[1], held, points)
    test = draw(rngs[2], fresh, per_fresh)
    parts = {"all": np.ones(len(test[2]), bool)}
    if draw is pieces:
        convex = test[1][:, 0] + test[1][:, 1] >= 0
        parts = {"convex": convex, "concave, from the best line": ~convex}
        test = (*test[:2], np.where(convex, test[2], best_lines(test[0][:, 0], test[2], per_fresh)))
    return Parametric(name, train, held_rows, test, parts, unit)


def best_lines(x: np.ndarray, y: np.ndarray, points: int) -> np.ndarray:
    """Return least squares lines at the rows of each parameter, of so many points, all on the grid of the first."""
    design = np.column_stack([x[:points], np.ones(points)])
    return (y.reshape(-1, points) @ np.linalg.pinv(design).T @ design.T).ravel()


# How each is drawn; parameters and points of each, to learn from and to judge by; the unit of errors.
PARAMETRIC: dict[str, tuple[Callable[..., Rows], tuple[int, int], tuple[int, int], float]] = {
    "quadratics": (quadratics, (1000, 100), (1000, 100), 1.0),
    "quadratics, by A": (partial(quadratics, by_factor=True), (1000, 100), (1000, 100), 1.0),
    "battery": (battery, (1000, 10), (10, 100), BATTERY_UNIT),
    "piecewise affine": (pieces, (2000, 50), (1000, 100), 1.0),
}


def two_bowls(x: np.ndarray) -> np.ndarray:
    """HyCNN's f5: `max(|x - mu|^2, |x + mu|^2)`, with mu = (1, ..., 1) / sqrt(D)."""
    return np.sum(x**2, axis=1) + 1.0 + 2.0 * np.abs(x.sum(axis=1)) / np.sqrt(x.shape[1])


def exponential(x: np.ndarray) -> np.ndarray:
    """HyCNN's f6: `exp(|x|_1 / sqrt(D))`."""
    return np.exp(np.abs(x).sum(axis=1) / np.sqrt(x.shape[1]))


def rotation(dim: int) -> np.ndarray:
    """Return an orthogonal matrix, the same each time."""
    return np.linalg.qr(np.random.default_rng([dim, 7]).normal(size=(dim, dim)))[0]


HYCNN: dict[str, Function] = {
    "f5": two_bowls,
    "f6": exponential,
    "rotated quartic": lambda x: np.sum((x @ rotation(x.shape[1])) ** 4, axis=1),
    "rotated l1": lambda x: np.abs(x @ rotation(x.shape[1])).sum(axis=1),
}


def hycnn(name: str, dim: int, seed: int, rows: int = 5000) -> Task:
    """Return a task of HyCNN (arXiv 2604.26942): x uniform in [-1, 1]^D, noise of deviation 1, as `quadratic_50`."""
    function, rng = HYCNN[name], np.random.default_rng([124, seed])
    x = rng.uniform(-1, 1, (rows, dim))
    y = function(x) + rng.normal(size=rows)
    x_test = np.random.default_rng([2028, seed]).uniform(-1, 1, (FRESH, dim))
    return Task(f"{name}, D = {dim}", x, columns(y), x_test, columns(function(x_test)))


def log_sum_exp(rng: np.random.Generator, dim: int) -> Function:
    """`log sum_k exp(a_k' x + b_k)` over 2 D pieces, every slope >= 0."""
    slopes, offsets = 3.0 * np.abs(rng.normal(size=(dim, 2 * dim))) / np.sqrt(dim), rng.normal(size=2 * dim)
    return lambda x: np.logaddexp.reduce(x @ slopes + offsets, axis=1)


def max_affine(rng: np.random.Generator, dim: int) -> Function:
    """`max_k a_k' x + b_k` over 2 D pieces, every slope >= 0."""
    slopes, offsets = np.abs(rng.normal(size=(dim, 2 * dim))), 0.5 * rng.normal(size=2 * dim)
    return lambda x: np.max(x @ slopes + offsets, axis=1)


def exponentials(rng: np.random.Generator, dim: int) -> Function:
    """`sum_j w_j exp(s_j x_j)`, w and s positive."""
    weights, slopes = rng.uniform(0.2, 1.0, dim), rng.uniform(0.5, 2.0, dim)
    return lambda x: np.exp(x * slopes) @ weights


RISING = {"log-sum-exp": log_sum_exp, "max-affine": max_affine, "exponentials": exponentials}


def rising(name: str, dim: int, rows: int, noise: float, seed: int) -> Task:
    """Return rows of a convex function that rises in every input, x uniform in [-1, 1]^D.

    Args:
        name: of the function; its seed is that of the rows.
        noise: over the deviation of the function.
    """
    rng = np.random.default_rng([list(RISING).index(name), dim, rows, seed])
    function = RISING[name](rng, dim)
    x_test = rng.uniform(-1, 1, (FRESH, dim))
    y_test = function(x_test)
    x = rng.uniform(-1, 1, (rows, dim))
    y = function(x) + noise * y_test.std() * rng.normal(size=rows)
    return Task(name, x, columns(y), x_test, columns(y_test))


class Spread(NamedTuple):
    """Rows whose distribution is known: its location and scale are convex in x, the scale depends on the context too.

    Args:
        x, context, y: `[N, D]`, `[N, C]` and `[N]`.
        center, scale: `[N]`; y is center + scale e.
    """

    x: np.ndarray
    context: np.ndarray
    y: np.ndarray
    center: np.ndarray
    scale: np.ndarray


NOISES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda rng, count: rng.normal(size=count),
    "exponential": lambda rng, count: rng.exponential(size=count),
}


def spread(noise: str, rows: int, seed: int) -> Spread:
    """Return rows of two inputs and a context of two, every quantile and expectile convex in x.

    The scale is affine in x, so that a level below the middle keeps the curvature of the center.
    """
    rng = np.random.default_rng([list(NOISES).index(noise), rows, seed])
    x, context = rng.uniform(-1, 1, (rows, 2)), rng.uniform(-1, 1, (rows, 2))
    center = np.exp(0.5 * context[:, 0]) * np.sum(x**2, axis=1) + np.sin(2 * context[:, 1]) * x[:, 0]
    scale = (0.4 + 0.2 * x[:, 1]) * np.exp(0.7 * context[:, 1])
    return Spread(x, context, center + scale * NOISES[noise](rng, rows), center, scale)
