"""Maps between Gaussians: the gradient of a potential, a hull beside ott-jax's ICNN of as many parameters.

The optimal map is known (`examples/transport.py`), so errors need no reference solver: L2-UVP is
100 E|T(x) - T*(x)|^2 / Var(T*(x)) in per cent, T the gradient of the potential f (Korotin et al., arXiv 1909.13082).
Source and target have mean zero, random rotations, and spectra that are log-spaced in [0.5, 2]; every seed has its own
Gaussians. Both potentials minimise E f(x) + E f*(y) over the same samples, with the same steps, batches, rates and
solver of the conjugate f*(y) = max_x x'y - f(x); rate and best step are chosen by the same sum on samples held out. The
hull starts as |x|^2 / 2 by least squares, the ICNN as ott-jax draws it: with random units beside. Such a map is linear,
so that two rows need no training: the identity, and the closed form on the covariances of the samples.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from networks import Network, Params, Rows, count, hull_network, match_size, started, tune
from quality_runs import run, write
from timing import table

from convexmoe_jax import HullConfig

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from ott.neural.networks.icnn import ICNN
from transport import Gaussian, Newton, closed_form, unexplained

Record = dict[str, Any]
Value = Callable[[Params, jax.Array], jax.Array]

DIMS, STEPS, BATCH, SAMPLES, HELD_OUT, TESTED = (2, 8, 32), 300, 128, 16_384, 1024, 4000
RATES = (0.001, 0.003, 0.01, 0.03, 0.1)
SEEDS = len(RATES)
STRONG_CONVEXITY = 0.1


def semi_dual(value: Value, dim: int, init: Callable[[jax.Array], Params], start: Any) -> Network:
    """Return a potential as a network on rows (x, y), whose outputs f(x) + f*(y) are minimized in the mean."""

    def apply(p: Params, rows: jax.Array) -> jax.Array:
        def one(row: jax.Array) -> jax.Array:
            x, y = row[:dim], row[dim:]
            best = jax.lax.stop_gradient(Newton().solve(lambda x: value(p, x), y).grad)
            return value(p, x) + best @ y - value(p, best)  # Danskin: the best point is held fixed

        return jax.vmap(one)(rows)[:, None]

    return Network(init, apply, loss=lambda values, _: jnp.mean(values), start=start)


def hull(dim: int) -> Network:
    """Return a hull of 8 petals."""
    config = HullConfig(dim, 8, 1, temperature="learned", strong_convexity=STRONG_CONVEXITY)
    own = hull_network(config)

    def value(p: Params, x: jax.Array) -> jax.Array:
        return own.apply(p, jnp.atleast_2d(x))[:, 0].reshape(x.shape[:-1])

    def start(p: Params, rows: np.ndarray, _: np.ndarray) -> Params:
        x = rows[:, :dim]
        return started(config, p, x, 0.5 * np.sum(x**2, axis=1, keepdims=True))

    return semi_dual(value, dim, own.init, start)


def icnn(dim: int, width: int) -> Network:
    """Return ott-jax's ICNN, two hidden layers with positive weights, as it is by default."""
    model = ICNN(dim, dim_hidden=[width, width], pos_weights=True)

    def value(p: Params, x: jax.Array) -> jax.Array:
        return jnp.asarray(model.apply({"params": p}, x))

    def init(key: jax.Array) -> Params:
        return dict(model.init(key, jnp.ones(dim))["params"])

    return semi_dual(value, dim, init, lambda p, x, y: p)


MODELS: dict[str, Callable[[int], Network]] = {
    "hull": hull,
    "ICNN of ott-jax": lambda dim: match_size(lambda width: icnn(dim, width), count(hull(dim))),
}


def gaussian(rng: np.random.Generator, dim: int) -> Gaussian:
    """Return a Gaussian of mean zero with a random rotation."""
    rotation = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    return Gaussian(np.zeros(dim), rotation * np.sqrt(np.geomspace(0.5, 2.0, dim)))


def samples(pairs: list[tuple[Gaussian, Gaussian]]) -> Rows:
    """Return samples (x, y) of each pair, to train on and held out; there is nothing to regress on."""
    drawn = []
    for seed, pair in enumerate(pairs):
        parts = [next(part.batches(10 * seed + k, SAMPLES + HELD_OUT)) for k, part in enumerate(pair)]
        drawn.append(np.concatenate(parts, axis=1))
    x = np.stack(drawn)
    nothing = np.zeros((*x.shape[:2], 1))
    return Rows(x[:, :SAMPLES], nothing[:, :SAMPLES], x[:, SAMPLES:], nothing[:, SAMPLES:])


def pairs_of(dim: int) -> list[tuple[Gaussian, Gaussian]]:
    """Return source and target of every seed."""
    rngs = [np.random.default_rng([seed, dim]) for seed in range(SEEDS)]
    return [(gaussian(rng, dim), gaussian(rng, dim)) for rng in rngs]


def judge(pair: tuple[Gaussian, Gaussian], seed: int, move: Callable[[Any], Any]) -> float:
    """Return the L2-UVP of a map, in per cent, on new samples."""
    x = next(pair[0].batches(10 * seed + 2, TESTED))
    wanted = np.asarray(x, np.float64) @ closed_form(*pair)[0].T
    return unexplained(np.asarray(move(x), np.float64), wanted)


def baselines(dim: int) -> list[tuple[str, int, None, list[float]]]:
    """Return name, parameters, rate and the L2-UVP of every seed of two maps that are not trained."""
    pairs = pairs_of(dim)
    drawn = samples(pairs).x
    found: dict[str, list[float]] = {"identity": [], "covariances of the samples": []}
    for seed, pair in enumerate(pairs):
        found["identity"].append(judge(pair, seed, lambda x: x))
        roots = [np.linalg.cholesky(np.cov(part.T.astype(np.float64))) for part in np.split(drawn[seed], 2, axis=1)]
        matrix = closed_form(*[Gaussian(np.zeros(dim), root) for root in roots])[0]
        found["covariances of the samples"].append(judge(pair, seed, lambda x, m=matrix: np.asarray(x) @ m.T))
    return [(name, 0, None, values) for name, values in found.items()]


def learn(network: Network, pairs: list[tuple[Gaussian, Gaussian]], steps: int) -> tuple[float, list[float]]:
    """Return the learning rate that was chosen, and the L2-UVP of the map that a potential learns of each pair."""
    dim = len(pairs[0][0].mean)
    found = tune({"": network}, samples(pairs), steps, BATCH, RATES)

    @jax.jit
    def move(p: Params, x: jax.Array) -> jax.Array:
        def total(x: jax.Array) -> jax.Array:
            return network.apply(p, jnp.concatenate([x, jnp.zeros(dim)])[None])[0, 0]  # f(x) + f*(0)

        return jax.vmap(jax.grad(total))(x)

    tried = enumerate(zip(pairs, found.params, strict=True))
    return found.rate, [judge(pair, seed, partial(move, p)) for seed, (pair, p) in tried]


def learn_map(job: tuple[str, int, int]) -> Record:
    """Return what a model, in a dimension, by so many steps comes to."""
    began = time.perf_counter()
    name, dim, steps = job
    network = MODELS[name](dim)
    rate, apart = learn(network, pairs_of(dim), steps)
    return record(dim, name, count(network), rate, apart, time.perf_counter() - began)


def record(dim: int, name: str, parameters: int, rate: float | None, found: list[float], seconds: float) -> Record:
    """Return a line of the results; `found` holds the L2-UVP of every seed, in per cent."""
    numbers = {"parameters": parameters, "rate": rate, "errors": found, "seconds": seconds}
    return {"dim": dim, "model": name} | numbers


def draw(records: list[Record], path: Path) -> None:
    """Draw errors by dimension."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    names = dict.fromkeys(record["model"] for record in records)
    for k, name in enumerate(names):
        for record in (record for record in records if record["model"] == name):
            where = DIMS.index(record["dim"]) + 0.15 * (k - 1.5)
            axes.plot([where] * len(record["errors"]), record["errors"], ".", color=f"C{k}", alpha=0.6)
            axes.plot(where, np.median(record["errors"]), "_", color=f"C{k}", ms=18, mew=2)
        axes.plot([], [], "_", color=f"C{k}", label=name)
    axes.set_xticks(range(len(DIMS)), [f"D = {dim}" for dim in DIMS])
    axes.set(yscale="log", ylabel="L2-UVP, per cent")
    axes.legend()
    figure.savefig(path, dpi=110)


def main(quick: bool, out: Path) -> None:
    """Learn every map, print the table, draw the picture."""
    # the longest first
    jobs = [(name, dim, 4 if quick else STEPS) for dim in DIMS[::-1] for name in MODELS]
    records = run(learn_map, jobs, out)
    records += [record(dim, *one, 0.0) for dim in DIMS for one in baselines(dim)]
    records.sort(key=lambda one: int(one["dim"]))
    lines = []
    for one in records:
        found, rate = one["errors"], f"{one['rate']:g}" if one["rate"] else "-"
        spread = f"{min(found):.2g} - {max(found):.2g}"
        cells = [f"{one['parameters']:,}", rate, f"{np.median(found):.2g}", spread, f"{one['seconds']:.0f}"]
        lines.append([one["dim"], one["model"], *cells])
    print(table(["D", "map", "parameters", "rate", "L2-UVP, %", "least - most", "seconds"], lines))
    write(records, out / "transport.json")
    draw(records, out / "transport.png")
