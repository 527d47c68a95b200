"""Training in JAX: one train step, the engine that `fit` runs on, and `train` for any function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convexmoe import training as core
from convexmoe.hull import HullConfig
from convexmoe.training import ADAM_DECAYS, FitResult, FitState, Fold, History, Parts, Schedule, Weights

from ..files.optimizer import optimizer_state, restore
from ..hull import VectorHull, apply, flatten, nest
from ..hull.petals import OPERATIONS, Tree
from .optimizers import scale_by_adam

__all__ = ["ADAM", "ADAM_DECAYS", "FitResult", "FitState", "Fold", "HullFunction", "fit", "train", "train_step"]

LARGEST_NORM = 1.0
ADAM = scale_by_adam(*ADAM_DECAYS)


def clip(grads: Any) -> Any:
    """Return the gradients scaled to a global norm of `LARGEST_NORM` at most."""
    norm = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(grads)))
    factor = jnp.minimum(LARGEST_NORM / (norm + 1e-6), 1.0)
    return jax.tree.map(lambda g: g * factor, grads)


def mean_squared_error(prediction: jax.Array, y: jax.Array) -> jax.Array:
    """Return the mean over rows and coordinates of the squared error."""
    return jnp.mean((prediction - y) ** 2)


def train_step(
    model: Callable[[Any, jax.Array], jax.Array],
    carry: Any,
    batch: Any,
    mean_loss: Callable[[jax.Array, jax.Array], jax.Array] = mean_squared_error,
) -> tuple[Any, jax.Array]:
    """Take one step of Adam on the mean loss; returns the new carry and the loss before it.

    Args:
        model: `(params, x) -> y`, pure.
        carry: params and the state of `ADAM`.
        batch: x, y and the learning rate.
        mean_loss: `(prediction, y) -> scalar`.
    """
    params, state = carry
    x, y, learning_rate = batch
    loss, grads = jax.value_and_grad(lambda p: mean_loss(model(p, x), y))(params)
    directions, state = ADAM.update(clip(grads), state)
    return (jax.tree.map(lambda p, d: p - learning_rate.astype(p.dtype) * d, params, directions), state), loss


@partial(jax.jit, static_argnames=("model", "mean_loss"), donate_argnames="carry")
def _train_steps(
    model: Any,
    mean_loss: Any,
    carry: Any,
    mean: Any,
    before: jax.Array,
    x: jax.Array,
    y: jax.Array,
    rows: jax.Array,
    rates: jax.Array,
) -> Any:
    """Take one step for each line of `rows`; return the carry, the mean weights and the losses.

    They are (steps, batch), or (steps, copies, batch) for copies of the model side by side; `before` steps are in the
    mean already.
    """

    take = partial(train_step, model, mean_loss=mean_loss)
    take = jax.vmap(take, (0, (0, 0, None))) if rows.ndim == 3 else take

    def body(carry: Any, step: Any) -> Any:
        (params, state), mean = carry
        picked, rate, share = step
        (params, state), loss = take((params, state), (x[picked], y[picked], rate))
        mean = jax.tree.map(lambda m, p: m + share.astype(p.dtype) * (p - m), mean, params)
        return ((params, state), mean), loss

    shares = 1.0 / (before + jnp.arange(1.0, len(rows) + 1.0))
    mean = jax.tree.map(lambda m: jnp.where(before > 0, m, 0), mean)
    (carry, mean), losses = jax.lax.scan(body, (carry, mean), (rows, rates, shares))
    return carry, mean, losses


@partial(jax.jit, static_argnames="model")
def _loss(model: Any, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return mean_squared_error(model(params, x), y)


class Engine(core.Engine):
    """A run of any function `(params, x) -> y`: compiled steps over the parameters and the state of `ADAM`.

    Args:
        model: the function, pure and hashable.
        params: where it begins.
        rows, held_out: x and y to train on, and those held out or None.
    """

    def __init__(self, model: Any, params: Any, rows: Any, held_out: Any) -> None:
        self.model, self.dtype = model, jax.tree.leaves(params)[0].dtype
        self.mean_loss: Callable[[jax.Array, jax.Array], jax.Array] = mean_squared_error
        self.rows, self.held_out = jax.tree.map(partial(jnp.asarray, dtype=self.dtype), (rows, held_out))
        self.put(params, ADAM.init(params), params)

    def put(self, params: Any, optimizer: Any, mean: Any) -> None:
        self.carry = jax.tree.map(jnp.array, (params, optimizer))  # a copy: it is donated
        self.mean_params = mean

    def loss(self, x: Any, y: Any) -> float:
        return float(_loss(self.model, self.mean_params, x, y))

    def take_steps(self, rows: np.ndarray, rates: np.ndarray, before: int = 0) -> float:
        batches = jnp.asarray(rows), jnp.asarray(rates, self.dtype)
        run = self.model, self.mean_loss, self.carry, self.mean_params, jnp.asarray(before)
        self.carry, self.mean_params, losses = _train_steps(*run, *self.rows, *batches)
        return float(jnp.mean(losses if losses.ndim == 1 else losses[:, -1]))

    def mean_weights(self) -> Any:
        return jax.tree.map(np.array, self.mean_params)

    def is_finite(self, weights: Any) -> bool:
        return all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(weights))

    def resume(self, state: FitState) -> Any:
        self.put(state.model, state.optimizer, state.best)
        return state.best

    def state(self, history: History, best: Any, best_step: int) -> FitState:
        params, optimizer = jax.tree.map(np.array, self.carry)
        return FitState(params, optimizer, history, best, best_step)

    def arrays(self, x: np.ndarray, y: np.ndarray) -> Any:
        return jnp.asarray(x, self.dtype), jnp.asarray(y, self.dtype)

    def result(self, best: Any) -> Any:
        return jax.tree.map(jnp.asarray, best)


@dataclass(frozen=True)
class HullFunction:
    """A hull as `(params, columns of x and context) -> y`; equal configs are one function to jit."""

    config: HullConfig

    def __call__(self, params: Tree, x: jax.Array) -> jax.Array:
        D = self.config.in_dim
        return apply(params, x[:, :D], self.config, x[:, D:] if self.config.context_dim else None)


@partial(jax.jit, static_argnames="function")
def _values(function: HullFunction, params: Tree, x: jax.Array) -> jax.Array:
    return function(params, x)


@dataclass(frozen=True)
class MeanLoss:
    """The mean of an objective; equal ones are one function to jit."""

    objective: core.Objective

    def __call__(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        return jnp.mean(self.objective(prediction, target, OPERATIONS.constant))


class HullEngine(core.HullFit, Engine):
    """A fit of copies of a hull, stacked, in float32 at least: see `convexmoe.training.HullEngine`."""

    kind = VectorHull

    def __init__(
        self, model: VectorHull, config: HullConfig, objective: core.Objective, data: Any, parts: Parts, _: int
    ) -> None:
        self.config, self.of_model, self.data, self.parts = config, model.params["shifts"].dtype, data, parts
        params = jax.tree.map(lambda leaf: leaf.astype(wide(self.of_model)), model.params)
        Engine.__init__(self, HullFunction(self.bare), params, data, None)
        self.objective = objective

    def take_steps(self, rows: np.ndarray, rates: np.ndarray, before: int = 0) -> float:
        self.mean_loss = MeanLoss(self.objective)
        return Engine.take_steps(self, rows, rates, before)

    @staticmethod
    def limits(model: VectorHull) -> tuple[Any, Any]:
        given = model.params["shifts"].dtype
        return jnp.finfo(wide(given)), jnp.finfo(given)

    def begin(self, weights: Sequence[Weights]) -> None:
        params = stack([self.tree(one) for one in weights])
        self.put(params, jax.vmap(ADAM.init)(params), params)

    def go_on(self, copies: Sequence[Fold]) -> None:
        empty = ADAM.init(copies[0].model.params)
        states = stack([restore(empty, model, optimizer) for model, optimizer in copies])
        params = stack([model.params for model, _ in copies])
        self.put(params, states, params)

    def mean(self, copy: int) -> Weights:
        return {name: np.asarray(value[copy], np.float64) for name, value in flatten(self.mean_params).items()}

    def array(self, value: np.ndarray) -> jax.Array:
        return jnp.asarray(value, self.dtype)

    def measure_by_function(self, prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
        found = self.objective(self.array(prediction), self.array(target), OPERATIONS.constant)
        return np.asarray(found, np.float64)

    def values(self, weights: Weights, x: np.ndarray) -> np.ndarray:
        rows = np.resize(x, (1 << (len(x) - 1).bit_length(), x.shape[1]))  # few shapes are few compilations
        y = _values(HullFunction(self.inner), self.tree(weights), self.array(rows))
        return np.asarray(y[: len(x)], np.float64)

    def copies(self) -> list[Fold]:
        params, optimizer = jax.tree.map(np.array, self.carry)
        found = []
        for copy in range(len(self.parts.train)):
            own, state = jax.tree.map(itemgetter(copy), (params, optimizer))
            hull = VectorHull.from_params(self.whole, own)
            found.append(Fold(hull, optimizer_state(state, hull)))
        return found

    def hull(self, weights: Weights, given: bool = False) -> VectorHull:
        params = jax.tree.map(lambda leaf: leaf.astype(self.of_model if given else self.dtype), self.tree(weights))
        return VectorHull.from_params(self.whole, params)

    def weights_of(self, hull: VectorHull) -> Weights:
        return {name: np.asarray(value, np.float64) for name, value in flatten(hull.params).items()}

    @staticmethod
    def new(config: HullConfig, seed: int, like: VectorHull) -> VectorHull:
        return VectorHull.from_config(config, dtype=like.params["shifts"].dtype, rngs=nnx.Rngs(seed))

    def tree(self, weights: Weights) -> Tree:
        return nest({name: jnp.asarray(value, self.dtype) for name, value in weights.items()})


fit = HullEngine.fit
compare_curvature = HullEngine.compare_curvature


def wide(dtype: Any) -> Any:
    """Return the dtype to train in: Adam's epsilon is zero in half precision."""
    return jnp.promote_types(dtype, jnp.float32)


def stack(trees: Sequence[Any]) -> Any:
    """Return one tree, its leaves stacked along a new first axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def train(
    model: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    x: Any,
    y: Any = None,
    *,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    steps: int = 2000,
    batch_size: int = 128,
    learning_rate: float | None = None,
    seed: int = 0,
    progress: bool = False,
    resume: FitState | None = None,
    on_evaluation: Callable[[FitState], bool | None] | None = None,
) -> FitResult[Any]:
    """Minimize the mean squared error of any function by Adam, with warm-up, cosine decay and clipping.

    What is evaluated and returned is the mean of the weights since the evaluation before.

    Source: Polyak and Juditsky, Acceleration of stochastic approximation by averaging, SIAM J. Control Optim. 30, 1992.
    Differs from the source: the mean begins anew at each of the `EVALUATIONS`.

    Args:
        model: `(params, x) -> y`, pure and hashable; a new function compiles anew.
        params: pytree of arrays of one dtype.
        x, y: `[rows, ...]`, normalized; or a `Stream` of such rows that do not fit into memory, and None.
        validation: the same for held-out rows: the best weights by its loss are returned, and training stops when
            `PATIENCE` of the `EVALUATIONS` have brought none.
        steps, batch_size, learning_rate, seed, progress: as for `fit`.
        resume: where an earlier call with the same data and options stood; its weights replace `params`.
        on_evaluation: is given where training stands; True ends it there.

    Raises:
        ValueError: `resume` is of other rows, or of other steps, batch_size, learning_rate or seed.
        FloatingPointError: the loss is no longer finite.
    """
    schedule = Schedule(steps, batch_size, learning_rate, seed, progress)
    engine = Engine(model, params, *core.given_rows(x, y, validation))
    return core.train(engine, x, schedule, resume, on_evaluation)
