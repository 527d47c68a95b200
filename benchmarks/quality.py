"""How well hulls fit convex functions, beside other convex regressors and an MLP of as many parameters.

    python benchmarks/quality.py quadratic       # ||x||^2 in 50 dimensions, of HyCNN's paper
    python benchmarks/quality.py small           # 100 rows in 3 dimensions, of cvxreg's documentation
    python benchmarks/quality.py suite --dim 8 --noise 0.1   # five families; --dim 2, 8, 32, 64, --noise 0, 0.1
    python benchmarks/quality.py digits          # the initialization at 3 to 24 layers; needs scikit-learn
    python benchmarks/quality.py transport       # maps between Gaussians beside ott-jax's ICNN; needs ott-jax
    python benchmarks/quality.py unseen          # functions drawn anew, beside scikit-learn and lpcf; needs both
    python benchmarks/quality.py report          # one table of all suites that were run

Each takes two cores for some minutes, prints a table, and writes its figures and a picture into quality-run/.
`--quick` trains for a few steps, to see that it runs. Extra: `pip install -c constraints.txt -e ".[peers]"`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from quality_runs import run, write
from quality_scores import CHOSEN, CONVEX, EXACT, FITTED, OURS, PEERS, PLANES, QUICK, SHAPES, WIDE, Job, Score, score
from quality_tasks import FAMILIES
from timing import table

PUBLISHED = {  # mean squared errors in original units
    "quadratic": {"HyCNN 48x16": 0.761, "ICNN 64x4": 1.566, "MLP": 3.93, "predicting the mean": 4.64},
    "small": {"penalized convex regression": 0.024, "SVR": 0.042, "linear regression": 0.310},
}
SUITE = (*SHAPES, PLANES)
# Subcommands in a file of their own, and what they need.
OTHERS = {"digits": "sklearn", "transport": "ott", "unseen": "sklearn"}


def jobs_of(arguments: argparse.Namespace) -> list[Job]:
    """Return what a subcommand runs."""
    if arguments.command == "quadratic":  # 500 steps of 1,000 rows are 100 epochs of 5,000
        models = (FITTED, *OURS, *PEERS, WIDE, PLANES)
        return [Job("quadratic in 50", model, 500, 1000) for model in models]
    if arguments.command == "small":
        return [Job("small", model, 2000, 128) for model in (FITTED, *OURS, *PEERS, PLANES, CONVEX)]
    return [
        Job(family, model, 2000, 128, {"dim": arguments.dim, "noise": arguments.noise, "draw": arguments.draw})
        for family in FAMILIES
        for model in SUITE
    ]


def lines_of(scores: Sequence[Score], original: bool) -> list[list[str]]:
    """Return a line of the table for each score; errors in original units, or over the variance of the function."""
    lines = []
    for one in scores:
        errors = np.array(one.errors) * (one.variance if original else 1.0)
        ratio = median(one) / median(next(other for other in scores if other.task == one.task))
        spread = f"{errors.min():.2g} - {errors.max():.2g}"
        rate, idle = (("-" if value is None else f"{value:g}") for value in (one.rate, one.idle))
        cells = [
            one.shape or "-",
            f"{one.parameters:,}",
            rate,
            f"{np.median(errors):.3g}",
            spread,
            f"{ratio:.2f}",
            idle,
        ]
        lines.append([one.task, one.model, *cells, f"{one.seconds:.0f}"])
    return lines


def median(score: Score) -> float:
    """Return the median error, `EXACT` at least."""
    return max(float(np.median(score.errors)), EXACT)


def ratios(scores: Sequence[Score]) -> dict[str, float]:
    """Return the geometric mean over tasks of each model's median error, over that of the first model."""
    medians: dict[str, dict[str, float]] = {}
    for one in scores:
        medians.setdefault(one.model, {})[one.task] = median(one)
    own = medians[scores[0].model]
    return {
        model: float(np.exp(np.mean([np.log(errors[task] / own[task]) for task in own])))
        for model, errors in medians.items()
    }


def draw(scores: Sequence[Score], published: dict[str, float], path: Path) -> None:
    """Draw the error of every seed, a panel a task; published figures are dashed lines."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(one.task for one in scores))
    columns = min(len(tasks), 5)
    shape = -(-len(tasks) // columns), columns
    size = (4 + 3 * columns, 0.5 + shape[0] * (1 + 0.22 * len({one.model for one in scores})))
    figure, grid = plt.subplots(*shape, figsize=size, layout="constrained", squeeze=False, sharey=True)
    for axes, task in zip(grid.flat, tasks, strict=False):
        here = [one for one in scores if one.task == task][::-1]
        for row, one in enumerate(here):
            errors = np.array(one.errors) * (one.variance if published else 1.0)
            color = "C1" if one.model in (*PEERS, WIDE, PLANES, CONVEX) else "C0"
            axes.plot(errors, np.full(len(errors), row), ".", color=color, alpha=0.6)
            axes.plot(np.median(errors), row, "|", color=color, ms=14, mew=2)
        for name, value in published.items():
            axes.axvline(value, color="0.5", ls="--", lw=1)
            axes.text(value, len(here) - 0.4, f" {name}", rotation=90, va="bottom", ha="center", fontsize=7)
        axes.set_yticks(range(len(here)), [one.model for one in here])
        axes.set(xscale="log", title="" if published else task, xlabel="mean squared error")
    figure.savefig(path, dpi=110)


def show(scores: list[Score], command: str) -> None:
    """Print the table, and for several tasks the geometric means of the ratios."""
    published = PUBLISHED.get(command, {})
    titles = [
        "task",
        "model",
        "shape",
        "parameters",
        "rate",
        "error",
        "least - most",
        "over the first",
        "idle",
        "seconds",
    ]
    print(table(titles, lines_of(scores, bool(published))))
    print("error: mean squared, without noise, " + ("in original units" if published else "over the variance"))
    print(f"over the first: of the task's first line, errors below {EXACT:g} as it; idle: groups that hardly ever win")
    for name, value in published.items():
        print(f"published: {name} {value:g}")
    if len({one.task for one in scores}) > 1:
        print("\n" + table(["model", "geometric mean"], [[m, f"{r:.2f}"] for m, r in ratios(scores).items()]))


def report(out: Path) -> None:
    """Print one table of all suites in a folder: geometric means by dimension and noise, and every task's best."""
    found = {
        tuple(path.stem.split("-")[1:]): read_scores(json.loads(path.read_text()))
        for path in out.glob("suite-*-*.json")
    }
    if not found:
        raise SystemExit(f"{out} has no suite-*.json: run python benchmarks/quality.py suite --dim 8 first.")
    keys = sorted(found, key=lambda key: (int(key[0]), float(key[1])))
    dims, noises = (list(dict.fromkeys(key[part] for key in keys)) for part in (0, 1))
    groups = {f"D = {dim}": [key for key in keys if key[0] == dim] for dim in dims}
    groups |= {f"noise {noise}": [key for key in keys if key[1] == noise] for noise in noises}
    groups["all"] = keys
    means = [ratios([one for key in group for one in found[key]]) for group in groups.values()]
    titles = ["geometric mean of errors over the hull's", *groups]
    print(table(titles, [[model, *[f"{part[model]:.2f}" for part in means]] for model in means[0]]))
    tasks = [
        {one.model: one for one in found[key] if one.task == task}
        for key in keys
        for task in dict.fromkeys(one.task for one in found[key])
    ]
    lines = [beside(here, (*PEERS, PLANES)) for here in tasks]
    print(table(["task", "shape", "hull", "best peer", "its error", "hull over it"], lines))
    near = sum(float(line[-1]) <= 1.1 for line in lines)
    print(f"the hull errs less than every peer, or within 1.1 of the best, on {near} of {len(lines)} tasks")


def beside(here: dict[str, Score], peers: Sequence[str]) -> list[str]:
    """Return a line of the report: the hull beside the best of its peers on one task."""
    medians = {model: median(one) for model, one in here.items()}
    best = min([model for model in medians if model in peers], key=lambda model: medians[model])
    own, least = medians[CHOSEN], medians[best]
    return [here[CHOSEN].task, here[CHOSEN].shape, f"{own:.2g}", best, f"{least:.2g}", f"{own / least:.2f}"]


def read_scores(records: list[dict[str, Any]]) -> list[Score]:
    """Return the scores of a file's records."""
    return [Score(**record | {"errors": tuple(record["errors"])}) for record in records]


def main() -> None:
    """Run one subcommand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = ["quadratic", "small", "suite", *OTHERS, "report"]
    parser.add_argument("command", choices=commands)
    parser.add_argument("--dim", type=int, default=8, help="of the suite")
    parser.add_argument("--noise", type=float, default=0.1, help="of the suite, over the deviation of y")
    parser.add_argument("--draw", type=int, default=0, help="of the suite: which functions, by seed")
    parser.add_argument("--only", nargs="+", metavar="MODEL", help="these models, such as hull; the table names all")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} steps: does it run?")
    parser.add_argument("--out", type=Path, default=Path("quality-run"))
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.out = arguments.out / "quick"
    if arguments.command == "report":
        report(arguments.out)
        return
    if arguments.command in OTHERS:
        package = OTHERS[arguments.command]
        if importlib.util.find_spec(package) is None:
            fix = 'pip install -c constraints.txt -e ".[peers]"'
            raise SystemExit(f"quality.py {arguments.command} needs {package}: {fix}")
        other = importlib.import_module(f"quality_{arguments.command}")
        other.main(arguments.quick, arguments.out)
        return
    jobs = [job for job in jobs_of(arguments) if arguments.only is None or job.model in arguments.only]
    if not jobs:
        parser.error("--only: expected models of this table")
    if arguments.quick:
        jobs = [replace(job, steps=QUICK) for job in jobs]
    scores = run(score, jobs, arguments.out)
    name = arguments.command
    if name == "suite":  # `report` reads the first draw
        own = f"{arguments.dim}-{arguments.noise:g}"
        name = f"suite-{own}" if arguments.draw == 0 else f"draw-{arguments.draw}-{own}"
    write([asdict(one) for one in scores], arguments.out / f"{name}.json")
    show(scores, arguments.command)
    draw(scores, PUBLISHED.get(arguments.command, {}), arguments.out / f"{name}.png")


if __name__ == "__main__":
    main()
