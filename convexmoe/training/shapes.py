"""`fit(shape="auto")`: hulls of several shapes and rates, judged by the same rows held out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from ..hull.config import HullConfig
from .curvature import is_less
from .run import FitResult

AUTO, GIVEN = "auto", "given"
SOFT, BENT = "softplus", "huber_relu"
STANDARD_ERRORS = 1.0  # of a gain, for which another shape is taken
RATES = 0.25, 4.0  # that are tried with the best shape, over the usual one
LONGER, SLOWER = 4, 0.5  # times the steps, at so many times the rate, are tried in the end


class Trial(NamedTuple):
    """What is tried: its name, the config, and how many times the rate and the steps of the others."""

    name: str
    config: HullConfig
    faster: float = 1.0
    longer: int = 1


def shapes(best: Trial) -> list[Trial]:
    """Return other shapes: more petals on fewer units, nearly a maximum of planes, one layer more."""
    config = best.config
    many, units = 4 * config.petals, max(2, config.hidden_dim // 4)
    others: dict[str, Any] = {
        f"{many} petals on {units} units": {"petals": many, "hidden_dim": units},
        f"{2 * many} petals on 2 units": {"petals": 2 * many, "hidden_dim": 2, "group_size": 1},
        f"{config.depth + 1} layers": {"depth": config.depth + 1},
    }
    return [best._replace(name=name, config=replace(config, **part)) for name, part in others.items()]


def activations(best: Trial) -> list[Trial]:
    """Return the same shape with the other activation: one bends everywhere, one between two points."""
    name = SOFT if best.config.activation != SOFT else BENT
    return [best._replace(name=f"{best.name}, {name}", config=replace(best.config, activation=name))]


def rates(best: Trial) -> list[Trial]:
    """Return the same at other rates."""
    return [best._replace(name=f"{best.name}, rate x {factor:g}", faster=factor) for factor in RATES]


def more_steps(best: Trial) -> list[Trial]:
    """Return the same with more steps at a lower rate, where the rows leave no noise but that of the steps."""
    name = f"{best.name}, {LONGER} x the steps"
    return [best._replace(name=name, faster=SLOWER * best.faster, longer=LONGER)]


STAGES = shapes, activations, rates, more_steps  # each tries others than the best so far


def fit_shapes(fit: Callable[[Trial], FitResult], config: HullConfig, budget: float, shown: bool) -> FitResult:
    """Return the best of the fits of several shapes, then with another activation, at other rates, and of more steps.

    As many as the budget allows. Another than the first is taken where it errs less beyond its standard error.

    Args:
        fit: fits a trial.
        config: the given shape.
        budget: seconds; a trial that would end after them is not begun, but for the first.
        shown: whether a bar shows what is tried, and how long it will take.
    """
    given, done = Trial("the given shape", config), list[tuple[Trial, FitResult]]()
    began, slowest = time.monotonic(), 0.0
    lengths = [1, *[trial.longer for stage in STAGES for trial in stage(given)]]
    left = sum(lengths)  # in fits of the usual length
    with trial_bar(shown, len(lengths)) as show:

        def attempt(trial: Trial) -> None:
            nonlocal slowest, left
            start = time.monotonic()
            if done and start - began + slowest * trial.longer > budget:
                return
            show(trial, min(slowest * left, budget))
            found, left = fit(trial), left - trial.longer
            slowest = max(slowest, (time.monotonic() - start) / trial.longer)
            if not done or is_less(found.judged.hull, done[-1][1].judged.hull, STANDARD_ERRORS):  # type: ignore[union-attr]
                done.append((trial, found))

        attempt(given)
        for stage in STAGES:
            for trial in stage(done[-1][0]):
                attempt(trial)
    trial, found = done[-1]
    first, least = (one.judged.hull.mean() for one in (done[0][1], found))  # type: ignore[union-attr]
    return found._replace(shape=trial.name, gain=float(first / least) if len(done) > 1 else 1.0)


@contextmanager
def trial_bar(shown: bool, total: int) -> Iterator[Callable[[Trial, float], None]]:
    """Give a function that shows what is tried, and about how many seconds are left; none where not `shown`."""
    if not shown:
        yield lambda trial, left: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()) as bar:
        task = bar.add_task("shapes", total=total, completed=-1)

        def show(trial: Trial, left: float) -> None:
            time_left = f", about {left:.0f} s left" if left else ""
            bar.update(task, advance=1, description=f"{trial.name}{time_left}")

        yield show
