"""A mesh of devices with the axes `data` and `expert`, and models and batches laid out over it."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from convexmoe.errors import describe, fail
from convexmoe.parallel import AXES, DATA, EXPERT, axis_sizes, check_divided, petal_axes

from ..hierarchy import HierarchicalCELMoE
from ..hull import VectorHull

Tree = Any
Model = TypeVar("Model", VectorHull, HierarchicalCELMoE)
Path = tuple[str, ...]


def make_mesh(data: int | None = None, expert: int = 1, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return a mesh of devices with the Explicit axes `data` and `expert`.

    Args:
        data: size of the axis that divides the rows alone; None means all that `expert` leaves.
        expert: size of the axis that divides experts and petals, and the rows as well.
        devices: those of the mesh; None means all, of all processes.

    Raises:
        TypeError, ValueError: a size is no whole number, or `data * expert` is not the number of devices.

    >>> make_mesh().axis_names
    ('data', 'expert')
    """
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes(data, expert, len(devices), "devices")
    return jax.make_mesh(sizes, AXES, (AxisType.Explicit,) * 2, devices=devices)


def place(model: Model, mesh: Mesh) -> Model:
    """Return a hull or a hierarchy whose parameters are laid out over a mesh.

    The axis `expert` divides the petals of a hull, and the experts of each group of one structure of a hierarchy; a
    group that it does not divide, and every other parameter, is on every device. With several processes each passes
    the same model.

    Args:
        model: the model; it stays as it is.
        mesh: as `make_mesh` returns it.

    Raises:
        TypeError: it is neither a hull nor a hierarchy.
        ValueError: the mesh has other axes, or its axis `expert` divides nothing; the processes passed other models.

    >>> place(VectorHull(3, petals=4, rngs=nnx.Rngs(0)), make_mesh())(jnp.ones((8, 3))).shape
    (8, 3)
    """
    _check_mesh("place", mesh)
    specs = _specs_of(model, mesh.shape[EXPERT])
    graph, state = nnx.split(model)
    is_local = jax.process_count() > 1 and all(leaf.is_fully_addressable for leaf in jax.tree.leaves(state))
    if is_local:
        _check_alike(state)

    def lay_out(path: Any, leaf: jax.Array) -> jax.Array:
        spec = specs.get(_names(path), P())
        # as long as the shape, as JAX writes those of results: what is equal compiles once
        sharding = NamedSharding(mesh, P(*spec, *[None] * (leaf.ndim - len(spec))))
        if is_local:
            return jax.make_array_from_callback(leaf.shape, sharding, np.asarray(leaf).__getitem__)
        return jax.device_put(leaf, sharding)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(lay_out, state))


def place_batch(batch: Tree, mesh: Mesh) -> Tree:
    """Return a tree of arrays whose leading rows are divided over all devices of a mesh.

    Args:
        batch: arrays of one number of rows; with several processes each passes its own rows, as many as any other.
        mesh: as `make_mesh` returns it.

    Raises:
        TypeError: a leaf is no array.
        ValueError: a leaf has no rows, or a number of them that the devices of this process do not divide.

    >>> place_batch({"x": np.ones((8, 3))}, make_mesh())["x"].shape
    (8, 3)
    """
    _check_mesh("place_batch", mesh)
    count = len(mesh.local_devices)

    def lay_out(leaf: Any) -> jax.Array:
        if not isinstance(leaf, (jax.Array, np.ndarray)):
            fix = "Encode names of routes by encode_routes, and leave out what is no array."
            fail("place_batch", "batch", "arrays alone", f"{type(leaf).__name__}", fix, TypeError)
        if leaf.ndim == 0 or leaf.shape[0] % count or not leaf.shape[0]:
            rule = f"arrays of rows whose leading axis {count} divides, the devices of this process"
            fail("place_batch", "batch", rule, describe(leaf), "Drop rows, or add some whose loss has weight 0.")
        spec = P(AXES, *[None] * (leaf.ndim - 1))
        return jax.make_array_from_process_local_data(NamedSharding(mesh, spec), np.asarray(leaf))

    return jax.tree.map(lay_out, batch)


def gather(model: Model) -> Model:
    """Return a model that is whole on this process alone, for `save` for example: the inverse of `place`.

    With several processes each has to call it.

    Args:
        model: a model that was placed; it stays as it is.

    >>> gather(place(VectorHull(3, petals=4, rngs=nnx.Rngs(0)), make_mesh())).params["shifts"].shape
    (4,)
    """
    graph, state = nnx.split(model)
    if jax.process_count() > 1:
        state = multihost_utils.process_allgather(state, tiled=True)
    return nnx.merge(graph, jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), state))


def _check_mesh(owner: str, mesh: Any) -> None:
    """Check that a mesh is one of `make_mesh`."""
    if not isinstance(mesh, Mesh) or mesh.axis_names != AXES or set(mesh.axis_types) != {AxisType.Explicit}:
        fix = f"Make it with make_mesh({DATA}=, {EXPERT}=)."
        fail(owner, "mesh", f"a mesh with the Explicit axes {list(AXES)}", str(mesh), fix)


def _check_alike(state: Tree) -> None:
    """Check that all processes have the same arrays, by their digest."""
    digest = sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state))).digest()
    digests = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
    others = np.flatnonzero((digests != digests[0]).any(1)).tolist()
    if others:
        fix = "Build it from the same seed, or load the same file."
        fail("place", "model", "the same parameters in all processes", f"others in {others} than in 0", fix)


def _names(path: Any) -> Path:
    """Return a path of JAX as the names of a parameter."""
    return tuple(str(key.key) for key in path if hasattr(key, "key"))


def _specs_of(model: Any, expert: int) -> dict[Path, P]:
    """Return path -> by what a parameter is divided, for those that are."""
    if isinstance(model, VectorHull):
        check_divided(expert, {"petals": model.config.petals})
        axes = petal_axes(model.config)
        return {tuple(name.split(".")): P(*[None] * axis, EXPERT) for name, axis in axes.items()}
    if not isinstance(model, HierarchicalCELMoE):
        rule, fix = "a VectorHull or a HierarchicalCELMoE", "Pass such a model."
        fail("place", "model", rule, type(model).__name__, fix, TypeError)
    groups = {(level, str(i)): len(g.members) for level, gs in model.groups for i, g in enumerate(gs)}
    check_divided(expert, {f"experts of {level}": count for (level, _), count in groups.items()})
    paths = [_names(path) for path, _ in jax.tree_util.tree_leaves_with_path(nnx.state(model))]
    divided = {key for key, count in groups.items() if count % expert == 0}
    return {path: P(EXPERT) for path in paths if path[0] == "level_modules" and path[1:3] in divided}
