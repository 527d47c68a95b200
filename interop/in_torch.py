"""What the command asks of PyTorch, under the names of `in_jax`: arrays of numpy in and out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import convexmoe_torch as package
from convexmoe.files.format import own_copy
from convexmoe.hull import HullConfig
from convexmoe.hull.rows import bare_rows
from convexmoe_torch.files.layers import from_numpy
from convexmoe_torch.settings import one_thread

Rows = NDArray[np.float64]
name = "torch"
quiet = one_thread  # the results then do not depend on the number of cores either


def precision(wide: bool) -> AbstractContextManager[Any]:
    """Return a context that changes nothing: float64 is always on."""
    return nullcontext()


def own_array(array: Any) -> torch.Tensor:
    """Return a copy of an array of numpy or JAX as a CPU tensor of the same dtype; bfloat16 crosses as bits."""
    return from_numpy(own_copy(array))


def rows_for(model: Any, x: Rows) -> torch.Tensor:
    """Return rows `[N, in_dim]` in the dtype of the model's parameters."""
    return torch.as_tensor(x, dtype=model.shifts.dtype)


def new_hull(config: HullConfig, seed: int) -> Any:
    """Return a new `VectorHull` with weights drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return package.VectorHull.from_config(config)


def predict(model: Any, x: Rows) -> Rows:
    """Return the model's first output, `[N]`, computed in the dtype of its parameters."""
    return package.predict(model, x)[:, 0]


@torch.no_grad()
def winners(model: Any, x: Rows) -> NDArray[np.int64]:
    """Return the winning group, `[N]`, on rows `[N, in_dim]`."""
    config, z = bare_rows(model.config, x)
    return package.hull.winners(model.tree, rows_for(model, z), config).group.numpy()[:, 0].astype(np.int64)


def largest_violation(model: Any, points: Rows, *, segments: int, seed: int) -> float | None:
    """Return by how much the model, in float64, lies above a chord at most; None where it never does."""
    exact = copy.deepcopy(model).double()
    violation = package.find_violation(exact, torch.as_tensor(points), segments=segments, seed=seed)
    return None if violation is None else violation.gap


def train_mlp(weights: dict[str, Rows], x: Rows, y: Rows, **schedule: Any) -> Callable[[Rows], Rows]:
    """Return the trained function of an MLP; see `in_jax.train_mlp`."""
    layers: list[torch.nn.Module] = []
    for k in range(3):
        weight, bias = weights[f"weight_{k}"], weights[f"bias_{k}"]
        linear = torch.nn.utils.skip_init(torch.nn.Linear, *weight.shape)
        linear.load_state_dict({"weight": torch.tensor(weight.T), "bias": torch.tensor(bias)})
        layers += [linear, torch.nn.ReLU()]
    mlp = torch.nn.Sequential(*layers[:-1])
    package.train(mlp, x, y, **schedule)

    @torch.no_grad()
    def forward(rows: Rows) -> Rows:
        return mlp(torch.as_tensor(rows, dtype=torch.float32)).double().numpy()

    return forward
