"""What a fit of a hull computes beside its steps, for both packages: starts, errors on the rows held out, choices.

Copies of the hull on parts of the rows are trained side by side; they choose how long to train and how bent. Rows,
parts, starts and choices are computed by numpy in float64, so that the same call trains the same model in both
packages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..hull.config import HullConfig
from .curvature import Curvature, Judged, compare_errors
from .data import Data, normalize_rows
from .history import History
from .losses import Objective
from .parts import Parts
from .run import Engine, FitResult, FitState, Fold, check_finite, pieces, run
from .schedule import EVALUATIONS, Batches, Schedule, default_rate
from .start import (
    Plane,
    Weights,
    along_spread,
    draw_back,
    fit_plane,
    half_square,
    ignore_columns,
    inverse_softplus,
    scales,
    scales_apart,
    spread_rows,
    start_at,
    tilt,
)
from .stream import Draws, Position

GARROTE = 4.0  # in units of the variance of the share: the best of forty evaluations is a lucky one, too
SHARES = np.linspace(0.0, 1.0, 21)  # that are tried where none is best in closed form
SHORT = 5  # times shorter is a fit that only compares
CONTEXT_RATE = 0.03  # at most, where weights are multiplied by functions of a context
LEAST_OUTPUT = 0.05  # of a non-negative hull at the start, in deviations of y
TOO_LARGE = "Fit a float32 model: these are too large for the dtype."


class HeldOut(NamedTuple):
    """What is known of the rows held out, in normalized units.

    Args:
        target: `[n, O]`, or with weights `[n, O + 1]`; square: `[n, 1]`, what strong convexity gives.
        flat: `[n, O]`, what the plane says; bend: `[n, O]`, what the hull has beside it.
    """

    target: np.ndarray
    square: np.ndarray
    flat: np.ndarray
    bend: np.ndarray


def best_share(rows: HeldOut, outputs: int, together: bool, any_share: bool) -> np.ndarray:
    """Return the share in [0, 1] of what is bent, (O,), drawn towards 0 where the rows say little of it.

    Source: Breiman, Better subset regression using the nonnegative garrote, Technometrics 37, 1995, for one column.

    Args:
        rows: those held out; the loss is the square.
        outputs: O; together: whether they have one share; any_share: whether it may be other than 0 and 1.
    """
    left, bend = rows.target[:, :outputs] - rows.square - rows.flat, rows.bend
    if rows.target.shape[1] > outputs:
        root = np.sqrt(rows.target[:, outputs:])
        left, bend = root * left, root * bend
    if together:
        left, bend = (np.broadcast_to(part.reshape(-1, 1), (part.size, outputs)) for part in (left, bend))
    tiny = np.finfo(np.float64).tiny
    along, size = np.maximum(np.sum(left * bend, axis=0), tiny), np.maximum(np.sum(bend * bend, axis=0), tiny)
    noise = np.mean((left - along / size * bend) ** 2, axis=0)
    with np.errstate(over="ignore"):
        best = np.clip(along / size - GARROTE * noise / along, 0.0, 1.0)
    return best if any_share else np.full_like(best, float(2.0 * along.sum() > size.sum()))


def best_share_of_loss(
    losses: Callable[[HeldOut, np.ndarray], np.ndarray], rows: HeldOut, together: bool, any_share: bool
) -> np.ndarray:
    """Return what `best_share` does for any loss: the best of `SHARES`, drawn towards 0 likewise.

    The square of the share over its deviation is twice the gain in log-likelihood of rows whose loss is its scale.

    Args:
        losses: (rows, share) -> `[n, O]`; rows, together, any_share: as for `best_share`.
    """
    shares = SHARES if any_share else SHARES[[0, -1]]
    means = np.stack([losses(rows, np.full(rows.flat.shape[1], share)).mean(axis=0) for share in shares])
    if together or not any_share:
        means = np.repeat(means.mean(axis=1, keepdims=True), means.shape[1], axis=1)
    best, least = shares[means.argmin(axis=0)], np.maximum(means.min(axis=0), np.finfo(np.float64).tiny)
    if not any_share:
        return best
    gain = len(rows.flat) * np.log(np.maximum(means[0], least) / least)
    return best * (1.0 - GARROTE / np.maximum(gain, GARROTE))


class HullEngine(Engine, Protocol):
    """What a package does in a fit, for all copies of the hull at once; the last one becomes the model.

    A concave hull is fitted as a convex one to -y, and a non-negative one with its plane inside the softplus.

    Attributes:
        kind: the class of its hulls.
        config: of the hull that is fitted, convex; bare: the same without units; inner: without the softplus either.
        turned: whether the fitted hull is minus that one.
        objective: what is minimized.
        data: columns and targets of all rows (`data.py`), normalized, float64.
        parts: the rows of each copy; planes: the plane of each.
        bent: `[O]`, the share of what is bent that the last evaluation chose.
        last, judged: the errors of the last evaluation, and of the best, on the rows held out; None without any.
        constant: `bool[D]`, the inputs that are constant in those to train on.
        given, given_weights: config and weights of the hull to start from; one without units is new.
        new_draws: of a stream: a position -> where the rows of the steps come from; data is then its sample. Else None.
        draws: where they come from now; None where they are those of data, as in comparisons.

    Methods:
        limits: returns `finfo` of the dtype in training, and of that of a model.
        begin: sets the weights of each copy, with fresh states of Adam, or those of an earlier run.
        mean: returns the mean weights of a copy since the evaluation before.
        array: returns numbers as an array of the framework, in the dtype of training.
        measure_by_function: returns what the objective says of arrays of the framework.
        values: returns the values `[N, O]` of the `inner` hull with other weights at normalized columns `[N, D + C]`.
        copies: returns the weights of each copy, as hulls in the units of the data, and its state of Adam.
        hull: returns a hull of weights in the dtype of training, or in that of the given model.
        new: returns a new hull of the dtype of another, with weights drawn from a seed.
    """

    kind: type
    rows: Any
    config: HullConfig
    turned: bool
    objective: Objective
    data: Data
    parts: Parts
    planes: Sequence[Plane]
    bent: np.ndarray
    last: Any
    judged: Any
    constant: np.ndarray
    given: HullConfig
    given_weights: Weights
    new_draws: Callable[[Position | None], Draws] | None
    draws: Draws | None

    def __init__(
        self, model: Any, config: HullConfig, objective: Objective, data: Data, parts: Parts, batch_size: int
    ) -> None: ...
    @staticmethod
    def limits(model: Any) -> tuple[Any, Any]: ...
    def begin(self, weights: Sequence[Weights]) -> None: ...
    def go_on(self, copies: Sequence[Fold]) -> None: ...
    def mean(self, copy: int) -> Weights: ...
    def array(self, value: np.ndarray) -> Any: ...
    def measure_by_function(self, prediction: np.ndarray, target: np.ndarray) -> np.ndarray: ...
    def values(self, weights: Weights, x: np.ndarray) -> np.ndarray: ...
    def copies(self) -> list[Fold]: ...
    def hull(self, weights: Weights, given: bool = False) -> Any: ...
    def weights_of(self, hull: Any) -> Weights: ...
    @staticmethod
    def new(config: HullConfig, seed: int, like: Any) -> Any: ...

    @cached_property
    def bare(self) -> HullConfig:
        """The config of what is trained: it computes in normalized units."""
        return replace(self.config, normalization=None)

    @cached_property
    def inner(self) -> HullConfig:
        """The config of what scaling and tilting leave a hull: inside the softplus of a non-negative one."""
        return replace(self.bare, nonnegative=False)

    @property
    def whole(self) -> HullConfig:
        """The config of the fitted hull."""
        return self.config.negate() if self.turned else self.config

    def rows_of(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return columns, y and weights of some rows."""
        return self.split(self.data[0][numbers], self.data[1][numbers])

    def split(self, x: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return columns, y and weights, the last None where rows have none."""
        O = self.config.out_dim
        return x, target[:, :O], target[:, O] if target.shape[1] > O else None

    def inside(self, y: np.ndarray) -> np.ndarray:
        """Return what the softplus of a non-negative hull makes y of, y itself for others."""
        return inverse_softplus(np.maximum(y, LEAST_OUTPUT)) if self.config.nonnegative else y

    def outside(self, value: np.ndarray) -> np.ndarray:
        """Return the inverse of `inside`."""
        return np.logaddexp(value, 0.0) if self.config.nonnegative else value

    def start(self) -> None:
        """Begin every copy at a plane of its own rows; none reads columns that are constant."""
        self.last = self.judged = None
        started, D = [], self.config.in_dim
        for rows in self.parts.train:
            x, y, weight = self.split(*spread_rows(self.data[0][rows], self.data[1][rows]))
            square = half_square(self.config, x)
            weights = self.given_weights
            if self.given.normalization is None:
                weights = along_spread(weights, x[:, :D], self.config)
            y = square + self.inside(y - square)
            weights = start_at(weights, self.inner, self.values(weights, x), x, y, self.objective, weight)
            started.append(ignore_columns(weights, self.config, self.constant))
        self.begin(started)

    def set_planes(self) -> None:
        """Fit the plane of every copy to its rows."""
        planes = []
        for rows in self.parts.train:
            x, y, weight = self.rows_of(rows)
            y = self.inside(y - half_square(self.config, x))
            planes.append(fit_plane(x, y, self.objective, weight, self.config))
        self.planes = planes

    def negate(self) -> None:
        """Change the sign of y."""
        x, target = self.data
        sign = np.ones(target.shape[1])
        sign[: self.config.out_dim] = -1.0
        self.data, self.objective = (x, target * sign), self.objective.negate()
        self.rows = (self.rows[0], self.array(self.data[1]))
        self.set_planes()

    def curvature(self, schedule: Schedule) -> Curvature | None:
        """Return what short fits say of the curvature of y; None without rows held out, or where signs are given."""
        if not self.judges or self.config.signs is not None or self.config.nonnegative:
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
        return compare_errors(*reversed(judged)) if self.turned else compare_errors(*judged)

    def start_loss(self) -> float:
        x, target = spread_rows(*(part[self.parts.train[-1]] for part in self.data))
        square = half_square(self.config, x)
        y = square + self.outside(self.values(self.mean(-1), x) - square)
        return float(np.mean(self.measure(y, target)))

    def held_out_loss(self) -> float | None:
        """Return the least mean loss on the rows held out of `plane + bent (hull - plane)`; sets `bent`."""
        parts = []
        for copy, numbers in enumerate(self.parts.held_out):
            weights = self.mean(copy) if len(numbers) else {}
            for piece in pieces(len(numbers)):
                x, target = (part[numbers[piece]] for part in self.data)
                square, flat = half_square(self.config, x), self.planes[copy](x)
                parts.append((target, square, flat, self.values(weights, x) - square - flat))
        if not parts:
            return None
        held_out = HeldOut(*map(np.concatenate, zip(*parts, strict=True)))
        together = not scales_apart(self.bare, self.mean(-1))
        if self.objective.is_squared and not self.config.nonnegative:
            self.bent = best_share(held_out, self.config.out_dim, together, scales(self.config))
        else:
            self.bent = best_share_of_loss(self.losses, held_out, together, scales(self.config))
        losses = self.losses(held_out, self.bent)
        self.last = Judged(losses.mean(axis=1), self.losses(held_out, 0.0 * self.bent).mean(axis=1))
        return float(losses.mean())

    def losses(self, rows: HeldOut, share: np.ndarray) -> np.ndarray:
        """Return the loss of each row held out and output, `[n, O]`, at a share of what is bent."""
        return self.measure(rows.square + self.outside(rows.flat + share * rows.bend), rows.target)

    def measure(self, prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Return the loss of each prediction, `[n, O]`, in numpy but for a function of the framework's arrays."""
        if self.objective.is_function:
            return self.measure_by_function(prediction, target)
        return self.objective(prediction, target)

    def batches(self, schedule: Schedule, done: int) -> Iterator[Batches]:
        """Yield row numbers (steps, copies, batch) and rates (steps,) up to each evaluation; of a stream no numbers."""
        train = self.parts.train
        rate = self.default_rate()
        if self.draws is not None:
            yield from self.stream_batches(schedule, done, rate, 1)
            return
        schedule = replace(schedule, batch_size=min(schedule.batch_size, *map(len, train)))
        for parts in zip(*(schedule.batches(len(rows), done, rate) for rows in train), strict=True):
            picked = [rows[part] for rows, (part, _) in zip(train, parts, strict=True)]
            yield np.stack(picked, axis=1), parts[0][1]

    def arrays(self, x: np.ndarray, y: np.ndarray) -> Any:
        units = self.config.normalization
        assert units is not None  # of a fit
        if self.turned:
            y[:, : self.config.out_dim] *= -1.0
        x, y = normalize_rows(x, y, units)
        return self.array(x), self.array(y)

    def default_rate(self) -> float:
        """Return the peak learning rate where none is given."""
        rows = len(self.parts.train[-1]) if self.draws is None else self.draws.rows
        rate = default_rate(rows, self.config.in_dim + self.config.context_dim)
        return min(rate, CONTEXT_RATE) if self.config.context_dim else rate

    def mean_weights(self) -> Weights:
        self.judged = self.last
        return draw_back(self.mean(-1), self.inner, self.bent, self.planes[-1])

    def is_finite(self, weights: Weights) -> bool:
        return all(np.isfinite(value).all() for value in weights.values())

    def resume(self, state: FitState) -> Weights:
        self.go_on([*state.folds, Fold(state.model, state.optimizer)])
        return self.weights_of(state.best)

    def state(self, history: History, best: Weights, best_step: int) -> FitState:
        *others, last = self.copies()
        return FitState(*last, history, self.hull(best), best_step, tuple(others))

    def center(self, weights: Weights) -> Weights:
        """Return weights with the offsets at which the loss of the rows to train on is least: a level is met there.

        Least squares are left as they are, and so are functions, which may have several minima.
        """
        if self.objective.is_squared or self.objective.is_function or self.config.nonnegative:
            return weights
        x, target = (part[self.parts.train[-1]] for part in self.data)
        values = np.concatenate([self.values(weights, x[piece]) for piece in pieces(len(x))])
        outputs = self.config.out_dim
        offset = self.objective.best_offset(target[:, :outputs] - values, target[:, outputs:])
        return tilt(weights, self.inner, np.ones_like(offset), np.zeros((x.shape[1], len(offset))), offset)

    def result(self, best: Weights) -> Any:
        model = self.hull(self.center(best), given=True)
        check_finite(self.is_finite(self.weights_of(model)), TOO_LARGE)
        return model

    def train(self, schedule: Schedule, resume: FitState | None = None, on_evaluation: Any = None) -> FitResult:
        """Train from the start, or from where an earlier run stood."""
        if self.new_draws is not None:
            self.draws = self.new_draws(None if resume is None else resume.position)
        if resume is None:
            self.start()
        return run(self, schedule, resume, on_evaluation)._replace(judged=self.judged)

    @property
    def judges(self) -> bool:
        """Whether there are rows held out."""
        return any(map(len, self.parts.held_out))
