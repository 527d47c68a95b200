"""Functions that users write, each with a near twin that is not convex: pieces, norms, pools, places, solves.

The rows of `SHARED` are written for the `xp` of `engines_of_proof`; the others in one framework.
"""

from typing import Any, NamedTuple

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from jax import lax
from torch.nn import functional as F

RNG = np.random.default_rng(0)
GENERAL = RNG.normal(size=(3, 3)).astype(np.float32)
POSITIVE = GENERAL @ GENERAL.T + np.eye(3, dtype=np.float32)
POSITIVE = ((POSITIVE + POSITIVE.T) / 2).astype(np.float32)
INDEFINITE = POSITIVE - np.diag(np.array([30.0, 0.0, 0.0], np.float32))
LARGE = RNG.normal(size=(40, 30)).astype(np.float32)
FORM = LARGE.T @ LARGE / 40 + 0.1 * np.eye(30, dtype=np.float32)
BENT_FORM = FORM - np.diag(np.where(np.arange(30) == 4, 9.0, 0.0).astype(np.float32))
WIDE_EYE = 9 * np.eye(30, dtype=np.float32)
LARGE_FORM = LARGE @ LARGE.T / 40 + np.eye(40, dtype=np.float32)
KEPT = np.array([True, False, True])
SINGULAR = np.full((3, 3), 0.1, np.float32)


class Case(NamedTuple):
    """A convex function and one that is not, of an array of a shape."""

    name: str
    convex: Any
    twin: Any
    shape: tuple[int, ...] = (3,)


def by_where(compare, above, below):
    return lambda xp, x: xp.where(compare(x), *(line[0] * x + line[1] for line in (above, below)))


# Slopes and constants above and below a kink, and the ways of saying where that is.
KINKS = ((0.0, (3.0, 0.0), (2.0, 0.0)), (1.0, (2.0, -1.0), (1.0, 0.0)), (-0.5, (-1.0, 0.0), (-2.0, -0.5)))
WAYS = {
    "x > c": (lambda c: lambda x: x > c, True),
    "x >= c": (lambda c: lambda x: x >= c, True),
    "c < x": (lambda c: lambda x: c < x, True),
    "x < c": (lambda c: lambda x: x < c, False),
    "c >= x": (lambda c: lambda x: c >= x, False),
    "not x <= c": (lambda c: lambda x: ~(x <= c), True),
}


def choices():
    for c, high, low in KINKS:
        for way, (compare, above) in WAYS.items():
            pair = (high, low) if above else (low, high)
            yield Case(f"{way}, c = {c}", by_where(compare(c), *pair), by_where(compare(c), *pair[::-1]))


def huber_by_where(delta, factor=0.5):
    return lambda xp, x: xp.where(xp.abs(x) <= delta, factor * x * x, delta * (xp.abs(x) - 0.5 * delta))


def quadratic(matrix):
    return lambda xp, x: x @ xp.array(matrix) @ x


def rows_of(matrix):
    return lambda xp, x: xp.sum((x @ xp.array(matrix)) * x, 1)


def log_cosh(sign):
    return lambda xp, x: sign * xp.abs(x) + xp.log1p(xp.exp(-2.0 * xp.abs(x))) - xp.log(xp.array(2.0))


def shifted(outside, inside, weights=(1.0, 0.5, 2.0)):
    def function(xp, x):
        top = xp.max(x)
        return outside * xp.log(xp.sum(xp.array(weights) * xp.exp((x - top) / inside))) + top

    return function


def distance(matrix, constant):
    return lambda xp, x: xp.sqrt((x - 1.0) @ xp.array(matrix) @ (x - 1.0) + constant)


SLOPES = [0.1, 0.25, -0.5]
SHARED = [
    *choices(),
    *(Case(f"huber by where, {d}", huber_by_where(d), huber_by_where(d, 0.6)) for d in (0.3, 1.0, 2.5)),
    Case("three pieces", lambda xp, x: xp.where(x > 2, 3 * x - 4, xp.where(x > 0, x, 0 * x)),
         lambda xp, x: xp.where(x > 1, 3 * x - 4, xp.where(x > 0, x, 0 * x))),
    Case("a jump of one digit", lambda xp, x: xp.where(x > 1, 2 * x - 1, x),
         lambda xp, x: xp.where(x > 1, 2 * x - 0.9, x)),
    Case("slopes in an array", lambda xp, x: xp.where(x > 0, x, xp.array(SLOPES) * x),
         lambda xp, x: xp.where(x > 0, x, xp.array([0.1, 0.25, 1.5]) * x)),
    Case("of a norm", lambda xp, x: huber_by_where(0.7)(xp, xp.norm(x)),
         lambda xp, x: huber_by_where(0.7)(xp, xp.norm(x) - 1)),
    Case("log cosh", lambda xp, x: xp.log(xp.cosh(x)), lambda xp, x: xp.log(xp.cosh(xp.cosh(x) - 3.0))),
    Case("log cosh, stable", log_cosh(1.0), log_cosh(-1.0)),
    Case("log cosh, softplus", lambda xp, x: x + xp.softplus(-2 * x) - 0.7, lambda xp, x: x - xp.softplus(-2 * x)),
    Case("log cosh, logaddexp", lambda xp, x: xp.logaddexp(x, -x), lambda xp, x: -xp.logaddexp(x, -x)),
    Case("weights and a shift", shifted(1.0, 1.0), shifted(1.5, 1.0)),
    Case("a temperature and a shift", shifted(0.1, 0.1), shifted(0.2, 0.1)),
    Case("distance by a form", distance(POSITIVE, 0.5), distance(INDEFINITE, 99.0)),
    Case("form of 30", quadratic(FORM), quadratic(BENT_FORM), (30,)),
    Case("sum of forms of 30", lambda xp, x: quadratic(FORM)(xp, x) + quadratic(BENT_FORM + WIDE_EYE)(xp, x),
         lambda xp, x: quadratic(FORM)(xp, x) + 3 * quadratic(BENT_FORM)(xp, x), (30,)),
    Case("forms of rows", rows_of(POSITIVE), rows_of(INDEFINITE), (2, 3)),
    Case("singular forms of rows", rows_of(SINGULAR), rows_of(SINGULAR - np.diag([1e-3, 0, 0])), (5, 3)),
]  # fmt: skip
JAX = [
    *(Case(f"leaky relu, {s}", lambda x, s=s: jax.nn.leaky_relu(x, s), lambda x, s=s: jax.nn.leaky_relu(x, 2 - s))
      for s in (0.2, 0.0, -0.5)),
    *(Case(f"elu, {a}", lambda x, a=a: jax.nn.elu(x, a), lambda x, a=a: jax.nn.elu(x, 1 + a)) for a in (1.0, 0.3)),
    *(Case(f"celu, {a}", lambda x, a=a: jax.nn.celu(x, a), lambda x, a=a: -jax.nn.celu(x, a)) for a in (0.3, 3.0)),
    *(Case(f"huber, {d}", lambda x, d=d: optax.huber_loss(x, jnp.ones(3), delta=d),
           lambda x, d=d: optax.huber_loss(x * x - 1.0, jnp.ones(3), delta=d)) for d in (0.3, 2.0)),
    Case("logsumexp with weights", lambda x: jax.nn.logsumexp(x, b=jnp.array([1.0, 0.0, 2.5])),
         lambda x: jax.nn.logsumexp(x, b=jnp.array([1.0, -0.1, 2.5]))),
    Case("weights along an axis", lambda x: jax.nn.logsumexp(x, axis=1, b=jnp.array([1.0, 0.5]), keepdims=True),
         lambda x: -jax.nn.logsumexp(x, axis=1, b=jnp.array([1.0, 0.5])), (3, 2)),
    *(Case(f"norm of order {p}", lambda x, p=p: jnp.linalg.norm(x - 1.0, p, axis=1),
           lambda x, p=p: jnp.linalg.norm(x * x - 1.0, p, axis=1), (2, 3)) for p in (1.5, 3, np.inf)),
    Case("norms below order 1", lambda x: jnp.linalg.norm(x, 1), lambda x: jnp.linalg.norm(x, 0.5)),
    Case("max pool", lambda x: linen.max_pool(x, (2, 2), (1, 2), "SAME"),
         lambda x: linen.max_pool(-x * x, (2, 2)), (1, 4, 5, 2)),
    Case("mean pool", lambda x: linen.avg_pool(jnp.abs(x), (2, 2), (1, 1), "SAME", count_include_pad=False),
         lambda x: linen.avg_pool(x * jnp.abs(x), (2, 2)), (1, 4, 5, 2)),
    Case("resized", lambda x: jax.image.resize(jnp.abs(x), (5, 4), "bilinear"),
         lambda x: jax.image.resize(jnp.abs(x), (7, 8), "cubic"), (3, 4)),
    Case("sum of segments", lambda x: jax.ops.segment_sum(jnp.abs(x), jnp.array([0, 2, 0]), 3),
         lambda x: jax.ops.segment_sum(jnp.array([1.0, 1.0, -1.0]) * jnp.abs(x), jnp.array([0, 2, 0]), 3)),
    Case("largest of segments", lambda x: jax.ops.segment_max(jnp.abs(x), jnp.array([0, 1, 0]), 2),
         lambda x: jax.ops.segment_min(jnp.abs(x), jnp.array([0, 1, 0]), 2)),
    Case("added at places", lambda x: (x * x).at[jnp.array([1, 1])].add(jnp.abs(x[:2])),
         lambda x: x.at[jnp.array([1, 1])].add(-jnp.abs(x[:2]))),
    Case("shift without gradient", lambda x: jnp.log(jnp.exp(x - lax.stop_gradient(x.max())).sum()) + x.max(),
         lambda x: jnp.log(jnp.exp(x - lax.stop_gradient(x.max())).sum()) - 2 * x.max()),
    Case("logsumexp of some", lambda x: jax.nn.logsumexp(x, where=KEPT), lambda x: -jax.nn.logsumexp(x, where=KEPT)),
    Case("multiplied at places", lambda x: jnp.abs(x).at[jnp.array([0, 2])].mul(2.0),
         lambda x: jnp.abs(x).at[jnp.array([0, 2])].mul(-2.0)),
    Case("window with a start", lambda x: lax.reduce_window(jnp.abs(x), 0.0, lambda a, b: a + b, (2,), (1,), "SAME"),
         lambda x: lax.reduce_window(-jnp.abs(x), 0.5, lambda a, b: a + b, (2,), (1,), "SAME")),
    Case("pseudoinverse", lambda x: jnp.sum((jnp.linalg.pinv(LARGE) @ jnp.tile(x, 14)[:40]) ** 2),
         lambda x: x @ jnp.linalg.pinv(INDEFINITE) @ x),
    Case("least squares", lambda x: jnp.abs(jnp.linalg.lstsq(LARGE[:3, :2], x)[0]),
         lambda x: jnp.linalg.lstsq(LARGE[:3, :2], jnp.abs(x))[0]),
    Case("by eigenvectors", lambda x: jnp.sum(jnp.linalg.eigh(POSITIVE)[0] * (x @ jnp.linalg.eigh(POSITIVE)[1]) ** 2),
         lambda x: jnp.sum(jnp.linalg.eigh(INDEFINITE)[0] * (x @ jnp.linalg.eigh(INDEFINITE)[1]) ** 2)),
    Case("form of a large inverse", lambda x: x @ jnp.linalg.inv(LARGE_FORM) @ x,
         lambda x: x @ jnp.linalg.inv(LARGE_FORM - 9 * np.eye(40, dtype=np.float32)) @ x, (40,)),
    Case("solve", lambda x: jnp.abs(jnp.linalg.solve(GENERAL, x)), lambda x: jnp.linalg.solve(GENERAL, jnp.abs(x))),
    Case("form of an inverse", lambda x: x @ jnp.linalg.inv(POSITIVE) @ x,
         lambda x: x @ jnp.linalg.inv(INDEFINITE) @ x),
    Case("form of a solution", lambda x: x @ jnp.linalg.solve(POSITIVE, x),
         lambda x: x @ jnp.linalg.solve(INDEFINITE, x)),
    Case("whitened",
         lambda x: jnp.sum(jax.scipy.linalg.solve_triangular(jnp.linalg.cholesky(POSITIVE), x, lower=True) ** 2),
         lambda x: jax.scipy.linalg.solve_triangular(jnp.linalg.cholesky(POSITIVE), -jnp.abs(x), lower=True)[:1]),
    Case("density", lambda x: -jax.scipy.stats.multivariate_normal.logpdf(x, jnp.zeros(3), POSITIVE),
         lambda x: jax.scipy.stats.multivariate_normal.logpdf(x, jnp.zeros(3), POSITIVE)),
]  # fmt: skip
A, Q, I = (torch.from_numpy(matrix) for matrix in (GENERAL, POSITIVE, INDEFINITE))
INDEX = torch.tensor([0, 2, 0])
WEIGHTS = torch.tensor([1.0, 0.0, 2.5])


def weighted(weights):
    def function(x):
        top = torch.amax(x, 0, keepdim=True)
        return torch.log(torch.sum(weights * torch.exp(x - top), 0)) + top.squeeze(0)

    return function


TORCH = [
    Case("leaky relu", lambda x: F.leaky_relu(x, 0.3), lambda x: F.leaky_relu(x, 1.3)),
    Case("prelu", lambda x: F.prelu(x, torch.tensor([0.25])), lambda x: F.prelu(x, torch.tensor([1.25]))),
    Case("module of prelu", torch.nn.PReLU(init=0.5), torch.nn.PReLU(init=1.5)),
    *(Case(f"elu, {a}", lambda x, a=a: F.elu(x, a), lambda x, a=a: F.elu(x, 1 + a)) for a in (1.0, 0.3)),
    *(Case(f"celu, {a}", lambda x, a=a: F.celu(x, a), lambda x, a=a: -F.celu(x, a)) for a in (0.3, 3.0)),
    *(Case(f"huber, {d}", lambda x, d=d: F.huber_loss(x, WEIGHTS, delta=d),
           lambda x, d=d: F.huber_loss(x * x, WEIGHTS, delta=d)) for d in (0.3, 2.0)),
    *(Case(f"smooth l1, {d}", lambda x, d=d: F.smooth_l1_loss(x, WEIGHTS, beta=d),
           lambda x, d=d: -F.smooth_l1_loss(x, WEIGHTS, beta=d)) for d in (0.0, 0.3, 2.0)),
    Case("logsumexp with weights", weighted(WEIGHTS), weighted(WEIGHTS - 0.1)),
    Case("logsumexp with logarithms", lambda x: torch.logsumexp(x + (WEIGHTS + 1).log(), 0),
         lambda x: torch.logsumexp(-x.abs() + (WEIGHTS + 1).log(), 0)),
    *(Case(f"norm of order {p}", lambda x, p=p: torch.linalg.vector_norm(x - 1, p, dim=1),
           lambda x, p=p: torch.linalg.vector_norm(x * x - 1, p, dim=1), (2, 3)) for p in (1.5, 3, np.inf)),
    Case("norms below order 1", lambda x: torch.norm(x, p=1), lambda x: torch.norm(x, p=0.5)),
    Case("max pool 1d", lambda x: F.max_pool1d(x.abs(), 3, 2, 1), lambda x: F.max_pool1d(-x.abs(), 2), (1, 2, 7)),
    Case("max pool 2d", lambda x: F.max_pool2d(x.abs(), 2, 1, 1, 2, True),
         lambda x: F.max_pool2d(-x * x, 2), (1, 2, 4, 5)),
    Case("max pool 3d", lambda x: F.max_pool3d(x, (1, 2, 2)), lambda x: -F.max_pool3d(x, (1, 2, 2)), (1, 2, 3, 4)),
    Case("adaptive max pool", lambda x: F.adaptive_max_pool2d(x, (2, 3)),
         lambda x: F.adaptive_max_pool2d(-x * x, 2), (2, 4, 5)),
    Case("mean pool", lambda x: F.avg_pool2d(x.abs(), 2, padding=1, count_include_pad=False, ceil_mode=True),
         lambda x: F.avg_pool2d(x * x.abs(), 2), (1, 2, 3, 4)),
    Case("adaptive mean pool", lambda x: F.adaptive_avg_pool2d(x.abs(), (2, 3)),
         lambda x: F.adaptive_avg_pool2d(x * x.abs(), (2, 3)), (1, 2, 4, 5)),
    Case("interpolated", lambda x: F.interpolate(x.abs(), scale_factor=2, mode="bilinear"),
         lambda x: F.interpolate(x.abs(), size=(7, 7), mode="bicubic"), (1, 2, 3, 4)),
    Case("nearest", lambda x: F.interpolate(x.abs(), scale_factor=2), lambda x: F.interpolate(-x * x, 6), (1, 2, 3)),
    Case("index add", lambda x: torch.zeros(3).index_add(0, INDEX, x.abs(), alpha=2),
         lambda x: torch.zeros(3).index_add(0, INDEX, x.abs(), alpha=-2)),
    Case("scatter add", lambda x: torch.ones(3).scatter_add(0, INDEX, x.abs()),
         lambda x: (x * x).scatter_add(0, INDEX, -3 * x * x)),
    Case("scatter in columns", lambda x: torch.zeros(2, 2).scatter_add(0, INDEX[::2, None].expand(2, 2) // 2, x.abs()),
         lambda x: torch.zeros(2, 2).scatter_add(0, INDEX[:2, None].expand(2, 2) // 2, x * x.abs()), (2, 2)),
    Case("largest at places", lambda x: torch.zeros(3).scatter_reduce(0, INDEX, x, "amax", include_self=False),
         lambda x: torch.zeros(3).scatter_reduce(0, INDEX, x, "amin")),
    Case("accumulated", lambda x: torch.zeros(3).index_put((INDEX,), x * x, accumulate=True),
         lambda x: torch.zeros(3).index_put((INDEX,), x * x.abs(), accumulate=True)),
    Case("shift without gradient", lambda x: (x - x.max().detach()).exp().sum().log() + x.max(),
         lambda x: (x - x.max().detach()).exp().sum().log() - 2 * x.max()),
    Case("pool of order 3", lambda x: F.lp_pool1d(x.abs()[None], 3.0, 2), lambda x: -F.lp_pool1d(x[None], 2, 2), (4,)),
    Case("bilinear", lambda x: F.bilinear(x[None], A[:1], A[None]).abs(),
         lambda x: F.bilinear(x[None], x[None], I[None])),
    Case("distances", lambda x: torch.cdist(x[None], A), lambda x: -torch.cdist(x[None], A)),
    Case("pseudoinverse", lambda x: (torch.linalg.pinv(A[:, :2]) @ x).square().sum(),
         lambda x: x @ torch.linalg.pinv(I) @ x),
    Case("by eigenvectors", lambda x: (torch.linalg.eigh(Q)[0] * (x @ torch.linalg.eigh(Q)[1]) ** 2).sum(),
         lambda x: (torch.linalg.eigh(I)[0] * (x @ torch.linalg.eigh(I)[1]) ** 2).sum()),
    Case("by an LU factorization", lambda x: x @ torch.linalg.lu_solve(*torch.linalg.lu_factor(Q), x[:, None])[:, 0],
         lambda x: x @ torch.linalg.lu_solve(*torch.linalg.lu_factor(I), x[:, None])[:, 0]),
    Case("solve", lambda x: torch.linalg.solve(A, x).abs(), lambda x: torch.linalg.solve(A, x.abs())),
    Case("form of an inverse", lambda x: x @ torch.linalg.inv(Q) @ x, lambda x: x @ torch.linalg.inv(I) @ x),
    Case("form of a solution", lambda x: x @ torch.linalg.solve(Q, x), lambda x: x @ torch.linalg.solve(I, x)),
    Case("whitened",
         lambda x: torch.linalg.solve_triangular(torch.linalg.cholesky(Q), x[:, None], upper=False).square().sum(),
         lambda x: torch.linalg.solve_triangular(torch.linalg.cholesky(Q), -x[:, None].abs(), upper=False)[:1]),
    Case("form by its factor",
         lambda x: x @ torch.cholesky_solve(x[:, None], torch.linalg.cholesky(Q))[:, 0] + torch.logdet(Q),
         lambda x: -x @ torch.cholesky_solve(x[:, None], torch.linalg.cholesky(Q))[:, 0]),
]  # fmt: skip
