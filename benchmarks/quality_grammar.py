"""Convex functions drawn anew from a grammar: one kind, composed with affine maps that are drawn too.

A maker takes a generator and rows, whose place and scale it suits, and returns a function: nan where it is undefined.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from quality_tasks import TEST_ROWS, Function, Task, columns

DIMS, ROWS, NOISE, LEAST_DIVISOR = (2, 50), (200, 20_000), 0.5, 0.3
lengths: Function = partial(np.linalg.norm, axis=1)  # of every row


class Drawn(NamedTuple):
    """A function that was drawn, the name of the distribution of x, the noise over its deviation, and its rows."""

    kind: str
    inputs: str
    noise: float
    function: Function
    task: Task


def affine(rng: np.random.Generator, x: np.ndarray, count: int) -> Function:
    """`A x + b`, each output of deviation 0.5 to 2: A dense, of few directions, or with one to three inputs a row."""
    dim, style = x.shape[1], rng.integers(3)
    weight = rng.normal(size=(dim, count))
    if style == 1:
        rank = 1 + min(dim, count) // 3
        weight = rng.normal(size=(dim, rank)) @ rng.normal(size=(rank, count)) + 0.1 * weight
    elif style == 2:
        weight *= rng.random((dim, count)).argsort(axis=0) < rng.integers(1, 4, count)
    weight *= rng.uniform(0.5, 2.0, count) / (x @ weight).std(axis=0)
    offset = 0.5 * rng.normal(size=count) - x.mean(axis=0) @ weight
    return lambda x: x @ weight + offset


def positive(rng: np.random.Generator, x: np.ndarray, count: int) -> Function:
    """Affine functions where they are above `LEAST_DIVISOR`, as most rows have them; nan elsewhere."""
    part = affine(rng, x, count)
    return lambda x: np.where((t := 1.5 + 0.4 * part(x)) > LEAST_DIVISOR, t, np.nan)


def log_uniform(rng: np.random.Generator, least: float, most: float) -> float:
    """Return a number whose logarithm is uniform."""
    return float(np.exp(rng.uniform(np.log(least), np.log(most))))


def sum_of_norms(rng: np.random.Generator, x: np.ndarray) -> Function:
    """`sum_j w_j |A_j x + b_j|`, all in one of the norms 1, 2 and infinity."""
    parts = [affine(rng, x, int(rng.integers(1, 6))) for _ in range(rng.integers(1, 7))]
    order, weights = rng.choice([1, 2, np.inf]), rng.uniform(0.3, 1.0, len(parts))
    return lambda x: sum(w * np.linalg.norm(part(x), order, axis=1) for w, part in zip(weights, parts, strict=True))


def log_sum_exp(rng: np.random.Generator, x: np.ndarray) -> Function:
    """`T log sum_k exp(u_k / T)`, u = A x + b."""
    part, T = affine(rng, x, int(rng.integers(3, 4 + min(2 * x.shape[1], 60)))), log_uniform(rng, 0.1, 1.0)
    return lambda x: T * np.logaddexp.reduce(part(x) / T, axis=1)


def sum_of_exponentials(rng: np.random.Generator, x: np.ndarray) -> Function:
    """`sum_k w_k exp(s u_k)`, u = A x + b, the largest exponent 1 to 3."""
    part, weights = affine(rng, x, count := int(rng.integers(1, 9))), rng.uniform(0.3, 1.0, count)
    scale = rng.uniform(1.0, 3.0) / np.abs(part(x)).max()
    return lambda x: np.exp(scale * part(x)) @ weights


def distance(rng: np.random.Generator, x: np.ndarray) -> Function:
    """The distance of A x + b to a set, or its square."""
    part = affine(rng, x, int(rng.integers(2, 3 + min(x.shape[1], 8))))
    shape, power, share = list(SETS)[rng.integers(len(SETS))], rng.integers(1, 3), rng.uniform(0.1, 0.6)
    gauge, apart = SETS[shape]
    size = float(np.quantile(gauge(part(x)), share))  # of the set, so that this share of the rows is inside
    return lambda x: apart(part(x), size) ** power


def simplex_distance(u: np.ndarray, size: float) -> np.ndarray:
    """Return the distance to {v >= 0, sum v = size}: the projection takes off one number and cuts at zero."""
    falling = -np.sort(-u, axis=1)
    excess = (np.cumsum(falling, axis=1) - size) / np.arange(1, u.shape[1] + 1)
    last = np.sum(falling > excess, axis=1) - 1
    return lengths(np.minimum(u, np.take_along_axis(excess, last[:, None], axis=1)))


def cone_distance(u: np.ndarray, size: float) -> np.ndarray:
    """Return the distance to {|v| <= t + size}, t the first coordinate and v the others."""
    t, radius = u[:, 0] + size, lengths(u[:, 1:])
    return np.where(radius <= -t, np.hypot(radius, t), np.maximum(radius - t, 0.0) / np.sqrt(2.0))


# Of each set: the size it must have to hold a row, and the distance of a row to the set of a size.
SETS: dict[str, tuple[Function, Callable[[np.ndarray, float], np.ndarray]]] = {
    "ball": (lengths, lambda u, size: np.maximum(lengths(u) - size, 0.0)),
    "box": (lambda u: np.abs(u).max(axis=1), lambda u, size: lengths(np.maximum(np.abs(u) - size, 0.0))),
    "half-spaces, the farthest": (lambda u: u.max(axis=1), lambda u, size: np.maximum(u.max(axis=1) - size, 0.0)),
    "orthant": (lambda u: u.max(axis=1), lambda u, size: lengths(np.maximum(u - size, 0.0))),
    "simplex": (lambda u: np.abs(u).sum(axis=1), simplex_distance),
    "cone": (lambda u: lengths(u[:, 1:]) - u[:, 0], cone_distance),
}


def largest(rng: np.random.Generator, x: np.ndarray) -> Function:
    """The sum of the k largest of A x + b."""
    count = int(rng.integers(4, 5 + min(2 * x.shape[1], 60)))
    part, k = affine(rng, x, count), int(rng.integers(1, 1 + count // 2))
    return lambda x: np.sort(part(x), axis=1)[:, -k:].sum(axis=1)


def huber(rng: np.random.Generator, x: np.ndarray) -> Function:
    """`sum_k w_k huber(u_k)`, u = A x + b, with one threshold."""
    count, width = int(rng.integers(1, 2 + min(2 * x.shape[1], 40))), log_uniform(rng, 0.1, 1.5)
    part, weights = affine(rng, x, count), rng.uniform(0.3, 1.0, count)
    return lambda x: np.where((u := np.abs(part(x))) < width, u * u / 2, width * (u - width / 2)) @ weights


def quadratic_over_linear(rng: np.random.Generator, x: np.ndarray) -> Function:
    """`|A x + b|^2 / (c' x + d)`."""
    above, below = affine(rng, x, int(rng.integers(1, 2 + min(x.shape[1], 8)))), positive(rng, x, 1)
    return lambda x: np.sum(above(x) ** 2, axis=1) / below(x)[:, 0]


FORMS: tuple[Function, ...] = (
    lambda s: np.maximum(s, 0.0) + np.log1p(np.exp(-np.abs(s))),
    lambda s: np.hypot(1.0, s),
    lambda s: np.abs(s) ** 1.5,
    lambda s: s * np.log(s),
)


def perspective(rng: np.random.Generator, x: np.ndarray) -> Function:
    """`sum_k t h(u_k / t)`: h softplus, the hyperbola `sqrt(1 + s^2)`, `|s|^1.5` or, where u > 0, `s log s`."""
    form, count = int(rng.integers(4)), int(rng.integers(1, 5))
    above, below = (positive if form == 3 else affine)(rng, x, count), positive(rng, x, 1)
    return lambda x: np.sum(below(x) * FORMS[form](above(x) / below(x)), axis=1)


def maximum_of_quadratics(rng: np.random.Generator, x: np.ndarray) -> Function:
    """`max_j w_j |A_j x + b_j|^2 / K_j + c_j`."""
    parts = [affine(rng, x, int(rng.integers(1, 2 + min(x.shape[1], 8)))) for _ in range(rng.integers(2, 7))]
    terms = list(zip(parts, rng.uniform(0.3, 1.0, len(parts)), rng.normal(size=len(parts)), strict=True))
    return lambda x: np.max([weight * np.mean(part(x) ** 2, axis=1) + c for part, weight, c in terms], axis=0)


KINDS: dict[str, Callable[[np.random.Generator, np.ndarray], Function]] = {
    "sum of norms": sum_of_norms,
    "log-sum-exp": log_sum_exp,
    "sum of exponentials": sum_of_exponentials,
    "distance to a set": distance,
    "sum of the k largest": largest,
    "Huber": huber,
    "quadratic over linear": quadratic_over_linear,
    "perspective": perspective,
    "maximum of quadratics": maximum_of_quadratics,
}
INPUTS = ("normal", "uniform", "correlated normal", "Student t")


def sampler(rng: np.random.Generator, inputs: str, dim: int) -> Callable[[int], np.ndarray]:
    """Return what draws so many rows of a distribution, every input of deviation 1."""
    mixing = rng.normal(size=(dim, dim)) * np.geomspace(1.0, 0.1, dim)
    mixing /= np.linalg.norm(mixing, axis=1, keepdims=True)
    return {
        "normal": lambda rows: rng.normal(size=(rows, dim)),
        "uniform": lambda rows: rng.uniform(-np.sqrt(3.0), np.sqrt(3.0), (rows, dim)),
        "correlated normal": lambda rows: rng.normal(size=(rows, dim)) @ mixing.T,
        "Student t": lambda rows: rng.standard_t(5, (rows, dim)) / np.sqrt(5 / 3),
    }[inputs]


def combine(rng: np.random.Generator, kind: str, x: np.ndarray) -> Function:
    """Return a function of a kind, of deviation about 1; half of them plus a third of another, half plus a plane."""
    terms = []
    for weight in (1.0, 0.3 * rng.integers(2)):
        term = KINDS[kind](rng, x)
        terms.append((weight / np.nanstd(term(x)), term))
    plane, slope = affine(rng, x, 1), rng.uniform(0.0, 0.5) * rng.integers(2)
    return lambda x: sum(weight * term(x) for weight, term in terms if weight) + slope * plane(x)[:, 0]


def draw(seed: int, number: int, sizes: tuple[int, int] = ROWS) -> Drawn:
    """Return function `number` of a draw, with rows where it is defined, so many to fit; the kinds take turns."""
    rng = np.random.default_rng([seed, number])
    kind, inputs = list(KINDS)[number % len(KINDS)], INPUTS[rng.integers(len(INPUTS))]
    dim, rows = (round(log_uniform(rng, *bounds)) for bounds in (DIMS, sizes))
    noise = max(0.0, float(rng.uniform(-0.2 * NOISE, NOISE)))
    function = combine(rng, kind, (sample := sampler(rng, inputs, dim))(2000))
    x = np.empty((0, dim))
    while len(x) < rows + TEST_ROWS:
        more = sample(rows + TEST_ROWS)
        x = np.concatenate([x, more[np.isfinite(function(more))]])
    x, x_test, _ = np.split(x, [rows, rows + TEST_ROWS])
    y_test = function(x_test)
    y = function(x) + noise * y_test.std() * rng.normal(size=rows)
    return Drawn(kind, inputs, noise, function, Task(f"{kind}, {number}", x, columns(y), x_test, columns(y_test)))
