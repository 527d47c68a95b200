"""Maps between Gaussians by ott-jax's neural dual: potentials that are hulls, beside ott-jax's ICNN.

The optimal map is known (`examples/transport.py`), so errors need no reference solver: L2-UVP is
100 E|T(x) - T*(x)|^2 / Var(T*(x)) in per cent, for T the gradient of the potential (Korotin et al., arXiv 1909.13082).
Source and target have mean zero, random rotations, and spectra that are log-spaced in [0.5, 2]. Both potentials have
the loop, solver, steps, batches and learning rates of the other.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from timing import table

from convexmoe_jax import HullConfig

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from ott.neural.methods.neuraldual import W2NeuralDual
from ott.neural.networks.icnn import ICNN
from transport import Gaussian, HullPotential, closed_form, unexplained

DIMS, SEEDS, STEPS, BATCH = (2, 8, 32), 5, 600, 256
RATES = (0.001, 0.003, 0.01, 0.03)
TUNING = 200  # steps to choose a rate by, on other Gaussians
STRONG_CONVEXITY = 0.1


def hull(dim: int) -> Any:
    """Return a hull of 8 petals as a potential."""
    fields = {"petals": 8, "out_dim": 1, "hidden_dim": 64, "temperature": "learned"}
    return HullPotential(HullConfig(dim, strong_convexity=STRONG_CONVEXITY, **fields))


def icnn(dim: int) -> Any:
    """Return ott-jax's ICNN with positive weights."""
    return ICNN(dim, dim_hidden=[32, 32], pos_weights=True)


MODELS = {"hull": hull, "ICNN of ott-jax": icnn}


def gaussian(rng: np.random.Generator, dim: int) -> Gaussian:
    """Return a Gaussian of mean zero with a random rotation."""
    rotation = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    return Gaussian(np.zeros(dim), rotation * np.sqrt(np.geomspace(0.5, 2.0, dim)))


def error(make: Any, dim: int, seed: int, rate: float, steps: int) -> tuple[float, int]:
    """Return the L2-UVP of the map that a model learns, in per cent, and how many parameters it has."""
    rng = np.random.default_rng([seed, dim])
    source, target = gaussian(rng, dim), gaussian(rng, dim)

    def optimizer() -> optax.GradientTransformation:
        return optax.adam(optax.cosine_decay_schedule(rate, steps, 0.01), b1=0.5, b2=0.9)

    dual = W2NeuralDual(
        dim,
        make(dim),
        make(dim),
        optimizer(),
        optimizer(),
        num_train_iters=steps,
        conjugate_solver=None,
        amortization_loss="objective",
        rng=jax.random.key(seed),
    )
    streams: list[Iterator[jax.Array]] = [
        part.batches(10 * seed + k, BATCH) for k, part in enumerate((source, target, source, target))
    ]
    dual(*streams)
    f = dual.state_f.potential_value_fn(dual.state_f.params)
    x = next(source.batches(10 * seed + 4, 4000))
    moved = np.asarray(jax.vmap(jax.grad(f))(x), np.float64)
    wanted = np.asarray(x, np.float64) @ closed_form(source, target)[0].T
    found = unexplained(moved, wanted)
    return found, sum(leaf.size for leaf in jax.tree.leaves(dual.state_f.params))


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Draw errors by dimension."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for k, name in enumerate(MODELS):
        for record in (record for record in records if record["model"] == name):
            where = DIMS.index(record["dim"]) + 0.1 * (2 * k - 1)
            axes.plot([where] * len(record["errors"]), record["errors"], ".", color=f"C{k}", alpha=0.6)
            axes.plot(where, np.median(record["errors"]), "_", color=f"C{k}", ms=18, mew=2)
        axes.plot([], [], "_", color=f"C{k}", label=name)
    axes.set_xticks(range(len(DIMS)), [f"D = {dim}" for dim in DIMS])
    axes.set(yscale="log", ylabel="L2-UVP, per cent")
    axes.legend()
    figure.savefig(path, dpi=110)


def main(quick: bool, out: Path) -> None:
    """Learn every map, print the table, draw the picture."""
    from rich.progress import track

    steps, tuning = (4, 4) if quick else (STEPS, TUNING)
    seeds = range(1 if quick else SEEDS)
    records, lines = [], []
    for dim, name in track([(dim, name) for dim in DIMS for name in MODELS], "maps", transient=True):
        began = time.perf_counter()
        tried = {rate: error(MODELS[name], dim, 1000, rate, tuning)[0] for rate in RATES}
        rate = min(tried, key=lambda rate: tried[rate])
        found = [error(MODELS[name], dim, seed, rate, steps) for seed in seeds]
        errors, seconds = [one for one, _ in found], time.perf_counter() - began
        record = {"dim": dim, "model": name, "rate": rate, "parameters": found[0][1], "errors": errors}
        records.append(record | {"seconds": seconds})
        spread = f"{min(errors):.2g} - {max(errors):.2g}"
        lines.append(
            [dim, name, f"{found[0][1]:,}", rate, f"{np.median(errors):.2g}", spread, f"{seconds:.0f}"]
        )
    print(table(["D", "potential", "parameters", "rate", "L2-UVP, %", "least - most", "seconds"], lines))
    from quality import write

    write(records, out / "transport.json")
    draw(records, out / "transport.png")
