"""How far two twins are apart: outputs, gradients by every weight, input gradients, Hessians, losses of a short run."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import convexmoe_jax
from convexmoe.hull import HullConfig
from convexmoe_jax.files.optimizer import neutral_of
from convexmoe_torch.files.optimizer import parameters_of

from .weights import array_of, tensor_of

# Largest error allowed, relative to the largest value of each array. They leave room for another order of
# summation (float32 resolves 1.2e-7, float64 2.2e-16), not for another formula.
BOUNDS = {
    "float32": {"forward": 2e-6, "gradient": 1e-5, "hessian": 1e-5, "trajectory": 1e-4},
    "float64": {"forward": 1e-13, "gradient": 1e-12, "hessian": 1e-11, "trajectory": 1e-11},
    # in half precision another group may win a near tie, so that derivatives cannot be compared
    "bfloat16": {"forward": 2e-2},
    "float16": {"forward": 4e-3},
}
# With a floor the bound is NOISE times the noise of the model, measured, of LEAST units of rounding at least: in 388
# comparisons of hulls and of hierarchies the frameworks were 2.2 times as far apart as that at most.
NUDGES, NOISE, LEAST = 4, 4, 8
HESSIAN_ROWS = 4
LEARNING_RATE = 1e-3  # of the trajectory
Quantities = dict[str, np.ndarray]
Routes = dict[str, Any]  # of a hierarchy: level -> integers; of a hull: "context" -> an array


class Comparison(NamedTuple):
    """One quantity.

    Args:
        name: of the quantity.
        error: largest difference between the twins, relative to the largest value.
        bound: what it must not exceed: of `BOUNDS`, or, with a floor, `NOISE` times that.
        floor: the same difference in JAX alone, when every weight is moved by one unit in the last place: what
            rounding makes of this model, the most of `NUDGES` such moves. NaN where it was not asked for.
    """

    name: str
    error: float
    bound: float
    floor: float = float("nan")

    @property
    def ok(self) -> bool:
        return self.error <= self.bound < float("inf")


@dataclass(frozen=True)
class ParityReport:
    """All comparisons of two twins.

    Args:
        comparisons: forward, input gradient, input Hessian, the gradient by each parameter, the trajectory.
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

    def to_json(self) -> str:
        """Return everything as JSON; what is not finite as null."""
        rows = [c._asdict() | {"ok": c.ok} for c in self.comparisons]
        rows = [{k: v if isinstance(v, str) or np.isfinite(v) else None for k, v in r.items()} for r in rows]
        return json.dumps({"dtype": self.dtype, "ok": self.ok, "comparisons": rows}, indent=2)

    def __str__(self) -> str:
        words = {True: "ok", False: "MISS"}
        lines = [f"{c.name:<28} {c.error:9.2e}  (bound {c.bound:.0e})  {words[c.ok]}" for c in self.comparisons]
        return "\n".join([f"parity in {self.dtype}: {words[self.ok]}", *lines])


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
    jax_model: Any,
    torch_model: Any,
    x: np.ndarray,
    *,
    routing: dict[str, np.ndarray] | None = None,
    context: np.ndarray | None = None,
    steps: int = 0,
    floor: bool = False,
) -> ParityReport:
    """Compare two twins on the rows `x`, hulls or hierarchies, as they are outside training.

    Gradients are those of `sum(c * y)` for fixed numbers c, Hessians the same for the first rows of x, y the output
    of a hull and the fused one of a hierarchy. The trajectory is the loss before each step of Adam towards the rows'
    c. JAX computes with full-precision matrix products.

    Args:
        jax_model, torch_model: twins of one dtype. Experts of a hierarchy must need no context and no mask.
        x: `[rows, in_dim]` or `[rows, hidden_size]`, in the units of the models.
        routing: of a hierarchy: level -> integers `[rows]`.
        context: of a hull that has one: `[rows, context_dim]`, in its units.
        steps: of the trajectory.
        floor: measure what rounding makes of each quantity, with `NUDGES` more runs in JAX, and set the bounds by it.

    Returns:
        A `ParityReport`; `print` shows it as a table, `ok` says whether every bound holds.

    >>> from interop import to_torch
    >>> hull = convexmoe_jax.VectorHull(3, petals=4, rngs=nnx.Rngs(0))
    >>> check_parity(hull, to_torch(hull), np.eye(3)).ok
    True
    """
    dtype = str(jax.tree.leaves(nnx.state(jax_model, nnx.Param))[0].dtype)
    rows = np.asarray(jnp.asarray(x, dtype))
    routes: Routes = {name: np.asarray(route) for name, route in (routing or {}).items()}
    if context is not None:
        routes = {"context": np.asarray(jnp.asarray(context, dtype))}
    steps = steps if dtype in ("float32", "float64") else 0
    with jax.default_matmul_precision("highest"):
        ours = _quantities_jax(jax_model, jnp.asarray(rows), routes, steps)
        moved = [nudge(jax_model, seed) for seed in range(NUDGES * floor)]
        nudged = [_quantities_jax(model, jnp.asarray(rows), routes, steps) for model in moved]
    if context is not None:
        routes = {name: tensor_of(value) for name, value in routes.items()}
    theirs = _quantities_torch(torch_model, tensor_of(rows), routes, steps)
    comparisons, least = [], LEAST * float(jnp.finfo(dtype).eps)
    for name, value in ours.items():
        bound, noise = BOUNDS[dtype].get(name.split()[0]), float("nan")
        if bound is not None:
            if floor:
                noise = max(relative_error(other[name], value) for other in nudged)
                bound = NOISE * max(noise, min(bound / NOISE, least))
            comparisons.append(Comparison(name, relative_error(value, theirs[name]), bound, noise))
    return ParityReport(tuple(comparisons), dtype)


def weights_like(shape: tuple[int, ...]) -> np.ndarray:
    """Return fixed numbers of both signs: the c of `sum(c * y)`."""
    return np.cos(1.0 + np.arange(int(np.prod(shape)))).reshape(shape)


def nudge(model: Any, seed: int = 0) -> Any:
    """Return a copy of a JAX model with every weight moved by one unit in the last place, up or down at random."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    draw = np.random.default_rng(seed)

    def move(leaf: jax.Array) -> jax.Array:
        towards = draw.choice([-np.inf, np.inf], leaf.shape)
        return jnp.nextafter(leaf, jnp.asarray(towards, leaf.dtype))

    return nnx.merge(graph, jax.tree.map(move, params), rest)


def _beside(model: Any, routes: Routes) -> list[Any]:
    """Return what a model is given beside its rows."""
    is_hull = isinstance(getattr(model, "config", None), HullConfig)
    return list(routes.values()) if is_hull else [routes] * bool(routes)


def _quantities_jax(model: Any, x: jax.Array, routes: Routes, steps: int) -> Quantities:
    model = nnx.clone(model)
    if isinstance(model, convexmoe_jax.HierarchicalCELMoE):
        model.differentiation = "any"  # Hessians
    graph, params, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    (by_weight, by_input), y, hessians = _derivatives(graph, rest, params, x, routes)
    quantities = {"forward": y, "gradient x": by_input, "hessian": hessians}
    quantities |= {f"gradient {name}": value for name, value in neutral_of(model, by_weight).items()}
    if steps:
        quantities["trajectory"] = _trajectory(graph, rest, params, x, routes, steps)
    return {name: np.asarray(value) for name, value in quantities.items()}


def _output(graph: Any, rest: Any, params: Any, x: jax.Array, routes: Routes) -> jax.Array:
    """Return the output of a model given in parts, so that models alike share what is compiled."""
    model = nnx.merge(graph, params, rest)
    result = model(x, *_beside(model, routes))
    return getattr(result, "fused_hidden", result)


@partial(jax.jit, static_argnums=0)
def _derivatives(graph: Any, rest: Any, params: Any, x: jax.Array, routes: Routes) -> tuple[Any, ...]:
    """Return gradients by parameters and input, the output, and the Hessians of the first rows."""

    def weighted_sum(params: Any, x: jax.Array, routes: Routes) -> tuple[jax.Array, jax.Array]:
        y = _output(graph, rest, params, x, routes)
        return jnp.sum(jnp.asarray(weights_like(y.shape), y.dtype) * y), y

    def hessian(first: tuple[jax.Array, Routes]) -> jax.Array:
        row, routes = first
        return jax.hessian(lambda r: weighted_sum(params, r[None], routes)[0])(row)

    gradients, y = jax.grad(weighted_sum, argnums=(0, 1), has_aux=True)(params, x, routes)
    first = x[:HESSIAN_ROWS], {level: route[:HESSIAN_ROWS, None] for level, route in routes.items()}
    return gradients, y, jax.lax.map(hessian, first)


@partial(jax.jit, static_argnums=(0, 5))
def _trajectory(graph: Any, rest: Any, params: Any, x: jax.Array, routes: Routes, steps: int) -> jax.Array:
    """Return the loss before each step of Adam."""
    optimizer = convexmoe_jax.adam(LEARNING_RATE)

    def mean_square(params: Any) -> jax.Array:
        y = _output(graph, rest, params, x, routes)
        return jnp.mean((y - jnp.asarray(weights_like(y.shape), y.dtype)) ** 2)

    def step(carry: Any, _: None) -> Any:
        params, state = carry
        loss, gradient = jax.value_and_grad(mean_square)(params)
        updates, state = optimizer.update(gradient, state)
        return (jax.tree.map(jnp.add, params, updates), state), loss

    return jax.lax.scan(step, (params, optimizer.init(params)), length=steps)[1]


def _quantities_torch(model: Any, x: torch.Tensor, routes: Routes, steps: int) -> Quantities:
    model = copy.deepcopy(model).eval()

    def output(at: torch.Tensor, routes: Routes) -> torch.Tensor:
        result = model(at, *_beside(model, routes))
        return getattr(result, "fused_hidden", result)

    def weighted_sum(at: torch.Tensor, routes: Routes) -> torch.Tensor:
        y = output(at, routes)
        return torch.sum(tensor_of(weights_like(tuple(y.shape))).to(y) * y)

    names, weights = zip(*parameters_of(model).items(), strict=True)
    at = x.clone().requires_grad_()
    by_input, *by_weight = torch.autograd.grad(
        weighted_sum(at, routes), [at, *weights], allow_unused=True, materialize_grads=True
    )
    hessians = []
    for i in range(min(len(x), HESSIAN_ROWS)):
        row_routes = {level: route[i : i + 1] for level, route in routes.items()}
        hessians.append(torch.func.hessian(lambda r, of=row_routes: weighted_sum(r[None], of))(x[i]))
    y = output(x, routes)
    quantities = {"forward": y, "gradient x": by_input, "hessian": torch.stack(hessians)}
    quantities |= {f"gradient {name}": value for name, value in zip(names, by_weight, strict=True)}
    if steps:
        optimizer, losses = torch.optim.Adam(model.parameters(), LEARNING_RATE), []
        target = tensor_of(weights_like(tuple(y.shape))).to(y)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (output(x, routes) - target).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        quantities["trajectory"] = torch.stack(losses)
    return {name: np.asarray(array_of(value)) for name, value in quantities.items()}
