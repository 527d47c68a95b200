"""One run of training, and `fit`, for both packages: a package gives the engine, which computes.

Data, batches, learning rates and stopping are computed by numpy in float64, so that the same call trains the same
model in both packages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from ..errors import fail, one_of
from ..hull.config import HullConfig
from ..hull.rows import AT_ONCE
from .data import HELD_OUT, Data, check_data, check_held_out, hold_out, normalization_of, normalize_rows
from .history import History, progress_bar
from .schedule import LEARNING_RATE, Schedule, default_rate
from .starts import STARTS, Weights, choose_start, spread_rows

Model = TypeVar("Model")


class FitResult(NamedTuple, Generic[Model]):
    """What `fit` and `train` return.

    Args:
        model: the fitted hull, in the units of the data; of `train` the best mean weights, or the module that has them.
        history: its losses.
        best_step: the last of the steps whose mean weights the model has.
    """

    model: Model
    history: History
    best_step: int

    @property
    def params(self) -> Model:
        """The model, by the name that `train` of JAX has for it."""
        return self.model


class FitState(NamedTuple, Generic[Model]):
    """Where a run stands after an evaluation: what it needs to go on; that of `fit` in either package.

    Args:
        model: the hull with the weights of this step, in the units of the data; of `train` the weights, or the module.
        optimizer: the state of Adam, which `save(model, path, optimizer=optimizer)` takes; of `train` that of the
            framework, in PyTorch the one in use.
        history: the losses so far.
        best: the hull, or the weights, with the best mean over steps so far.
        best_step: the last of those steps.
    """

    model: Model
    optimizer: Any
    history: History
    best: Any
    best_step: int

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
        take_steps: takes one step for each line of `rows` (steps, batch), begins the mean anew, returns the mean loss.
        mean_weights: returns a copy of the mean weights; before any step of the weights.
        is_finite: returns whether every number of `mean_weights` is finite.
        resume: goes on where an earlier run stood; the mean weights are then its best ones.
        state: returns where the run stands.
        result: returns the model with the best mean weights.
    """

    rows: Any
    held_out: Any

    def loss(self, x: Any, y: Any) -> float: ...
    def take_steps(self, rows: np.ndarray, rates: np.ndarray) -> float: ...
    def mean_weights(self) -> Any: ...
    def is_finite(self, weights: Any) -> bool: ...
    def resume(self, state: FitState) -> None: ...
    def state(self, history: History, best: Any, best_step: int) -> FitState: ...
    def result(self, best: Any) -> Any: ...


def run(
    engine: Engine,
    schedule: Schedule,
    resume: FitState | None,
    on_evaluation: Callable[[FitState], bool | None] | None,
    default_rate: float = LEARNING_RATE,
) -> FitResult:
    """Train by a schedule, from where the engine stands, and return the best mean weights.

    They are the best by the loss on the rows held out; where there are none, the last.
    """
    history, best_step = (History(), 0) if resume is None else (resume.history, resume.best_step)
    best = engine.mean_weights()
    with progress_bar(schedule.progress, schedule.steps, history.last_step) as show:
        if resume is None:
            start_loss = engine.loss(*spread_rows(*engine.rows))
            history = history.add(0, start_loss, held_out_loss(engine))
            show(history)
        for picked, rates in schedule.batches(len(engine.rows[0]), history.last_step, default_rate):
            if history.is_over:
                break
            loss = engine.take_steps(picked, rates)
            history = history.add(len(picked), loss, held_out_loss(engine))
            show(history)
            if history.is_best:
                best, best_step = engine.mean_weights(), history.last_step
            if on_evaluation is not None and on_evaluation(engine.state(history, best, best_step)):
                break
    check_finite(engine.is_finite(best), "Lower learning_rate.")
    return FitResult(engine.result(best), history, best_step)


def held_out_loss(engine: Engine) -> float | None:
    """Return the loss on the rows held out, None where there are none."""
    if engine.held_out is None:
        return None
    x, y = engine.held_out
    parts = [slice(start, start + AT_ONCE) for start in range(0, len(x), AT_ONCE)]
    return sum(engine.loss(x[part], y[part]) * (len(y[part]) / len(x)) for part in parts)


def check_finite(finite: bool, fix: str) -> None:
    """Check the weights of a run: the last step comes after the last loss, and the cast after both."""
    if not finite:
        fail("fit", "weights", "finite numbers", "inf or nan", fix, FloatingPointError)


class HullEngine(Engine, Protocol):
    """The engine of a hull, made of it, the config of the fitted one, rows, rows held out or None, and the schedule.

    Attributes:
        kind: the class of its hulls.
        weights: the parameters as float64 arrays by dotted name; to be set, too.

    Methods:
        limits: returns `finfo` of the dtype in training, and of that of a model.
        values: returns the values `[N, O]` of the hull with other weights at normalized rows `[N, D]`.
    """

    kind: type
    weights: Weights

    def __init__(self, model: Any, config: HullConfig, rows: Any, held_out: Any, schedule: Schedule) -> None: ...
    @staticmethod
    def limits(model: Any) -> tuple[Any, Any]: ...
    def values(self, weights: Weights, x: np.ndarray) -> np.ndarray: ...

    @classmethod
    def fit(
        cls,
        model: Model,
        x: Any,
        y: Any,
        *,
        validation: Data | float = HELD_OUT,
        steps: int = 2000,
        batch_size: int = 128,
        learning_rate: float | None = None,
        seed: int = 0,
        start: str | None = None,
        progress: bool = False,
        resume: FitState[Model] | None = None,
        on_evaluation: Callable[[FitState[Model]], bool | None] | None = None,
    ) -> FitResult[Model]:
        """Fit a hull to data by least squares and return it; the given model stays as it is.

        A column that is constant in the rows to train on has no effect in the fitted model.
        The data are normalized; means and deviations go into the config of the fitted model, which takes and gives
        original units. A model that has a normalization keeps it; one in half precision is fitted in float32 and cast
        back.

        Args:
            model: the hull to start from.
            x: `[rows, in_dim]`, finite, original units.
            y: `[rows, out_dim]` (or `[rows]` for one output), finite, original units.
            validation: held-out `(x, y)`, or the share of the rows to hold out: they choose the best step, from the
                start on, and stop early. 0 trains on every row and gives the mean of the last steps, whatever the start
                was.
            steps: steps of Adam, >= 1.
            batch_size: rows of a step, >= 1; all rows where there are fewer.
            learning_rate: peak of the schedule; None means `default_rate(rows to train on, in_dim)`.
            seed: of the batches, and of the rows to hold out.
            start: "affine": the given hull f as `c f(x) + a' x + b` with the least squares; "sums": the same plus a sum
                of convex functions of one input each; "planes": a maximum of planes, for hulls of many petals on few
                units. None means "sums" where the rows speak for it, else "affine". "sums" and "planes" take units and
                petals of a hull that was trained already. See `convexmoe/training/starts`.
            progress: show a bar with the loss and the time left.
            resume: where an earlier call with the same data and options stood (of the other package: read from its
                files, docs/pages/files.md): training goes on from there, and the model of it takes the place of
                `model`.
            on_evaluation: is given where training stands at each of the `EVALUATIONS`; True ends it there.

        Raises:
            TypeError, ValueError: data of the wrong shape, not finite, or too few; an unknown `start`; `resume` is of
                another config, of other held-out rows, or at a step at which this schedule does not evaluate.
            FloatingPointError: the loss is no longer finite.

        >>> from convexmoe_torch import VectorHull, fit
        >>> rows = np.linspace(-1, 1, 64)[:, None]
        >>> fitted = fit(VectorHull(1, petals=4, out_dim=1), rows, rows**2, steps=200).model
        """
        schedule = Schedule(steps, batch_size, learning_rate, seed, progress)
        if start is not None:
            one_of("fit", "start", start, STARTS)
        if not isinstance(model, cls.kind):
            rule, got = (f"{k.__module__.partition('.')[0]}.{k.__name__}" for k in (cls.kind, type(model)))
            fail("fit", "model", f"a {rule}", got, "Pass such a model.", TypeError)
        given: HullConfig = model.config  # type: ignore[attr-defined]
        x, y = check_data("x", x, y, given)
        parts, constant = hold_out(x, y, validation, given, seed), np.zeros(given.in_dim, bool)
        if given.normalization is None:
            constant = parts[0][0].min(axis=0) == parts[0][0].max(axis=0)
            x[:, constant] = parts[0][0][0, constant]  # 0 in training, whatever it is in rows held out
        normalization = given.normalization or normalization_of(x, y, *cls.limits(model))
        rows, held_out = (normalize_rows(*part, normalization) for part in parts)
        config = replace(given, normalization=normalization)
        engine = cls(model, config, rows, held_out if len(held_out[0]) else None, schedule)
        if resume is None:
            bare = replace(config, normalization=None)
            weights = choose_start(engine.weights, bare, *rows, start, engine.values)
            engine.weights = {name: without_inputs(name, weight, constant) for name, weight in weights.items()}
        else:
            check_resumed(resume, cls.kind, config)
            engine.resume(resume)
            check_held_out(resume.history.validation_loss, held_out_loss(engine))
        return run(engine, schedule, resume, on_evaluation, default_rate(len(rows[0]), config.in_dim))


def without_inputs(name: str, weight: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """Return a weight that does not read some inputs, `bool[D]`: without gradients there it never will."""
    reads = name.endswith(".weight") and inputs.any()
    return np.where(inputs.reshape(-1, *[1] * (weight.ndim - 1)), 0.0, weight) if reads else weight


def check_resumed(state: Any, kind: Any, config: HullConfig) -> None:
    """Check that a run goes on with a state of this package, and with the model and the data it was begun with."""
    if not isinstance(state, FitState) or not isinstance(state.model, kind):
        got = f"{type(state).__module__}.{type(state).__name__}"
        if isinstance(state, FitState):
            got = f"{type(state.model).__module__.partition('.')[0]}.training.FitState"
        fix = "Pass what on_evaluation was given."
        fail("fit", "resume", "a FitState of this package", got, fix, TypeError)
    resumed = state.model.config
    if config != resumed:
        names = [field.name for field in fields(config) if getattr(config, field.name) != getattr(resumed, field.name)]
        rule, fix = "a state of the given model and data", "Go on with what the run was begun with."
        fail("fit", "resume", rule, f"another {' and '.join(names)}", fix)
