"""One run of training for both packages: a package gives the engine, which computes.

Batches, learning rates and stopping are computed by numpy in float64, so that the same call trains the same model in
both packages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from ..errors import fail
from ..hull.rows import AT_ONCE
from .curvature import Curvature, Judged
from .history import History, progress_bar
from .schedule import LEARNING_RATE, Batches, Schedule
from .start import spread_rows
from .stream import Position

Model = TypeVar("Model")


class FitResult(NamedTuple, Generic[Model]):
    """What `fit` and `train` return.

    Args:
        model: the fitted hull, in the units of the data; of `train` the best mean weights, or the module that has them.
        history: its losses.
        best_step: the last of the steps whose mean weights the model has.
        judged: of `fit`, the errors on the rows held out, before the offset that a loss other than the square is given
            at the end; None without any, or from before a stop.
        curvature: of `fit` with folds, what they say of the curvature; None after a stop.
        shape: of `fit(shape="auto")`, what was chosen, in words.
    """

    model: Model
    history: History
    best_step: int
    judged: Judged | None = None
    curvature: Curvature | None = None
    shape: str = ""

    @property
    def params(self) -> Model:
        """The model, by the name that `train` of JAX has for it."""
        return self.model


class Fold(NamedTuple):
    """A copy of the hull that learns from the rows but for a part, which judges it: its weights, and Adam's state."""

    model: Any
    optimizer: Any


class FitState(NamedTuple, Generic[Model]):
    """Where a run stands after an evaluation: what it needs to go on; that of `fit` in either package.

    Args:
        model: the hull with the weights of this step, in the units of the data; of `train` the weights, or the module.
        optimizer: the state of Adam, which `save(model, path, optimizer=optimizer)` takes; of `train` that of the
            framework, in PyTorch the one in use.
        history: the losses so far.
        best: the hull, or the weights, with the best mean over steps so far.
        best_step: the last of those steps.
        folds: of `fit`, the copies that hold rows out.
        rows: of `fit`, a fingerprint of the rows and of which are for what.
        position: of `fit` to a `Stream`, where in it the next step begins.
    """

    model: Model
    optimizer: Any
    history: History
    best: Any
    best_step: int
    folds: tuple[Fold, ...] = ()
    rows: str = ""
    position: Position | None = None

    @property
    def params(self) -> Model:
        """The model, by the name that `train` of JAX has for it."""
        return self.model


class Engine(Protocol):
    """What a package does in a run: it holds the weights, their mean since the evaluation before, and the rows.

    Attributes:
        rows: x and y to train on, arrays of the framework.
        held_out: x and y of the rows held out, or None.

    Methods:
        loss: returns the mean squared error of the mean weights; before any step that of the weights.
        take_steps: takes one step for each line of `rows` (steps, batch), returns the mean loss; `before` steps are in
            the mean already, which begins anew at 0.
        mean_weights: returns a copy of the mean weights; before any step of the weights.
        is_finite: returns whether every number of `mean_weights` is finite.
        resume: goes on where an earlier run stood, and returns its best weights.
        state: returns where the run stands.
        result: returns the model with the best mean weights.
    """

    rows: Any
    held_out: Any

    def loss(self, x: Any, y: Any) -> float: ...
    def take_steps(self, rows: np.ndarray, rates: np.ndarray, before: int = 0) -> float: ...
    def mean_weights(self) -> Any: ...
    def is_finite(self, weights: Any) -> bool: ...
    def resume(self, state: FitState) -> Any: ...
    def state(self, history: History, best: Any, best_step: int) -> FitState: ...
    def result(self, best: Any) -> Any: ...

    def learn(self, rows: np.ndarray, rates: np.ndarray) -> float:
        """Take the steps up to an evaluation, and return their mean loss."""
        return self.take_steps(rows, rates)

    def start_loss(self) -> float:
        """Return the loss on about as many rows as tell it."""
        return self.loss(*spread_rows(*self.rows))

    def held_out_loss(self) -> float | None:
        """Return the loss on the rows held out, None where there are none."""
        if self.held_out is None:
            return None
        x, y = self.held_out
        return sum(self.loss(x[part], y[part]) * (len(y[part]) / len(x)) for part in pieces(len(x)))

    def batches(self, schedule: Schedule, done: int) -> Iterator[Batches]:
        """Yield the rows and the rates of the steps up to each evaluation."""
        return schedule.batches(len(self.rows[0]), done, LEARNING_RATE)


def pieces(rows: int) -> list[slice]:
    """Return so many rows in pieces of which all hidden units are in memory."""
    return [slice(start, start + AT_ONCE) for start in range(0, rows, AT_ONCE)]


def run(
    engine: Engine, schedule: Schedule, resume: FitState | None, on_evaluation: Callable[[FitState], bool | None] | None
) -> FitResult:
    """Train by a schedule, from where the engine stands, and return the best mean weights.

    They are the best by the loss on the rows held out; where there are none, the last.
    """
    history, best_step = (History(), 0) if resume is None else (resume.history, resume.best_step)
    best = None if resume is None else engine.resume(resume)
    with progress_bar(schedule.progress, schedule.steps, history.last_step) as show:
        if resume is None:
            history = history.add(0, engine.start_loss(), engine.held_out_loss())
            best = engine.mean_weights()
        show(history, 0)
        for picked, rates in engine.batches(schedule, history.last_step):
            if history.is_over:
                break
            loss = engine.learn(picked, rates)
            history = history.add(len(rates), loss, engine.held_out_loss())
            show(history, len(rates) * picked.shape[-1])
            if history.is_best:
                best, best_step = engine.mean_weights(), history.last_step
            if on_evaluation is not None and on_evaluation(engine.state(history, best, best_step)):
                break
    check_finite(engine.is_finite(best), "Lower learning_rate.")
    return FitResult(engine.result(best), history, best_step)


def check_finite(finite: bool, fix: str) -> None:
    """Check the weights of a run: the last step comes after the last loss, and the cast after both."""
    if not finite:
        fail("fit", "weights", "finite numbers", "inf or nan", fix, FloatingPointError)
