"""Running each expert on its own rows: exact, without dropping rows, one compilation for all routes.

Rows are sorted by expert. A loop over the experts that have rows reads one expert's parameters and visits its rows in
blocks of a few static sizes; how many blocks there are is data, so that no route compiles anew. The last block of an
expert may spill into the rows of the next, which overwrites them when its turn comes.

Letters: B rows, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

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
    place, experts = jnp.arange(rows, dtype=jnp.int32), jnp.arange(num_experts + 1, dtype=jnp.int32)
    routes = jnp.where(valid, routes, num_experts).astype(jnp.int32)
    if (num_experts + 1) * rows < 2**31:  # one key of both sorts some times faster than a stable sort
        keys = jnp.sort(routes * rows + place)
        order, starts = keys % max(rows, 1), jnp.searchsorted(keys, experts * rows)
    else:
        keys, order = lax.sort((routes, place), num_keys=1, is_stable=True)
        starts = jnp.searchsorted(keys, experts)
    starts = starts.astype(jnp.int32)
    back = jnp.zeros(rows, jnp.int32).at[order].set(place, unique_indices=True)
    return Plan(jnp.concatenate([order, jnp.zeros(padding, jnp.int32)]), back, starts)


@jax.custom_vjp
def permuted(x: jax.Array, take: jax.Array, back: jax.Array) -> jax.Array:
    """Return `x[take]`; its transpose is the gather `g[back]`, not a scatter."""
    return x[take]


permuted.defvjp(lambda x, take, back: (x[take], back), lambda back, g: (g[back], None, None))


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
@partial(jax.jit, static_argnames=("function", "num_experts", "any_order"))
def dispatch(
    function: Function,
    params: Tree,
    shared: Tree,
    rows: Tree,
    routes: jax.Array,
    num_experts: int,
    any_order: bool,
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
    """
    leaves = jax.tree.leaves(rows)
    count = leaves[0].shape[0]
    if count == 0:
        out = jax.eval_shape(jax.vmap(function, (None, None, 0)), expert_slice(params, 0), shared, rows)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), out)
    sizes = block_sizes(count, num_experts, any(leaf.ndim > 2 for leaf in leaves))
    plan = make_plan(routes, num_experts, max(sizes))
    run = static_blocks if any_order else dynamic_blocks
    take = (lambda x: x[plan.take]) if any_order else (lambda x: permuted(x, plan.take, plan.back))
    give = (lambda y: y[plan.back]) if any_order else (lambda y: permuted(y, plan.back, plan.take))
    return jax.tree.map(give, run(function, sizes, params, shared, jax.tree.map(take, rows), plan.starts))


def expert_slice(params: Tree, expert: jax.Array | int) -> Tree:
    """Return the parameters of one expert."""
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, expert, 0, keepdims=False), params)


def expanded(mask: jax.Array, like: jax.Array) -> jax.Array:
    """Return `mask`, (rows,), with as many axes as `like`."""
    return mask.reshape(-1, *[1] * (like.ndim - 1))


def block_of(rows: Tree, at: jax.Array, size: int, valid: jax.Array) -> Tree:
    """Return `size` rows from `at` on; those that are not valid repeat the first.

    Another expert's row must not be computed on, not even with a zero cotangent: 0 * NaN is NaN.
    """
    keep = jnp.arange(size) < valid

    def read(leaf: jax.Array) -> jax.Array:
        block = lax.dynamic_slice_in_dim(leaf, at, size)
        return jnp.where(expanded(keep, block), block, block[:1])

    return jax.tree.map(read, rows)


def visit(starts: jax.Array, sizes: tuple[int, ...], params: Tree, block: Any, carry: Tree) -> Tree:
    """Loop over the experts that have rows, and over the blocks of each.

    `block(weights, expert, at, size, valid, carry)` gives the next carry.
    """
    counts = starts[1:] - starts[:-1]
    num_experts = counts.shape[0]
    present = jnp.sort(jnp.where(counts > 0, jnp.arange(num_experts), num_experts))

    def one_expert(i: jax.Array, carry: Tree) -> Tree:
        expert = present[i]
        end, at = starts[expert + 1], starts[expert]
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

    return lax.fori_loop(0, jnp.sum(counts > 0), one_expert, carry)


def _inexact(tree: Tree) -> tuple[list[jax.Array], list[jax.Array], Any]:
    """Split the leaves of a tree into those that have gradients and the others; and what puts them together."""
    leaves, structure = jax.tree.flatten(tree)
    floating = [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]
    split = [[leaf for leaf, f in zip(leaves, floating, strict=True) if f is kind] for kind in (True, False)]

    def together(first: list[jax.Array], second: list[jax.Array]) -> Tree:
        one, two = iter(first), iter(second)
        return jax.tree.unflatten(structure, [next(one) if f else next(two) for f in floating])

    return split[0], split[1], together


def dynamic_blocks(
    function: Function, sizes: tuple[int, ...], params: Tree, shared: Tree, rows: Tree, starts: jax.Array
) -> Tree:
    """Return the outputs in sorted order, `[B + padding, ...]`, by the loop of `visit`; reverse mode, once."""

    @jax.custom_vjp
    def run(diff: Tree, fixed: Tree) -> Tree:
        return forward(diff, fixed)

    trees = (params, shared, rows)
    diff, fixed, together = _inexact(trees)

    def forward(diff: Tree, fixed: Tree) -> Tree:
        params, shared, rows = together(diff, fixed[:-1])
        starts = fixed[-1]
        places = jax.tree.leaves(rows)[0].shape[0]
        expert_rows = jax.vmap(function, (None, None, 0))
        out = jax.eval_shape(
            expert_rows, expert_slice(params, 0), shared, jax.tree.map(lambda leaf: leaf[:1], rows)
        )
        y = jax.tree.map(lambda leaf: jnp.zeros((places, *leaf.shape[1:]), leaf.dtype), out)

        def block(weights: Tree, expert: Any, at: Any, size: int, valid: Any, y: Tree) -> Tree:
            new = expert_rows(weights, shared, block_of(rows, at, size, valid))
            return jax.tree.map(lambda a, b: lax.dynamic_update_slice_in_dim(a, b, at, 0), y, new)

        return _owned(visit(starts, sizes, params, block, y), starts)

    def backward(residuals: Any, cotangents: Tree) -> Any:
        diff, fixed = residuals
        params, shared, rows = together(diff, fixed[:-1])
        starts = fixed[-1]
        params_diff, params_fixed, params_of = _inexact(params)
        shared_diff, shared_fixed, shared_of = _inexact(shared)
        rows_diff, rows_fixed, rows_of = _inexact(rows)
        wide = partial(
            jax.tree.map, lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32))
        )
        same = partial(jax.tree.map, jnp.zeros_like)

        def outputs(
            params_diff: Any, shared_diff: Any, rows_diff: Any, params_fixed: Any, rows_fixed: Any
        ) -> Any:
            args = (params_of(params_diff, params_fixed), shared_of(shared_diff, shared_fixed))
            y = jax.vmap(function, (None, None, 0))(*args, rows_of(rows_diff, rows_fixed))
            return _inexact(y)[0]

        def block(weights: Tree, expert: Any, at: Any, size: int, valid: Any, carry: Tree) -> Tree:
            by_params, by_shared, by_rows = carry
            part_diff, part_fixed = block_of((rows_diff, rows_fixed), at, size, valid)
            keep = jnp.arange(size) < valid
            ct = [lax.dynamic_slice_in_dim(leaf, at, size) for leaf in cotangents]
            ct = [jnp.where(expanded(keep, leaf), leaf, 0) for leaf in ct]
            weights_fixed = expert_slice(params_fixed, expert)
            _, pull = jax.vjp(
                lambda w, s, r: outputs(w, s, r, weights_fixed, part_fixed), weights, shared_diff, part_diff
            )
            new_weights, new_shared, new_rows = pull(ct)
            by_params = [
                lax.dynamic_update_index_in_dim(
                    total,
                    lax.dynamic_index_in_dim(total, expert, 0, keepdims=False) + new.astype(total.dtype),
                    expert,
                    0,
                )
                for total, new in zip(by_params, new_weights, strict=True)
            ]
            by_shared = [
                total + new.astype(total.dtype) for total, new in zip(by_shared, new_shared, strict=True)
            ]
            by_rows = [
                lax.dynamic_update_slice_in_dim(a, b, at, 0) for a, b in zip(by_rows, new_rows, strict=True)
            ]
            return by_params, by_shared, by_rows

        start = (wide(params_diff), wide(shared_diff), same(rows_diff))
        by_params, by_shared, by_rows = visit(starts, sizes, params_diff, block, start)
        by_params = [total.astype(leaf.dtype) for total, leaf in zip(by_params, params_diff, strict=True)]
        by_shared = [total.astype(leaf.dtype) for total, leaf in zip(by_shared, shared_diff, strict=True)]
        gradients = [*by_params, *by_shared, *_owned(by_rows, starts)]
        return gradients, [None] * len(fixed)

    def forward_saved(diff: Tree, fixed: Tree) -> Any:
        return forward(diff, fixed), (diff, fixed)

    def backward_of(residuals: Any, y: Tree) -> Any:
        return backward(residuals, [leaf for leaf in jax.tree.leaves(y) if leaf.dtype != jax.dtypes.float0])

    run.defvjp(forward_saved, backward_of)
    return run(diff, [*fixed, starts])


def _owned(y: Tree, starts: jax.Array) -> Tree:
    """Return `y` with zeros in the places that belong to no expert: blocks have spilled into them."""

    def own(leaf: jax.Array) -> jax.Array:
        return jnp.where(
            expanded(jnp.arange(leaf.shape[0]) < starts[-1], leaf), leaf, jnp.zeros((), leaf.dtype)
        )

    return jax.tree.map(own, y)


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
        valid = jnp.clip(starts[expert + 1] - at, 1, size)
        return expert_rows(expert_slice(params, expert), shared, block_of(rows, at, size, valid))

    # A block more than the rows need would read a row of another expert.
    expert_rows = jax.vmap(function, (None, None, 0))
    like = jax.eval_shape(one_block, jax.ShapeDtypeStruct((), jnp.int32))
    nothing = partial(jax.tree.map, lambda leaf: jnp.zeros(leaf.shape, leaf.dtype))
    y = lax.map(
        lambda i: lax.cond(i < ends[-1], one_block, lambda _: nothing(like), i),
        jnp.arange(blocks, dtype=jnp.int32),
    )
    place = jnp.arange(places)
    expert = jnp.minimum(jnp.searchsorted(starts[1:], place, side="right"), num_experts - 1)
    first = ends[expert] - (counts[expert] + size - 1) // size
    at = jnp.clip(first * size + place - starts[expert], 0, blocks * size - 1)
    return _owned(jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[at], y), starts)
