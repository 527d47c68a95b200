"""How far two twins are apart: outputs, gradients by every weight, input gradients and input Hessians."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

import convexmoe_jax
import convexmoe_torch

from .weights import array_of, tensor_of

# Largest error allowed, relative to the largest value of each array. They leave room for another order of
# summation (float32 resolves 1.2e-7, float64 2.2e-16), not for another formula.
BOUNDS = {
    "float32": {"forward": 2e-6, "gradient": 1e-5, "hessian": 1e-5},
    "float64": {"forward": 1e-13, "gradient": 1e-12, "hessian": 1e-11},
    # in half precision another group may win a near tie, so that derivatives cannot be compared
    "bfloat16": {"forward": 2e-2},
    "float16": {"forward": 4e-3},
}
HESSIAN_ROWS = 4


class Comparison(NamedTuple):
    """One quantity: its name, its largest error relative to its largest value, and the bound to hold."""

    name: str
    error: float
    bound: float

    @property
    def ok(self) -> bool:
        return self.error <= self.bound


@dataclass(frozen=True)
class ParityReport:
    """All comparisons of two twins.

    Args:
        comparisons: forward, input gradient, input Hessian, and the gradient by each parameter.
        dtype: the dtype both computed in.
    """

    comparisons: tuple[Comparison, ...]
    dtype: str

    @property
    def ok(self) -> bool:
        """Whether every error is within its bound."""
        return all(comparison.ok for comparison in self.comparisons)

    @property
    def worst(self) -> Comparison:
        """The comparison that comes closest to its bound, or exceeds it most."""
        return max(self.comparisons, key=lambda comparison: comparison.error / comparison.bound)

    def __str__(self) -> str:
        lines = [
            f"{c.name:<28} {c.error:9.2e}  (bound {c.bound:.0e})  {'ok' if c.ok else 'MISS'}"
            for c in self.comparisons
        ]
        return "\n".join([f"parity in {self.dtype}: {'ok' if self.ok else 'MISS'}", *lines])


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    """Return the largest difference relative to the largest value of `b`; inf for other shapes or a NaN on one side."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    a, b = a.astype(np.float64), b.astype(np.float64)
    size = max(float(np.max(np.abs(b), initial=0.0)), float(np.finfo(np.float32).tiny))
    error = float(np.max(np.abs(a - b), initial=0.0)) / size
    return error if np.isfinite(error) else float("inf")


def check_parity(
    jax_model: convexmoe_jax.VectorHull, torch_model: convexmoe_torch.VectorHull, x: np.ndarray
) -> ParityReport:
    """Compare two twins on the rows `x`.

    Gradients are those of `sum(c * y)` for fixed numbers c, Hessians the same for the first rows of x. JAX computes
    with full-precision matrix products.

    Args:
        jax_model, torch_model: hulls of one dtype.
        x: `[rows, in_dim]`, in the units of the models.

    Returns:
        A `ParityReport`; `print` shows it as a table, `ok` says whether every bound holds.

    >>> from flax import nnx
    >>> from interop import to_torch
    >>> hull = convexmoe_jax.VectorHull(3, petals=4, rngs=nnx.Rngs(0))
    >>> check_parity(hull, to_torch(hull), np.eye(3)).ok
    True
    """
    dtype = str(jax_model.params["shifts"].dtype)
    rows = np.asarray(jnp.asarray(x, dtype))
    with jax.default_matmul_precision("highest"):
        left = _quantities_jax(jax_model, jnp.asarray(rows))
    right = _quantities_torch(torch_model, tensor_of(rows))
    comparisons = []
    for name, value in left.items():
        bound = BOUNDS[dtype].get(name.split()[0])
        if bound is not None:
            comparisons.append(Comparison(name, relative_error(value, right[name]), bound))
    return ParityReport(tuple(comparisons), dtype)


def weights_like(shape: tuple[int, ...]) -> np.ndarray:
    """Return fixed numbers of both signs: the c of `sum(c * y)`."""
    return np.cos(1.0 + np.arange(int(np.prod(shape)))).reshape(shape)


def _quantities_jax(model: convexmoe_jax.VectorHull, x: jax.Array) -> dict[str, np.ndarray]:
    config = model.config

    def total(params: convexmoe_jax.hull.Tree, at: jax.Array) -> jax.Array:
        y = convexmoe_jax.hull.apply(params, at, config)
        return jnp.sum(jnp.asarray(weights_like(y.shape), y.dtype) * y)

    by_weight, by_input = jax.grad(total, argnums=(0, 1))(model.params, x)
    hessian = jax.vmap(lambda row: jax.hessian(lambda r: total(model.params, r))(row))(x[:HESSIAN_ROWS])
    gradients = {f"gradient {name}": value for name, value in convexmoe_jax.hull.flatten(by_weight).items()}
    quantities = {"forward": model(x), "gradient x": by_input, "hessian": hessian, **gradients}
    return {name: np.asarray(value) for name, value in quantities.items()}


def _quantities_torch(model: convexmoe_torch.VectorHull, x: torch.Tensor) -> dict[str, np.ndarray]:
    def total(y: torch.Tensor) -> torch.Tensor:
        return torch.sum(tensor_of(weights_like(tuple(y.shape))).to(y) * y)

    names, weights = zip(*model.named_parameters(), strict=True)
    x = x.clone().requires_grad_()
    y = model(x)
    by_input, *by_weight = torch.autograd.grad(
        total(y), [x, *weights], allow_unused=True, materialize_grads=True
    )
    hessian = torch.stack(
        [torch.func.hessian(lambda r: total(model(r)))(row) for row in x.detach()[:HESSIAN_ROWS]]
    )
    gradients = {f"gradient {name}": value for name, value in zip(names, by_weight, strict=True)}
    quantities = {"forward": y, "gradient x": by_input, "hessian": hessian, **gradients}
    return {name: _numpy(value) for name, value in quantities.items()}


def _numpy(value: torch.Tensor) -> np.ndarray:
    return np.asarray(array_of(value))
