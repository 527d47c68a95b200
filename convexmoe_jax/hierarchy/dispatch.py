"""Running each expert on its own rows: exact, without dropping rows, one compilation for all routes.

Rows are sorted by expert. A loop over the experts that have rows reads one expert's parameters and visits its rows in
blocks of a few static sizes; how many blocks there are is data, so that no route compiles anew. The last block of an
expert may spill into the rows of the next, which overwrites them when its turn comes.

A loop is slow on accelerators. There the first rows of every expert, a quarter more than the mean, are one batch of
static shape, of all experts at once (the first tier), and the loop visits the rest (the second): nothing where the
routes are near even.

Letters: B rows, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from convexmoe import hierarchy as core

from ..settings import each_part, each_shard, leading_spec, vary

Tree = Any
Function = Callable[[Tree, Tree, Tree], Tree]  # (parameters of one expert, shared, one row) -> tree


class Plan(NamedTuple):
    """Where the rows go.

    Args:
        take: the row that stands at each sorted place, int32 `[B + padding]`.
        back: the sorted place of each row, int32 `[B]`.
        starts: the first sorted place of each expert, int32 `[E + 1]`; rows from `starts[E]` on have no expert.
    """

    take: jax.Array
    back: jax.Array
    starts: jax.Array


def make_plan(routes: jax.Array, num_experts: int, padding: int) -> Plan:
    """Return the plan of `routes`, int32 `[B]`; a route outside [0, E) has no expert."""
    rows = routes.shape[0]
    valid = (routes >= 0) & (routes < num_experts)
    place = jnp.arange(rows, dtype=jnp.int32)
    routes = jnp.where(valid, routes, num_experts).astype(jnp.int32)
    if (num_experts + 1) * rows < 2**31:  # one key of both sorts some times faster than a stable sort
        order = jnp.sort(routes * rows + place) % max(rows, 1)
    else:
        _, order = lax.sort((routes, place), num_keys=1, is_stable=True)
    counts = jnp.zeros(num_experts, jnp.int32).at[routes].add(1, mode="drop")
    starts = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(counts)])
    back = jnp.zeros(rows, jnp.int32).at[order].set(place, unique_indices=True)
    return Plan(jnp.concatenate([order, jnp.zeros(padding, jnp.int32)]), back, starts)


@jax.custom_vjp
def permute_rows(x: jax.Array, take: jax.Array, back: jax.Array) -> jax.Array:
    """Return `x[take]`; its transpose is the gather `g[back]`, not a scatter."""
    return x[take]


permute_rows.defvjp(lambda x, take, back: (x[take], back), lambda back, g: (g[back], None, None))


def block_sizes(rows: int, num_experts: int, sequences: bool) -> tuple[int, ...]:
    """Return the static block sizes for so many rows an expert, the largest first (measured on CPUs)."""
    if sequences:
        return (4, 1)
    if rows >= 192 * num_experts:
        return (128, 64, 32, 16)
    if rows >= 32 * num_experts:
        return (64, 32, 16)
    return (16, 4) if rows >= 8 * num_experts else (4,)


# Compiled by itself, so that calls outside jit compile once, too.
@partial(jax.jit, static_argnames=("function", "num_experts", "any_order", "tiers"))
def dispatch(
    function: Function,
    params: Tree,
    shared: Tree,
    rows: Tree,
    routes: jax.Array,
    num_experts: int,
    any_order: bool,
    tiers: bool = False,
) -> Tree:
    """Return `function(params[route], shared, row)` for every row; zeros where a route has no expert.

    Args:
        function: of one row; hashable.
        params: stacked parameters, each leaf `[E, ...]`.
        shared: what every row gets.
        rows: each leaf `[B, ...]`.
        routes: int32 `[B]`.
        num_experts: E, which the parameters do not tell where an expert has none.
        any_order: also differentiate forward and twice, at two to five times the cost.
        tiers: two tiers, for accelerators; not with `any_order`.
    """
    run = partial(_dispatch, function, any_order, num_experts if tiers else 0)
    return run_on_mesh(run, params, shared, (rows, routes), num_experts)


def run_on_mesh(run: Callable[..., Tree], params: Tree, shared: Tree, own: Tree, num_experts: int) -> Tree:
    """Return `run(num_experts, (params, shared), own)`: each device has its rows, and all experts or its part of them.

    Args:
        run: of one device.
        params: stacked parameters, each leaf `[E, ...]`, whose leading axis a mesh may divide.
        shared: what every row gets.
        own: the rows, and their routes, int32 `[B]`; other routes than [0, E) have no expert.
        num_experts: E.
    """
    axis = leading_spec(params)[0]
    if not isinstance(axis, str):
        return each_shard(partial(run, num_experts), (params, shared), own)

    def run_part(params: Tree, shared: Tree, own: Tree) -> Tree:
        rows, routes = own
        count = jax.tree.leaves(params)[0].shape[0]
        return run(count, (params, shared), (rows, routes - lax.axis_index(axis) * count))

    return each_part(run_part, params, shared, own, axis)


def _dispatch(function: Function, any_order: bool, among: int, num_experts: int, whole: Tree, own: Tree) -> Tree:
    """Return the result of `dispatch` on one device; `among` is how many experts share its rows, 0 without tiers."""
    (params, shared), (rows, routes) = vary((whole, own), (whole, own))
    leaves = jax.tree.leaves(rows)
    count = leaves[0].shape[0]
    if count == 0:
        return _zeros(jax.eval_shape(jax.vmap(function, (None, None, 0)), expert_slice(params, 0), shared, rows))
    sizes = block_sizes(count, num_experts, any(leaf.ndim > 2 for leaf in leaves))
    capacity = core.tier_rows(count, among) if among and not any_order else 0
    plan = make_plan(routes, num_experts, max(*sizes, capacity))
    run = static_blocks if any_order else partial(dynamic_blocks, capacity=capacity)
    take = (lambda x: x[plan.take]) if any_order else (lambda x: permute_rows(x, plan.take, plan.back))
    give = (lambda y: y[plan.back]) if any_order else (lambda y: permute_rows(y, plan.back, plan.take))
    return jax.tree.map(give, run(function, sizes, params, shared, jax.tree.map(take, rows), plan.starts))


def _zeros(like: Tree) -> Tree:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)


def expert_slice(params: Tree, expert: jax.Array | int) -> Tree:
    """Return the parameters of one expert."""
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, expert, 0, keepdims=False), params)


def expand(mask: jax.Array, like: jax.Array) -> jax.Array:
    """Return `mask`, (rows,), with as many axes as `like`."""
    return mask.reshape(-1, *[1] * (like.ndim - 1))


def block_of(rows: Tree, at: jax.Array, size: int, keep: jax.Array) -> Tree:
    """Return `size` rows from `at` on; those that `keep`, `[size]`, leaves out repeat the first that it keeps.

    Another expert's row must not be computed on, not even with a zero cotangent: 0 * NaN is NaN.
    """
    first = jnp.argmax(keep)

    def read(leaf: jax.Array) -> jax.Array:
        block = lax.dynamic_slice_in_dim(leaf, at, size)
        return jnp.where(expand(keep, block), block, lax.dynamic_slice_in_dim(block, first, 1))

    return jax.tree.map(read, rows)


def visit(starts: jax.Array, sizes: tuple[int, ...], params: Tree, block: Any, carry: Tree, skip: int = 0) -> Tree:
    """Loop over the experts that have more than `skip` rows, and over the blocks of the rows after these.

    `block(weights, expert, at, size, valid, carry)` returns the next carry.
    """
    counts = starts[1:] - starts[:-1] - skip
    num_experts = counts.shape[0]
    present = jnp.sort(jnp.where(counts > 0, jnp.arange(num_experts), num_experts))

    def one_expert(i: jax.Array, carry: Tree) -> Tree:
        expert = present[i]
        end, at = starts[expert + 1], starts[expert] + skip
        weights = expert_slice(params, expert)
        for size in sizes:
            # Half a block and more is cheaper as one block than as many of the next size.
            spare = size - 1 if size == sizes[-1] else size // 2 - 1
            number = jnp.maximum(end - at + spare, 0) // size

            def one_block(j: jax.Array, carry: Tree, at: Any = at, size: int = size) -> Tree:
                place = at + j * size
                return block(weights, expert, place, size, end - place, carry)

            carry = lax.fori_loop(0, number, one_block, carry)
            at = at + number * size
        return carry

    return lax.fori_loop(0, jnp.sum(counts > 0), one_expert, vary(carry, starts))


def _is_floating(leaf: jax.Array) -> bool:
    """Return whether a leaf has gradients."""
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _divide(tree: Tree) -> tuple[Tree, Tree]:
    """Return a tree of the leaves that have gradients and one of the others, each with None in the other's places."""
    trained = jax.tree.map(lambda leaf: leaf if _is_floating(leaf) else None, tree)
    return trained, jax.tree.map(lambda leaf: None if _is_floating(leaf) else leaf, tree)


def join(one: Tree, other: Tree) -> Tree:
    """Return a tree of the leaves of `one`, and of those of `other` where that has None."""
    return jax.tree.map(lambda x, y: y if x is None else x, one, other, is_leaf=lambda x: x is None)


def dynamic_blocks(
    function: Function,
    sizes: tuple[int, ...],
    params: Tree,
    shared: Tree,
    rows: Tree,
    starts: jax.Array,
    capacity: int = 0,
) -> Tree:
    """Return the outputs in sorted order, `[B + padding, ...]`, by the loop of `visit`; reverse mode, once.

    The first `capacity` rows of every expert, as many as the padding at most, are one batch; 0 means no such tier.
    """
    return _run_blocks(function, sizes, capacity, *_divide((params, shared, rows)), starts)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _run_blocks(
    function: Function, sizes: tuple[int, ...], capacity: int, trained: Tree, fixed: Tree, starts: jax.Array
) -> Tree:
    """Return the outputs of all rows, from (parameters, what is shared, rows) as `_divide` returns them."""
    params, shared, rows = join(trained, fixed)
    places = jax.tree.leaves(rows)[0].shape[0]
    run_rows = jax.vmap(function, (None, None, 0))
    first = jax.tree.map(lambda leaf: leaf[:1], rows)
    out = jax.eval_shape(run_rows, expert_slice(params, 0), shared, first)
    y = jax.tree.map(lambda leaf: jnp.zeros((places, *leaf.shape[1:]), leaf.dtype), out)

    def block(weights: Tree, expert: Any, at: Any, size: int, valid: Any, y: Tree) -> Tree:
        return _write_at(at, y, run_rows(weights, shared, block_of(rows, at, size, jnp.arange(size) < valid)))

    y = visit(starts, sizes, params, block, y, capacity)
    if capacity:

        def first_rows(weights: Tree, at: jax.Array, count: jax.Array) -> Tree:
            return run_rows(weights, shared, block_of(rows, at, capacity, jnp.arange(capacity) < count))

        y = join_tiers(jax.vmap(first_rows)(params, starts[:-1], jnp.diff(starts)), y, starts)
    return _zero_spill(y, starts)


def _run_and_save(function: Function, sizes: tuple[int, ...], capacity: int, *trees: Any) -> Any:
    return _run_blocks(function, sizes, capacity, *trees), trees


def find_experts(starts: jax.Array, places: int) -> jax.Array:
    """Return the expert of each sorted place, int32 `[places]`; E after the last (a search fails in a mesh)."""
    return jnp.cumsum(jnp.zeros(places, jnp.int32).at[starts[1:]].add(1, mode="drop"))


def join_tiers(first: Tree, rest: Tree, starts: jax.Array) -> Tree:
    """Return what is in sorted order: of every expert the rows of `first`, `[E, capacity, ...]`, then those of `rest`.

    Args:
        rest: `[B + padding, ...]`, in sorted order.
    """
    places = jax.tree.leaves(rest)[0].shape[0] if jax.tree.leaves(rest) else 0
    place, last = jnp.arange(places), starts.shape[0] - 2
    expert = jnp.minimum(find_experts(starts, places), last)
    rank = place - starts[expert]

    def one_leaf(first: jax.Array, rest: jax.Array) -> jax.Array:
        capacity = first.shape[1]
        own = first[expert, jnp.minimum(rank, capacity - 1)]
        return jnp.where(expand(rank < capacity, rest), own, rest)

    return jax.tree.map(one_leaf, first, rest)


def _pull_back(function: Function, sizes: tuple[int, ...], capacity: int, trees: Any, y: Tree) -> Any:
    """Return the gradients by every leaf: each block is computed again, and sums are in float32 at least."""
    (params, shared, rows), (params_fixed, shared_fixed, rows_fixed), starts = trees
    cotangents = [leaf for leaf in jax.tree.leaves(y) if leaf.dtype != jax.dtypes.float0]

    def pull_block(weights: Tree, weights_fixed: Tree, at: Any, size: int, valid: Any) -> Tree:
        """Return the gradients of a block by one expert's parameters, by what is shared, and by its rows."""
        ct = [lax.dynamic_slice_in_dim(leaf, at, size) for leaf in cotangents]
        # a row that the loss leaves out may be NaN, and is not computed on either
        wanted = sum(((leaf != 0).reshape(size, -1).any(1) for leaf in ct), start=jnp.zeros(size, bool))
        keep = (jnp.arange(size) < valid) & wanted
        part, part_fixed = block_of((rows, rows_fixed), at, size, keep)
        fixed = (weights_fixed, shared_fixed, part_fixed)

        def outputs(*trained: Any) -> Any:
            return jax.tree.leaves(_divide(jax.vmap(function, (None, None, 0))(*join(trained, fixed)))[0])

        ct = [jnp.where(expand(keep, leaf), leaf, 0) for leaf in ct]
        _, pull = jax.vjp(outputs, weights, shared, part)
        some = jnp.any(keep)
        return jax.tree.map(lambda leaf: jnp.where(some, leaf, 0), pull(ct))

    def block(weights: Tree, expert: Any, at: Any, size: int, valid: Any, carry: Tree) -> Tree:
        by_params, by_shared, by_rows = carry
        new_weights, new_shared, new_rows = pull_block(weights, expert_slice(params_fixed, expert), at, size, valid)
        by_params = jax.tree.map(partial(add_at, expert), by_params, new_weights)
        by_shared = jax.tree.map(lambda total, new: total + new.astype(total.dtype), by_shared, new_shared)
        return by_params, by_shared, _write_at(at, by_rows, new_rows)

    start: Tree = (_wide_zeros(params), _wide_zeros(shared), jax.tree.map(jnp.zeros_like, rows))
    first: Tree = None
    if capacity:
        pull_first = jax.vmap(lambda weights, fixed, at, count: pull_block(weights, fixed, at, capacity, count))
        first = pull_first(params, params_fixed, starts[:-1], jnp.diff(starts))
        wide = partial(jax.tree.map, lambda zero, new: new.astype(zero.dtype))
        by_shared = jax.tree.map(lambda zero, new: jnp.sum(new, 0, dtype=zero.dtype), start[1], first[1])
        start = (wide(start[0], first[0]), by_shared, start[2])
    by_params, by_shared, by_rows = visit(starts, sizes, params, block, start, capacity)
    by_rows = join_tiers(first[2], by_rows, starts) if capacity else by_rows
    narrow = partial(jax.tree.map, lambda total, leaf: total.astype(leaf.dtype))
    return (narrow(by_params, params), narrow(by_shared, shared), _zero_spill(by_rows, starts)), None, None


_run_blocks.defvjp(_run_and_save, _pull_back)


def _write_at(at: jax.Array, total: Tree, new: Tree) -> Tree:
    """Return `total` with the rows of `new` from `at` on."""
    return jax.tree.map(lambda a, b: lax.dynamic_update_slice_in_dim(a, b, at, 0), total, new)


def add_at(expert: jax.Array, total: jax.Array, new: jax.Array) -> jax.Array:
    """Return `total`, `[E, ...]`, with `new` added to one expert's."""
    old = lax.dynamic_index_in_dim(total, expert, 0, keepdims=False)
    return lax.dynamic_update_index_in_dim(total, old + new.astype(total.dtype), expert, 0)


def _wide_zeros(tree: Tree) -> Tree:
    """Return zeros to sum the gradients of a tree in."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), tree)


def _zero_spill(y: Tree, starts: jax.Array) -> Tree:
    """Return `y` with zeros in the places that belong to no expert: blocks have spilled into them."""

    def zero(leaf: jax.Array) -> jax.Array:
        owned = jnp.arange(leaf.shape[0]) < starts[-1]
        return jnp.where(expand(owned, leaf), leaf, jnp.zeros((), leaf.dtype))

    return jax.tree.map(zero, y)


def static_blocks(
    function: Function, sizes: tuple[int, ...], params: Tree, shared: Tree, rows: Tree, starts: jax.Array
) -> Tree:
    """Return what `dynamic_blocks` returns, by a `lax.map` over padded blocks: differentiable in any order."""
    size, places = sizes[-1], jax.tree.leaves(rows)[0].shape[0]
    num_experts = starts.shape[0] - 1
    counts = starts[1:] - starts[:-1]
    ends = jnp.cumsum((counts + size - 1) // size)
    blocks = (places - max(sizes)) // size + num_experts

    def one_block(i: jax.Array) -> Tree:
        expert = jnp.minimum(jnp.searchsorted(ends, i, side="right"), num_experts - 1)
        first = ends[expert] - (counts[expert] + size - 1) // size
        at = starts[expert] + (i - first) * size
        keep = jnp.arange(size) < jnp.clip(starts[expert + 1] - at, 1, size)
        return run_rows(expert_slice(params, expert), shared, block_of(rows, at, size, keep))

    # A block more than the rows need would read a row of another expert.
    run_rows = jax.vmap(function, (None, None, 0))
    like = jax.eval_shape(one_block, jax.ShapeDtypeStruct((), jnp.int32))
    zeros = vary(_zeros(like), starts)
    y = lax.map(
        lambda i: lax.cond(i < ends[-1], lambda i: vary(one_block(i), starts), lambda _: zeros, i),
        jnp.arange(blocks, dtype=jnp.int32),
    )
    place = jnp.arange(places)
    expert = jnp.minimum(jnp.searchsorted(starts[1:], place, side="right"), num_experts - 1)
    first = ends[expert] - (counts[expert] + size - 1) // size
    at = jnp.clip(first * size + place - starts[expert], 0, blocks * size - 1)
    return _zero_spill(jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[at], y), starts)
