"""`fit` for both packages: copies of a hull on parts of the rows, side by side, choose how long to train and how bent.

Rows, parts, starts and choices are computed by numpy in float64, so that the same call trains the same model in both
packages.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from numbers import Real
from typing import Any, Protocol

import numpy as np

from ..errors import fail, one_of
from ..hull.config import HullConfig
from .curvature import CONCAVE, Curvature, Judged, compare_errors
from .data import Data, check_data, fingerprint, held_out_data, normalization_of, normalize_rows
from .history import History
from .parts import Parts, folds
from .run import Engine, FitResult, FitState, Fold, Model, check_finite, pieces, run
from .schedule import EVALUATIONS, Batches, Schedule, default_rate
from .shapes import AUTO, Trial, fit_shapes
from .start import (
    Plane,
    Weights,
    along_spread,
    draw_back,
    half_square,
    ridge,
    scales,
    scales_apart,
    spread_rows,
    start_at,
)

GARROTE = 4.0  # in units of the variance of the share: the best of forty evaluations is a lucky one, too
SHORT = 5  # times shorter is a fit that only compares
TOO_LARGE = "Fit a float32 model: these are too large for the dtype."


class HullEngine(Engine, Protocol):
    """What a package does in a fit, for all copies of the hull at once; the last one becomes the model.

    Attributes:
        kind: the class of its hulls.
        config: of the fitted hull; bare: the same without units.
        data: x and y of all rows, normalized, float64.
        parts: the rows of each copy; planes: the plane of each.
        bent: `[O]`, the share of what is bent that the last evaluation chose.
        last, judged: the errors of the last evaluation, and of the best, on the rows held out; None without any.
        known_by: the fingerprint of the rows; constant: `bool[D]`, the inputs that are constant in those to train on.
        given, given_weights: config and weights of the hull to start from; one without units is new.

    Methods:
        limits: returns `finfo` of the dtype in training, and of that of a model.
        begin: sets the weights of each copy, with fresh states of Adam, or those of an earlier run.
        mean: returns the mean weights of a copy since the evaluation before.
        values: returns the values `[N, O]` of the hull with other weights at normalized rows `[N, D]`.
        copies: returns the weights of each copy, as hulls in the units of the data, and its state of Adam.
        hull: returns a hull of weights in the dtype of training, or in that of the given model.
        new: returns a new hull of the dtype of another, with weights drawn from a seed.
    """

    kind: type
    rows: Any
    config: HullConfig
    data: Data
    parts: Parts
    planes: Sequence[Plane]
    bent: np.ndarray
    last: Any
    judged: Any
    known_by: str
    constant: np.ndarray
    given: HullConfig
    given_weights: Weights

    def __init__(self, model: Any, config: HullConfig, data: Data, parts: Parts, batch_size: int) -> None: ...
    @staticmethod
    def limits(model: Any) -> tuple[Any, Any]: ...
    def begin(self, weights: Sequence[Weights]) -> None: ...
    def go_on(self, copies: Sequence[Fold]) -> None: ...
    def mean(self, copy: int) -> Weights: ...
    def values(self, weights: Weights, x: np.ndarray) -> np.ndarray: ...
    def copies(self) -> list[Fold]: ...
    def hull(self, weights: Weights, given: bool = False) -> Any: ...
    def weights_of(self, hull: Any) -> Weights: ...
    @staticmethod
    def new(config: HullConfig, seed: int, like: Any) -> Any: ...

    @property
    def bare(self) -> HullConfig:
        """The config of what is trained: it computes in normalized units."""
        return replace(self.config, normalization=None)

    def rows_of(self, numbers: np.ndarray) -> Data:
        """Return x and y of some rows."""
        return self.data[0][numbers], self.data[1][numbers]

    def start(self) -> None:
        """Begin every copy at a plane of its own rows; none reads inputs that are constant."""
        self.last = self.judged = None
        started = []
        for rows in self.parts.train:
            x, y = spread_rows(*self.rows_of(rows))
            weights = along_spread(self.given_weights, x) if self.given.normalization is None else self.given_weights
            weights = start_at(weights, self.bare, self.values(weights, x), x, y)
            started.append({name: without_inputs(name, weight, self.constant) for name, weight in weights.items()})
        self.begin(started)

    def set_planes(self) -> None:
        """Fit the plane of every copy to its rows."""
        self.planes = [plane_of(*self.rows_of(rows), self.config) for rows in self.parts.train]

    def negate(self) -> None:
        """Change the sign of y."""
        self.data, self.rows = (self.data[0], -self.data[1]), (self.rows[0], -self.rows[1])
        self.set_planes()

    def curvature(self, schedule: Schedule) -> Curvature | None:
        """Return what short fits say of the curvature of y; None where no rows are held out."""
        if not self.judges:
            return None
        short = replace(
            schedule, steps=max(1, schedule.steps // SHORT), evaluations=EVALUATIONS // SHORT, progress=False
        )
        judged = []
        for _ in ("y", "-y"):
            self.start()
            run(self, short, None, None)
            judged.append(self.judged)
            self.negate()
        return compare_errors(*judged)

    def start_loss(self) -> float:
        x, y = spread_rows(*self.rows_of(self.parts.train[-1]))
        return float(np.mean((self.values(self.mean(-1), x) - y) ** 2))

    def held_out_loss(self) -> float | None:
        """Return the least mean squared error on the rows held out of `plane + bent (hull - plane)`; sets `bent`."""
        left, bend = [], []
        for copy, numbers in enumerate(self.parts.held_out):
            weights = self.mean(copy) if len(numbers) else {}
            for piece in pieces(len(numbers)):
                x, y = self.rows_of(numbers[piece])
                flat = self.planes[copy](x) + half_square(self.config, x)
                left.append(y - flat)
                bend.append(self.values(weights, x) - flat)
        if not left:
            return None
        flat_errors, bends = np.concatenate(left), np.concatenate(bend)
        self.bent = self.best_share(flat_errors, bends)
        errors = (flat_errors - self.bent * bends) ** 2
        self.last = Judged(errors.mean(axis=1), (flat_errors**2).mean(axis=1))
        return float(errors.mean())

    def best_share(self, left: np.ndarray, bend: np.ndarray) -> np.ndarray:
        """Return the share in [0, 1] of what is bent, (O,), drawn towards 0 where the rows say little of it.

        Source: Breiman, Better subset regression using the nonnegative garrote, Technometrics 37, 1995, for one column.

        Args:
            left: `[n, O]`, what the plane leaves; bend: what the hull has beside the plane.
        """
        if not scales_apart(self.bare, self.mean(-1)):
            left, bend = (np.broadcast_to(part.reshape(-1, 1), (part.size, len(self.bent))) for part in (left, bend))
        tiny = np.finfo(np.float64).tiny
        along, size = np.maximum(np.sum(left * bend, axis=0), tiny), np.maximum(np.sum(bend * bend, axis=0), tiny)
        noise = np.mean((left - along / size * bend) ** 2, axis=0)
        with np.errstate(over="ignore"):
            best = np.clip(along / size - GARROTE * noise / along, 0.0, 1.0)
        return best if scales(self.config) else np.full_like(best, float(2.0 * along.sum() > size.sum()))

    def batches(self, schedule: Schedule, done: int) -> Iterator[Batches]:
        """Yield row numbers (steps, copies, batch) and rates (steps,) up to each evaluation."""
        train = self.parts.train
        rate = default_rate(len(train[-1]), self.config.in_dim)
        schedule = replace(schedule, batch_size=min(schedule.batch_size, *map(len, train)))
        for parts in zip(*(schedule.batches(len(rows), done, rate) for rows in train), strict=True):
            picked = [rows[part] for rows, (part, _) in zip(train, parts, strict=True)]
            yield np.stack(picked, axis=1), parts[0][1]

    def mean_weights(self) -> Weights:
        self.judged = self.last
        return draw_back(self.mean(-1), self.bare, self.bent, self.planes[-1])

    def is_finite(self, weights: Weights) -> bool:
        return all(np.isfinite(value).all() for value in weights.values())

    def resume(self, state: FitState) -> Weights:
        if state.rows != self.known_by or len(state.folds) + 1 != len(self.parts.train):
            rule, got = "a state of the given rows, validation and seed", "one of others"
            fix = "Pass the data, validation and seed that the run was begun with."
            fail("fit", "resume", rule, got, fix)
        self.go_on([*state.folds, Fold(state.model, state.optimizer)])
        return self.weights_of(state.best)

    def state(self, history: History, best: Weights, best_step: int) -> FitState:
        *others, last = self.copies()
        return FitState(*last, history, self.hull(best), best_step, tuple(others), self.known_by)

    def result(self, best: Weights) -> Any:
        model = self.hull(best, given=True)
        check_finite(self.is_finite(self.weights_of(model)), TOO_LARGE)
        return model

    @classmethod
    def fit(
        cls,
        model: Model,
        x: Any,
        y: Any,
        *,
        validation: Data | float | None = None,
        steps: int = 2000,
        batch_size: int = 128,
        learning_rate: float | None = None,
        seed: int = 0,
        progress: bool = False,
        resume: FitState[Model] | None = None,
        on_evaluation: Callable[[FitState[Model]], bool | None] | None = None,
        shape: str | None = None,
        budget: float = 60.0,
        compare: bool = True,
    ) -> FitResult[Model]:
        """Fit a hull to data by least squares and return it; the given model stays as it is.

        It learns from all rows; beside it copies learn that hold rows out. Where these err least, it is taken: after
        how many steps, and how far between a plane (ridge regression) and the hull. So it is about as good as a plane
        where the data do not speak for more. docs/pages/fitting.md has the whole.

        A column that is constant in the rows to train on has no effect in the fitted model.
        The data are normalized; means and deviations go into the config of the fitted model, which takes and gives
        original units. A model that has a normalization keeps it; one in half precision is fitted in float32 and cast
        back.

        Args:
            model: the hull to start from, as `c f(x) + a' x + b` with the plane of ridge regression.
            x: `[rows, in_dim]`, finite, original units.
            y: `[rows, out_dim]` (or `[rows]` for one output), finite, original units.
            validation: None for folds (two rounds of five; from 500 rows on as many as hold 1,000 rows out together)
                and the rows of the largest leverage; or held-out `(x, y)`, or the share of the rows to hold out, from
                which the model then does not learn. 0 trains on every row and gives the mean of the last steps,
                whatever the start was.
            steps: steps of Adam, >= 1.
            batch_size: rows of a step, >= 1; all rows where there are fewer.
            learning_rate: peak of the schedule; None means `default_rate(rows to train on, in_dim)`.
            seed: of the batches, and of the rows to hold out.
            progress: show a bar with the loss and the time left.
            resume: where an earlier call with the same data and options stood (of the other package: read from its
                files, docs/pages/files.md): training goes on from there, and the model of it takes the place of
                `model`.
            on_evaluation: is given where training stands at each of the `EVALUATIONS`; True ends it there.
            shape: None for that of the model; "auto" tries others, and other rates, and gives back the one that errs
                least on the rows held out.
            budget: seconds for `shape="auto"`; a shape that would end after them is not begun.
            compare: whether short fits of y and of -y tell which way the rows are bent (`result.curvature`, and a
                warning where it is the other way round); two fifths of a fit more. Not after a stop, nor where the rows
                to hold out are given.

        Raises:
            TypeError, ValueError: data of the wrong shape, not finite, or too few; `resume` is of another config, of
                other rows, or at a step at which this schedule does not evaluate; `shape="auto"` with it, or without
                rows held out.
            FloatingPointError: the loss is no longer finite.

        >>> from convexmoe_torch import VectorHull, fit
        >>> rows = np.linspace(-1, 1, 64)[:, None]
        >>> fitted = fit(VectorHull(1, petals=4, out_dim=1), rows, rows**2, steps=200).model
        """
        schedule = Schedule(steps, batch_size, learning_rate, seed, progress)
        engine = cls.of(model, x, y, validation, seed, batch_size)
        if resume is not None:
            check_resumed(resume, cls.kind, engine.config)
        if shape is not None:
            check_shape(shape, budget, engine.judges, resume is None and on_evaluation is None)
        compares = compare and resume is None and validation is None
        curvature = engine.curvature(schedule) if compares else None
        hint_at(curvature)
        if shape is None:
            found = engine.train(schedule, resume, on_evaluation)
        else:
            rate = learning_rate or default_rate(len(engine.parts.train[-1]), engine.config.in_dim)

            def fit(trial: Trial) -> FitResult:
                new = model if trial.config == engine.given else cls.new(trial.config, seed, model)
                quiet = replace(schedule, progress=False, learning_rate=rate * trial.faster)
                return cls.of(new, x, y, validation, seed, batch_size).train(quiet)

            found = fit_shapes(fit, engine.given, budget, progress)
        return found._replace(curvature=curvature)

    @classmethod
    def compare_curvature(
        cls, model: Model, x: Any, y: Any, *, steps: int = 2000, batch_size: int = 128, seed: int = 0
    ) -> Curvature:
        """Return which way y is bent: what `fit` with these arguments has as `result.curvature`, without the fit.

        Args:
            model, x, y, steps, batch_size, seed: as for `fit`; a comparison takes two fifths of its time.

        Raises:
            TypeError, ValueError: data of the wrong shape, not finite, or of fewer than five rows.
            FloatingPointError: the loss is no longer finite.

        >>> from convexmoe_torch import VectorHull, compare_curvature
        >>> rows = np.linspace(0, 1, 64)[:, None]
        >>> compare_curvature(VectorHull(1, petals=4, out_dim=1), rows, np.sqrt(rows), steps=200).shown
        'concave'
        """
        found = cls.of(model, x, y, None, seed, batch_size).curvature(Schedule(steps, batch_size, None, seed))
        if found is None:
            fail("compare_curvature", "x", "five rows or more, some to hold out", str(len(x)), "Add rows.")
        return found

    def train(self, schedule: Schedule, resume: FitState | None = None, on_evaluation: Any = None) -> FitResult:
        """Train from the start, or from where an earlier run stood."""
        if resume is None:
            self.start()
        return run(self, schedule, resume, on_evaluation)._replace(judged=self.judged)

    @property
    def judges(self) -> bool:
        """Whether there are rows held out."""
        return any(map(len, self.parts.held_out))

    @classmethod
    def of(cls, model: Any, x: Any, y: Any, validation: Any, seed: int, batch_size: int) -> Any:
        """Return the engine of a fit, all that it is given checked and in normalized units."""
        if not isinstance(model, cls.kind):
            rule, got = (f"{k.__module__.partition('.')[0]}.{k.__name__}" for k in (cls.kind, type(model)))
            fail("fit", "model", f"a {rule}", got, "Pass such a model.", TypeError)
        given: HullConfig = model.config  # type: ignore[attr-defined]
        (x, y), parts = held_out_data(*check_data("x", x, y, given), validation, given, seed)
        known_by = fingerprint(x, y, *(() if parts is None else parts.held_out), np.array([seed]))
        learned = slice(None) if parts is None else parts.train[-1]
        constant = np.zeros(given.in_dim, bool)
        if given.normalization is None:
            constant = x[learned].min(axis=0) == x[learned].max(axis=0)
            x[:, constant] = x[learned][0, constant]  # 0 in training, whatever it is in rows held out
        normalization = given.normalization or normalization_of(x[learned], y[learned], *cls.limits(model))
        data = normalize_rows(x, y, normalization)
        parts = folds(data[0], seed) if parts is None else parts
        engine = cls(model, replace(given, normalization=normalization), data, parts, batch_size)
        engine.known_by, engine.constant, engine.bent = known_by, constant, np.ones(given.out_dim)
        engine.given, engine.given_weights = given, engine.weights_of(model)
        engine.last = engine.judged = None
        engine.set_planes()
        return engine


def hint_at(curvature: Curvature | None) -> None:
    """Warn where a convex function is the wrong way round."""
    if curvature is not None and curvature.shown == CONCAVE:
        text = f"fit.y: expected a convex function; got rows that speak for another: {curvature.words()}. "
        warnings.warn(text + "Fit a hull to -y, and take its negative.", stacklevel=3)


def check_shape(shape: str, budget: Any, judges: bool, is_whole: bool) -> None:
    """Check the options of a choice of shapes."""
    one_of("fit", "shape", shape, (AUTO,))
    if isinstance(budget, bool) or not isinstance(budget, Real):
        fail("fit", "budget", "seconds", repr(budget), "Pass 60.0, for example.", TypeError)
    if not judges:
        fail("fit", "shape", "rows held out, to judge by", "none", "Leave validation out, and give five rows or more.")
    if not is_whole:
        fail("fit", "shape", "neither resume nor on_evaluation beside it", "one of them", "Choose the shape first.")


def plane_of(x: np.ndarray, y: np.ndarray, config: HullConfig) -> Plane:
    """Return the plane of ridge regression through rows, beside which a hull has its strong convexity."""
    return ridge(x, y - half_square(config, x))


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
