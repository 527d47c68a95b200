"""One matrix product an expert, of the rows that are its own: a table of backends, and gradients of the same kind.

    y[r] = rows[r] @ weights[e]       for the rows r of expert e, which stand one expert after the other

Letters: B rows, E experts, I in, O out.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from convexmoe.hierarchy import grouped as core

from ..settings import standard_promotion, vary
from .dispatch import add_at, block_sizes, dynamic_blocks, find_experts, make_plan, permute_rows, run_on_mesh, visit
from .finite import keep_apart

TILE = 128  # rows of a tile of megablox


@standard_promotion
def grouped_matmul(
    rows: jax.Array, weights: jax.Array, sizes: jax.Array, implementation: str | None = None
) -> jax.Array:
    """Return `rows[r] @ weights[e]` for the rows of each expert e, which stand one expert after the other.

    Guarantee: exact for all sizes, by one compilation; rows after the last expert's give exactly 0, an expert without
    rows gets exactly 0 for a gradient, and a NaN in a row touches no other expert's values or gradients. In reverse
    mode of any order (tests/contract/test_grouped.py).

    Args:
        rows: `[B, I]`, of any floating dtype.
        weights: `[E, I, O]`, of the same dtype.
        sizes: the rows of each expert, integers `[E]` whose sum is at most B (looked at only in numpy: it is data).
        implementation: "loop" (a loop over blocks of rows, as for the hierarchy on CPUs), "tiers" (a batch of the first
            rows of every expert, then the loop), "ragged" (`jax.lax.ragged_dot`), or "megablox" (the kernel of Pallas
            for TPUs, interpreted elsewhere). None means what CONVEXMOE_GROUPED names, or else the best known for the
            platform.

    Raises:
        TypeError, ValueError: an operand has another shape or dtype, or no backend of this name takes them.

    >>> x, w = jnp.ones((5, 3)), jnp.ones((2, 3, 4))
    >>> grouped_matmul(x, w, jnp.array([2, 1]))[:, 0].tolist()
    [3.0, 3.0, 3.0, 0.0, 0.0]
    """
    core.check_operands(rows, weights, sizes, (jax.Array, np.ndarray))
    if isinstance(sizes, np.ndarray):  # on the host: what is on a device is not waited for
        core.check_sum(sizes.tolist(), rows.shape[0])
    rows, weights, sizes = jnp.asarray(rows), jnp.asarray(weights), jnp.asarray(sizes, jnp.int32)
    return _compiled_product(How(_choose(implementation, rows, weights), sizes.shape[0]), rows, weights, sizes)


def _order() -> tuple[str, ...]:
    return ORDERS.get(jax.default_backend(), ORDERS["cpu"])


def _choose(implementation: str | None, one: jax.Array, other: jax.Array) -> str:
    return core.choose_backend(implementation, BACKENDS, _order(), one, other)


def hierarchy_backend() -> str | None:
    """Return the backend for the experts of a hierarchy on this platform; None for the loop of the dispatch."""
    return core.hierarchy_backend(BACKENDS, _order())


class How(NamedTuple):
    """How a product is computed.

    Args:
        name: of the backend.
        experts: how many share the rows: those of the weights, and those of other devices that have the same rows.
    """

    name: str
    experts: int


def _run(how: How, kernel: str, *operands: jax.Array) -> jax.Array:
    """Return the "product" or the "outer" products of a backend."""
    function = getattr(BACKENDS[how.name], kernel)
    return function(*operands, how.experts) if how.name in BLOCKS else function(*operands)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(how: How, rows: jax.Array, weights: jax.Array, sizes: jax.Array) -> jax.Array:
    """Return `grouped_matmul` by a backend; its gradients are products and outer products of the same rows."""
    if 0 in rows.shape:
        return jnp.zeros((rows.shape[0], weights.shape[2]), rows.dtype)
    y = _run(how, "product", _owned(rows, sizes), weights, sizes)
    return _owned(y.astype(rows.dtype), sizes)


def _pull_product(how: How, saved: Any, grad: jax.Array) -> Any:
    rows, weights, sizes = saved
    return _product(how, grad, weights.swapaxes(1, 2), sizes), _outer(how, rows, grad, sizes), None


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _outer(how: How, rows: jax.Array, grads: jax.Array, sizes: jax.Array) -> jax.Array:
    """`[B, I]`, `[B, O]` -> `[E, I, O]`: the sum over an expert's rows of their outer products."""
    if 0 in rows.shape:
        return jnp.zeros((sizes.shape[0], rows.shape[1], grads.shape[1]), rows.dtype)
    sums = _run(how, "outer", _owned(rows, sizes), _owned(grads, sizes), sizes)
    return jnp.where(sizes[:, None, None] > 0, sums.astype(rows.dtype), 0)


def _pull_outer(how: How, saved: Any, by_weights: jax.Array) -> Any:
    rows, grads, sizes = saved
    return _product(how, grads, by_weights.swapaxes(1, 2), sizes), _product(how, rows, by_weights, sizes), None


def _save(function: Any, how: How, *operands: jax.Array) -> Any:
    return function(how, *operands), operands


_product.defvjp(partial(_save, _product), _pull_product)
_compiled_product = jax.jit(_product, static_argnums=0)  # so that calls outside jit compile once, too
_outer.defvjp(partial(_save, _outer), _pull_outer)


def _owned(rows: jax.Array, sizes: jax.Array) -> jax.Array:
    """Return rows with zeros, even for NaN, in those of no expert."""
    return jnp.where((jnp.arange(rows.shape[0]) < jnp.sum(sizes))[:, None], rows, 0)


def _wide(rows: jax.Array) -> Any:
    """Return the dtype to sum in."""
    return jnp.promote_types(rows.dtype, jnp.float32)


def _starts(sizes: jax.Array) -> jax.Array:
    return jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(sizes).astype(jnp.int32)])


def _multiply_row(weights: jax.Array, shared: Any, row: jax.Array) -> jax.Array:
    return row @ weights


def _multiply_blocks(tiers: bool, rows: jax.Array, weights: jax.Array, sizes: jax.Array, among: int) -> jax.Array:
    """Return the product by the blocks of `dispatch`."""
    count, experts = rows.shape[0], sizes.shape[0]
    ladder, capacity = block_sizes(count, experts, False), core.tier_rows(count, among) if tiers else 0
    padded = jnp.pad(rows, ((0, max(*ladder, capacity)), (0, 0)))
    return dynamic_blocks(_multiply_row, ladder, weights, (), padded, _starts(sizes), capacity)[:count]


def _sum_blocks(tiers: bool, rows: jax.Array, grads: jax.Array, sizes: jax.Array, among: int) -> jax.Array:
    """Return the outer products by the blocks of `dispatch`."""
    count, experts = rows.shape[0], sizes.shape[0]
    ladder, capacity = block_sizes(count, experts, False), core.tier_rows(count, among) if tiers else 0
    rows, grads = (jnp.pad(x, ((0, max(*ladder, capacity)), (0, 0))) for x in (rows, grads))

    def one_block(at: Any, size: int, valid: Any) -> jax.Array:
        keep = (jnp.arange(size) < valid)[:, None]
        x, g = (jnp.where(keep, lax.dynamic_slice_in_dim(leaf, at, size), 0) for leaf in (rows, grads))
        return jnp.matmul(x.T, g, preferred_element_type=_wide(rows))

    def add_block(_: Any, expert: Any, at: Any, size: int, valid: Any, total: jax.Array) -> jax.Array:
        return add_at(expert, total, one_block(at, size, valid))

    starts = _starts(sizes)
    total = jnp.zeros((experts, rows.shape[1], grads.shape[1]), _wide(rows))
    if capacity:
        total = jax.vmap(lambda at, valid: one_block(at, capacity, valid))(starts[:-1], sizes)
    return visit(starts, ladder, (), add_block, total, capacity)


def _sum_ragged(rows: jax.Array, grads: jax.Array, sizes: jax.Array) -> jax.Array:
    numbers = lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])
    return lax.ragged_dot_general(rows, grads, sizes, numbers, preferred_element_type=_wide(rows))


def _run_megablox(kernel: str, one: jax.Array, other: jax.Array, sizes: jax.Array) -> jax.Array:
    """Return what megablox's `gmm` or `tgmm` gives: compiled for TPUs, interpreted for other platforms."""
    megablox = importlib.import_module("jax.experimental.pallas.ops.tpu.megablox.gmm")
    padding = ((0, -one.shape[0] % TILE), (0, 0))
    one = jnp.pad(one, padding)
    other = jnp.pad(other, padding) if kernel == "tgmm" else other
    arguments = (one.T if kernel == "tgmm" else one, other, sizes)
    run = partial(getattr(megablox, kernel), preferred_element_type=_wide(one), tiling=(TILE, TILE, TILE))
    return lax.platform_dependent(*arguments, tpu=run, default=partial(run, interpret=True))


def _multiply_megablox(rows: jax.Array, weights: jax.Array, sizes: jax.Array) -> jax.Array:
    return _run_megablox("gmm", rows, weights, sizes)[: rows.shape[0]]


def _takes_megablox(one: jax.Array, other: jax.Array) -> bool:
    return str(one.dtype) in ("bfloat16", "float32") and not jax.config.jax_enable_x64  # type: ignore[attr-defined]


BACKENDS = {
    core.LOOP: core.Backend(partial(_multiply_blocks, False), partial(_sum_blocks, False)),
    "tiers": core.Backend(partial(_multiply_blocks, True), partial(_sum_blocks, True)),
    "ragged": core.Backend(lax.ragged_dot, _sum_ragged),
    "megablox": core.Backend(_multiply_megablox, partial(_run_megablox, "tgmm"), _takes_megablox),
}
BLOCKS = (core.LOOP, "tiers")
# Not measured on a device. XLA computes a ragged product as one of every row with every expert on GPUs, and by its own
# count of a program compiled ahead of time on TPUs too.
ORDERS = {"cpu": (core.LOOP,), "gpu": ("tiers",), "tpu": ("tiers",)}


class Groups(NamedTuple):
    """Sorted rows of experts, as the experts of a hierarchy get them.

    Args:
        sizes: the rows of each expert, int32 `[E]`.
        expert: the expert of each row, int32 `[B]`; E for a row without one.
        backend: the name of the backend of their products.
        among: how many experts share the rows, those of other devices too.
    """

    sizes: jax.Array
    expert: jax.Array
    backend: str
    among: int

    def linear(self, x: jax.Array, weights: jax.Array, biases: jax.Array) -> jax.Array:
        """Return `x[r] @ weights[e] + biases[e]`, `[B, O]`; 0 for a row without an expert."""
        dtype = jnp.result_type(x, weights)
        x, weights = x.astype(dtype), weights.astype(dtype)
        bias = jnp.where((self.expert < len(biases))[:, None], biases.at[self.expert].get(mode="clip"), 0)
        return _product(How(_choose(self.backend, x, weights), self.among), x, weights, self.sizes) + bias


# Compiled by itself, so that calls outside jit compile once, too.
@partial(jax.jit, static_argnames=("function", "num_experts", "backend"))
def run_grouped(
    function: Callable[[Any, jax.Array, Groups], jax.Array],
    weights: Any,
    hidden: jax.Array,
    routes: jax.Array,
    num_experts: int,
    backend: str,
) -> jax.Array:
    """Return `function(weights, sorted rows, groups)` in the order of the rows; zeros where a route has no expert.

    Args:
        function: hashable; of rows `[B, D]`.
        weights: stacked parameters of all experts; hidden: `[B, D]` or `[B, length, D]`, whose positions are rows.
        routes: int32 `[B]`; num_experts, backend: of the level.
    """

    def run(here: int, whole: Any, own: Any) -> jax.Array:
        (hidden, routes), (weights, _) = own, vary(whole, own)
        plan = make_plan(routes, here, 0)
        x = permute_rows(hidden, plan.take, plan.back)
        length = x.shape[1] if x.ndim == 3 else 1
        expert = jnp.repeat(find_experts(plan.starts, len(x)), length)
        groups = Groups(jnp.diff(plan.starts) * length, expert, backend, num_experts)
        flat = keep_apart(lambda rows: function(weights, rows, groups), x.reshape(-1, x.shape[-1]))
        flat = jnp.where((expert < num_experts)[:, None], flat, 0)  # a NaN of a row of other experts is not ours
        return permute_rows(flat.reshape(*x.shape[:-1], flat.shape[-1]), plan.back, plan.take)

    return run_on_mesh(run, weights, (), (hidden, routes), num_experts)
