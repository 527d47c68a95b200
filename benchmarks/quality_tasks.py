"""Convex regression tasks whose true function is known, so that errors are taken without noise.

Letters: N rows, D in, O out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Function = Callable[[np.ndarray], np.ndarray]
TEST_ROWS = 4000


class Task(NamedTuple):
    """Rows to fit, and noiseless rows to judge by.

    Args:
        name: what the table shows.
        x, y: `[N, D]` and `[N, O]`, to fit; y with noise.
        x_test, y_test: the same, without noise.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def quadratic(rng: np.random.Generator, dim: int) -> Function:
    """`x' Q x / 2 + b' x`, Q = R diag(s) R' with R a random rotation and s log-spaced in [0.1, 10]."""
    rotation = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    spectrum, slope = np.geomspace(0.1, 10.0, dim), rng.normal(size=dim)
    return lambda x: 0.5 * np.sum((x @ rotation) ** 2 * spectrum, axis=1) + x @ slope


def log_sum_exp(rng: np.random.Generator, dim: int) -> Function:
    """`log sum_k exp(a_k' x + b_k)` over 2 D pieces, slopes of length about 3."""
    slopes, offsets = rng.normal(size=(dim, 2 * dim)) * 3.0 / np.sqrt(dim), rng.normal(size=2 * dim)
    return lambda x: np.logaddexp.reduce(x @ slopes + offsets, axis=1)


def max_affine(rng: np.random.Generator, dim: int) -> Function:
    """`max_k a_k' x + b_k` over 2 D pieces, slopes of length about 1."""
    slopes, offsets = rng.normal(size=(dim, 2 * dim)) / np.sqrt(dim), 0.3 * rng.normal(size=2 * dim)
    return lambda x: np.max(x @ slopes + offsets, axis=1)


def huber_l1(rng: np.random.Generator, dim: int) -> Function:
    """`sum_j w_j huber(x_j - c_j) + v_j |x_j - e_j|`, Huber's threshold 0.5."""
    weights, centers = rng.uniform(0.2, 1.0, (2, dim)), rng.uniform(-0.5, 0.5, (2, dim))

    def function(x: np.ndarray) -> np.ndarray:
        u, v = np.abs(x - centers[0]), np.abs(x - centers[1])
        huber = np.where(u < 0.5, 0.5 * u * u, 0.5 * (u - 0.25))
        return huber @ weights[0] + v @ weights[1]

    return function


SCALAR = {"quadratic": quadratic, "log-sum-exp": log_sum_exp, "max-affine": max_affine, "Huber + L1": huber_l1}


def vector(rng: np.random.Generator, dim: int) -> Function:
    """One of each family, four outputs, each in units of its deviation."""
    parts = [family(rng, dim) for family in SCALAR.values()]
    scales = [part(rng.uniform(-1, 1, (1000, dim))).std() for part in parts]
    return lambda x: np.stack([part(x) / scale for part, scale in zip(parts, scales, strict=True)], axis=1)


FAMILIES = {**SCALAR, "vector": vector}


def suite_task(family: str, dim: int, noise: float, draw: int, seed: int, rows: int = 2000) -> Task:
    """Return rows of a function of a family on x uniform on [-1, 1]^D; noise in units of the deviation of y.

    Args:
        draw: which function, and its test rows.
        seed: which rows and noise.
    """
    numbers = [draw, dim, sorted(FAMILIES).index(family)]
    rng = np.random.default_rng(numbers)
    function = FAMILIES[family](rng, dim)
    x_test = rng.uniform(-1, 1, (TEST_ROWS, dim))
    y_test = columns(function(x_test))
    rng = np.random.default_rng([*numbers, seed])
    x = rng.uniform(-1, 1, (rows, dim))
    y = columns(function(x))
    y = y + noise * y_test.std(axis=0) * rng.normal(size=y.shape)
    return Task(f"{family}, D = {dim}, noise {noise:g}", x, y, x_test, y_test)


def quadratic_50(dim: int = 50, rows: int = 5000) -> Task:
    """Return the task of HyCNN (arXiv 2604.26942): `||x||^2` in 50 dimensions with noise of deviation 1."""
    rng = np.random.default_rng(124)
    x = rng.uniform(-1, 1, (rows, dim))
    y = np.sum(x**2, axis=1) + rng.normal(size=rows)
    x_test = np.random.default_rng(2028).uniform(-1, 1, (1000, dim))
    return Task("quadratic in 50 dimensions", x, columns(y), x_test, columns(np.sum(x_test**2, axis=1)))


def columns(y: np.ndarray) -> np.ndarray:
    """Return y as `[N, O]`."""
    return y[:, None] if y.ndim == 1 else y


def small(dim: int = 3, rows: int = 100) -> Task:
    """Return the example of cvxreg's documentation: `||x||^2 + 3`, 100 rows, noise of a third of its variance."""
    rng = np.random.RandomState(0)
    x = rng.uniform(-1, 1, (2 * rows, dim))
    f = np.sum(x**2, axis=1) + 3
    y = f[:rows] + rng.normal(size=rows) * np.sqrt(f.var() / 3)
    return Task("100 rows in 3 dimensions", x[:rows], columns(y), x[rows:], columns(f[rows:]))
