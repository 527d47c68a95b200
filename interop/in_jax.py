"""What the command asks of JAX, under the names of `in_torch`: arrays of numpy in and out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray

import convexmoe_jax as package
from convexmoe.hull import HullConfig
from convexmoe.hull.rows import bare_contexts, bare_rows, split_context

Rows = NDArray[np.float64]
name = "jax"
quiet = nullcontext  # see `in_torch.quiet`
# A whole function under jit: run operation by operation, each would be compiled on its own.
_winners = jax.jit(package.hull.winners, static_argnames="config")


def precision(wide: bool) -> AbstractContextManager[Any]:
    """Return a context in which float64 is switched on where that is wanted."""
    return jax.enable_x64(True) if wide else nullcontext()


def own_array(array: np.ndarray) -> jax.Array:
    """Return a copy of an array in JAX."""
    return jnp.array(array)


def rows_for(model: Any, x: Rows) -> jax.Array:
    """Return rows in the dtype of the model's parameters."""
    with np.errstate(over="ignore"):  # too large for a float16: the prediction tells
        return jnp.asarray(np.asarray(x, model.params["shifts"].dtype))


def new_hull(config: HullConfig, seed: int) -> Any:
    """Return a new `VectorHull` with weights drawn from `seed`."""
    return package.VectorHull.from_config(config, rngs=nnx.Rngs(seed))


def widen(model: Any) -> Any:
    """Return a copy of a hull in float64, inside `precision(True)`."""
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), model.params)
    return package.VectorHull.from_params(model.config, params)


def predict(model: Any, x: Rows) -> Rows:
    """Return the model's first output, `[N]`, at rows `[N, in_dim + context_dim]`, computed in its own dtype."""
    return package.predict(model, *split_context(model.config, x))[:, 0]


def winners(model: Any, x: Rows) -> NDArray[np.int64]:
    """Return the winning group, `[N]`, on rows `[N, in_dim + context_dim]`."""
    x, context = split_context(model.config, x)
    (config, z), c = bare_rows(model.config, x), bare_contexts(model.config, context, (len(x),))
    given = None if c is None else rows_for(model, c)
    return np.asarray(_winners(model.params, rows_for(model, z), context=given, config=config).group, np.int64)[:, 0]


def largest_violation(model: Any, points: Rows, *, segments: int, seed: int) -> float | None:
    """Return by how much the model, in float64, lies on the wrong side of a chord at most; None where it never does.

    Args:
        points: `[N, in_dim + context_dim]`.
    """
    with jax.enable_x64(True):
        given: Any = tuple(jnp.asarray(part) for part in split_context(model.config, points) if part is not None)
        violation = package.find_violation(
            widen(model), given if len(given) > 1 else given[0], segments=segments, seed=seed
        )
    return None if violation is None else violation.gap


def train_mlp(weights: dict[str, Rows], x: Rows, y: Rows, **schedule: Any) -> Callable[[Rows], Rows]:
    """Return the trained function `[N, in_dim]` -> `[N, 1]` of an MLP with two hidden ReLU layers.

    Args:
        weights: its initial `weight_k` (in, out) and `bias_k`, k = 0, 1, 2.
        x, y: normalized rows.
        schedule: validation, steps, seed and learning_rate, as for `train`.
    """

    def forward(params: dict[str, Any], rows: Any) -> Any:
        h = jax.nn.relu(rows @ params["weight_0"] + params["bias_0"])
        h = jax.nn.relu(h @ params["weight_1"] + params["bias_1"])
        return h @ params["weight_2"] + params["bias_2"]

    params = package.train(forward, {key: jnp.asarray(w) for key, w in weights.items()}, x, y, **schedule).params
    return lambda rows: np.asarray(forward(params, np.asarray(rows, np.float32)), np.float64)
