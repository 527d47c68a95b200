"""Small random programs: one representation, run by numpy on many points at once, and traced by JAX.

A program is a list of instructions on registers. Every register is a vector of the size of the input; what reduces is
spread out again, so that each instruction can follow each.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
from jax import lax

NUMBERS = (0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 3.0, 0.25, -0.125)


class Instruction(NamedTuple):
    """An operation, the registers it takes (from the last one back), and a choice of constants."""

    name: str
    first: int
    second: int
    third: int
    number: int


class Op(NamedTuple):
    """An operation on registers, in JAX and in numpy (points by size)."""

    jax: Callable[..., Any]
    numpy: Callable[..., Any]


def constants(number: int, size: int) -> np.ndarray:
    """A vector of constants, of one sign or of several."""
    return np.array([NUMBERS[(number * (1 if number % 3 else k + 1) + k * (number % 2)) % 10] for k in range(size)])


def matrix(number: int, size: int) -> np.ndarray:
    """A matrix of constants; every other one has no negative entry."""
    entries = np.array([[NUMBERS[(number + 3 * i + 7 * j + i * j) % 10] for j in range(size)] for i in range(size)])
    return np.abs(entries) if number % 2 else entries


def spread(reduce_jax: Any, reduce_numpy: Any) -> Op:
    """An operation that reduces a register and spreads the result."""
    return Op(
        lambda u, *_: lax.broadcast(reduce_jax(u), u.shape),
        lambda u, *_: np.repeat(reduce_numpy(u)[:, None], u.shape[1], 1),
    )


def softplus(u):
    return jnp.logaddexp(u, jnp.zeros((), u.dtype))


def huber_relu_jax(u):
    bent = jnp.maximum(jnp.minimum(u, 1.0) + 1.0, 0.0)
    return jnp.where(u < 1.0, bent * bent * 0.25, u)


def huber_relu_numpy(u):
    return np.where(u < 1, np.maximum(np.minimum(u, 1) + 1, 0) ** 2 / 4, u)


def logsumexp_numpy(u):
    top = u.max(1, keepdims=True)
    return top[:, 0] + np.log(np.exp(u - top).sum(1))


def vector(number, u):
    return constants(number, u.shape[-1])


def first(u):
    return u


PLACES = np.array([0, 0, 1])  # of a sum at places
WELL = 2.0 * np.eye(3) - 0.25  # a matrix to be inverted


def neighbors(u, fill):
    """Each number of a row with those beside it, `[points, size, 3]`."""
    padded = np.pad(u, ((0, 0), (1, 1)), constant_values=fill)
    return np.stack([padded[:, k : k + u.shape[1]] for k in range(3)], axis=2)


def window(u, start, reduce):
    return lax.reduce_window(u, jnp.asarray(start, u.dtype), reduce, (3,), (1,), ((1, 1),))


def sum_at_places(u):
    return np.stack([u[:, PLACES[: u.shape[1]] == k].sum(1) for k in range(u.shape[1])], 1)


def well(u):
    return WELL[: u.shape[-1], : u.shape[-1]]


UNARY = {
    "neg": (lax.neg, np.negative),
    "exp": (lax.exp, np.exp),
    "expm1": (lax.expm1, np.expm1),
    "log": (lax.log, np.log),
    "log1p": (lax.log1p, np.log1p),
    "sqrt": (lax.sqrt, np.sqrt),
    "rsqrt": (lax.rsqrt, lambda u: 1 / np.sqrt(u)),
    "cbrt": (lax.cbrt, np.cbrt),
    "abs": (lax.abs, np.abs),
    "square": (lax.square, np.square),
    "cube": (lambda u: lax.integer_pow(u, 3), lambda u: u**3),
    "inverse": (lambda u: lax.integer_pow(u, -1), lambda u: 1 / u),
    "inverse square": (lambda u: lax.integer_pow(u, -2), lambda u: 1 / u**2),
    "inverse cube": (lambda u: lax.integer_pow(u, -3), lambda u: 1 / u**3),
    "power 1.5": (lambda u: lax.pow(u, jnp.asarray(1.5, u.dtype)), lambda u: np.power(u, 1.5)),
    "power 0.25": (lambda u: lax.pow(u, jnp.asarray(0.25, u.dtype)), lambda u: np.power(u, 0.25)),
    "power -0.5": (lambda u: lax.pow(u, jnp.asarray(-0.5, u.dtype)), lambda u: np.power(u, -0.5)),
    "power of 2": (lambda u: lax.pow(jnp.full(u.shape, 2.0, u.dtype), u), lambda u: np.power(2.0, u)),
    "power of 1/2": (lambda u: lax.pow(jnp.full(u.shape, 0.5, u.dtype), u), lambda u: np.power(0.5, u)),
    "tanh": (lax.tanh, np.tanh),
    "logistic": (lax.logistic, lambda u: 1 / (1 + np.exp(-u))),
    "sinh": (lax.sinh, np.sinh),
    "cosh": (lax.cosh, np.cosh),
    "asinh": (lax.asinh, np.arcsinh),
    "atan": (lax.atan, np.arctan),
    "sin": (lax.sin, np.sin),
    "floor": (lax.floor, np.floor),
    "sign": (lax.sign, np.sign),
    "relu": (lambda u: lax.max(u, jnp.zeros_like(u)), lambda u: np.maximum(u, 0)),
    "cap": (lambda u: lax.min(u, jnp.ones_like(u)), lambda u: np.minimum(u, 1)),
    "clamp": (lambda u: lax.clamp(jnp.asarray(-1, u.dtype), u, jnp.asarray(1, u.dtype)), lambda u: np.clip(u, -1, 1)),
    "softplus": (softplus, lambda u: np.logaddexp(u, 0)),
    "huber relu": (huber_relu_jax, huber_relu_numpy),
    "cumsum": (lambda u: lax.cumsum(u, 0), lambda u: np.cumsum(u, 1)),
    "cummax": (lambda u: lax.cummax(u, 0), lambda u: np.maximum.accumulate(u, 1)),
    "cummin reversed": (
        lambda u: lax.cummin(u, 0, reverse=True),
        lambda u: np.minimum.accumulate(u[:, ::-1], 1)[:, ::-1],
    ),
    "cumlogsumexp": (lambda u: lax.cumlogsumexp(u, 0), lambda u: np.logaddexp.accumulate(u, 1)),
    "cumprod": (lambda u: lax.cumprod(u, 0), lambda u: np.cumprod(u, 1)),
    "reverse": (lambda u: lax.rev(u, (0,)), lambda u: u[:, ::-1]),
    "two slopes": (lambda u: jnp.where(u > 0, 3.0 * u, 0.5 * u), lambda u: np.where(u > 0, 3 * u, 0.5 * u)),
    "two falling slopes": (lambda u: jnp.where(u < 1, 3.0 * u, u + 2.0), lambda u: np.where(u < 1, 3 * u, u + 2)),
    "a jump": (lambda u: jnp.where(u >= 1, 2.0 * u, u), lambda u: np.where(u >= 1, 2 * u, u)),
    "elu of half": (
        lambda u: jnp.where(u > 0, u, 0.5 * jnp.expm1(jnp.minimum(u, 0.0))),
        lambda u: np.where(u > 0, u, 0.5 * np.expm1(np.minimum(u, 0))),
    ),
    "capped square": (
        lambda u: jnp.where(jnp.abs(u) <= 0.5, u * u, jnp.abs(u) - 0.25),
        lambda u: np.where(np.abs(u) <= 0.5, u * u, np.abs(u) - 0.25),
    ),
    "windows": (lambda u: window(u, -jnp.inf, lax.max), lambda u: neighbors(u, -np.inf).max(2)),
    "window sums": (lambda u: window(u, 0.0, lax.add), lambda u: neighbors(u, 0.0).sum(2)),
    "sum at places": (lambda u: jnp.zeros_like(u).at[PLACES[: u.shape[0]]].add(u), sum_at_places),
    "solve": (lambda u: jnp.linalg.solve(jnp.asarray(well(u), u.dtype), u), lambda u: u @ np.linalg.inv(well(u)).T),
    "sort": (lambda u: lax.sort(u), lambda u: np.sort(u, 1)),
    "roll": (
        lambda u: lax.concatenate([lax.slice(u, (1,), u.shape), lax.slice(u, (0,), (1,))], 0),
        lambda u: np.roll(u, -1, 1),
    ),
}

OPS: dict[str, Op] = {
    **{name: Op(lambda u, *_, f=f: f(u), lambda u, *_, g=g: g(u)) for name, (f, g) in UNARY.items()},
    "sum": spread(lambda u: jnp.sum(u), lambda u: u.sum(1)),
    "product": spread(lambda u: jnp.prod(u), lambda u: u.prod(1)),
    "largest": spread(lambda u: jnp.max(u), lambda u: u.max(1)),
    "smallest": spread(lambda u: jnp.min(u), lambda u: u.min(1)),
    "log-sum-exp": spread(lambda u: jnp.log(jnp.sum(jnp.exp(u))), lambda u: logsumexp_numpy(u)),
    "norm": spread(lambda u: lax.sqrt(jnp.sum(u * u)), lambda u: np.sqrt((u**2).sum(1))),
    "norm of order 4": spread(lambda u: jnp.linalg.norm(u, 4), lambda u: (u**4).sum(1) ** 0.25),
    "add": Op(lambda u, v, *_: u + v, lambda u, v, *_: u + v),
    "sub": Op(lambda u, v, *_: u - v, lambda u, v, *_: u - v),
    "mul": Op(lambda u, v, *_: u * v, lambda u, v, *_: u * v),
    "div": Op(lambda u, v, *_: u / v, lambda u, v, *_: u / v),
    "max": Op(lambda u, v, *_: lax.max(u, v), lambda u, v, *_: np.maximum(u, v)),
    "min": Op(lambda u, v, *_: lax.min(u, v), lambda u, v, *_: np.minimum(u, v)),
    "logaddexp": Op(lambda u, v, *_: jnp.logaddexp(u, v), lambda u, v, *_: np.logaddexp(u, v)),
    "where": Op(lambda u, v, w, _: lax.select(u > v, v, w), lambda u, v, w, _: np.where(u > v, v, w)),
    "where not less": Op(
        lambda u, v, w, _: lax.select(u >= jnp.zeros_like(u), v, w), lambda u, v, w, _: np.where(u >= 0, v, w)
    ),
    "where constant": Op(
        lambda u, v, w, k: lax.select(jnp.asarray(vector(k, u) > 0), u, v),
        lambda u, v, w, k: np.where(vector(k, u) > 0, u, v),
    ),
    "inner product": Op(
        lambda u, v, *_: jnp.full(u.shape, jnp.dot(u, v)),
        lambda u, v, *_: np.repeat((u * v).sum(1)[:, None], u.shape[1], 1),
    ),
    "add constant": Op(lambda u, v, w, k: u + vector(k, u).astype(u.dtype), lambda u, v, w, k: u + vector(k, u)),
    "mul constant": Op(lambda u, v, w, k: u * vector(k, u).astype(u.dtype), lambda u, v, w, k: u * vector(k, u)),
    "div constant": Op(
        lambda u, v, w, k: u / (vector(k, u) + 0.0625).astype(u.dtype), lambda u, v, w, k: u / (vector(k, u) + 0.0625)
    ),
    "constant": Op(
        lambda u, v, w, k: jnp.asarray(vector(k, u), u.dtype), lambda u, v, w, k: np.broadcast_to(vector(k, u), u.shape)
    ),
    "weighted sum": Op(
        lambda u, v, w, k: jnp.full(u.shape, jnp.dot(u, vector(k, u).astype(u.dtype))),
        lambda u, v, w, k: np.repeat((u @ vector(k, u))[:, None], u.shape[1], 1),
    ),
    "matrix": Op(
        lambda u, v, w, k: jnp.dot(matrix(k, u.shape[-1]).astype(u.dtype), u),
        lambda u, v, w, k: u @ matrix(k, u.shape[-1]).T,
    ),
    "parameter": Op(first, first),  # `run` puts it in
    "two largest": Op(
        lambda u, *_: jnp.full(u.shape, jnp.sum(lax.top_k(u, min(2, u.shape[0]))[0])),
        lambda u, *_: np.repeat(np.sort(u, 1)[:, -2:].sum(1)[:, None], u.shape[1], 1),
    ),
}


def programs() -> st.SearchStrategy:
    """Inputs of one to three numbers, and one to eight instructions."""
    small = st.integers(0, 3)
    instruction = st.builds(Instruction, st.sampled_from(sorted(OPS)), small, small, small, st.integers(0, 29))
    return st.tuples(st.integers(1, 3), st.lists(instruction, min_size=1, max_size=8))


def random_program(rng: np.random.Generator) -> tuple[int, list[Instruction]]:
    """A program as `programs` gives them, drawn quickly."""
    names = sorted(OPS)
    length = int(rng.integers(1, 9))
    draws = zip(
        rng.integers(len(names), size=length),
        rng.integers(0, 4, size=(length, 3)),
        rng.integers(0, 30, size=length),
        strict=True,
    )
    return int(rng.integers(1, 4)), [Instruction(names[i], *map(int, at), int(k)) for i, at, k in draws]


def parameters(size: int, seed: int) -> np.ndarray:
    """Values of the parameters, of which a walk does not know: any numbers, now and then 0."""
    values = np.random.default_rng([seed, 5]).normal(size=size)
    return np.where(np.abs(values) < 0.2, 0.0, values)


def run(program: list[Instruction], x: Any, theta: Any, which: str) -> list[Any]:
    """All registers, the input first. `which` is "jax" or "numpy"; theta are the parameters, one for each input."""
    registers = [x]
    for name, *at, number in program:
        taken = [registers[max(len(registers) - 1 - back, 0)] for back in at]
        if name == "parameter":
            registers.append(theta + 0.0 * x if which == "numpy" else theta)
        else:
            registers.append(getattr(OPS[name], which)(*taken, number))
    return registers
