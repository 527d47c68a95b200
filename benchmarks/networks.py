"""Networks that `quality.py` compares the hull with, trained by one loop; written for JAX.

Letters: D in, H hidden, K pieces, O out.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from convexmoe.hull.parameters import flatten, nest
from convexmoe.training.schedule import ADAM_DECAYS, EVALUATIONS, learning_rates
from convexmoe.training.start import Weights, along_spread, start_at
from convexmoe_jax import HullConfig, hull
from convexmoe_jax.training.engine import clip, mean_squared_error

Params = dict[str, Any]
BEYOND, LEAST_LOSS = 3, 1e-30


class Network(NamedTuple):
    """A network of one width.

    Args:
        init: key -> parameters.
        apply: (parameters, `[N, D]`) -> `[N, O]`.
        project: parameters -> the nearest ones that are allowed.
        loss: (`[N, O]`, `[N, O]`) -> what is minimized.
        start: (parameters, x, y) -> what is trained, made of new parameters and the rows to train on.
        config: of a hull.
    """

    init: Callable[[jax.Array], Params]
    apply: Callable[[Params, jax.Array], jax.Array]
    project: Callable[[Params], Params] = lambda params: params
    loss: Callable[[jax.Array, jax.Array], jax.Array] = mean_squared_error
    start: Callable[[Params, np.ndarray, np.ndarray], Params] = lambda params, x, y: params
    config: HullConfig | None = None


class Tuned(NamedTuple):
    """What a choice of shape and learning rate came to.

    Args:
        shape, network, rate: what was chosen.
        params: of each seed.
    """

    shape: str
    network: Network
    rate: float
    params: list[Params]


def uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return U(-1, 1) / sqrt(fan-in): the usual initialization of a linear layer."""
    return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0) / math.sqrt(shape[0])


def mlp(dim: int, out_dim: int, width: int, layers: int = 2) -> Network:
    """Hidden layers with GELU; not convex."""
    shapes = [(dim, width), *[(width, width)] * (layers - 1), (width, out_dim)]

    def init(key: jax.Array) -> Params:
        keys = jax.random.split(key, len(shapes))
        return {f"w{k}": uniform(keys[k], shape) for k, shape in enumerate(shapes)} | {
            f"b{k}": jnp.zeros(shape[1]) for k, shape in enumerate(shapes)
        }

    def apply(p: Params, x: jax.Array) -> jax.Array:
        for k in range(layers):
            x = jax.nn.gelu(x @ p[f"w{k}"] + p[f"b{k}"])
        return x @ p[f"w{layers}"] + p[f"b{layers}"]

    return Network(init, apply)


def icnn(dim: int, out_dim: int, width: int, layers: int = 2) -> Network:
    """Amos, Xu and Kolter (arXiv 1609.07152): hidden layers with relu, weights between layers clamped at zero."""
    widths = [width] * layers + [out_dim]

    def init(key: jax.Array) -> Params:
        keys = jax.random.split(key, 2 * layers + 1)
        shapes = {f"a{k}": (dim, own) for k, own in enumerate(widths)}
        shapes |= {f"v{k}": (width, own) for k, own in enumerate(widths) if k > 0}
        params = {name: uniform(k, shape) for k, (name, shape) in zip(keys, shapes.items(), strict=True)}
        return project(params | {f"b{k}": jnp.zeros(own) for k, own in enumerate(widths)})

    def project(p: Params) -> Params:
        return p | {name: jnp.maximum(value, 0.0) for name, value in p.items() if name.startswith("v")}

    def apply(p: Params, x: jax.Array) -> jax.Array:
        z = jax.nn.relu(x @ p["a0"] + p["b0"])
        for k in range(1, layers):
            z = jax.nn.relu(z @ p[f"v{k}"] + x @ p[f"a{k}"] + p[f"b{k}"])
        return z @ p[f"v{layers}"] + x @ p[f"a{layers}"] + p[f"b{layers}"]

    return Network(init, apply, project)


def lse_network(dim: int, out_dim: int, pieces: int) -> Network:
    """Calafiore, Gaubert and Possieri (arXiv 1806.07850): `T log mean_k exp((a_k' x + b_k) / T)`, T > 0 learned."""

    def init(key: jax.Array) -> Params:
        one, two = jax.random.split(key)
        slopes = jax.random.normal(one, (dim, out_dim, pieces)) / math.sqrt(dim)
        offsets = 0.1 * jax.random.normal(two, (out_dim, pieces))
        return {"slopes": slopes, "offsets": offsets, "log_temperature": jnp.zeros(out_dim)}

    def apply(p: Params, x: jax.Array) -> jax.Array:
        T = jnp.exp(p["log_temperature"])
        u = jnp.einsum("nd,dok->nok", x, p["slopes"]) + p["offsets"]
        return T * (jax.nn.logsumexp(u / T[:, None], axis=-1) - math.log(pieces))

    return Network(init, apply)


def convex_kan(dim: int, out_dim: int, width: int, knots: int = 4) -> Network:
    """One hidden layer of sums of convex piecewise-linear functions of one number, with learned knots.

    Source: Deschatre and Warin, Input convex Kolmogorov Arnold networks (arXiv 2505.21208), P1 with adapted grids.
    Differs from the source: changes of slope are softplus(raw), no range is handed on, and one layer is hidden.
    """
    shapes = [(dim, width), (width, out_dim)]

    def init(key: jax.Array) -> Params:
        params = {}
        for k, (fan_in, fan_out) in enumerate(shapes):
            key, one, two = jax.random.split(key, 3)
            bends = jax.random.uniform(one, (fan_in, knots, fan_out), minval=0.1, maxval=1.9)
            params |= {f"c{k}": jnp.log(jnp.expm1(bends / (fan_in * knots))), f"b{k}": jnp.zeros(fan_out)}
            params[f"t{k}"] = jnp.tile(jnp.linspace(-1.5, 1.5, knots), (fan_in, 1))
            slopes = uniform(two, (fan_in, fan_out))
            params[f"a{k}"] = slopes if k == 0 else jnp.log(jnp.expm1(jnp.abs(slopes)))
        return params

    def apply(p: Params, x: jax.Array) -> jax.Array:
        for k in range(2):
            slopes = p["a0"] if k == 0 else jax.nn.softplus(p["a1"])
            bent = jax.nn.relu(x[:, :, None] - p[f"t{k}"]).reshape(len(x), -1)
            bends = jax.nn.softplus(p[f"c{k}"])
            x = x @ slopes + bent @ bends.reshape(-1, bends.shape[-1]) + p[f"b{k}"]
        return x

    return Network(init, apply)


def hull_network(config: HullConfig) -> Network:
    """A hull as it is drawn."""
    return Network(lambda key: hull.init(config, key), lambda p, x: hull.apply(p, x, config), config=config)


def network_from_start(config: HullConfig) -> Network:
    """A hull that starts as with `fit`."""
    return hull_network(config)._replace(start=partial(started, config))


def started(config: HullConfig, params: Params, x: np.ndarray, y: np.ndarray) -> Params:
    """Return the parameters with which `fit` begins: those of a hull scaled and tilted to the rows."""

    def tree(weights: Weights) -> Params:
        return nest({name: jnp.asarray(value, params["shifts"].dtype) for name, value in weights.items()})

    weights = along_spread({name: np.asarray(value, np.float64) for name, value in flatten(params).items()}, x, config)
    values = np.asarray(hull.apply(tree(weights), jnp.asarray(x, params["shifts"].dtype), config))
    return tree(start_at(weights, config, values, x, y))


def match_size(make: Callable[[int], Network], parameters: int) -> Network:
    """Return the network whose parameters are nearest in number, by its width."""
    widths = range(1, 2049)
    at = bisect.bisect_left(widths, parameters, key=lambda width: count(make(width)))
    near = widths[max(at - 1, 0) : at + 1]
    return make(min(near, key=lambda width: abs(count(make(width)) - parameters)))


def count(network: Network) -> int:
    """Return the number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(network.init, jax.random.key(0))))


class Rows(NamedTuple):
    """Standardised rows of each copy: to train on, and held out, each `[S, N, ...]`."""

    x: np.ndarray
    y: np.ndarray
    x_held: np.ndarray
    y_held: np.ndarray


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _chunk(network: Network, carry: Any, data: Any, rows: jax.Array, rates: jax.Array) -> Any:
    """Take one step of Adam for each line of `rows` (steps, S, batch), at the rates (steps, S); return the mean too."""

    def loss(p: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        return network.loss(network.apply(p, x), y)

    def step(p: Params, m: Params, v: Params, x: jax.Array, y: jax.Array, rate: jax.Array, t: jax.Array) -> Any:
        first, second = ADAM_DECAYS
        g = clip(jax.grad(loss)(p, x, y))
        m = jax.tree.map(lambda a, b: first * a + (1 - first) * b, m, g)
        v = jax.tree.map(lambda a, b: second * a + (1 - second) * b * b, v, g)
        unbiased = (1 - first**t, 1 - second**t)
        p = jax.tree.map(lambda a, b, c: a - rate * (b / unbiased[0]) / (jnp.sqrt(c / unbiased[1]) + 1e-8), p, m, v)
        return network.project(p), m, v

    def body(carry: Any, now: Any) -> Any:
        ((p, m, v, t), total), (picked, rate) = carry, now
        x, y = (jax.vmap(lambda part, index: part[index])(part, picked) for part in data[:2])
        p, m, v = jax.vmap(step, in_axes=(0, 0, 0, 0, 0, 0, None))(p, m, v, x, y, rate, t)
        return ((p, m, v, t + 1), jax.tree.map(jnp.add, total, p)), None

    zeros = jax.tree.map(jnp.zeros_like, carry[0])
    (carry, total), _ = jax.lax.scan(body, (carry, zeros), (rows, rates))
    return carry, jax.tree.map(lambda sum: sum / len(rows), total)


@partial(jax.jit, static_argnums=0)
def _losses(network: Network, params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the loss of each copy, (S,)."""
    return jax.vmap(lambda p, x, y: network.loss(network.apply(p, x), y))(params, x, y)


def train(
    network: Network,
    params: Sequence[Params],
    rows: Rows,
    steps: int,
    batch: int,
    peaks: Sequence[float],
    seeds: Sequence[int],
) -> tuple[Params, np.ndarray]:
    """Train copies side by side as `fit` does: warm-up, cosine decay, clipping; return the best by held-out rows.

    What is evaluated is the mean of the weights since the evaluation before.

    Args:
        params, rows: what each copy starts from and is given.
        steps, batch: as for `fit`, the same for all.
        peaks, seeds: the learning rate of each copy, and the seed of its batches.

    Returns:
        the parameters, stacked over copies, and their losses on the rows held out, `[S]`.
    """
    # by numpy, for which nothing is compiled
    best: Params = jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *params)
    data = tuple(jax.device_put(np.asarray(part, np.float32)) for part in rows)
    count = data[0].shape[1]
    batch = min(batch, count)
    orders = np.stack([order(seed, count, steps * batch).reshape(steps, batch) for seed in seeds], axis=1)
    rates = np.stack([learning_rates(steps, peak) for peak in peaks], axis=1)
    zeros = jax.tree.map(np.zeros_like, best)
    carry: Any = (best, zeros, zeros, np.ones((), np.float32))
    least = np.asarray(_losses(network, best, data[2], data[3]))
    size = math.ceil(steps / EVALUATIONS)
    for start in range(0, steps, size):
        now = slice(start, start + size)
        picked, rates_now = orders[now], rates[now].astype(np.float32)
        carry, mean = _chunk(network, carry, data, picked, rates_now)
        losses = _losses(network, mean, data[2], data[3])
        better = np.nan_to_num(np.asarray(losses), nan=np.inf) < least
        least = np.where(better, losses, least)
        best = jax.tree.map(partial(_chosen, better), jax.tree.map(np.asarray, mean), best)
    return best, least


def _chosen(first: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where(first.reshape(-1, *[1] * (a.ndim - 1)), a, b)


def order(seed: int, rows: int, length: int) -> np.ndarray:
    """Return row numbers, epoch after epoch."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(rows) for _ in range(math.ceil(length / rows))])[:length]


def best_rate(network: Network, params: Params, rows: Rows, steps: int, batch: int, grid: Sequence[float]) -> float:
    """Return the learning rate that is best on the held-out rows of one copy.

    Where it is at an end of the grid, two rates beyond it are tried too, and so on, `BEYOND` times at most.
    """
    losses: dict[float, float] = {}
    tried = list(grid)
    for _ in range(1 + BEYOND):
        copies = Rows(*[np.repeat(part, len(tried), axis=0) for part in rows])
        _, held = train(network, [params] * len(tried), copies, steps, batch, tried, [0] * len(tried))
        losses |= dict(zip(tried, held.tolist(), strict=True))
        best, factor = min(losses, key=lambda rate: losses[rate]), grid[1] / grid[0]
        if best not in (min(losses), max(losses)):
            break
        factor = factor if best == max(losses) else 1.0 / factor
        tried = [best * factor, *[best * factor**2] * (len(grid) - 1)]  # as many as before: compiled already
    return best


def tune(shapes: Mapping[str, Network], rows: Rows, steps: int, batch: int, grid: Sequence[float]) -> Tuned:
    """Train one copy a seed, in the shape that is best on the held-out rows of all seeds.

    The rate of each shape is the best on the held-out rows of seed 0.

    Args:
        shapes: what may be chosen, by name.
        rows: of each seed.
        grid: the rates, in steps of one factor.
    """
    found, losses = [], []
    for shape, network in shapes.items():
        init, seeds = jax.jit(network.init), range(len(rows.x))
        draws = [network.start(init(jax.random.key(seed)), rows.x[seed], rows.y[seed]) for seed in seeds]
        rate = best_rate(network, draws[0], Rows(*[part[:1] for part in rows]), steps, batch, grid)
        stacked, held = train(network, draws, rows, steps, batch, [rate] * len(seeds), seeds)
        params = [jax.tree.map(lambda leaf, seed=seed: leaf[seed], stacked) for seed in seeds]
        found.append(Tuned(shape, network, rate, params))
        losses.append(float(np.mean(np.log(held + LEAST_LOSS))))  # no seed that fails decides alone
    return found[int(np.argmin(losses))]
