"""What one model reaches on one task: the jobs of `quality.py`, each run whole in one process.

Every network has the loop, steps, batches, held-out rows (a fifth) and learning rates of the others: the rate of each
shape is chosen on the held-out rows of seed 0, the shape on those of all seeds, and errors are taken on rows without
noise for every seed. A seed of the suite has its own rows and noise; of the published tasks, its own split.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from networks import (
    Network,
    Rows,
    convex_kan,
    count,
    hull_network,
    icnn,
    lse_network,
    match_size,
    mlp,
    network_from_start,
    tune,
)
from quality_tasks import SCALAR, Task, quadratic_50, small, suite_task
from regressors import fit_convex, fit_planes

from convexmoe_jax import HullConfig, VectorHull, fit

RATES = (0.002, 0.008, 0.03, 0.12, 0.5)
SEEDS, MORE_SEEDS, HELD_OUT = 5, 15, 0.2
QUICK = 20  # steps that show that it runs
EXACT = 1e-8  # errors below it, over the variance, count as it in ratios: float32 is met
FEW_INPUTS = 2  # one output has the error of a dozen numbers then: as with few rows, its seeds are far apart
PIECES = (2, 4, 8, 16, 32)
PENALTIES = (0.0, 1e-3, 1e-2, 1e-1)
FITTED, WIDE = "hull, 8 petals, by fit", "ICNN (Amos), clamped, 64 x 4"
HULL, CHOSEN = "hull, 8 petals", "hull"
HARD, HARD_CHOSEN = "hard maximum of means", "hard maximum"
PLANES, CONVEX = "max-affine (Magnani, Boyd)", "convex regression, penalized"
# Beside a hull of 8 petals with a learned temperature.
OURS: dict[str, dict[str, Any]] = {
    HULL: {},
    "depth 2": {"depth": 2},
    "depth 4": {"depth": 4},
    "depth 8": {"depth": 8},
    HARD: {"temperature": 0.0},
    "groups of one": {"group_size": 1},
    "hard maximum, groups of one": {"temperature": 0.0, "group_size": 1},
    "gate": {"gate": True},
    "private trunks": {"trunk": "private"},
    "1 petal": {"petals": 1},
    "huber_relu": {"activation": "huber_relu"},
}
Shape = Callable[[int, int, int], Network]  # (D, O, width) -> network


def hull_of(
    dim: int, out_dim: int, petals: int, units: int, group_size: int = 2, temperature: float | str = "learned"
) -> Network:
    """Return a hull with the start of `fit`."""
    fields = {"hidden_dim": units, "group_size": group_size, "temperature": temperature}
    return network_from_start(HullConfig(dim, petals, out_dim, **fields))


# Ways to spend the parameters of a hull: on a wide trunk, on petals, on petals alone.
HULLS: dict[str, Shape] = {
    "8 petals": lambda dim, out_dim, width: hull_of(dim, out_dim, 8, width),
    "32 petals": lambda dim, out_dim, width: hull_of(dim, out_dim, 32, width),
    "2 units": lambda dim, out_dim, width: hull_of(dim, out_dim, width, 2, 1),
}
HARD_HULLS: dict[str, Shape] = {
    "8 petals, hard": lambda dim, out_dim, width: hull_of(dim, out_dim, 8, width, 2, 0.0),
    "32 petals, hard": lambda dim, out_dim, width: hull_of(dim, out_dim, 32, width, 2, 0.0),
    "2 units, hard": lambda dim, out_dim, width: hull_of(dim, out_dim, width, 2, 1, 0.0),
}


def deep(dim: int, out_dim: int, width: int, layers: int) -> Network:
    """Return a hull of one petal."""
    return hull_network(HullConfig(dim, 1, out_dim, hidden_dim=width, depth=layers))


def by_depth(make: Any, counts: tuple[int, ...]) -> dict[str, Shape]:
    """Return a shape for each number of hidden layers."""
    return {f"{layers} layer" + "s" * (layers > 1): partial(make, layers=layers) for layers in counts}


PEERS: dict[str, dict[str, Shape]] = {
    "ICNN (Amos), clamped": by_depth(icnn, (1, 2, 4)),
    "ICNN, our initialization": by_depth(deep, (1, 2, 4)),
    "LSE network": {"planes": lse_network},
    "convex KAN": {f"{knots} knots": partial(convex_kan, knots=knots) for knots in (2, 4, 8)},
    "MLP": by_depth(mlp, (1, 2, 3)),
}
SHAPES = {CHOSEN: HULLS, HARD_CHOSEN: HARD_HULLS, **PEERS}


@dataclass(frozen=True)
class Job:
    """One model on one task.

    Args:
        task: "quadratic in 50", "small" or the name of a family.
        model: its name.
        steps, batch: the budget.
        fields: of `suite_task`, where the task is a family.
    """

    task: str
    model: str
    steps: int
    batch: int
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """What a model reached on a task.

    Args:
        task, model: their names.
        parameters: how many were trained.
        shape: the one that was chosen, of several.
        rate: the learning rate that was chosen; None where there is none, or `fit` has its own.
        errors: mean squared error without noise of each seed, over the variance of the function.
        variance: of the function, the mean over outputs.
        idle: groups of petals that win on less than a thousandth of rows and outputs, in the mean; None but for hulls.
        seconds: of all runs, the choice of the rate too.
    """

    task: str
    model: str
    parameters: int
    shape: str
    rate: float | None
    errors: tuple[float, ...]
    variance: float
    idle: float | None
    seconds: float


@dataclass(frozen=True)
class Standard:
    """The tasks of all seeds in standardized units, split; those of the suite have rows of their own.

    Args:
        tasks: of each seed.
        rows: split and standardized, `[S, N, ...]`.
        mean, scale: of y, `[S, O]`.
        x_test: `[S, T, D]`.
    """

    tasks: Sequence[Task]
    rows: Rows
    mean: np.ndarray
    scale: np.ndarray
    x_test: np.ndarray

    @classmethod
    def of(cls, tasks: Sequence[Task]) -> Standard:
        """Return the tasks of seeds 0, 1, ... standardized, a fifth of their rows held out."""
        parts, means, scales, x_tests = [], [], [], []
        for seed, task in enumerate(tasks):
            x_mean, x_scale, mean, scale = task.x.mean(0), task.x.std(0), task.y.mean(0), task.y.std(0)
            x, y = (task.x - x_mean) / x_scale, (task.y - mean) / scale
            held = round(HELD_OUT * len(x))
            order = np.random.default_rng([seed, 5]).permutation(len(x))
            parts.append(Rows(x[order[held:]], y[order[held:]], x[order[:held]], y[order[:held]]))
            means.append(mean)
            scales.append(scale)
            x_tests.append((task.x_test - x_mean) / x_scale)
        rows = Rows(*[np.stack(column) for column in zip(*parts, strict=True)])
        return cls(tasks, rows, np.stack(means), np.stack(scales), np.stack(x_tests))

    def error(self, seed: int, predicted: np.ndarray) -> float:
        """Return the error of standardized predictions `[T, O]`, over the variance of the function."""
        return relative_error(self.tasks[seed], predicted * self.scale[seed] + self.mean[seed])


def relative_error(task: Task, y: np.ndarray) -> float:
    """Return the mean squared error of predictions `[N, O]`, over the variance of the function."""
    return float(np.mean((y - task.y_test) ** 2 / task.y_test.var(axis=0)))


def score(job: Job) -> Score:
    """Run a job."""
    began = time.perf_counter()
    tasks = tasks_of(job)
    task = tasks[0]
    dim, out_dim = task.x.shape[1], task.y.shape[1]
    own = HullConfig(dim, 8, out_dim, temperature="learned")
    parameters, shape, rate, idle = count(hull_network(own)), "", None, None
    if job.model == FITTED:
        errors, idle = fit_hulls(tasks, own, job)
    elif job.model in (PLANES, CONVEX):
        errors, parameters = fit_regressor(job.model, Standard.of(tasks))
    else:
        data = Standard.of(tasks)
        if job.model in OURS:
            fields = {"petals": 8, "temperature": "learned"} | OURS[job.model]
            shapes = {"": network_from_start(HullConfig(dim, out_dim=out_dim, **fields))}
        elif job.model == WIDE:
            shapes = {"4 layers": icnn(dim, out_dim, 64, layers=4)}  # as published, at any number of parameters
        else:
            shapes = {
                name: match_size(partial(make, dim, out_dim), parameters) for name, make in SHAPES[job.model].items()
            }
        shape, network, rate, params = tune(shapes, data.rows, job.steps, job.batch, RATES)
        parameters = count(network)
        apply = jax.jit(network.apply)
        errors = [data.error(seed, np.asarray(apply(p, data.x_test[seed]))) for seed, p in enumerate(params)]
        config = network.config
        if config is not None and config.petals > 1:
            models = [VectorHull.from_params(config, p) for p in params]
            idle = float(np.mean([idle_groups(model, x) for model, x in zip(models, data.x_test, strict=True)]))
    variance = float(task.y_test.var(axis=0).mean())
    seconds = time.perf_counter() - began
    return Score(task.name, job.model, parameters, shape, rate, tuple(errors), variance, idle, seconds)


def tasks_of(job: Job) -> list[Task]:
    """Return the tasks of all seeds: of the suite with other rows each, of the published ones with other splits.

    They are `SEEDS`, but `MORE_SEEDS` with few rows, or `FEW_INPUTS` and one output.
    """
    if job.task == "quadratic in 50":
        return [quadratic_50()] * SEEDS
    if job.task == "small":
        return [small()] * MORE_SEEDS
    seeds = MORE_SEEDS if job.task in SCALAR and job.fields["dim"] <= FEW_INPUTS else SEEDS
    return [suite_task(job.task, **job.fields, seed=seed) for seed in range(seeds)]


def fit_hulls(tasks: Sequence[Task], config: HullConfig, job: Job) -> tuple[list[float], float]:
    """Return the errors of `fit` with its defaults, and how many groups are idle."""
    errors, idle = [], []
    for seed, task in enumerate(tasks):
        hull = VectorHull.from_config(config, rngs=nnx.Rngs(seed))
        model = fit(hull, task.x, task.y, steps=job.steps, batch_size=job.batch, seed=seed).model
        x = task.x_test.astype(np.float32)
        errors.append(relative_error(task, np.asarray(model(x), np.float64)))
        idle.append(idle_groups(model, x))
    return errors, float(np.mean(idle))


def idle_groups(model: VectorHull, x: np.ndarray) -> int:
    """Return how many groups of petals win on less than a thousandth of all rows and outputs."""
    winners = np.asarray(model.winners(x.astype(np.float32))[0])
    shares = np.bincount(winners.ravel(), minlength=model.config.petals) / winners.size
    return int((shares < 1e-3).sum())


def fit_regressor(model: str, data: Standard) -> tuple[list[float], int]:
    """Return the errors of a regressor without gradients, its size chosen on held-out rows, and its parameters."""
    errors, sizes = [], []
    for seed, (x, y, x_held, y_held) in enumerate(zip(*data.rows, strict=True)):
        columns, size = [], 0
        for o in range(y.shape[1]):
            if model == CONVEX:
                found = [fit_convex(x, y[:, o], penalty) for penalty in PENALTIES]
            else:
                few = [pieces for pieces in PIECES if pieces * x.shape[1] < len(x)]
                found = [fit_planes(x, y[:, o], pieces, seed) for pieces in few]
            losses = [float(np.mean((planes(x_held) - y_held[:, o]) ** 2)) for planes in found]
            best = found[int(np.argmin(losses))]
            columns.append(best(data.x_test[seed]))
            size += best.slopes.size + best.offsets.size
        errors.append(data.error(seed, np.stack(columns, axis=1)))
        sizes.append(size)
    return errors, int(np.median(sizes))
