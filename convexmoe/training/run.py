"""One run of training for both packages: a package gives the engine, which computes.

Batches, learning rates and stopping are computed by numpy in float64, so that the same call trains the same model in
both packages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from ..errors import describe, fail
from ..hull.rows import AT_ONCE, as_numbers, is_tensor, to_array
from .curvature import Curvature, Judged
from .data import fingerprint
from .history import History, progress_bar
from .schedule import LEARNING_RATE, Batches, Schedule
from .start import spread_rows
from .stream import Draws, Position, Stream

READ_AT_ONCE = 2**15  # rows of a stream, about

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
        gain: of it, the mean loss of the given shape over that of the chosen one on the rows held out; 1.0 otherwise.
    """

    model: Model
    history: History
    best_step: int
    judged: Judged | None = None
    curvature: Curvature | None = None
    shape: str = ""
    gain: float = 1.0

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
        rows: a fingerprint of the rows and, of `fit`, of which are for what; "" is not compared.
        position: of a `Stream`, where in it the next step begins.
        schedule: of the run, None where it is not compared, as in files of earlier versions.
        kept: of `train` in PyTorch copies of the states of module and optimizer, which are in use; else None.
    """

    model: Model
    optimizer: Any
    history: History
    best: Any
    best_step: int
    folds: tuple[Fold, ...] = ()
    rows: str = ""
    position: Position | None = None
    schedule: Schedule | None = None
    kept: Any = None

    @property
    def params(self) -> Model:
        """The model, by the name that `train` of JAX has for it."""
        return self.model


class Engine(Protocol):
    """What a package does in a run: it holds the weights, their mean since the evaluation before, and the rows.

    Attributes:
        rows: x and y to train on, arrays of the framework; of a stream those read last.
        draws: of a stream, where the rows of the steps come from; else None.
        held_out: x and y of the rows held out, or None.
        known_by: the fingerprint of the rows; num_copies: how many are trained side by side.

    Methods:
        loss: returns the mean squared error of the mean weights; before any step that of the weights.
        take_steps: takes one step for each line of `rows` (steps, batch), returns the mean loss; `before` steps are in
            the mean already, which begins anew at 0.
        mean_weights: returns a copy of the mean weights; before any step of the weights.
        is_finite: returns whether every number of `mean_weights` is finite.
        resume: goes on where an earlier run stood, and returns its best weights.
        state: returns where the run stands.
        result: returns the model with the best mean weights.
        arrays: returns x and y, as they were read, as `rows` holds them.
    """

    rows: Any
    held_out: Any
    draws: Draws | None = None
    known_by: str = ""
    num_copies: int = 1

    def loss(self, x: Any, y: Any) -> float: ...
    def take_steps(self, rows: np.ndarray, rates: np.ndarray, before: int = 0) -> float: ...
    def mean_weights(self) -> Any: ...
    def is_finite(self, weights: Any) -> bool: ...
    def resume(self, state: FitState) -> Any: ...
    def state(self, history: History, best: Any, best_step: int) -> FitState: ...
    def result(self, best: Any) -> Any: ...
    def arrays(self, x: np.ndarray, y: np.ndarray) -> Any: ...

    def learn(self, rows: np.ndarray, rates: np.ndarray) -> float:
        """Take the steps up to an evaluation, and return their mean loss."""
        if self.draws is None:
            return self.take_steps(rows, rates)
        batch, total = rows.shape[-1], 0.0
        at_once = max(1, READ_AT_ONCE // batch)
        for before in range(0, len(rates), at_once):
            some = rates[before : before + at_once]
            self.rows = self.arrays(*self.draws.take(len(some) * batch))
            picked = np.arange(len(some) * batch).reshape(len(some), *rows.shape[1:])
            total += len(some) * self.take_steps(picked, some, before)
        return total / len(rates)

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
        """Yield the rows and the rates of the steps up to each evaluation; of a stream no numbers of rows."""
        if self.draws is not None:
            return self.stream_batches(schedule, done, LEARNING_RATE)
        return schedule.batches(len(self.rows[0]), done, LEARNING_RATE)

    def stream_batches(self, schedule: Schedule, done: int, rate: float, *copies: int) -> Iterator[Batches]:
        """Yield zeros (steps, *copies, batch), as the rows come one after another, and the rates (steps,)."""
        assert self.draws is not None
        batch = min(schedule.batch_size, self.draws.rows)
        for start, rates in schedule.rates(done, rate):
            if start >= done:
                yield np.broadcast_to(0, (len(rates), *copies, batch)), rates

    @property
    def position(self) -> Position | None:
        """Where the next row of a stream is."""
        return None if self.draws is None else self.draws.position


def given_rows(x: Any, y: Any, validation: Any) -> tuple[Any, Any]:
    """Return the rows that `train` is given (the first ones of a `Stream`), and those held out or None.

    What is no tensor is checked.
    """

    def plain(name: str, value: Any) -> Any:
        return value if is_tensor(value) else as_numbers("train", name, value)

    if isinstance(x, Stream):
        if y is not None:
            fail("train", "y", "None beside a Stream", describe(y), "Put it into the batches of the Stream.")
        count = x.count()
        x, y = count.x, count.target
    held_out = None if validation is None else tuple(plain("validation", part) for part in validation)
    return (plain("x", x), plain("y", y)), held_out


def train(engine: Engine, x: Any, schedule: Schedule, resume: FitState | None, on_evaluation: Any) -> FitResult:
    """Run what `train` of a package has set up; x is what it was given, maybe a `Stream`."""
    rows: list[Any] = [*engine.rows, *(engine.held_out or ())]
    if isinstance(x, Stream):
        engine.draws = Draws(x, None, np.empty(0, np.int64), schedule.seed, resume and resume.position)
        rows.append(np.array([x.rows, x.count().rows, x.count().checksum]))
    with suppress(RuntimeError):  # of rows that lie on several machines, which are not compared
        if resume is not None or on_evaluation is not None:
            engine.known_by = fingerprint(*(np.asarray(to_array(part)) for part in rows))
    return run(engine, schedule, resume, on_evaluation)


def resume_run(engine: Engine, schedule: Schedule, resume: FitState) -> Any:
    """Go on with the best weights so far, which are returned, if options and rows are those of the beginning."""
    names, fix = ("steps", "batch_size", "learning_rate", "seed"), "Pass what the run was begun with."
    if (engine.draws is None) != (resume.position is None):
        rule, got = ("no", "one") if engine.draws is None else ("a", "none")
        fail("fit", "resume", f"{rule} position in a Stream", got, fix)
    others = [name for name in names if getattr(resume.schedule or schedule, name) != getattr(schedule, name)]
    if others:
        rule = "a state of the given steps, batch_size, learning_rate and seed"
        fail("fit", "resume", rule, f"another {' and '.join(others)}", fix)
    known = "" in (resume.rows, engine.known_by) or resume.rows == engine.known_by
    if not known or len(resume.folds) + 1 != engine.num_copies:
        fail("fit", "resume", "a state of the given rows, weights, loss, validation and seed", "one of others", fix)
    return engine.resume(resume)


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
    best = None if resume is None else resume_run(engine, schedule, resume)
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
            if on_evaluation is not None:
                state = engine.state(history, best, best_step)._replace(schedule=schedule, rows=engine.known_by)
                if on_evaluation(state._replace(position=engine.position)):
                    break
    check_finite(engine.is_finite(best), "Lower learning_rate.")
    return FitResult(engine.result(best), history, best_step)


def check_finite(finite: bool, fix: str) -> None:
    """Check the weights of a run: the last step comes after the last loss, and the cast after both."""
    if not finite:
        fail("fit", "weights", "finite numbers", "inf or nan", fix, FloatingPointError)
