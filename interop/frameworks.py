"""What the command needs of JAX and of PyTorch, under the same names: arrays in, numpy out."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .tables import InputError

__all__ = ["LABELS", "Framework", "choose", "get", "installed", "is_installed"]

LABELS = {"jax": "JAX", "torch": "PyTorch"}
Rows = NDArray[np.float64]
_NEEDS = {"jax": ("jax", "flax", "optax"), "torch": ("torch",)}


class Framework(Protocol):
    """One framework: its package, and the few things in which the two packages differ.

    Attributes:
        name: "jax" or "torch".
        package: `convexmoe_jax` or `convexmoe_torch`.
    """

    name: str
    package: ModuleType

    def quiet(self) -> AbstractContextManager[None]:
        """Return a context with one thread for PyTorch.

        Layers this small gain nothing from a second one, and threads that wait for each other on a busy machine
        take ten times as long; the results then do not depend on the number of cores either.
        """

    def precision(self, wide: bool) -> AbstractContextManager[Any]:
        """Return a context in which float64 is switched on where that is wanted."""

    def array(self, x: Rows, model: Any) -> Any:
        """Return rows as an array of the framework, in the dtype of a model's parameters."""

    def hull(self, seed: int, **options: Any) -> Any:
        """Return a new `VectorHull` with weights drawn from `seed`."""

    def predict(self, model: Any, x: Rows) -> Rows:
        """Return the model's output, `[N]`, on rows `[N, in_dim]`, computed in the dtype of its parameters."""

    def winners(self, model: Any, x: Rows) -> NDArray[np.int64]:
        """Return the winning group, `[N]`, on rows `[N, in_dim]`."""

    def num_parameters(self, model: Any) -> int:
        """Return how many numbers are trained."""

    def largest_violation(self, model: Any, points: Rows, *, segments: int, seed: int) -> float | None:
        """Return by how much the model, in float64, lies above a chord at most; None where it never does."""

    def train_mlp(
        self,
        weights: dict[str, Rows],
        x: Rows,
        y: Rows,
        *,
        validation: tuple[Rows, Rows],
        steps: int,
        seed: int,
        learning_rate: float,
    ) -> Callable[[Rows], Rows]:
        """Return the trained function of an MLP with two hidden ReLU layers, `[N, in_dim]` -> `[N, 1]`.

        Args:
            weights: its initial `weight_k` (in, out) and `bias_k`, k = 0, 1, 2.
            x, y, validation: standardised rows; steps, seed: as for `fit`.
        """


class _Jax:
    name = "jax"

    def __init__(self) -> None:
        import jax

        import convexmoe_jax

        self.package: ModuleType = convexmoe_jax
        # Whole functions under jit: run operation by operation, each would be compiled on its own.
        self._apply = jax.jit(convexmoe_jax.hull.apply, static_argnames="config")
        self._winners = jax.jit(convexmoe_jax.hull.winners, static_argnames="config")

    def quiet(self) -> AbstractContextManager[None]:
        return nullcontext()

    def precision(self, wide: bool) -> AbstractContextManager[Any]:
        import jax

        return jax.enable_x64(True) if wide else nullcontext()

    def array(self, x: Rows, model: Any) -> Any:
        import jax.numpy as jnp

        return jnp.asarray(self._rows(model, x))

    def hull(self, seed: int, **options: Any) -> Any:
        from flax import nnx

        return self.package.VectorHull(**options, rngs=nnx.Rngs(seed))

    def predict(self, model: Any, x: Rows) -> Rows:
        y = self._apply(model.params, self._rows(model, x), config=model.config)
        return np.asarray(y, np.float64)[:, 0]

    def winners(self, model: Any, x: Rows) -> NDArray[np.int64]:
        won = self._winners(model.params, self._rows(model, x), config=model.config)
        return np.asarray(won.group, np.int64)[:, 0]

    def _rows(self, model: Any, x: Rows) -> NDArray[Any]:
        with np.errstate(over="ignore"):  # too large for a float16: the prediction tells
            return np.asarray(x, model.params["shifts"].dtype)

    def num_parameters(self, model: Any) -> int:
        import jax
        from flax import nnx

        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))

    def largest_violation(self, model: Any, points: Rows, *, segments: int, seed: int) -> float | None:
        import jax
        import jax.numpy as jnp

        with jax.enable_x64(True):
            params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), model.params)
            exact = type(model).from_params(model.config, params)
            found = self.package.find_violation(exact, jnp.asarray(points), segments=segments, seed=seed)
        return None if found is None else found.gap

    def train_mlp(self, weights: dict[str, Rows], x: Rows, y: Rows, **options: Any) -> Callable[[Rows], Rows]:
        import jax
        import jax.numpy as jnp

        from convexmoe_jax.training.engine import train

        def forward(params: dict[str, Any], rows: Any) -> Any:
            h = jax.nn.relu(rows @ params["weight_0"] + params["bias_0"])
            h = jax.nn.relu(h @ params["weight_1"] + params["bias_1"])
            return h @ params["weight_2"] + params["bias_2"]

        params = train(forward, {name: jnp.asarray(w) for name, w in weights.items()}, x, y, **options).params
        return lambda rows: np.asarray(forward(params, np.asarray(rows, np.float32)), np.float64)


class _Torch:
    name = "torch"

    def __init__(self) -> None:
        import convexmoe_torch

        self.package: ModuleType = convexmoe_torch

    @contextmanager
    def quiet(self) -> Iterator[None]:
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    def precision(self, wide: bool) -> AbstractContextManager[Any]:
        return nullcontext()

    def array(self, x: Rows, model: Any) -> Any:
        import torch

        return torch.as_tensor(x, dtype=model.shifts.dtype)

    def hull(self, seed: int, **options: Any) -> Any:
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.package.VectorHull(**options)

    def predict(self, model: Any, x: Rows) -> Rows:
        import torch

        with torch.no_grad():
            return model(torch.as_tensor(x, dtype=model.shifts.dtype)).double().numpy()[:, 0]

    def winners(self, model: Any, x: Rows) -> NDArray[np.int64]:
        import torch

        with torch.no_grad():
            won = model.winners(torch.as_tensor(x, dtype=model.shifts.dtype))
        return won.group.numpy()[:, 0].astype(np.int64)

    def num_parameters(self, model: Any) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    def largest_violation(self, model: Any, points: Rows, *, segments: int, seed: int) -> float | None:
        import torch

        exact = copy.deepcopy(model).double()
        found = self.package.find_violation(exact, torch.as_tensor(points), segments=segments, seed=seed)
        return None if found is None else found.gap

    def train_mlp(self, weights: dict[str, Rows], x: Rows, y: Rows, **options: Any) -> Callable[[Rows], Rows]:
        import torch

        from convexmoe_torch.training.engine import train

        layers = []
        for k in range(3):
            weight, bias = weights[f"weight_{k}"], weights[f"bias_{k}"]
            linear = torch.nn.utils.skip_init(torch.nn.Linear, *weight.shape)
            linear.load_state_dict({"weight": torch.tensor(weight.T), "bias": torch.tensor(bias)})
            layers += [linear, torch.nn.ReLU()]
        mlp = torch.nn.Sequential(*layers[:-1])
        train(mlp, x, y, **options)

        def forward(rows: Rows) -> Rows:
            with torch.no_grad():
                return mlp(torch.as_tensor(rows, dtype=torch.float32)).double().numpy()

        return forward


def is_installed(module: str) -> bool:
    """Return whether a top-level module can be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # blocked: sys.modules holds None for it
        return False


def installed() -> tuple[str, ...]:
    """Return the names of the installed frameworks, JAX first."""
    return tuple(name for name, modules in _NEEDS.items() if all(map(is_installed, modules)))


def choose(wanted: str | None) -> Framework:
    """Return the framework asked for, or JAX where it is installed, else PyTorch."""
    if wanted is not None and wanted not in LABELS:
        raise InputError(
            f"convexmoe --framework: expected jax or torch; got {wanted!r}. Try --framework jax."
        )
    present = installed()
    if wanted is None and not present:
        raise InputError(
            "convexmoe: expected JAX or PyTorch; neither is installed. "
            'Run: pip install "convexmoe[jax]" (or "convexmoe[torch]").'
        )
    name = wanted or present[0]
    if name not in present:
        raise InputError(
            f"convexmoe --framework: expected {LABELS[name]} for {name}; it is not installed. "
            f'Run: pip install "convexmoe[{name}]".'
        )
    return get(name)


@cache
def get(name: str) -> Framework:
    """Return the framework of that name; imports it."""
    return _Jax() if name == "jax" else _Torch()
