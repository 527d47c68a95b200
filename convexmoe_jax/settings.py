"""What a caller has set around our functions: switches of JAX, and meshes of devices."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

Tree = Any
Function = TypeVar("Function", bound=Callable[..., Any])


def standard_promotion(function: Function) -> Function:
    """Decorate a function so that its body follows JAX's standard promotion of dtypes and ranks under every switch."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        switches: Any = jax.config
        if (switches.jax_numpy_dtype_promotion, switches.jax_numpy_rank_promotion) == ("standard", "allow"):
            return function(*args, **kwargs)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return function(*args, **kwargs)

    return run  # type: ignore[return-value]


def on_any_mesh(function: Function) -> Function:
    """Decorate a function of `(params, array, ...)`: standard promotion, and `by_compiler`, divided as the array is."""
    inner = standard_promotion(function)

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if find_mesh((args, kwargs)) is None:
            return inner(*args, **kwargs)
        array = jax.tree.leaves([*args, *kwargs.values()][1])[0]
        spec = P(*jax.typeof(array).sharding.spec[:-1])
        return by_compiler(lambda given: inner(*given[0], **given[1]), (args, kwargs), spec)

    return run  # type: ignore[return-value]


def by_compiler(function: Callable[[Tree], Tree], given: Tree, spec: P) -> Tree:
    """Return `function(given)`, divided by `spec`: the compiler divides the work, Explicit axes are Auto inside."""
    mesh = find_mesh(given)
    if mesh is None:
        return function(given)
    leaves, structure = jax.tree.flatten(given)
    arrays = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)}

    def call(arrays: dict[int, jax.Array]) -> Tree:
        return function(jax.tree.unflatten(structure, (arrays.get(i, leaf) for i, leaf in enumerate(leaves))))

    sharding = NamedSharding(mesh, spec)
    return jax.sharding.auto_axes(call, axes=mesh.explicit_axes, out_sharding=sharding)(arrays)


def each_shard(function: Callable[[Tree, Tree], Tree], whole: Tree, own: Tree) -> Tree:
    """Return `function(whole, own)`: each device its own rows, where `own` is divided by rows over Explicit axes."""
    mesh = find_mesh((whole, own))
    if mesh is None:
        return function(whole, own)
    rows = leading_spec(own)
    axes = set(mesh.explicit_axes)
    run = jax.shard_map(function, mesh=mesh, axis_names=axes, in_specs=(P(), rows), out_specs=rows)
    return run(reshard(whole, mesh, P()), reshard(own, mesh, rows))


def each_part(function: Callable[[Tree, Tree, Tree], Tree], parts: Tree, whole: Tree, own: Tree, axis: str) -> Tree:
    """Return `function(parts, whole, own)` where each device along an axis has a part, and the results are a sum.

    The rows of all devices along the axis are gathered, each device computes its part of the result for all of them,
    and the sum is scattered back: an all-gather and a reduce-scatter, exact where one part alone is not zero.

    Args:
        function: `(parts, whole, own)`, on one device.
        parts: leaves divided by their leading axis.
        whole: what every device has.
        own: leaves divided by rows, over this axis too or over others alone.
        axis: the axis of the mesh.
    """
    mesh, rows = find_mesh(parts), leading_spec(own)
    names = rows[0] if isinstance(rows[0], tuple) else (rows[0],)

    def gather(leaf: jax.Array) -> jax.Array:
        return jax.lax.all_gather(leaf, axis, tiled=True) if axis in names else leaf

    def add(leaf: jax.Array) -> jax.Array:
        number = leaf.astype("int32") if leaf.dtype == bool else leaf
        if axis in names:
            return jax.lax.psum_scatter(number, axis, scatter_dimension=0, tiled=True).astype(leaf.dtype)
        return jax.lax.psum(number, axis).astype(leaf.dtype)

    def run(parts: Tree, whole: Tree, own: Tree) -> Tree:
        return jax.tree.map(add, function(parts, whole, jax.tree.map(gather, own)))

    specs = (P(axis), P(), rows)
    by_part = jax.shard_map(run, mesh=mesh, axis_names=set(mesh.explicit_axes), in_specs=specs, out_specs=rows)
    return by_part(*(reshard(tree, mesh, spec) for tree, spec in zip((parts, whole, own), specs, strict=True)))


def divide_rows(tree: Tree, like: Tree) -> Tree:
    """Return a tree of arrays whose leading rows are divided over Explicit axes as those of another."""
    mesh = find_mesh((tree, like))
    return tree if mesh is None else reshard(tree, mesh, leading_spec(like))


def make_whole(tree: Tree) -> Tree:
    """Return a tree of arrays with all of each on every device of its mesh."""
    mesh = find_mesh(tree)
    return tree if mesh is None else reshard(tree, mesh, P())


def reshard(tree: Tree, mesh: Any, spec: P) -> Tree:
    """Return a tree of arrays that are all divided by `spec`."""
    return jax.tree.map(lambda leaf: jax.sharding.reshard(leaf, NamedSharding(mesh, spec)), tree)


def leading_spec(tree: Tree, rows: int | None = None) -> P:
    """Return by what the leading axis, of `rows` if that is given, of the first such array that is divided is."""
    types = [jax.typeof(leaf) for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    leading = [kind.sharding.spec[0] for kind in types if kind.ndim and rows in (None, kind.shape[0])]
    return P(next((axis for axis in leading if axis is not None), None))


def find_mesh(tree: Any) -> Any:
    """Return the mesh whose Explicit axes divide an array, or on which one stands outside of its context."""
    inside = jax.sharding.get_abstract_mesh().explicit_axes
    for leaf in jax.tree.leaves(tree):
        sharding = jax.typeof(leaf).sharding if isinstance(leaf, jax.Array) else None
        if sharding and (any(sharding.spec) or (sharding.mesh.explicit_axes and not inside)):
            place: Any = jax.typeof(leaf) if isinstance(leaf, jax.core.Tracer) else leaf
            return place.sharding.mesh
    return None


def pick(table: jax.Array, index: jax.Array) -> jax.Array:
    """Return `table[index]`, divided over a mesh as the index."""
    return table[index] if find_mesh(index) is None else table.at[index].get(out_sharding=jax.typeof(index).sharding)


def vary(tree: Tree, like: Tree) -> Tree:
    """Return a tree that differs along the Manual axes along which `like` does, as carries of loops in `shard_map`."""

    def axes_of(tree: Tree) -> set[str]:
        types = [jax.typeof(leaf) for leaf in jax.tree.leaves(tree)]
        return set().union(
            *(getattr(getattr(kind, "mat", None), "varying", getattr(kind, "vma", ())) for kind in types)
        )

    axes = axes_of(like)
    if not axes:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.pcast(leaf, tuple(axes - axes_of(leaf)), to="varying"), tree)
