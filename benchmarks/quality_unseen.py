"""Convex functions that nobody saw before: drawn anew at each run, fitted by `fit` with its defaults, beside peers.

    python benchmarks/quality_unseen.py                         # 45 functions, five a kind; needs scikit-learn and lpcf
    python benchmarks/quality_unseen.py --draw 1 --functions 27 # the same functions at each run
    python benchmarks/quality_unseen.py --draw 1 --functions 27 --only ours --out old.json
    python benchmarks/quality_unseen.py --draw 1 --functions 27 --only ours --beside old.json

`quality_grammar.py` says what is drawn: nine kinds of functions, D 2 to 50, 200 to 20,000 rows, noise up to half of
the deviation. Errors are mean squared on 4,000 rows without noise, over the variance of the function there. A hull has
8 petals; the MLP has as many parameters, 8,000 steps, one to three layers and a rate chosen on a fifth of the rows.
These also stop the boosted trees and choose their rate, and choose the penalty of lpcf (timed_peers.py says how to get
it).
What peers reach is kept in a folder and not computed again; `fit` is run each time.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from networks import count, hull_network, match_size, tune
from quality_grammar import KINDS, Drawn, draw
from quality_runs import WORKERS, run, write
from quality_scores import EXACT, QUICK, SHAPES, Standard, relative_error
from quality_tasks import Task
from timed_peers import LPCF, best_in_time
from timing import table

from convexmoe_jax import HullConfig, VectorHull, fit, predict

FUNCTIONS, LOST, BATCH = 45, 1.05, 128
STEPS = 8000  # of a peer: as many as a hull with its shape chosen may take
QUICK_ROWS = 200, 300
BUDGET = 300.0  # seconds to choose a shape
LIMIT = 120.0  # seconds that lpcf may compute for a function
MLP_RATES, BOOSTING_RATES = (0.002, 0.008, 0.03), (0.03, 0.1, 0.3)

Record = dict[str, Any]


class Reached(NamedTuple):
    """What a model came to.

    Args:
        error: over the variance of the function; None where it did not finish.
        choice: the shape, rate or penalty that was chosen.
    """

    error: float | None
    choice: str = ""


@dataclass(frozen=True)
class Job:
    """One model on one function.

    Args:
        seed, number: of the function.
        model: its name in `MODELS`.
        quick: few steps and rows.
        kept: folder of what peers reached.
    """

    seed: int
    number: int
    model: str
    quick: bool
    kept: Path

    @property
    def path(self) -> Path:
        """The file of what it reaches."""
        return self.kept / f"{self.seed}-{self.number}-{self.model}.json"

    def draw(self) -> Drawn:
        """Return the function with its rows."""
        return draw(self.seed, self.number, QUICK_ROWS) if self.quick else draw(self.seed, self.number)


def fit_ours(task: Task, quick: bool, **options: Any) -> Reached:
    """Fit a hull by `fit` with its defaults, but for options."""
    hull = VectorHull(task.x.shape[1], 8, 1, temperature="learned", rngs=nnx.Rngs(0))
    found = fit(hull, task.x, task.y, **options, **({"steps": QUICK} if quick else {}))
    return Reached(relative_error(task, np.asarray(predict(found.model, task.x_test))), found.shape)


def fit_mlp(task: Task, quick: bool) -> Reached:
    """Train MLPs of as many parameters as the hull, at rates and depths chosen on held-out rows."""
    data, dim = Standard.of([task]), task.x.shape[1]
    size = count(hull_network(HullConfig(dim, 8, 1, temperature="learned")))
    shapes = {name: match_size(partial(make, dim, 1), size) for name, make in SHAPES["MLP"].items()}
    shape, network, rate, (params,) = tune(shapes, data.rows, QUICK if quick else STEPS, BATCH, MLP_RATES)
    return Reached(data.error(0, np.asarray(jax.jit(network.apply)(params, data.x_test[0]))), f"{shape}, {rate:g}")


def fit_boosting(task: Task, quick: bool) -> Reached:
    """Boost trees until held-out rows get no better."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    data, found = Standard.of([task]), []
    x, y, x_held, y_held = (part[0] for part in data.rows)
    for rate in BOOSTING_RATES:
        trees = HistGradientBoostingRegressor(
            learning_rate=rate, max_iter=QUICK if quick else STEPS, early_stopping=True, random_state=0
        )
        trees.fit(x, y[:, 0], X_val=x_held, y_val=y_held[:, 0])
        found.append((np.mean((trees.predict(x_held) - y_held[:, 0]) ** 2), rate, trees))
    _, rate, trees = min(found, key=lambda one: one[0])
    return Reached(data.error(0, trees.predict(data.x_test[0])[:, None]), f"{rate:g}")


def fit_ridge(task: Task, quick: bool) -> Reached:
    """Fit a plane, its penalty by leaving one row out."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    plane = make_pipeline(StandardScaler(), RidgeCV(np.geomspace(1e-4, 1e4, 17))).fit(task.x, task.y[:, 0])
    return Reached(relative_error(task, plane.predict(task.x_test)[:, None]), f"{plane[-1].alpha_:.3g}")


def fit_lpcf(task: Task, quick: bool) -> Reached:
    """Fit lpcf to standardized rows."""
    data = Standard.of([task])
    x, y, x_held, y_held = (part[0] for part in data.rows)
    found = best_in_time(LPCF, (x, y, x_held, y_held), data.x_test[0], LIMIT, quick)
    return Reached(None) if found is None else Reached(data.error(0, found.predicted), found.choice)


MODELS: dict[str, Callable[[Task, bool], Reached]] = {
    "ours": fit_ours,
    "ours, shape chosen": partial(fit_ours, shape="auto", budget=BUDGET),
    "MLP": fit_mlp,
    "boosting": fit_boosting,
    "ridge": fit_ridge,
    LPCF: fit_lpcf,
}
OURS, CHOSEN, *_ = MODELS
NEEDS = {"boosting": "sklearn", "ridge": "sklearn", LPCF: LPCF}
FIXES = {
    "sklearn": 'pip install -c constraints.txt -e ".[peers]"',
    LPCF: "pip install --no-deps lpcf==0.1.1 jax-sysid==1.1.0 beside the extra peers, or pass --no-lpcf",
}


def score(job: Job) -> Record:
    """Run a job, or read what it reached before on the same rows."""
    drawn = job.draw()
    (rows, dim), total = drawn.task.x.shape, float(np.abs(drawn.task.y).sum())
    if job.model not in (OURS, CHOSEN) and job.path.exists():
        record: Record = json.loads(job.path.read_text())
        if np.isclose(record["total"], total, rtol=1e-9):
            return record
    began = time.perf_counter()
    error, choice = MODELS[job.model](drawn.task, job.quick)
    record = {"number": job.number, "kind": drawn.kind, "model": job.model, "dim": dim, "rows": rows}
    record |= {"inputs": drawn.inputs, "noise": drawn.noise, "error": error, "choice": choice}
    record |= {"seconds": time.perf_counter() - began, "total": total}
    if job.model not in (OURS, CHOSEN):
        job.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = job.path.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps(record))
        unfinished.replace(job.path)  # at once: a run that is stopped leaves no half of it
    return record


def errors_of(records: Sequence[Record]) -> dict[int, dict[str, float]]:
    """Return the errors of each function by model, `EXACT` at least, without what did not finish."""
    errors: dict[int, dict[str, float]] = {}
    for one in records:
        by_model = errors.setdefault(one["number"], {})
        if one["error"] is not None:
            by_model[one["model"]] = max(one["error"], EXACT)
    return errors


def show(records: Sequence[Record]) -> None:
    """Print a line a kind, one of all, and the functions on which a peer errs less."""
    models = list(dict.fromkeys(one["model"] for one in records))
    ours = CHOSEN if CHOSEN in models else OURS
    errors, own = errors_of(records), [one for one in records if one["model"] == ours]
    peers = [model for model in models if model != ours]
    lines = []
    for kind in (*KINDS, "all"):
        here = [errors[one["number"]] for one in own if kind in (one["kind"], "all")]
        means = [ratio([(found[peer], found[ours]) for found in here if peer in found]) for peer in peers]
        if here:
            lines.append([kind, len(here), f"{np.median([found[ours] for found in here]):.2g}", *means])
    print(table(["kind", "functions", ours, *[f"{peer} over it" for peer in peers]], lines))
    print(f"{ours}: the median error, over the variance; {EXACT:g} at least. Beside it geometric means of ratios.")
    for peer in peers:
        times = [one["seconds"] for one in records if one["model"] == peer]
        undone = sum(one["error"] is None for one in records if one["model"] == peer)
        note = f"; left out of its means: {undone}, not finished in {LIMIT:g} s" if undone else ""
        print(f"{peer}: {len(times)} functions, {np.mean(times):.0f} s each{note}")
    print(f"{ours}: {len(own)} functions, {np.mean([one['seconds'] for one in own]):.0f} s each")
    print(f"we lose by more than {LOST:g} on:")
    for one in own:
        found = errors[one["number"]]
        best = min(
            (model for model in found if not model.startswith(OURS)), key=lambda model: found[model], default=ours
        )
        if found[ours] > LOST * found[best]:
            sizes = f"D = {one['dim']}, {one['rows']} rows, {one['inputs']}, noise {one['noise']:.2f}"
            print(f"  {one['number']}: {one['kind']}, {sizes}: {found[ours]:.2g}, {best} {found[best]:.2g}")


def ratio(pairs: Sequence[tuple[float, float]]) -> str:
    """Return the geometric mean of first / second, "-" of none."""
    return f"{np.exp(np.mean([np.log(first / second) for first, second in pairs])):.2f}" if pairs else "-"


def on_same_rows(found: Sequence[Record], own: Sequence[Record]) -> list[Record]:
    """Return the records that are of the rows of ours."""
    totals = {one["number"]: one["total"] for one in own}
    return [one for one in found if np.isclose(one["total"], totals.get(one["number"], np.nan), rtol=1e-9)]


def main(quick: bool, out: Path) -> None:
    """Draw functions, fit all models, print the table."""
    command([*["--quick"] * quick, "--out", str(out / "unseen.json"), "--kept", str(out / "unseen")])


def command(given: Sequence[str] | None = None) -> None:
    """Run with options: those given, or those of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", type=int, help="which functions, by seed; a new one unless given")
    parser.add_argument("--functions", type=int, help=f"how many; {FUNCTIONS}, with --quick one a kind")
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS), help="these models")
    parser.add_argument("--no-lpcf", action="store_true", help="leave lpcf out")
    parser.add_argument("--quick", action="store_true", help="few steps and rows: does it run?")
    parser.add_argument("--out", type=Path, help="the file of results; quality-run/unseen.json")
    parser.add_argument("--beside", type=Path, help="a file of an earlier --out, whose errors of ours are shown")
    parser.add_argument("--kept", type=Path, help="folder of peers' results; quality-run/unseen")
    parser.add_argument("--workers", type=int, default=WORKERS, help="jobs side by side")
    options = parser.parse_args(given)
    models = [model for model in options.only if not (options.no_lpcf and model == LPCF)]
    for package in dict.fromkeys(NEEDS[model] for model in models if model in NEEDS):
        if importlib.util.find_spec(package) is None:
            raise SystemExit(f"quality_unseen.py needs {package}: {FIXES[package]}")
    seed = int(np.random.SeedSequence().generate_state(1)[0]) if options.draw is None else options.draw
    print(f"--draw {seed}", flush=True)
    folder = Path("quality-run", *["quick"] * options.quick)
    out, kept = options.out or folder / "unseen.json", options.kept or folder / "unseen"
    numbers = range(options.functions or (len(KINDS) if options.quick else FUNCTIONS))
    jobs = {model: [Job(seed, n, model, options.quick, kept) for n in numbers] for model in MODELS}
    records = run(score, [job for model in models for job in jobs[model]], out.parent, options.workers)
    own = [one for one in records if one["model"] in (OURS, CHOSEN)]
    write(records, out)
    if own:
        others = [job.path for model in MODELS if model not in models for job in jobs[model] if job.path.exists()]
        found = [json.loads(path.read_text()) for path in others]
        if options.beside:
            earlier = [one for one in json.loads(options.beside.read_text()) if one["model"] in (OURS, CHOSEN)]
            found += [one | {"model": f"{one['model']}, earlier"} for one in earlier]
        show([*records, *on_same_rows(found, own)])


if __name__ == "__main__":
    command()
