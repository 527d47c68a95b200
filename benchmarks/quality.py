"""How well hulls fit convex functions, beside other convex regressors and an MLP of as many parameters.

Every gradient-trained model has the same loop, steps, batches, held-out rows (a fifth) and learning rates to choose
from: the rate is chosen on the held-out rows of seed 0, errors are taken on rows without noise, for five seeds each.

    python benchmarks/quality.py quadratic       # ||x||^2 in 50 dimensions, of HyCNN's paper
    python benchmarks/quality.py small           # 100 rows in 3 dimensions, of cvxreg's documentation
    python benchmarks/quality.py suite --dim 8   # five families, with noise and without; --dim 2, 8, 32, 64
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from networks import Network, Params, Rows, hull_network, icnn, lse_network, mlp, train
from quality_tasks import FAMILIES, Task, quadratic_50, suite_task
from regressors import fit_planes
from timing import table

from convexmoe_jax import HullConfig
from convexmoe_jax.calibration import calibrated
from convexmoe_jax.hull import flatten, nest

SEEDS, HELD_OUT = 5, 0.2
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)


@dataclass(frozen=True)
class Score:
    """What one model reached on one task.

    Args:
        task, model: their names.
        parameters: how many were trained.
        rate: the learning rate that was chosen; None where there is none.
        errors: one a seed: mean squared error without noise, over the variance of the function.
        seconds: of all runs, the choice of the rate too.
    """

    task: str
    model: str
    parameters: int
    rate: float | None
    errors: tuple[float, ...]
    seconds: float


@dataclass(frozen=True)
class Standard:
    """A task in standardised units, split for each seed."""

    task: Task
    rows: Rows
    mean: np.ndarray
    scale: np.ndarray
    x_test: np.ndarray

    @classmethod
    def of(cls, task: Task, seeds: int) -> Standard:
        """Return a task split for seeds 0 .. seeds - 1."""
        x_mean, x_scale, mean, scale = task.x.mean(0), task.x.std(0), task.y.mean(0), task.y.std(0)
        x, y = (task.x - x_mean) / x_scale, (task.y - mean) / scale
        held = round(HELD_OUT * len(x))
        orders = np.stack([np.random.default_rng([seed, 5]).permutation(len(x)) for seed in range(seeds)])
        train_rows, held_rows = orders[:, held:], orders[:, :held]
        rows = Rows(x[train_rows], y[train_rows], x[held_rows], y[held_rows])
        return cls(task, rows, mean, scale, (task.x_test - x_mean) / x_scale)

    def error(self, predicted: np.ndarray) -> float:
        """Return the error of standardised predictions `[N, O]`, over the variance of the function."""
        y = predicted * self.scale + self.mean
        return float(np.mean((y - self.task.y_test) ** 2 / self.task.y_test.var(axis=0)))


def trained(name: str, network: Network, data: Standard, steps: int, batch: int, start: Any = None) -> Score:
    """Return the score of a network: the rate chosen on seed 0, then every seed."""
    began = time.perf_counter()
    seeds = len(data.rows.x)
    draws = [network.init(jax.random.key(seed)) for seed in range(seeds)]
    if start is not None:
        draws = [start(draw, data.rows.x[seed], data.rows.y[seed]) for seed, draw in enumerate(draws)]
    first = Rows(*[part[:1] for part in data.rows])
    losses = {rate: float(train(network, draws[:1], first, steps, batch, rate)[1][0]) for rate in RATES}
    rate = min(losses, key=lambda rate: losses[rate])
    best, _ = train(network, draws, data.rows, steps, batch, rate)
    predict = jax.jit(network.apply)
    errors = []
    for seed in range(seeds):
        params: Params = jax.tree.map(lambda leaf, seed=seed: leaf[seed], best)
        errors.append(data.error(np.asarray(predict(params, data.x_test.astype(np.float32)))))
    return Score(data.task.name, name, count(draws[0]), rate, tuple(errors), time.perf_counter() - began)


def count(params: Params) -> int:
    """Return the number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def sized(make: Callable[[int], Network], parameters: int) -> Network:
    """Return the network whose parameters are nearest in number."""
    sizes = {w: count(jax.eval_shape(make(w).init, jax.random.key(0))) for w in range(1, 400)}
    return make(min(sizes, key=lambda width: abs(sizes[width] - parameters)))


def calibrated_start(config: HullConfig) -> Any:
    """Return what `fit` does before its first step."""
    network = hull_network(config)

    def start(params: Params, x: np.ndarray, y: np.ndarray) -> Params:
        f = np.asarray(network.apply(params, x.astype(np.float32)), np.float64)
        flat = {name: np.asarray(value) for name, value in flatten(params).items()}
        found = calibrated(flat, config, f, x, y)
        return nest({name: jax.numpy.asarray(value, jax.numpy.float32) for name, value in found.items()})

    return start


def hull_score(name: str, data: Standard, steps: int, batch: int, **options: Any) -> Score:
    """Return the score of a hull with these options."""
    dim, out_dim = data.rows.x.shape[-1], data.rows.y.shape[-1]
    config = HullConfig(dim, out_dim=out_dim, **({"petals": 8, "temperature": "learned"} | options))
    return trained(name, hull_network(config), data, steps, batch, calibrated_start(config))


def peers(data: Standard, steps: int, batch: int, parameters: int) -> list[Score]:
    """Return the scores of the others, of as many parameters."""
    dim, out_dim = data.rows.x.shape[-1], data.rows.y.shape[-1]
    makers: dict[str, Callable[[int], Network]] = {
        "ICNN (Amos), clamped": lambda width: icnn(dim, out_dim, width),
        "LSE network": lambda width: lse_network(dim, out_dim, width),
        "MLP": lambda width: mlp(dim, out_dim, width),
    }
    scores = [trained(name, sized(make, parameters), data, steps, batch) for name, make in makers.items()]
    own = sized(lambda w: hull_network(HullConfig(dim, 1, out_dim, hidden_dim=w, depth=2)), parameters)
    scores.append(trained("ICNN, our initialisation", own, data, steps, batch))
    return [*scores, planes_score(data)]


def planes_score(data: Standard) -> Score:
    """Return the score of a maximum of planes, their number chosen on the held-out rows of each seed."""
    began, errors, sizes = time.perf_counter(), [], []
    dim, outputs = data.rows.x.shape[-1], range(data.rows.y.shape[-1])
    for seed, (x, y, x_held, y_held) in enumerate(zip(*data.rows, strict=True)):
        columns = []
        for o in outputs:
            fits = [
                fit_planes(x, y[:, o], pieces, seed) for pieces in (2, 4, 8, 16, 32) if pieces * dim < len(x)
            ]
            best = min(fits, key=lambda fit: float(np.mean((fit(x_held) - y_held[:, o]) ** 2)))
            columns.append(best(data.x_test))
            sizes.append(best.slopes.size + best.offsets.size)
        errors.append(data.error(np.stack(columns, axis=1)))
    name = "max-affine (Magnani, Boyd)"
    return Score(
        data.task.name, name, int(np.median(sizes)), None, tuple(errors), time.perf_counter() - began
    )


def quadratic() -> list[Score]:
    """The task of HyCNN: 500 steps of 1,000 rows, which is 100 epochs."""
    data, budget = Standard.of(quadratic_50(), SEEDS), (500, 1000)
    hulls = [hull_score("hull, 8 petals", data, *budget)]
    hulls += [hull_score(f"hull, depth {depth}", data, *budget, depth=depth) for depth in (2, 4, 8)]
    hulls += [hull_score("hull, hard maximum", data, *budget, temperature=0.0)]
    hulls += [hull_score("hull, 1 petal", data, *budget, petals=1)]
    return hulls + peers(data, *budget, hulls[0].parameters)


def suite(dim: int) -> list[Score]:
    """Five families in `dim` dimensions, with noise and without: 2,000 steps of 128 rows."""
    scores = []
    for family in FAMILIES:
        for noise in (0.0, 0.1):
            data, budget = Standard.of(suite_task(family, dim, noise, seed=0), SEEDS), (2000, 128)
            own = hull_score("hull, 8 petals", data, *budget)
            scores += [own, hull_score("hull, hard maximum", data, *budget, temperature=0.0)]
            scores += peers(data, *budget, own.parameters)
    return scores


def show(scores: list[Score]) -> None:
    """Print a line for each score, and the geometric means of the ratios to the hull."""
    lines = []
    for score in scores:
        errors = np.array(score.errors)
        own = next(s for s in scores if s.task == score.task)
        ratio = np.median(errors) / np.median(own.errors)
        rate = "-" if score.rate is None else f"{score.rate:g}"
        spread = f"{errors.min():.2e} .. {errors.max():.2e}"
        cells = [f"{score.parameters:,}", rate, f"{np.median(errors):.2e}", spread, f"{ratio:.2f}"]
        lines.append([score.task, score.model, *cells, f"{score.seconds:.0f}"])
    titles = ["task", "model", "parameters", "rate", "error", "least .. most", "over hull", "seconds"]
    print(table(titles, lines))


def main() -> None:
    """Run one subcommand, print its table, write its records."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=["quadratic", "suite"])
    parser.add_argument("--dim", type=int, default=8)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    scores = quadratic() if arguments.task == "quadratic" else suite(arguments.dim)
    show(scores)
    if arguments.out:
        arguments.out.write_text(json.dumps([asdict(score) for score in scores], indent=1))


if __name__ == "__main__":
    main()
