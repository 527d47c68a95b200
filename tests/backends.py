"""One adapter a framework: a hull from fields and flat numpy weights, its values and gradients; numpy in and out."""

from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch
from flax import nnx

import convexmoe_jax
import convexmoe_torch

torch.set_num_threads(1)

NAMES = {"float64": np.float64, "float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
DTYPES = tuple(NAMES)


def rounded(values: dict[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """The arrays rounded to a dtype."""
    return {name: np.asarray(value, NAMES[dtype]) for name, value in values.items()}


class Backend:
    """What both adapters share. `package` is the package under test."""

    name: str
    package: Any

    def config(self, fields: dict[str, Any]) -> Any:
        """The package's config of these fields; a normalization is given as a dict."""
        units = fields.get("normalization")
        made = None if units is None else self.package.Normalization(**units)
        return self.package.HullConfig(**(fields | {"normalization": made}))

    def model(self, fields: dict[str, Any], weights: dict[str, np.ndarray], dtype: str = "float64") -> Any:
        """A hull with these weights, rounded to `dtype`."""
        with self.precision(dtype):
            flat = {name: self.array(value) for name, value in rounded(weights, dtype).items()}
            return self.package.VectorHull.from_params(self.config(fields), self.package.hull.nest(flat))

    def weights(self, model: Any) -> dict[str, np.ndarray]:
        """The parameters by dotted name."""
        flat = self.package.hull.flatten(model.params)
        return {name: self.numpy(value) for name, value in flat.items()}

    def started(self, model: Any, x: np.ndarray, y: np.ndarray, start: str) -> dict[str, np.ndarray]:
        """The weights at which `fit` starts a float64 hull."""
        with self.precision("float64"):
            options = {"start": start, "steps": 1, "learning_rate": 1e-12, "validation": 0}
            return self.weights(self.package.fit(model, x, y, **options).model)

    def apply(self, model: Any, x: np.ndarray) -> np.ndarray:
        """`model(x)`; x keeps its dtype."""
        with self.precision(str(x.dtype)):
            return self.numpy(self.call(model, "__call__", self.array(x)))

    def winners(self, model: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Group and margin."""
        with self.precision(str(x.dtype)):
            found = self.call(model, "winners", self.array(x))
            return self.numpy(found.group), self.numpy(found.margin)

    def fold(self, model: Any) -> Any:
        """`model.fold()`."""
        with self.precision(self.dtype(model)):
            return self.call(model, "fold")

    def gradients(self, model: Any, x: np.ndarray, c: np.ndarray) -> dict[str, np.ndarray]:
        """Gradients of sum(c y) by every weight, by name, and by "x"."""
        return self.value_and_gradients(model, x, c)[1]

    def dtype(self, model: Any) -> str:
        """The name of the dtype of the parameters."""
        return str(model.params["shifts"].dtype).removeprefix("torch.")


class Jax(Backend):
    name = "jax"
    package = convexmoe_jax

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Drop what is compiled: needed after a function of the package was replaced."""
        self.compiled: dict[Any, Any] = {}

    def jit(self, key: Any, function: Any, *arrays: Any) -> Any:
        """`function(*arrays)`, compiled once a key; operation by operation each of them would be compiled alone."""
        return self.compiled.setdefault(key, jax.jit(lambda *a: function(*a)))(*arrays)

    def call(self, model: Any, method: str, *arrays: jax.Array) -> Any:
        """`model.method(*arrays)`."""
        key = (type(model), model.config, method)
        if isinstance(model, convexmoe_jax.FoldedHull):
            return self.jit(key, lambda folded, *at: getattr(folded, method)(*at), model, *arrays)
        graph, state = nnx.split(model)
        return self.jit(key, lambda now, *at: getattr(nnx.merge(graph, now), method)(*at), state, *arrays)

    def shapes(self, model: Any, method: str, x: np.ndarray) -> list[tuple[int, ...]]:
        """The shapes that `model.method(x)` gives, traced only: a compilation a shape would take too long."""
        with self.precision(str(x.dtype)):
            found = jax.eval_shape(getattr(model, method), self.array(x))
            return [leaf.shape for leaf in jax.tree.leaves(found)]

    def precision(self, dtype: str) -> Any:
        return jax.enable_x64(True) if dtype == "float64" else nullcontext()

    def array(self, value: np.ndarray) -> jax.Array:
        return jnp.array(value)

    def numpy(self, value: jax.Array) -> np.ndarray:
        return np.array(value)

    def fresh(self, fields: dict[str, Any], seed: int, dtype: str = "float32") -> Any:
        """A newly drawn hull."""
        with self.precision(dtype):
            rngs = nnx.Rngs(seed)
            return self.package.VectorHull.from_config(self.config(fields), dtype=NAMES[dtype], rngs=rngs)

    def value_and_gradients(self, model: Any, x: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, dict]:
        """y, and the gradients of sum(c y) by every weight and by x."""
        with self.precision(str(x.dtype)):

            def total(params: Any, at: jax.Array, c: jax.Array) -> jax.Array:
                y = self.package.hull.apply(params, at, model.config)
                return jnp.sum(c.astype(y.dtype) * y), y

            grad = jax.grad(total, argnums=(0, 1), has_aux=True)
            arrays = (model.params, self.array(x), self.array(c))
            (by_weight, by_x), y = self.jit((model.config, "gradients"), grad, *arrays)
            flat = self.package.hull.flatten(by_weight) | {"x": by_x}
            return self.numpy(y), {name: self.numpy(value) for name, value in flat.items()}

    def first_of_ties(self, g: jax.Array) -> jax.Array:
        """A maximum over groups whose gradient goes to the first of a tie alone: what the packages must not do."""
        return jnp.take_along_axis(g, jnp.argmax(g, axis=-2, keepdims=True), axis=-2).squeeze(-2)


class Torch(Backend):
    name = "torch"
    package = convexmoe_torch

    def forget(self) -> None:
        """Nothing is compiled."""

    def call(self, model: Any, method: str, *arrays: torch.Tensor) -> Any:
        """`model.method(*arrays)`."""
        return getattr(model, method)(*arrays)

    def shapes(self, model: Any, method: str, x: np.ndarray) -> list[tuple[int, ...]]:
        """The shapes that `model.method(x)` gives."""
        found = getattr(model, method)(self.array(x))
        return [tuple(value.shape) for value in (found if isinstance(found, tuple) else (found,))]

    def precision(self, dtype: str) -> Any:
        return nullcontext()

    def array(self, value: np.ndarray) -> torch.Tensor:
        if value.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(value.view(np.uint16).copy()).view(torch.bfloat16)
        return torch.from_numpy(np.array(value))

    def numpy(self, value: torch.Tensor) -> np.ndarray:
        value = value.detach().contiguous()
        if value.dtype == torch.bfloat16:
            return value.view(torch.uint16).numpy().view(ml_dtypes.bfloat16).copy()
        return value.numpy().copy()

    def fresh(self, fields: dict[str, Any], seed: int, dtype: str = "float32") -> Any:
        """A newly drawn hull."""
        torch.manual_seed(seed)
        return self.package.VectorHull.from_config(self.config(fields), dtype=getattr(torch, dtype))

    def value_and_gradients(self, model: Any, x: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, dict]:
        """y, and the gradients of sum(c y) by every weight and by x."""
        names, weights = zip(*model.named_parameters(), strict=True)
        at = self.array(x).requires_grad_()
        y = model(at)
        total = torch.sum(torch.from_numpy(c).to(y.dtype) * y)
        found = torch.autograd.grad(total, [*weights, at], allow_unused=True, materialize_grads=True)
        gradients = {name: self.numpy(value) for name, value in zip([*names, "x"], found, strict=True)}
        return self.numpy(y), gradients

    def first_of_ties(self, g: torch.Tensor) -> torch.Tensor:
        """A maximum over groups whose gradient goes to the first of a tie alone: what the packages must not do."""
        return torch.max(g, dim=-2).values


BACKENDS = (Jax(), Torch())
