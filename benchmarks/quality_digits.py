"""Deep convex classifiers: test accuracy on scikit-learn's digits at 3 to 24 hidden layers, by initialization.

The logits are hulls of one petal and 128 relu units a layer; every output is convex in the pixels. "ours" is the
package's initialization, "He" puts |N(0, 1 / fan_in)|, his rule for our
standardized activation, on the same non-negative weights. Labels are smoothed by 0.1, and
pixels are centerd and divided by one deviation, that of all.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from networks import Network, Params, Rows, hull_network, tune
from quality_runs import write
from timing import table

from convexmoe_jax import HullConfig

DEPTHS, STEPS, BATCH, SMOOTHING = (3, 5, 7, 12, 24), 300, 128, 0.1
RATES = (0.002, 0.005, 0.01, 0.02, 0.05)
SEEDS, TESTED, HELD_OUT = len(RATES), 0.2, 0.1
GOAL = 0.965  # what we ask of every depth


def cross_entropy(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """Return the mean cross-entropy of logits `[N, 10]` and smoothed one-hot classes."""
    return jnp.mean(optax.softmax_cross_entropy(logits, optax.smooth_labels(classes, SMOOTHING)))


def he(params: Params, key: jax.Array) -> Params:
    """Return the parameters with |N(0, 1 / fan_in)| on every non-negative weight: He's rule where E act^2 = 1."""
    paths, tree = jax.tree_util.tree_flatten_with_path(params)

    def drawn(place: int, path: Any, leaf: jax.Array) -> jax.Array:
        if "raw_weight" not in jax.tree_util.keystr(path):
            return leaf
        own = jax.random.normal(jax.random.fold_in(key, place), leaf.shape)
        return jnp.log(jnp.expm1(math.sqrt(2.0) * jnp.abs(own)))  # the hull reads softplus(raw) / sqrt(2 fan_in)

    return jax.tree.unflatten(tree, [drawn(place, *pair) for place, pair in enumerate(paths)])


def network(depth: int, initialization: str) -> Network:
    """Return the classifier of so many hidden layers."""
    config = HullConfig(64, 1, 10, hidden_dim=128, depth=depth, activation="relu")
    own = hull_network(config)
    if initialization == "ours":
        return own._replace(loss=cross_entropy)
    return own._replace(init=lambda key: he(own.init(key), jax.random.fold_in(key, 1)), loss=cross_entropy)


def digits() -> tuple[Rows, np.ndarray, np.ndarray]:
    """Return rows to train on and held out for each seed, and the tested pixels `[S, N, 64]` and classes `[S, N]`."""
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    pixels = (pixels - pixels.mean(0)) / pixels.std()
    one_hot = np.eye(10)[classes]
    tested, held = (round(share * len(pixels)) for share in (TESTED, HELD_OUT))
    orders = np.stack([np.random.default_rng([seed, 7]).permutation(len(pixels)) for seed in range(SEEDS)])
    parts = np.split(orders, [tested, tested + held], axis=1)
    rows = Rows(pixels[parts[2]], one_hot[parts[2]], pixels[parts[1]], one_hot[parts[1]])
    return rows, pixels[parts[0]], classes[parts[0]]


def accuracies(depth: int, initialization: str, steps: int) -> tuple[list[float], float]:
    """Return the test accuracy of every seed, and the rate, chosen on the held-out rows of seed 0."""
    rows, pixels, classes = digits()
    model = network(depth, initialization)
    found = tune({"": model}, rows, steps, BATCH, RATES)
    apply = jax.jit(model.apply)
    logits = np.stack([apply(p, x) for p, x in zip(found.params, pixels.astype(np.float32), strict=True)])
    return np.mean(logits.argmax(-1) == classes, axis=1).tolist(), found.rate


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Draw accuracy by depth."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for color, name in (("C0", "ours"), ("C1", "He")):
        own = [record for record in records if record["initialization"] == name]
        depths = [record["depth"] for record in own]
        axes.plot(depths, [np.median(record["accuracy"]) for record in own], "o-", color=color, label=name)
        for record in own:
            axes.plot([record["depth"]] * SEEDS, record["accuracy"], ".", color=color, alpha=0.4)
    axes.axhline(GOAL, color="0.5", ls="--", lw=1, label=f"goal, {GOAL}")
    axes.set(xscale="log", xlabel="hidden layers", ylabel="test accuracy", xticks=DEPTHS)
    axes.set_xticklabels([str(depth) for depth in DEPTHS])
    axes.legend()
    figure.savefig(path, dpi=110)


def main(quick: bool, out: Path) -> None:
    """Train every depth by both initializations, print the table, draw the picture."""
    from rich.progress import track

    records = []
    for depth in track(DEPTHS[:2] if quick else DEPTHS, "depths", transient=True):
        for name in ("ours", "He"):
            began = time.perf_counter()
            found, rate = accuracies(depth, name, 4 if quick else STEPS)
            seconds = time.perf_counter() - began
            records.append(
                {"depth": depth, "initialization": name, "rate": rate, "accuracy": found, "seconds": seconds}
            )
    lines = []
    for record in records:
        accuracy, seconds = record["accuracy"], f"{record['seconds']:.0f}"
        spread = f"{min(accuracy):.3f} - {max(accuracy):.3f}"
        cells = [record["initialization"], record["rate"], f"{np.median(accuracy):.3f}", spread, seconds]
        lines.append([record["depth"], *cells])
    print(table(["hidden layers", "initialization", "rate", "accuracy", "least - most", "seconds"], lines))
    write(records, out / "digits.json")
    draw(records, out / "digits.png")
