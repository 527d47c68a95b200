"""`fit` for both packages: what it is given, checked, and in which order things happen."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from numbers import Real
from typing import Any, Protocol

import numpy as np

from ..errors import describe, fail, one_of
from ..hull.config import HullConfig
from .curvature import NEITHER, Curvature
from .data import Data, check_data, fingerprint, held_out_data, normalization_of, normalize_rows, spread_of
from .hull_engine import HullEngine
from .losses import SQUARED, Quantile, check_loss, names_of, objective_of
from .parts import Parts, first_copies, folds
from .run import FitResult, FitState, Model
from .schedule import Schedule
from .shapes import AUTO, Trial, fit_shapes
from .stream import Draws, Stream, Survey


class HullFit(HullEngine, Protocol):
    """A fit of a hull in a package, which completes it with what computes."""

    @classmethod
    def fit(
        cls,
        model: Model,
        x: Any,
        y: Any = None,
        context: Any = None,
        sample_weight: Any = None,
        loss: Any = SQUARED,
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
        """Fit a hull to data and return it; the given model stays as it is.

        It learns from all rows; beside it copies learn that hold rows out. Where these err least, it is taken: after
        how many steps, and how far between a plane (ridge regression) and the hull. So it is about as good as a plane
        where the data do not speak for more. docs/pages/fitting.md has the whole.

        A column that is constant in the rows to train on has no effect in the fitted model.
        The data are normalized; means and deviations go into the config of the fitted model, which takes and gives
        original units. A model that has a normalization keeps it; one in half precision is fitted in float32 and cast
        back.

        Args:
            model: the hull to start from, as `c f(x) + a' x + b` with the plane of ridge regression.
            x: `[rows, in_dim]`, finite, original units; or a `Stream` of rows that do not fit into memory, beside which
                y, context and sample_weight are None. Start, comparisons and rows held out are then of its sample, and
                the units of all rows; one copy learns, from all rows but a fifth of the sample (docs/pages/scale.md).
            y: `[rows, out_dim]` (or `[rows]` for one output), finite, original units.
            context: `[rows, context_dim]` for a hull that has one, finite, original units.
            sample_weight: `[rows]`, >= 0: how much each row counts in the loss; None for alike.
            loss: "squared", "absolute", `Huber(delta)`, `Quantile(level)`, `Expectile(level)`, or a function of the
                framework's arrays in original units: (prediction, y) -> the losses, of their shape, differentiable.
            validation: None for folds (two rounds of five; from 500 rows on as many as hold 1,000 rows out together)
                and the rows of the largest leverage; or held-out `(x, y)`, with a
                context `(x, y, context)`, or the share of the rows to hold out, from
                which the model then does not learn. 0 trains on every row and gives the mean of the last steps,
                whatever the start was. Of a `Stream` no share.
            steps: steps of Adam, >= 1.
            batch_size: rows of a step, >= 1; all rows where there are fewer.
            learning_rate: peak of the schedule; None means `default_rate(rows to train on, in_dim)`.
            seed: of the batches, and of the rows to hold out.
            progress: show a bar with the loss and the time left.
            resume: where an earlier call with the same data and options stood (of the other package: read from its
                files, docs/pages/files.md): training goes on from there, and the model of it takes the place of
                `model`.
            on_evaluation: is given where training stands at each of the `EVALUATIONS`; True ends it there.
            shape: None for that of the model; "auto" tries others, another activation, other rates and more steps, and
                gives back what errs least on the rows held out.
            budget: seconds for `shape="auto"`, finite and above 0; a shape that would end after them is not begun.
            compare: whether short fits of y and of -y tell which way the rows are bent (`result.curvature`, and a
                warning where it is the other way round); two fifths of a fit more. Not after a stop, nor where the rows
                to hold out are given.

        Raises:
            TypeError, ValueError: data of the wrong shape, not finite, or too few; `resume` is of another config, of
                other rows or other options; `shape="auto"` with it, or without rows held out.
            FloatingPointError: the loss is no longer finite.

        >>> from convexmoe_torch import VectorHull, fit
        >>> rows = np.linspace(-1, 1, 64)[:, None]
        >>> fitted = fit(VectorHull(1, petals=4, out_dim=1), rows, rows**2, steps=200).model
        """
        schedule = Schedule(steps, batch_size, learning_rate, seed, progress)
        given = (x, y, context, sample_weight)
        engine = cls.of(model, given, check_loss(loss), validation, seed, batch_size)
        if resume is not None:
            check_resumed(resume, cls.kind, engine.whole)
        if shape is not None:
            if isinstance(x, Stream):
                fix = "Choose it first, by rows that fit into memory."
                fail("fit", "shape", "None beside a Stream", repr(shape), fix)
            check_shape(shape, budget, engine.judges, resume is None and on_evaluation is None)
        compares = compare and resume is None and validation is None
        curvature = engine.curvature(schedule) if compares else None
        hint_at(curvature, engine.whole)
        if shape is None:
            found = engine.train(schedule, resume, on_evaluation)
        else:
            rate = learning_rate or engine.default_rate()

            def fit(trial: Trial) -> FitResult:
                new = model if trial.config == engine.given else cls.new(trial.config, seed, model)
                quiet = replace(schedule, progress=False, learning_rate=rate * trial.faster, steps=steps * trial.longer)
                return cls.of(new, given, loss, validation, seed, batch_size).train(quiet)

            found = fit_shapes(fit, engine.given, budget, progress)
        return found._replace(curvature=curvature)

    @classmethod
    def compare_curvature(
        cls,
        model: Model,
        x: Any,
        y: Any,
        context: Any = None,
        *,
        steps: int = 2000,
        batch_size: int = 128,
        seed: int = 0,
    ) -> Curvature:
        """Return which way y is bent: what `fit` with these arguments has as `result.curvature`, without the fit.

        Args:
            model, x, y, context, steps, batch_size, seed: as for `fit`; a comparison takes two fifths of its time.

        Raises:
            TypeError, ValueError: data of the wrong shape, not finite, or of fewer than five rows.
            FloatingPointError: the loss is no longer finite.

        >>> from convexmoe_torch import VectorHull, compare_curvature
        >>> rows = np.linspace(0, 1, 64)[:, None]
        >>> compare_curvature(VectorHull(1, petals=4, out_dim=1), rows, np.sqrt(rows), steps=200).shown
        'concave'
        """
        engine = cls.of(model, (x, y, context, None), SQUARED, None, seed, batch_size)
        if engine.config.signs is not None or engine.config.nonnegative:
            rule, fix = "a hull that says nothing of signs", "Leave out monotone and nonnegative."
            fail("compare_curvature", "model", rule, "monotone or nonnegative", fix)
        found = engine.curvature(Schedule(steps, batch_size, None, seed))
        if found is None:
            fail("compare_curvature", "x", "five rows or more, some to hold out", str(len(x)), "Add rows.")
        return found

    @classmethod
    def of(cls, model: Any, rows: tuple, loss: Any, validation: Any, seed: int, batch_size: int) -> Any:
        """Return the engine of a fit, all that it is given checked and in normalized units."""
        if not isinstance(model, cls.kind):
            rule, got = (f"{k.__module__.partition('.')[0]}.{k.__name__}" for k in (cls.kind, type(model)))
            fail("fit", "model", f"a {rule}", got, "Pass such a model.", TypeError)
        given: HullConfig = model.config  # type: ignore[attr-defined]
        turned, sign = given.is_concave, -1 if given.is_concave else 1
        config = given.negate() if turned else given
        survey, (x, target), parts, unseen = read_rows(rows, validation, given, seed)
        seeds = (np.array([seed]), *names_of(loss))
        passes = () if survey is None else (np.array([survey.rows, survey.checksum, rows[0].rows]),)
        known_by = fingerprint(x, target, *(() if parts is None else parts.held_out), *seeds, *passes)
        if turned:
            target[:, : given.out_dim] *= -1.0
        if given.nonnegative and (target[:, : given.out_dim].mean(axis=0) <= 0).any():
            side = "below" if turned else "above"
            fix = "Leave nonnegative out: it keeps convex hulls >= 0 and concave ones <= 0."
            fail("fit", "y", f"a mean {side} 0 for such a nonnegative hull", "one that is not", fix)
        learned = slice(None) if parts is None else parts.train[-1]
        if survey is None:
            columns, targets = spread_of(x[learned]), spread_of(target[learned][:, : given.out_dim])
        else:
            columns, targets = survey.columns, survey.targets.negate() if turned else survey.targets
        constant = np.zeros(x.shape[1], bool)
        if given.normalization is None:
            constant = columns.constant
            x[:, constant] = columns.low[constant]  # 0 in training, whatever it is in rows held out
        if isinstance(loss, Quantile) and min(loss.level, 1.0 - loss.level) * columns.rows < 1.0:
            got, fix = f"{columns.rows} in all", "Give more rows, or a level nearer to 0.5."
            warnings.warn(f"fit.loss: expected a row beyond the level {loss.level:g}; got {got}. {fix}", stacklevel=4)
        normalization = config.normalization or normalization_of(columns, targets, config, *cls.limits(model))
        data = normalize_rows(x, target, normalization)
        parts = folds(data[0], seed, first_copies(*data)) if parts is None else parts
        objective = objective_of(loss, normalization, sign)
        engine = cls(model, replace(config, normalization=normalization), objective, data, parts, batch_size)
        engine.known_by, engine.num_copies, engine.constant = known_by, len(parts.train), constant
        engine.given, engine.given_weights, engine.turned = given, engine.weights_of(model), turned
        engine.last, engine.judged, engine.draws, engine.bent = None, None, None, np.ones(given.out_dim)
        engine.new_draws = None if survey is None else partial(Draws, rows[0], given, unseen, seed)
        engine.set_planes()
        return engine


def read_rows(
    rows: tuple, validation: Any, config: HullConfig, seed: int
) -> tuple[Survey | None, Data, Parts | None, np.ndarray]:
    """Return the rows in memory, which are for what (None for folds), and of a stream its survey and the rows held out.

    Args:
        rows: x, y, context and weights, or a `Stream` and None; validation, seed: of `fit`; config: of the hull.
    """
    x, y, context, weight = rows
    if not isinstance(x, Stream):
        if y is None:
            fix = "Pass them, or batches of rows as fit(model, Stream(batches))."
            fail("fit", "y", "targets beside x", "None", fix, TypeError)
        data = check_data("x", x, y, config, context, weight)
        return None, *held_out_data(*data, validation, config, seed), np.empty(0, np.int64)
    for name, value in (("y", y), ("context", context), ("sample_weight", weight)):
        if value is not None:
            fail("fit", name, "None beside a Stream", describe(value), "Put it into the batches of the Stream.")
    survey = x.survey(config)
    return survey, *survey.hold_out(validation, config, seed)


def hint_at(curvature: Curvature | None, config: HullConfig) -> None:
    """Warn where a function is the wrong way round."""
    if curvature is not None and curvature.shown not in (NEITHER, config.curvature):
        text = f"fit.y: expected a {config.curvature} function; got rows that speak for {curvature.words()}. "
        warnings.warn(f'{text}Build the hull with curvature="{curvature.shown}".', stacklevel=3)


def check_shape(shape: str, budget: Any, judges: bool, is_whole: bool) -> None:
    """Check the options of a choice of shapes."""
    one_of("fit", "shape", shape, (AUTO,))
    kind = TypeError if isinstance(budget, bool) or not isinstance(budget, Real) else ValueError
    if kind is TypeError or not 0 < budget < math.inf:
        fail("fit", "budget", "a finite number of seconds above 0", repr(budget), "Pass 60.0, for example.", kind)
    if not judges:
        fail("fit", "shape", "rows held out, to judge by", "none", "Leave validation out, and give five rows or more.")
    if not is_whole:
        fail("fit", "shape", "neither resume nor on_evaluation beside it", "one of them", "Choose the shape first.")


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
