"""Fitting by mean squared error: one train step, the loop around it, and `fit` for a hull.

Data, batches, learning rates and stopping are computed by numpy in float64, so that the same call trains the
same model in both packages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from convexmoe.errors import fail, one_of
from convexmoe.hull.config import HullConfig
from convexmoe.training.data import (
    check_held_out,
    check_resumed,
    checked_data,
    split,
    standardisation,
    standardised,
)
from convexmoe.training.schedule import (
    ADAM_DECAYS,
    HELD_OUT,
    Data,
    History,
    Record,
    checked_schedule,
    chunks,
    default_rate,
)
from convexmoe.training.starts.affine import Weights, spread_rows
from convexmoe.training.starts.choose import STARTS, started

from ..files.optimizer import OptimizerState, optimizer_state, restored
from ..hull.module import VectorHull, apply, flatten, nest
from ..hull.petals import Tree
from .optimizers import scale_by_adam

LARGEST_NORM = 1.0
FLOAT32 = "Fit a float32 model: these are too large for the dtype."
ADAM = scale_by_adam(*ADAM_DECAYS)


class FitResult(NamedTuple):
    """What `fit` returns.

    Args:
        model: the fitted hull, in the units of the data.
        history: its losses.
        best_step: the last of the steps whose mean weights the model has.
    """

    model: VectorHull
    history: History
    best_step: int


class FitState(NamedTuple):
    """Where `fit` stands after an evaluation: what it needs to go on, in either package.

    Args:
        model: the hull with the weights of this step, in the units of the data.
        optimizer: the state of Adam, which `save(model, path, optimizer=optimizer)` takes.
        history: the losses so far.
        best: the hull with the best weights so far, a mean over steps; best_step: the last of them.
    """

    model: VectorHull
    optimizer: OptimizerState
    history: History
    best: VectorHull
    best_step: int


class Trained(NamedTuple):
    """What `train` returns: the best mean weights, the losses, the last step of that mean."""

    params: Any
    history: History
    best_step: int


class Progress(NamedTuple):
    """Where `train` stands after an evaluation: what it needs to go on.

    Args:
        params: the weights.
        optimizer: the state of `ADAM`.
        history: the losses so far.
        best, best_step: the best mean weights so far, and the last of their steps.
    """

    params: Any
    optimizer: Any
    history: History
    best: Any
    best_step: int


def clipped(grads: Any) -> Any:
    """Return the gradients scaled to a global norm of `LARGEST_NORM` at most."""
    norm = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(grads)))
    factor = jnp.minimum(LARGEST_NORM / (norm + 1e-6), 1.0)
    return jax.tree.map(lambda g: g * factor, grads)


def train_step(model: Callable[[Any, jax.Array], jax.Array], carry: Any, batch: Any) -> tuple[Any, jax.Array]:
    """Take one step of Adam on the mean squared error; returns the new carry and the loss before it.

    Args:
        model: `(params, x) -> y`, pure.
        carry: params and the state of `ADAM`.
        batch: x, y and the learning rate.
    """
    params, state = carry
    x, y, learning_rate = batch
    loss, grads = jax.value_and_grad(lambda p: mean_squared_error(model(p, x), y))(params)
    directions, state = ADAM.update(clipped(grads), state)
    return (jax.tree.map(lambda p, d: p - learning_rate.astype(p.dtype) * d, params, directions), state), loss


def mean_squared_error(prediction: jax.Array, y: jax.Array) -> jax.Array:
    """Return the mean over rows and coordinates of the squared error."""
    return jnp.mean((prediction - y) ** 2)


@partial(jax.jit, static_argnames="model", donate_argnames="carry")
def _train_steps(
    model: Any, carry: Any, x: jax.Array, y: jax.Array, rows: jax.Array, rates: jax.Array
) -> Any:
    """Take one step for each line of `rows` (steps, batch); return the carry, the mean weights and the losses."""

    def body(carry: Any, step: Any) -> Any:
        (params, state), mean = carry
        picked, rate, share = step
        (params, state), loss = train_step(model, (params, state), (x[picked], y[picked], rate))
        mean = jax.tree.map(lambda m, p: m + share.astype(p.dtype) * (p - m), mean, params)
        return ((params, state), mean), loss

    shares = 1.0 / jnp.arange(1, len(rows) + 1)
    zeros = jax.tree.map(jnp.zeros_like, carry[0])
    (carry, mean), losses = jax.lax.scan(body, (carry, zeros), (rows, rates, shares))
    return carry, mean, losses


@partial(jax.jit, static_argnames="model")
def _loss(model: Any, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return mean_squared_error(model(params, x), y)


def train(
    model: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    x: np.ndarray,
    y: np.ndarray,
    *,
    validation: Data | None = None,
    steps: int = 2000,
    batch_size: int = 128,
    learning_rate: float | None = None,
    seed: int = 0,
    progress: bool = False,
    resume: Progress | None = None,
    on_evaluation: Callable[[Progress], bool | None] | None = None,
) -> Trained:
    """Minimise the mean squared error of any model by Adam, with warm-up, cosine decay and clipping.

    What is evaluated and returned is the mean of the weights since the evaluation before.

    Source: Polyak and Juditsky, Acceleration of stochastic approximation by averaging, SIAM J. Control Optim. 30, 1992.
    Differs from the source: the mean begins anew at each of the `EVALUATIONS`.

    Args:
        model: `(params, x) -> y`, pure and hashable; a new function compiles anew.
        params: pytree of arrays of one dtype.
        x, y: `[rows, ...]`, standardised.
        validation: the same for held-out rows: the best weights by its loss are returned, and training
            stops when `PATIENCE` of the `EVALUATIONS` have brought none.
        steps, batch_size, learning_rate, seed, progress: as for `fit`.
        resume: where an earlier call with the same data and schedule stood; its weights replace `params`.
        on_evaluation: is given where training stands; True ends it there.

    Raises:
        ValueError: the step of `resume` is none at which this schedule evaluates.
        FloatingPointError: the loss is no longer finite.
    """
    learning_rate = checked_schedule(steps, batch_size, learning_rate, seed)
    dtype = jax.tree.leaves(params)[0].dtype
    x_train, y_train = jnp.asarray(x, dtype), jnp.asarray(y, dtype)
    held_out = None if validation is None else tuple(jnp.asarray(part, dtype) for part in validation)
    start = (params, ADAM.init(params)) if resume is None else (resume.params, resume.optimizer)
    carry = jax.tree.map(jnp.array, start)  # a copy: the carry is donated
    record = Record(steps, progress, resume)

    def held_loss(params: Any) -> float | None:
        return None if held_out is None else float(_loss(model, params, *held_out))

    with record.bar:
        if resume is None:
            record.add(0, float(_loss(model, params, *spread_rows(x_train, y_train))), held_loss(params))
            record.best = params
        for rows, rates in chunks(len(x), steps, batch_size, learning_rate, seed, record.step):
            if record.finished:
                break
            carry, mean, losses = _train_steps(
                model, carry, x_train, y_train, jnp.asarray(rows), jnp.asarray(rates, dtype)
            )
            if record.add(len(rows), float(jnp.mean(losses)), held_loss(mean)):
                record.best = jax.tree.map(np.array, mean)
            if on_evaluation is not None:
                weights, state = jax.tree.map(np.array, carry)
                if on_evaluation(Progress(weights, state, record.history, record.best, record.best_step)):
                    break
    check_finite(all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(record.best)))
    return Trained(jax.tree.map(jnp.asarray, record.best), record.history, record.best_step)


@dataclass(frozen=True)
class HullFunction:
    """A hull as `(params, x) -> y`; equal configs are one function to jit."""

    config: HullConfig

    def __call__(self, params: Tree, x: jax.Array) -> jax.Array:
        return apply(params, x, self.config)


def fit(
    model: VectorHull,
    x: np.ndarray,
    y: np.ndarray,
    *,
    validation: Data | float = HELD_OUT,
    steps: int = 2000,
    batch_size: int = 128,
    learning_rate: float | None = None,
    seed: int = 0,
    start: str | None = None,
    progress: bool = False,
    resume: FitState | None = None,
    on_evaluation: Callable[[FitState], bool | None] | None = None,
) -> FitResult:
    """Fit a hull to data by least squares and return it; the given model stays as it is.

    The data are standardised; means and deviations go into the config of the fitted model, which takes and
    gives original units. A model that has a normalization keeps it; one in half precision is fitted in float32
    and cast back.

    Args:
        model: the hull to start from.
        x: `[rows, in_dim]`, finite, original units.
        y: `[rows, out_dim]` (or `[rows]` for one output), finite, original units.
        validation: held-out `(x, y)`, or the share of the rows to hold out: they choose the best step, from the start
            on, and stop early. 0 trains on every row and gives the mean of the last steps, whatever the start was.
        steps: steps of Adam, >= 1.
        batch_size: rows a step, >= 1; all rows where there are fewer.
        learning_rate: peak of the schedule; None means `default_rate(rows to train on, in_dim)`.
        seed: of the batches, and of the rows to hold out.
        start: "affine": the given hull f as `c f(x) + a' x + b` with the least squares; "sums": the same plus a sum of
            convex functions of one input each; "planes": a maximum of planes, for hulls of many petals on few units.
            None means "sums" where the rows speak for it, else "affine". "sums" and "planes" take units and petals of a
            hull that was trained already. See `convexmoe/training/starts`.
        progress: show a bar with the loss and the time left.
        resume: where an earlier call with the same data and options stood (of the other package: read from its files,
            docs/pages/files.md): training goes on from there, and the model of it takes the place of `model`.
        on_evaluation: is given where training stands at each of the `EVALUATIONS`; True ends it there.

    Raises:
        TypeError, ValueError: data of the wrong shape, not finite, or too few; an unknown `start`; `resume` is of
            another config, of other held-out rows, or at a step at which this schedule does not evaluate.
        FloatingPointError: the loss is no longer finite.

    >>> from flax import nnx
    >>> rows = np.linspace(-1, 1, 64)[:, None]
    >>> hull = VectorHull(1, petals=4, out_dim=1, rngs=nnx.Rngs(0))
    >>> fitted = fit(hull, rows, rows**2, steps=200).model
    """
    if start is not None:
        one_of("fit", "start", start, STARTS)
    config, given = model.config, model.params["shifts"].dtype
    wide = jnp.promote_types(given, jnp.float32)  # Adam's epsilon is zero in half precision
    x, y = checked_data("x", x, y, config)
    normalization = config.normalization or standardisation(x, y, jnp.finfo(wide), jnp.finfo(given))
    (x, y), held = split(x, y, validation, config, seed)
    function = HullFunction(replace(config, normalization=None))
    rate = default_rate(len(x), config.in_dim) if learning_rate is None else learning_rate
    options: Any = {"steps": steps, "batch_size": batch_size, "learning_rate": rate}
    options |= {"seed": seed, "progress": progress}
    if len(held[0]):
        options["validation"] = standardised(*held, normalization)
    rows = standardised(x, y, normalization)
    begin = jax.tree.map(lambda leaf: leaf.astype(wide), model.params)
    if resume is None:
        begin = started_tree(begin, function.config, *rows, start)

    def hull_of(params: Tree) -> VectorHull:
        return VectorHull.from_params(replace(config, normalization=normalization), params)

    def held_loss(params: Tree) -> float | None:
        if not len(held[0]):
            return None
        return float(_loss(function, params, *(jnp.asarray(part, wide) for part in options["validation"])))

    if resume is not None:
        if not isinstance(resume, FitState):
            got = f"{type(resume).__module__.removesuffix('.engine')}.{type(resume).__name__}"
            fix = "Pass what on_evaluation was given."
            fail("fit", "resume", "a FitState of this package", got, fix, TypeError)
        check_resumed(resume.model.config, replace(config, normalization=normalization))
        state = restored(ADAM.init(resume.model.params), resume.model, resume.optimizer)
        best = resume.best.params
        check_held_out(resume.history.validation_loss, held_loss(best))
        options["resume"] = Progress(resume.model.params, state, resume.history, best, resume.best_step)
    if on_evaluation is not None:

        def stop(now: Progress) -> bool | None:
            hull = hull_of(now.params)
            state = FitState(
                hull, optimizer_state(now.optimizer, hull), now.history, hull_of(now.best), now.best_step
            )
            return on_evaluation(state)

        options["on_evaluation"] = stop
    params, history, best_step = train(function, begin, *rows, **options)
    cast = jax.tree.map(lambda leaf: leaf.astype(given), params)
    check_finite(all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(cast)), FLOAT32)
    return FitResult(hull_of(cast), history, best_step)


jitted = jax.jit(apply, static_argnums=2)


def started_tree(
    params: Tree, config: HullConfig, x: np.ndarray, y: np.ndarray, start: str | None = None
) -> Tree:
    """Return the parameters of a hull without normalization, started on standardised rows."""
    dtype = params["shifts"].dtype

    def tree(weights: Weights) -> Tree:
        return nest({name: jnp.asarray(value, dtype) for name, value in weights.items()})

    def values(weights: Weights, x: np.ndarray) -> np.ndarray:
        return np.asarray(jitted(tree(weights), jnp.asarray(x, dtype), config), np.float64)

    flat = {name: np.asarray(value) for name, value in flatten(params).items()}
    return tree(started(flat, config, x, y, start, values))


def check_finite(finite: bool, fix: str = "Lower learning_rate.") -> None:
    """Check the weights of a run: the last step comes after the last loss, and the cast after both."""
    if not finite:
        fail("fit", "weights", "finite numbers", "inf or nan", fix, FloatingPointError)
