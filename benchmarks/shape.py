"""What it is worth to say the shape of a function: contexts, rising inputs, losses; beside peers and published errors.

    python benchmarks/shape.py parametric     # lpcf's own tasks, beside lpcf, an MLP, boosting; half an hour
    python benchmarks/shape.py hycnn          # HyCNN's functions, in 10, 20 and 50 dimensions, and rotated ones
    python benchmarks/shape.py transport      # HyCNN's maps, by quality_transport.py; needs ott-jax
    python benchmarks/shape.py monotone       # few noisy rows: what each constraint gains
    python benchmarks/shape.py levels         # do quantiles and expectiles cover what they say?

Each prints a table and writes its figures into quality-run/shape-*.json. `--models`, `--tasks` and `--dims` take a
part; `--seeds` is how many draws of rows, `--limit` the seconds that lpcf has for a task (more on a slow machine).
Of most models three settings are tried, chosen on what is held out of the rows to learn from; seconds are those that
processors computed for all of them. `--quick` takes few steps and rows: does it run?
Peers: `pip install -c constraints.txt -e ".[peers]"`, then `pip install --no-deps lpcf==0.1.1 jax-sysid==1.1.0`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from networks import count, hull_network, match_size, tune
from quality_runs import run, write
from quality_scores import RATES, SHAPES, Standard
from shape_fits import (
    LOSSES,
    PARAMETRIC_MODELS,
    QUICK,
    RISING_MODELS,
    choose,
    level_losses,
    new_hull,
    rmse,
    share_below,
    values,
)
from shape_tasks import HYCNN, NOISES, PARAMETRIC, RISING, hycnn, parametric, rising, spread
from timing import table

from convexmoe_jax import HullConfig, fit

Record = dict[str, Any]
PUBLISHED = {  # of HyCNN, mean squared errors times 100, in 10, 20 and 50 dimensions
    "f5": {10: 7.33, 20: 22.2, 50: 74.8},
    "f6": {10: 12.4, 20: 94.0, 50: 2577.0},  # in 10 the best of all that were compared; HyCNN has 21.4 there
    "transport": {10: 0.029, 20: 0.071, 50: 0.406},
}
DIMS, STEPS, BATCH = (10, 20, 50), 500, 1000
FIT, CHOSEN = "ours", "ours, shape chosen"
HYCNN_MODELS = (FIT, CHOSEN, "MLP", "ICNN (Amos), clamped")
ROWS, RISING_DIMS, NOISE = (50, 150, 500), (2, 4, 8), 0.3
LEVELS, LEVEL_ROWS, LEVEL_FRESH = (0.1, 0.5, 0.9), 2000, 20_000
LEVEL_MODELS = ("ours", "boosting")
GAINS = [  # what a constraint takes the error to: with it, without it
    ("convex: hull / MLP", "hull", "MLP"),
    ("monotone: boosting", "boosting, monotone", "boosting"),
    ("monotone: hull", "hull, monotone", "hull"),
    ("both: hull / MLP", "hull, monotone", "MLP"),
    ("hull / boosting, both monotone", "hull, monotone", "boosting, monotone"),
]


@dataclass(frozen=True)
class Job:
    """One model on one case.

    Args:
        command, case, model: what is done, on what (a name and numbers), by what.
        seeds: how many draws; of `monotone` and `levels`, a job is one draw, whose seed ends the case.
        limit: seconds that lpcf is given.
        quick: few steps and rows.
    """

    command: str
    case: tuple[Any, ...]
    model: str
    seeds: int
    limit: float
    quick: bool


def work(job: Job) -> Record:
    """Run a job."""
    began = computed()
    found = COMMANDS[job.command][0](job)
    seconds = computed() - began
    record = {"case": list(job.case), "model": job.model} | found | {"seconds": seconds}
    print(json.dumps(record), file=sys.stderr, flush=True)  # a run that is stopped has said what it found
    return record


def computed() -> float:
    """Return the seconds that processors computed for this process and those that it waited for."""
    own = os.times()
    return own.user + own.system + own.children_user + own.children_system


def score_parametric(job: Job) -> Record:
    """Fit one model to one of lpcf's tasks."""
    task = parametric(job.case[0], job.quick)
    y, best, settings = task.test[2], None, 0
    for found in PARAMETRIC_MODELS[job.model](task, job.limit, job.quick):
        best, settings = found if best is None or found.held < best.held else best, settings + 1
    if best is None:  # not done in time
        return {"errors": {}, "choice": "none in time"}
    errors = {name: rmse(best.predicted[part], y[part]) / task.unit for name, part in task.parts.items()}
    return {"errors": errors, "choice": best.choice}


def show_parametric(records: Sequence[Record]) -> None:
    """Print errors, and what they are over those of lpcf."""
    lines = []
    for name in dict.fromkeys(one["case"][0] for one in records):
        here = {one["model"]: one for one in records if one["case"][0] == name}
        peer = here.get("lpcf", {}).get("errors", {})
        for model, one in here.items():
            for part, error in one["errors"].items() or {"all": np.nan}.items():
                over = f"{error / peer[part]:.3f}" if part in peer else "-"
                lines.append([name, part, model, f"{error:.3g}", over, f"{one['seconds']:.0f}", one["choice"]])
    print(table(["task", "on", "model", "RMSE", "over lpcf", "seconds", "chosen"], lines))
    print("published of lpcf: quadratics about 0.02, battery 0.001; goal: half of lpcf's error, in less time")


def score_hycnn(job: Job) -> Record:
    """Fit one model to one of HyCNN's functions, with every seed; errors are mean squared, times 100."""
    name, dim = job.case
    tasks, steps = [hycnn(name, dim, seed) for seed in range(job.seeds)], QUICK if job.quick else STEPS
    if job.model in (FIT, CHOSEN):
        errors, shapes = [], []
        options = {"shape": "auto", "budget": 0.0 if job.quick else 300.0} if job.model == CHOSEN else {}
        for seed, task in enumerate(tasks):
            hull = new_hull(task.x, None, seed)
            found = fit(hull, task.x, task.y, steps=steps, batch_size=BATCH, seed=seed, compare=False, **options)
            errors.append(100 * float(np.mean((values(found.model, task.x_test) - task.y_test[:, 0]) ** 2)))
            shapes.append(found.shape)
        return {"errors": errors, "choice": max(shapes, key=shapes.count)}
    data, size = Standard.of(tasks), count(hull_network(HullConfig(dim, 8, 1, temperature="learned")))
    shapes = {part: match_size(partial(make, dim, 1), size) for part, make in SHAPES[job.model].items()}
    shape, network, rate, params = tune(shapes, data.rows, steps, BATCH, RATES)
    errors = [data.error(seed, np.asarray(network.apply(p, data.x_test[seed]))) for seed, p in enumerate(params)]
    errors = [100 * error * float(task.y_test.var()) for error, task in zip(errors, tasks, strict=True)]
    return {"errors": errors, "choice": f"{shape}, rate {rate:g}"}


def score_transport(job: Job) -> Record:
    """Learn the maps `T_i = (1 + sin(i) / 2) x_i` of standard normal rows; errors are mean squared."""
    import quality_transport as transport

    (dim,) = job.case
    source = transport.Gaussian(np.zeros(dim), np.eye(dim))
    scale = 1.0 + np.sin(np.arange(1, dim + 1)) / 2
    pairs = [(source, transport.Gaussian(np.zeros(dim), np.diag(scale)))] * job.seeds
    network = transport.MODELS[job.model](dim)
    rate, unexplained = transport.learn(network, pairs, 4 if job.quick else transport.STEPS)
    errors = [one / 100 * float(np.sum(scale**2)) for one in unexplained]
    return {"errors": errors, "choice": f"rate {rate:g}", "unexplained": unexplained}


def show_published(records: Sequence[Record]) -> None:
    """Print errors of every seed beside what is published."""
    lines = []
    for one in records:
        name, dim = one["case"] if len(one["case"]) > 1 else ["transport", *one["case"]]
        best, errors = PUBLISHED.get(name, {}).get(dim), one["errors"]
        over = "-" if best is None else f"{np.median(errors) / best:.2f}"
        spread = f"{min(errors):.3g} - {max(errors):.3g}"
        cells = [f"{np.median(errors):.3g}", spread, "-" if best is None else f"{best:g}", over]
        lines.append([name, dim, one["model"], *cells, f"{one['seconds'] / len(errors):.0f}", one["choice"]])
    titles = ["task", "D", "model", "error", "least - most", "best published", "over it", "seconds a seed", "chosen"]
    print(table(titles, lines))
    print("error: the median over seeds of the mean squared error, times 100 for functions; goals: 0.5, and 1 for maps")


def score_monotone(job: Job) -> Record:
    """Fit one model to few rows of a convex function that rises."""
    name, dim, rows, seed = job.case
    task = rising(name, dim, rows, NOISE, seed)
    return {"error": rmse(RISING_MODELS[job.model](task, seed, job.quick), task.y_test[:, 0]) / task.y_test.std()}


def show_monotone(records: Sequence[Record]) -> None:
    """Print a line for each number of rows and inputs: geometric means over functions and seeds."""
    lines, models = [], list(dict.fromkeys(one["model"] for one in records))
    cases = dict.fromkeys((one["case"][1], one["case"][2]) for one in records)
    for part in [*cases, None]:
        here = [one for one in records if part in (None, (one["case"][1], one["case"][2]))]
        logs = {m: np.mean([np.log(one["error"]) for one in here if one["model"] == m]) for m in models}
        ratios = [f"{np.exp(logs[a] - logs[b]):.2f}" if a in logs and b in logs else "-" for _, a, b in GAINS]
        lines.append([*(part or ("all", "")), *[f"{np.exp(logs[m]):.3f}" for m in models], *ratios])
    print(table(["D", "rows", *models, *[title for title, _, _ in GAINS]], lines))
    print(f"error without noise over the deviation of the function, noise {NOISE:g} of it; then error with / without")
    means = {m: np.mean([one["seconds"] for one in records if one["model"] == m]) for m in models}
    print("seconds: " + ", ".join(f"{m} {seconds:.1f}" for m, seconds in means.items()))


def score_levels(job: Job) -> Record:
    """Fit one model at one level; how much of new rows is below it, and its loss over that of the truth."""
    noise, loss, level, seed = job.case
    learn, fresh = spread(noise, 200 if job.quick else LEVEL_ROWS, seed), spread(noise, LEVEL_FRESH, 1000 + seed)
    if job.model == "boosting":
        from sklearn.ensemble import HistGradientBoostingRegressor
        from sklearn.metrics import make_scorer, mean_pinball_loss

        trees = HistGradientBoostingRegressor(loss="quantile", quantile=level, random_state=seed)
        pinball = make_scorer(mean_pinball_loss, greater_is_better=False, alpha=level)
        grid = {"min_samples_leaf": [20, 40, 80][: 1 if job.quick else None]}
        model = choose(trees, grid, np.column_stack([learn.x, learn.context]), learn.y, scoring=pinball)
        predicted = model.predict(np.column_stack([fresh.x, fresh.context]))
    else:
        hull, options = new_hull(learn.x, learn.context, seed), {"steps": QUICK} if job.quick else {}
        options |= {"loss": LOSSES[loss](level), "seed": seed, "compare": False}
        predicted = values(fit(hull, learn.x, learn.y, learn.context, **options).model, fresh.x, fresh.context)
    errors = NOISES[noise](np.random.default_rng(0), LEVEL_FRESH)
    constants = np.quantile(errors, np.linspace(0.005, 0.995, 199))
    true = constants[np.argmin([level_losses(loss, level, errors - c).mean() for c in constants])]
    own, least = (level_losses(loss, level, fresh.y - p).mean() for p in (predicted, fresh.center + true * fresh.scale))
    return {"share": share_below(loss, fresh.y - predicted), "loss": float(own / least)}


def show_levels(records: Sequence[Record]) -> None:
    """Print a line for each noise, loss, level and model, means over seeds."""
    lines = []
    for case in dict.fromkeys((*one["case"][:3], one["model"]) for one in records):
        here = [one for one in records if (*one["case"][:3], one["model"]) == case]
        shares, losses = np.array([one["share"] for one in here]), [one["loss"] for one in here]
        off = np.abs(shares - case[2])
        cells = [f"{100 * shares.mean():.1f}", f"{100 * off.max():.1f}", f"{np.mean(losses):.3f}"]
        lines.append([*case, *cells, f"{np.mean([one['seconds'] for one in here]):.0f}"])
    print(
        table(["noise", "loss", "level", "model", "per cent below", "most off", "loss over truth's", "seconds"], lines)
    )
    print("per cent below: of new rows; for expectiles of their distances. Goal: within 2 of the level")


# Of each: what a job does, what is printed, the models, and what packages they need.
COMMANDS: dict[str, tuple[Callable[[Job], Record], Callable[..., None], Sequence[str], dict[str, str]]] = {
    "parametric": (
        score_parametric,
        show_parametric,
        tuple(PARAMETRIC_MODELS),
        {"lpcf": "lpcf", "boosting": "sklearn"},
    ),
    "hycnn": (score_hycnn, show_published, HYCNN_MODELS, {}),
    "transport": (
        score_transport,
        show_published,
        ("hull", "ICNN of ott-jax"),
        {"hull": "ott", "ICNN of ott-jax": "ott"},
    ),
    "monotone": (
        score_monotone,
        show_monotone,
        tuple(RISING_MODELS),
        dict.fromkeys(("MLP", "boosting", "boosting, monotone"), "sklearn"),
    ),
    "levels": (score_levels, show_levels, LEVEL_MODELS, {"boosting": "sklearn"}),
}


def cases_of(options: argparse.Namespace) -> list[tuple[Any, ...]]:
    """Return the cases of a subcommand; `--quick` takes one of each kind."""
    few, seeds = slice(0, 1 if options.quick else None), range(options.seeds)
    dims = options.dims or (RISING_DIMS if options.command == "monotone" else DIMS)[few]
    names = {"parametric": PARAMETRIC, "hycnn": HYCNN, "monotone": RISING, "levels": NOISES, "transport": {}}
    tasks = options.tasks or list(names[options.command])[few]
    if options.command == "parametric":
        return [(name,) for name in tasks]
    if options.command == "transport":
        return [(dim,) for dim in dims]
    if options.command == "hycnn":
        return list(product(tasks, dims))
    if options.command == "monotone":
        return list(product(tasks, dims, (options.rows or ROWS)[few], seeds))
    return list(product(tasks, LOSSES, LEVELS[few], seeds))


def main() -> None:
    """Run one subcommand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--models", nargs="+", metavar="MODEL", help="these models; the table names all")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="these tasks; the table names all")
    parser.add_argument("--dims", nargs="+", type=int, metavar="D", help="these dimensions")
    parser.add_argument("--rows", nargs="+", type=int, help=f"of monotone; {', '.join(map(str, ROWS))}")
    parser.add_argument("--seeds", type=int, default=3, help="draws of rows")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that lpcf is given for a task")
    parser.add_argument("--workers", type=int, default=2, help="jobs side by side")
    parser.add_argument("--quick", action="store_true", help="few steps and rows, one seed")
    parser.add_argument("--out", type=Path, default=Path("quality-run"))
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.out = 1, options.out / "quick"
    _, show, models, needs = COMMANDS[options.command]
    models = [model for model in models if not options.models or model in options.models]
    if not models:
        parser.error(f"--models: expected of {'; '.join(COMMANDS[options.command][2])}")
    cases = [
        (case, model)
        for case in cases_of(options)
        for model in models
        if not (model == "boosting" and "expectile" in case)  # it has no such loss
    ]
    for package in dict.fromkeys(needs[model] for model in models if model in needs):
        if importlib.util.find_spec(package) is None:
            raise SystemExit(f"shape.py {options.command} needs {package}; its docstring says how to install it.")
    jobs = [Job(options.command, *one, options.seeds, options.limit, options.quick) for one in cases]
    records = run(work, jobs, options.out, options.workers)
    write(records, options.out / f"shape-{options.command}.json")
    show(records)


if __name__ == "__main__":
    main()
