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
from convexmoe.hull.rows import bare_contexts, bare_rows, split_context
from convexmoe_torch.files.layers import from_numpy
from convexmoe_torch.settings import one_thread, seeded

Rows = NDArray[np.float64]
name = "torch"
quiet = one_thread  # the results then do not depend on the number of cores either


def devices() -> list[str]:
    """Return the names of the devices that the framework sees, as it spells them."""
    found = torch.cuda.device_count()
    names = ["cpu", *(f"cuda:{k} {torch.cuda.get_device_name(k)}" for k in range(found))]
    return names + ["mps"] * torch.backends.mps.is_available()


def precision(wide: bool) -> AbstractContextManager[Any]:
    """Return a context that changes nothing: float64 is always on."""
    return nullcontext()


def own_array(array: Any) -> torch.Tensor:
    """Return a copy of an array of numpy or JAX as a CPU tensor of the same dtype; bfloat16 crosses as bits."""
    return from_numpy(own_copy(array))


def rows_for(model: Any, x: Rows) -> torch.Tensor:
    """Return rows in the dtype of the model's parameters."""
    return torch.tensor(x, dtype=model.shifts.dtype)


def new_hull(config: HullConfig, seed: int) -> Any:
    """Return a new `VectorHull` with weights drawn from `seed`."""
    with seeded(seed):
        return package.VectorHull.from_config(config)


def widen(model: Any) -> Any:
    """Return a copy of a hull in float64."""
    return copy.deepcopy(model).double()


def predict(model: Any, x: Rows) -> Rows:
    """Return the model's first output, `[N]`, at rows `[N, in_dim + context_dim]`, computed in its own dtype."""
    return package.predict(model, *split_context(model.config, x))[:, 0]


@torch.no_grad()
def winners(model: Any, x: Rows) -> NDArray[np.int64]:
    """Return the winning group, `[N]`, on rows `[N, in_dim + context_dim]`."""
    x, context = split_context(model.config, x)
    (config, z), c = bare_rows(model.config, x), bare_contexts(model.config, context, (len(x),))
    given = None if c is None else rows_for(model, c)
    return package.hull.winners(model.tree, rows_for(model, z), config, given).group.numpy()[:, 0].astype(np.int64)


def largest_violation(model: Any, points: Rows, *, segments: int, seed: int) -> float | None:
    """Return by how much the model, in float64, lies on the wrong side of a chord at most; None where it never does.

    Args:
        points: `[N, in_dim + context_dim]`.
    """
    given: Any = tuple(torch.as_tensor(part) for part in split_context(model.config, points) if part is not None)
    violation = package.find_violation(
        widen(model), given if len(given) > 1 else given[0], segments=segments, seed=seed
    )
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
