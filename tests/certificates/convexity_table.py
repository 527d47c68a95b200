"""One table of functions with their verdicts: convex ones, and near misses. Written once, for both frameworks.

`xp` has the names of numpy and of its own: relu, softplus, sigmoid, tanh, elu, logsumexp(u, axis), logaddexp, norm(u),
top_k(u, k) (falling values, their places), gelu, silu, softmax(u), log_softmax(u), huber_relu, array. An input is a
vector unless a shape is given. "refuted" promises a counterexample, "unknown" only that nothing is proved.
"""

from typing import Any, NamedTuple

import numpy as np

W = np.array([[1.0, -2.0, 0.5], [0.25, 3.0, -1.0], [-0.75, 0.5, 2.0], [1.5, -0.125, 0.375]])
B = np.array([0.5, -1.0, 0.25])
PSD = np.array([[2.0, 1.0, 0.0], [1.0, 2.0, 1.0], [0.0, 1.0, 2.0]])
SINGULAR = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
INDEFINITE = np.array([[1.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
BARELY = np.array([[1.0, 1.0, 0.0], [1.0, 0.875, 0.0], [0.0, 0.0, 1.0]])
NOT_SYMMETRIC = np.array([[1.0, 1.5, 0.0], [-1.5, 1.0, 0.0], [0.0, 0.0, 0.0]])
# Too many products to write out, so that only signs are looked at.
WIDE = np.abs(np.random.default_rng(1).normal(size=(500, 500)))
WIDE_MIXED = np.where(np.arange(500) == 7, -1.0, 1.0) * WIDE


class Row(NamedTuple):
    """A function of the table."""

    name: str
    verdict: str
    curvature: str
    function: Any
    shape: tuple[int, ...] = (3,)


def softplus(u):
    """A user's function with a name that promises what it does not keep."""
    return u * u * u


def quadratic(matrix):
    return lambda xp, x: x @ (xp.array(matrix) @ x)


def layer_norm(xp, u):
    centered = u - xp.mean(u)
    return centered / xp.sqrt(xp.mean(centered * centered) + 1e-5)


def huber(xp, u):
    return xp.where(xp.abs(u) <= 1.0, 0.5 * u * u, xp.abs(u) - 0.5)


def sorted_sum(weights):
    return lambda xp, x: xp.sort(x) @ xp.array(weights)


def top_sum(weights):
    return lambda xp, x: xp.top_k(x, len(weights))[0] @ xp.array(weights)


def mask_of_two(xp, x):
    return xp.sum(xp.where(x >= xp.top_k(x, 2)[0][1], xp.array(PSD) @ x, 0.0))


def huber_relu_with(factor):
    def function(xp, x):
        bent = xp.maximum(xp.minimum(x, 1.0) + 1.0, 0.0)
        return xp.where(x < 1.0, bent * bent * factor, x)

    return function


def hand_made(xp, x):
    top = xp.max(x)
    return top + xp.log(xp.sum(xp.exp(x - top)))


def wrong_shift(xp, x):
    """log sum exp with a shift that is not put back as it was taken."""
    top = xp.max(x)
    return 0.5 * top + xp.log(xp.sum(xp.exp(x - top)))


P, R, U = "proved", "refuted", "unknown"
CONVEX, AFFINE, CONCAVE, NONE, CONSTANT = "convex", "affine", "concave", "unknown", "constant"

TABLE = [
    # affine
    Row("identity", P, AFFINE, lambda xp, x: x),
    Row("matrix product", P, AFFINE, lambda xp, x: xp.array(W) @ x),
    Row("affine map", P, AFFINE, lambda xp, x: x @ xp.array(W.T) * -2.0 + 3.0),
    Row("constant", P, CONSTANT, lambda xp, x: xp.sum(x * 0.0) + 1.0),
    Row("x - x", P, AFFINE, lambda xp, x: x - x),
    Row("cumulative sum", P, AFFINE, lambda xp, x: xp.cumsum(x)),
    Row("mean", P, AFFINE, lambda xp, x: xp.mean(x)),
    Row("concatenate and slice", P, AFFINE, lambda xp, x: xp.concatenate([x[1:], 2.0 * x[:1]])),
    Row("stack, transpose, reshape", P, AFFINE, lambda xp, x: xp.stack([x, -x]).T.reshape(6)),
    Row("roll and flip", P, AFFINE, lambda xp, x: xp.roll(x, 1) - xp.flip(x)),
    Row("choice by a constant", P, AFFINE, lambda xp, x: xp.where(xp.array([1.0, -1.0, 1.0]) > 0, x, -x)),
    Row("division by a constant", P, AFFINE, lambda xp, x: x / -3.0),
    # convex functions of one number
    Row("exp", P, CONVEX, lambda xp, x: xp.exp(x)),
    Row("exp of negative", P, CONVEX, lambda xp, x: xp.exp(-x)),
    Row("expm1", P, CONVEX, lambda xp, x: xp.expm1(x)),
    Row("abs", P, CONVEX, lambda xp, x: xp.abs(x)),
    Row("relu", P, CONVEX, lambda xp, x: xp.relu(x)),
    Row("relu by where", P, CONVEX, lambda xp, x: xp.where(x > 0, x, 0.0)),
    Row("softplus", P, CONVEX, lambda xp, x: xp.softplus(x)),
    Row("softplus by log1p", P, CONVEX, lambda xp, x: xp.log1p(xp.exp(x))),
    Row("softplus by log", P, CONVEX, lambda xp, x: xp.log(1.0 + xp.exp(x))),
    Row("softplus, stable", P, CONVEX, lambda xp, x: xp.maximum(x, 0.0) + xp.log1p(xp.exp(-xp.abs(x)))),
    Row("elu", P, CONVEX, lambda xp, x: xp.elu(x)),
    Row("huber relu", P, CONVEX, lambda xp, x: xp.huber_relu(x)),
    Row("square", P, CONVEX, lambda xp, x: x**2),
    Row("x * x", P, CONVEX, lambda xp, x: x * x),
    Row("fourth power", P, CONVEX, lambda xp, x: (x - 1.0) ** 4),
    Row("cosh", P, CONVEX, lambda xp, x: xp.exp(x) + xp.exp(-x)),
    Row("hyperbolic cosine", P, CONVEX, lambda xp, x: xp.cosh(x) + xp.cosh(xp.abs(x))),
    Row("pseudo-huber", P, CONVEX, lambda xp, x: xp.sqrt(1.0 + x * x) - 1.0),
    Row("square root of a square", P, CONVEX, lambda xp, x: xp.sqrt(x * x)),
    Row("reciprocal of a positive", P, CONVEX, lambda xp, x: 1.0 / xp.exp(x)),
    Row("power of abs", P, CONVEX, lambda xp, x: xp.abs(x) ** 1.5),
    Row("logistic loss", P, CONVEX, lambda xp, x: xp.sum(xp.softplus(-(xp.array(W) @ x)))),
    Row("hinge loss", P, CONVEX, lambda xp, x: xp.sum(xp.maximum(0.0, 1.0 - xp.array(W) @ x))),
    # composed
    Row("max of affine", P, CONVEX, lambda xp, x: xp.max(xp.array(W) @ x)),
    Row("sum of maxima", P, CONVEX, lambda xp, x: xp.max(x) + xp.maximum(x[0], x[1] * x[1])),
    Row("cumulative maximum", P, CONVEX, lambda xp, x: xp.cummax(x)),
    Row("exp of convex", P, CONVEX, lambda xp, x: xp.exp(xp.sum(x * x))),
    Row("square of a positive convex", P, CONVEX, lambda xp, x: xp.exp(xp.abs(x)) ** 2),
    Row("relu of convex, twice", P, CONVEX, lambda xp, x: xp.relu(xp.abs(xp.array(W) @ xp.relu(x) * 0.0 + x[0]) - 1.0)),
    Row("negative weight on a concave term", P, CONVEX, lambda xp, x: -2.0 * xp.minimum(x, 1.0)),
    Row("negative log of a positive", P, CONVEX, lambda xp, x: -xp.log(xp.exp(x[0]) + 0.0 * x[1]) + x[0] * x[0]),
    Row("falling of concave", P, CONVEX, lambda xp, x: xp.exp(-xp.minimum(x, 2.0))),
    Row("input convex layer", P, CONVEX, lambda xp, x: xp.array(np.abs(W)) @ xp.relu(xp.array(PSD) @ x) + x[0]),
    Row("log-sum-exp", P, CONVEX, lambda xp, x: xp.logsumexp(x, 0)),
    Row("log-sum-exp, plain", P, CONVEX, lambda xp, x: xp.log(xp.sum(xp.exp(xp.array(W) @ x)))),
    Row("log-sum-exp, by hand", P, CONVEX, hand_made),
    Row("log-sum-exp, over rows", P, CONVEX, lambda xp, x: xp.logsumexp(xp.abs(x), 1), (2, 3)),
    Row("logaddexp", P, CONVEX, lambda xp, x: xp.logaddexp(x, xp.flip(x))),
    Row("log of a product of exponentials", P, CONVEX, lambda xp, x: xp.log(xp.exp(x * x) * (xp.exp(x) + 2.0))),
    Row("cross entropy", P, CONVEX, lambda xp, x: -xp.log_softmax(x)[1]),
    # quadratic forms, norms
    Row("norm", P, CONVEX, lambda xp, x: xp.norm(x)),
    Row("norm of affine", P, CONVEX, lambda xp, x: xp.sqrt(xp.sum((xp.array(W) @ x + 1.0) ** 2))),
    Row("norm of non-negative convex", P, CONVEX, lambda xp, x: xp.sqrt(xp.sum(xp.relu(x) ** 2) + xp.exp(x[0]))),
    Row("norm by a product", P, CONVEX, lambda xp, x: xp.sqrt(x @ x)),
    Row("one-norm", P, CONVEX, lambda xp, x: xp.sum(xp.abs(x - 1.0))),
    Row("largest abs", P, CONVEX, lambda xp, x: xp.max(xp.abs(x))),
    Row("least squares", P, CONVEX, lambda xp, x: xp.sum((xp.array(W) @ x - xp.array([1.0, 2.0, 3.0, 4.0])) ** 2)),
    Row("positive definite form", P, CONVEX, quadratic(PSD)),
    Row("singular form", P, CONVEX, quadratic(SINGULAR)),
    Row("form with an antisymmetric part", P, CONVEX, quadratic(NOT_SYMMETRIC)),
    Row("form, expanded", P, CONVEX, lambda xp, x: x[0] * x[0] + x[0] * x[1] + x[1] * x[1]),
    Row("difference of squares that cancels", P, AFFINE, lambda xp, x: (x + 1.0) ** 2 - x**2),
    # order
    Row("sum of the two largest", P, CONVEX, lambda xp, x: xp.sum(xp.top_k(x, 2)[0])),
    Row("falling weights, largest first", P, CONVEX, top_sum([1.0, 0.5, 0.25])),
    Row("weights that rise with the order", P, CONVEX, sorted_sum([-1.0, 0.0, 2.0])),
    Row("sorted and reversed", P, CONVEX, lambda xp, x: xp.flip(xp.sort(x)) @ xp.array([3.0, 2.0, -1.0])),
    Row("largest convex, weighted", P, CONVEX, lambda xp, x: xp.sort(xp.abs(x)) @ xp.array([0.0, 1.0, 2.0])),
    Row("median of one", P, AFFINE, lambda xp, x: xp.sort(x[:1])),
    # not convex: the near misses
    Row("sigmoid", R, NONE, lambda xp, x: xp.sigmoid(x)),
    Row("sigmoid gate", R, NONE, lambda xp, x: xp.sigmoid(x) * x),
    Row("gate inside", R, NONE, lambda xp, x: xp.softplus(x + xp.sigmoid(3.0 * x))),
    Row("silu", R, NONE, lambda xp, x: xp.silu(x)),
    Row("gelu", R, NONE, lambda xp, x: xp.gelu(x)),
    Row("tanh", R, NONE, lambda xp, x: xp.tanh(x)),
    Row("softmax", R, NONE, lambda xp, x: xp.softmax(x)),
    Row("softmax-weighted experts", R, NONE, lambda xp, x: xp.softmax(x) @ (xp.array(PSD) @ x)),
    Row("top-k mask", R, NONE, mask_of_two),
    Row("top-k gate", R, NONE, lambda xp, x: xp.sum(xp.where(x >= xp.max(x), -x, x))),
    Row("layer norm inside", R, NONE, lambda xp, x: xp.softplus(layer_norm(xp, x))),
    Row("rms norm inside", R, NONE, lambda xp, x: xp.relu(x / xp.sqrt(xp.mean(x * x) + 1e-5))),
    Row("product of two affine functions", R, NONE, lambda xp, x: (x[0] + 1.0) * (x[1] - 2.0)),
    Row("min", R, CONCAVE, lambda xp, x: xp.min(x)),
    Row("min of convex", R, NONE, lambda xp, x: xp.minimum(xp.abs(x), 1.0)),
    Row("difference of convex", R, NONE, lambda xp, x: xp.abs(x) - xp.relu(x - 1.0) * 3.0),
    Row("abs of convex", R, NONE, lambda xp, x: xp.abs(x * x - 1.0)),
    Row("square of a signed convex", R, NONE, lambda xp, x: (xp.abs(x) - 1.0) ** 2),
    Row("falling of convex", R, NONE, lambda xp, x: xp.exp(-(x * x))),
    Row("reciprocal of convex", R, NONE, lambda xp, x: 1.0 / (1.0 + x * x)),
    Row("negative weight on a convex term", R, NONE, lambda xp, x: xp.array([[1.0, -1.0, 1.0]]) @ xp.abs(x)),
    Row("negative weight, small", R, NONE, lambda xp, x: xp.array([[1.0, -0.01, 1.0]]) @ xp.softplus(x) + 0.0 * x[0]),
    Row("max of mixed", R, NONE, lambda xp, x: xp.maximum(xp.abs(x), 3.0 - x * x)),
    Row("max of concave", R, NONE, lambda xp, x: xp.maximum(xp.minimum(x, 1.0), -1.0)),
    Row("cube", R, NONE, lambda xp, x: x**3),
    Row("a softplus that is not", R, NONE, lambda xp, x: softplus(x)),
    Row("concave root", R, CONCAVE, lambda xp, x: -xp.sqrt(1.0 + x * x)),
    Row("log of a sigmoid", R, CONCAVE, lambda xp, x: xp.log(xp.sigmoid(x))),
    Row("log of a sigmoid, by hand", R, CONCAVE, lambda xp, x: xp.log(1.0 / (1.0 + xp.exp(-x)))),
    Row("log", R, CONCAVE, lambda xp, x: -xp.logsumexp(x, 0)),
    Row("root of abs", R, NONE, lambda xp, x: xp.sqrt(xp.abs(x) + 0.01)),
    Row("indefinite form", R, NONE, quadratic(INDEFINITE)),
    Row("barely indefinite form", R, NONE, quadratic(BARELY)),
    Row("negative form", R, CONCAVE, quadratic(-PSD)),
    Row("x y", R, NONE, lambda xp, x: x[0] * x[1]),
    Row("cumulative minimum", R, NONE, lambda xp, x: -xp.cummax(-x) + xp.relu(x)),
    Row("median", R, NONE, lambda xp, x: xp.sort(x)[1]),
    Row("rising weights, largest first", R, CONCAVE, top_sum([0.25, 0.5, 1.0])),
    Row("negative weight on the second largest", R, NONE, top_sum([1.0, -1.0])),
    Row("weights that fall with the order", R, NONE, sorted_sum([2.0, 1.0, 3.0])),
    Row("sorted, falling weights", R, CONCAVE, sorted_sum([3.0, 2.0, 1.0])),
    Row("signed weights on sorted convex", R, NONE, lambda xp, x: xp.sort(xp.abs(x)) @ xp.array([-1.0, 0.0, 2.0])),
    Row("second argument of log-softmax", R, CONCAVE, lambda xp, x: xp.log_softmax(x)),
    Row("log-sum-exp with another shift", R, NONE, wrong_shift),
    Row("choice by the input", R, CONCAVE, lambda xp, x: xp.where(x > 0, x * 2.0, x * 3.0)),
    Row("softplus with another literal", R, NONE, lambda xp, x: xp.maximum(x, 0.5) + xp.log1p(xp.exp(-xp.abs(x)))),
    Row("step", R, NONE, lambda xp, x: xp.where(x > 1.0, 1.0, 0.0)),
    Row("floor", R, NONE, lambda xp, x: xp.floor(x)),
    Row("sine", R, NONE, lambda xp, x: xp.sin(x)),
    Row("sign", R, NONE, lambda xp, x: xp.sign(x)),
    Row("negative square", R, CONCAVE, lambda xp, x: -x * x),
    Row("log of convex", R, NONE, lambda xp, x: xp.log(1.0 + x * x)),
    Row("huber relu with another literal", R, NONE, huber_relu_with(0.5)),
    Row("huber relu, written out", P, CONVEX, huber_relu_with(0.25)),
    Row("relu by where, with a step", R, NONE, lambda xp, x: xp.where(x > 0, x, 0.5)),
    Row("wide layer", P, CONVEX, lambda xp, x: xp.array(WIDE) @ xp.relu(x), (500,)),
    Row("wide layer, one negative weight", R, NONE, lambda xp, x: xp.array(WIDE_MIXED) @ xp.relu(x), (500,)),
    Row("cube root of abs", R, NONE, lambda xp, x: xp.cbrt(xp.abs(x))),
    Row("tanh of abs", R, NONE, lambda xp, x: xp.tanh(xp.abs(x))),
    Row("arc tangent of abs", R, NONE, lambda xp, x: xp.arctan(xp.abs(x))),
    Row("inverse sinh of abs", R, NONE, lambda xp, x: xp.arcsinh(xp.abs(x))),
    Row("log of 1 and abs", R, NONE, lambda xp, x: xp.log1p(xp.abs(x))),
    Row("sinh of a minimum", R, CONCAVE, lambda xp, x: xp.sinh(xp.minimum(x, 0.0))),
    Row("huber loss by where", P, CONVEX, huber),
    # convex, but not by these rules: nothing is promised
    Row("product of convex, rising, positive", U, NONE, lambda xp, x: xp.relu(x) * (xp.exp(x) + xp.relu(x))),
    Row("log of exp", P, CONVEX, lambda xp, x: xp.log(xp.exp(x)) + xp.abs(x)),
    Row("relu minus half of it", P, CONVEX, lambda xp, x: xp.relu(x) - 0.5 * xp.relu(x)),
    # not defined everywhere
    Row("log of the input", U, NONE, lambda xp, x: -xp.log(x)),
    Row("root of the input", U, NONE, lambda xp, x: -xp.sqrt(x)),
    Row("division by zero", U, NONE, lambda xp, x: x / (x * 0.0) * 0.0),
    Row("times a logarithm of what may be negative", U, NONE, lambda xp, x: xp.abs(x) + 0.0 * xp.log(x)),
    Row("times a logarithm of what may be 0", U, NONE, lambda xp, x: xp.abs(x) + 0.0 * xp.log(xp.abs(x))),
]


class Monotone(NamedTuple):
    """A function with the monotonicity of all its outputs in all its inputs."""

    name: str
    monotonicity: str
    function: Any


UP, DOWN, NEITHER = "nondecreasing", "nonincreasing", "unknown"

MONOTONE = [
    Monotone("constant", "constant", lambda xp, x: x * 0.0),
    Monotone("exp", UP, lambda xp, x: xp.exp(x)),
    Monotone("exp of negative", DOWN, lambda xp, x: xp.exp(-x)),
    Monotone("expm1", UP, lambda xp, x: xp.expm1(x)),
    Monotone("softplus", UP, lambda xp, x: xp.softplus(x)),
    Monotone("softplus by log1p", UP, lambda xp, x: xp.log1p(xp.exp(x))),
    Monotone("root and log of exp", UP, lambda xp, x: xp.log(xp.sqrt(xp.exp(x)))),
    Monotone("cube", UP, lambda xp, x: x**3),
    Monotone("sigmoid", UP, lambda xp, x: xp.sigmoid(x)),
    Monotone("sigmoid by hand", DOWN, lambda xp, x: 1.0 / (1.0 + xp.exp(x))),
    Monotone("tanh", UP, lambda xp, x: xp.tanh(x)),
    Monotone("arc tangent", UP, lambda xp, x: xp.arctan(x) + xp.arcsinh(x) + xp.sinh(x) + xp.cbrt(x)),
    Monotone("relu of negative", DOWN, lambda xp, x: xp.relu(-x)),
    Monotone("huber relu", UP, lambda xp, x: xp.huber_relu(x)),
    Monotone("elu", UP, lambda xp, x: xp.elu(x)),
    Monotone("floor and sign", UP, lambda xp, x: xp.floor(x) + xp.sign(x)),
    Monotone("square of relu", UP, lambda xp, x: xp.relu(x) ** 2),
    Monotone("product of positive, rising", UP, lambda xp, x: xp.exp(x) * xp.sigmoid(x)),
    Monotone("product of negative, falling", UP, lambda xp, x: -xp.exp(x) * xp.exp(xp.flip(-x) * 0.0) * -1.0),
    Monotone("log-sum-exp", UP, lambda xp, x: xp.logsumexp(x, 0)),
    Monotone("largest", UP, lambda xp, x: xp.max(x) + xp.min(x)),
    Monotone("sorted", UP, lambda xp, x: xp.sort(x)),
    Monotone("running maximum", DOWN, lambda xp, x: -xp.cummax(x)),
    Monotone("positive weights", UP, lambda xp, x: xp.array(np.abs(W)) @ xp.relu(x)),
    Monotone("signed weights", NEITHER, lambda xp, x: xp.array(W) @ x),
    Monotone("abs", NEITHER, lambda xp, x: xp.abs(x)),
    Monotone("square", NEITHER, lambda xp, x: x * x),
    Monotone("abs of positive", UP, lambda xp, x: xp.abs(xp.exp(x))),
    Monotone("sine", NEITHER, lambda xp, x: xp.sin(x)),
    Monotone("norm", NEITHER, lambda xp, x: xp.norm(x)),
]
