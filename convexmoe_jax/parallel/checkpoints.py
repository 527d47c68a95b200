"""Sharded checkpoints by Orbax: every process writes its own shards, whatever mesh reads them again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from convexmoe.errors import describe, dtype_name, fail, same_keys, whole_number
from convexmoe.parallel import SHARDED_FORMAT, check_description, check_step, choose_step

Tree = Any
Folder = str | os.PathLike[str]


class Restored(NamedTuple):
    """What a sharded checkpoint holds.

    Args:
        model: the model.
        state: the tree of arrays that was saved beside it, None where there was none.
        step: the steps taken.
    """

    model: Any
    state: Tree
    step: int


def save_sharded(folder: Folder, step: int, model: Any, state: Tree = None, *, keep: int = 2) -> None:
    """Write a sharded checkpoint: a folder of its own in `folder`, there whole or not at all.

    With several processes each has to call it, and the folder has to be one that all of them see. It waits until
    everything is written. Config and shapes stand beside the arrays as JSON, with the version of the format.

    Args:
        folder: of all checkpoints of a run; it is made where it is missing.
        step: the steps taken, above those of every checkpoint in the folder.
        model: a hull or a hierarchy, placed or not.
        state: a tree of arrays beside it, of an optimizer for example.
        keep: how many checkpoints stay; older ones are removed once the new one is whole.

    Raises:
        ImportError: Orbax is missing.
        TypeError, ValueError: the step is not above the latest, or a leaf of the state is no array.
    """
    step, keep = whole_number("save_sharded", "step", step, 0), whole_number("save_sharded", "keep", keep, 1)
    tree = _on_mesh("save_sharded", {"model": nnx.to_pure_dict(nnx.state(model)), "state": state})
    description = _header(model) | {"format": SHARDED_FORMAT, "arrays": _shapes(tree)}
    with _manager("save_sharded", folder, keep) as (manager, args):
        check_step(step, manager.latest_step(), str(folder))
        whole = args.Composite(arrays=args.StandardSave(tree), description=args.JsonSave(description))
        manager.save(step, args=whole, force=True)


def restore_sharded(folder: Folder, model: Any, state: Tree = None, step: int | None = None) -> Restored:
    """Return model and state of a sharded checkpoint, bit for bit, laid out as those that are given.

    The mesh may be another than the one that was saved on: every device reads its own shards.

    Args:
        folder: what `save_sharded` was given.
        model: a model of the same config, placed on the mesh that goes on; it stays as it is.
        state: a tree like the one that was saved, `optimizer.init(params)` for example.
        step: of the checkpoint; None means the latest that is whole.

    Raises:
        ImportError: Orbax is missing.
        FileNotFoundError: there is no such checkpoint.
        ValueError: the model is of another config, or names, shapes or dtypes differ; all differences are listed.
    """
    graph, own = nnx.split(model)
    tree = _on_mesh("restore_sharded", {"model": nnx.to_pure_dict(own), "state": state})
    with _manager("restore_sharded", folder) as (manager, args):
        chosen = choose_step(sorted(manager.all_steps()), step, str(folder))
        description = manager.restore(chosen, args=args.Composite(description=args.JsonRestore())).description
        check_description(description, _header(model), str(folder))
        stored = {name: (tuple(shape), dtype) for name, (shape, dtype) in description["arrays"].items()}
        wanted = _shapes(tree)
        of_state = [{name for name in names if name.startswith("state")} for names in (wanted, stored)]
        if of_state[0] != of_state[1]:
            fix = "Pass optimizer.init(params) of the optimizer that the state was saved with."
            fail("restore_sharded", "state", "a tree like the one that was saved", f"{len(of_state[0])} arrays", fix)
        same_keys("restore_sharded", wanted, stored)
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)
        tree = manager.restore(chosen, args=args.Composite(arrays=args.StandardRestore(like))).arrays
    nnx.replace_by_pure_dict(own, tree["model"])
    return Restored(nnx.merge(graph, own), tree["state"], chosen)


def latest_step(folder: Folder) -> int | None:
    """Return the step of the latest whole checkpoint in a folder, None where there is none.

    Raises:
        ImportError: Orbax is missing.
    """
    with _manager("latest_step", folder) as (manager, _):
        return manager.latest_step()


@contextmanager
def _manager(owner: str, folder: Folder, keep: int | None = None) -> Iterator[tuple[Any, Any]]:
    """Give Orbax's manager of a folder, one that writes where `keep` is given, and Orbax's arguments."""
    if find_spec("orbax") is None:
        raise ImportError(f"convexmoe_jax.parallel.{owner} needs Orbax: pip install orbax-checkpoint")
    import orbax.checkpoint as ocp

    writes = keep is not None
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, create=writes, cleanup_tmp_directories=writes, enable_async_checkpointing=False
    )
    name = os.fspath(folder)  # may be an address in a cloud
    with ocp.CheckpointManager(name if "://" in name else os.path.abspath(name), options=options) as manager:
        yield manager, ocp.args


def _header(model: Any) -> dict[str, Any]:
    """Return kind and config of a model, as JSON holds them."""
    return {"kind": type(model).__name__, "config": json.loads(model.config.to_json())}


def _shapes(tree: Tree) -> dict[str, Any]:
    """Return name -> (shape, dtype) of every leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")  # noqa: E731
    return {name(path): (list(leaf.shape), dtype_name(leaf.dtype)) for path, leaf in leaves}


def _on_mesh(owner: str, tree: Tree) -> Tree:
    """Return a tree whose arrays that are on one device, as the counts of an optimizer, are on all of the mesh."""
    shardings = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(tree)]
    mesh = next((sharding.mesh for sharding in shardings if isinstance(sharding, NamedSharding)), None)

    def lay_out(leaf: Any) -> jax.Array:
        if not isinstance(leaf, (jax.Array, np.ndarray)):
            fail(owner, "state", "a tree of arrays", describe(leaf), "Wrap numbers by jnp.asarray.", TypeError)
        if mesh is None or isinstance(getattr(leaf, "sharding", None), NamedSharding):
            return jnp.asarray(leaf)
        return jax.device_put(np.asarray(leaf), NamedSharding(mesh, P()))

    return jax.tree.map(lay_out, tree)
