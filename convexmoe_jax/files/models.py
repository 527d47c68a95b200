"""Models in the neutral file, one `.safetensors` file that both packages read and write, byte for byte the same."""

from __future__ import annotations

import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convexmoe.errors import dtype_name, fail
from convexmoe.files.format import KINDS, OPTIMIZER, PREFIX, SCHEMA, plain_notes
from convexmoe.files.optimizer import MOMENTS, OptimizerState
from convexmoe.hierarchy.config import CELMoEConfig
from convexmoe.hull.config import HullConfig

from ..hierarchy.module import HierarchicalCELMoE
from ..hull.initialization import switched_on
from ..hull.module import VectorHull, flatten, nest
from .format import own_copy, read, write_sealed
from .layers import built, fill, neutral_arrays, recipes_of
from .optimizer import check_state, optimizer_state, restored

Model = VectorHull | HierarchicalCELMoE


def save(
    model: Model,
    path: str | os.PathLike[str],
    *,
    notes: dict[str, Any] | None = None,
    optimizer: Any = None,
    step: int | None = None,
) -> None:
    """Write a hull or a hierarchy to a neutral file. An existing file is replaced whole or not at all.

    Args:
        model: the model. A hierarchy's own layers need a rule each (`names.RULES`).
        path: the file; its folder must exist.
        notes: what JSON can hold, to be read by `read_notes`, for example the names of the columns.
        optimizer: the state of the optimizer that trains it, to be read by `load_optimizer` in either package:
            of optax, Adam's, AdamW's or that of SGD with momentum, or an `OptimizerState`.
        step: the steps taken, where the optimizer does not count them (SGD).

    Raises:
        FileNotFoundError: the folder does not exist.
        OSError: it cannot be written to.
        TypeError: a layer of a hierarchy has no rule, or the optimizer is another.

    >>> import tempfile
    >>> from flax import nnx
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(VectorHull(3, petals=4, rngs=nnx.Rngs(0)), f"{folder}/hull.safetensors")
    ...     load(f"{folder}/hull.safetensors").config.petals
    4
    """
    header, arrays = content_of(model)
    header |= {"schema": SCHEMA, "notes": plain_notes(notes)}
    if optimizer is not None:
        given = isinstance(optimizer, OptimizerState)
        state = optimizer if given else optimizer_state(optimizer, model, step=step)
        check_state(state, {name.removeprefix(PREFIX): value for name, value in arrays.items()})
        header["optimizer"] = {"rule": state.rule, "step": int(state.step)}
        for moment, values in state.moments.items():
            arrays |= {f"{OPTIMIZER}{moment}/{name}": own_copy(value) for name, value in values.items()}
    write_sealed(path, header, arrays)


def content_of(model: Model) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return kind and config of a model, and its arrays as the file names them."""
    if isinstance(model, HierarchicalCELMoE):
        config = {"hierarchy": json.loads(model.config.to_json()), **recipes_of(model)}
        arrays = neutral_arrays(model)
    elif isinstance(model, VectorHull):
        config = json.loads(model.config.to_json())
        arrays = {name: own_copy(value) for name, value in flatten(model.params).items()}
    else:
        fail("save", "model", f"one of {list(KINDS)}", type(model).__name__, "Pass such a model.", TypeError)
    header = {"kind": type(model).__name__, "config": config}
    return header, {PREFIX + name: value for name, value in arrays.items()}


def load(path: str | os.PathLike[str], *, expert_factory: Any = None, fusion_module: Any = None) -> Any:
    """Return the model of a neutral file, in the dtype it was saved in.

    Args:
        path: the file.
        expert_factory: of a hierarchy with experts of your own: what it was built with. Ready experts need none.
        fusion_module: of a hierarchy with a fusion of your own: such a module.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no neutral file, is damaged, of a newer schema, or does not fit its config; everything
            that is missing, unexpected, mis-shaped or mis-typed is listed.
    """
    header, arrays = read(path, PREFIX)
    own = {key.removeprefix(PREFIX): jax_array(path, arrays.pop(key)) for key in list(arrays)}
    if header["kind"] == "VectorHull":
        return VectorHull.from_params(HullConfig.from_json(json.dumps(header["config"])), nest(own))
    recipes = header["config"]
    hierarchy = CELMoEConfig.from_json(json.dumps(recipes["hierarchy"]))
    model = built(hierarchy, recipes, expert_factory, fusion_module)
    fill(model, own)
    return model


def load_optimizer(path: str | os.PathLike[str], state: Any, model: Model) -> Any:
    """Return `state` with the moments and the step that a neutral file holds, whichever package wrote it.

    Args:
        path: the file.
        state: `init(params)` of the optax optimizer that goes on; its rate and schedule are its own.
        model: the model of the file.

    Raises:
        ValueError: as `load`; the file holds no optimizer; its names or shapes are not the model's.
        TypeError: its rule is not that of `state`.
    """
    found = read_optimizer(path)
    if found is None:
        fix = "Write it with save(model, path, optimizer=...)."
        fail("load_optimizer", "path", "a file with an optimizer", repr(os.fspath(path)), fix)
    return restored(state, model, found)


def read_optimizer(path: str | os.PathLike[str]) -> OptimizerState | None:
    """Return the state of the optimizer in a neutral file by name, None where it holds none. Errors as in `load`."""
    header, arrays = read(path, OPTIMIZER)
    found = header.get("optimizer")
    if found is None:
        return None
    moments: dict[str, dict[str, Any]] = {moment: {} for moment in MOMENTS[found["rule"]]}
    for key, value in arrays.items():
        moment, _, name = key.removeprefix(OPTIMIZER).partition("/")
        moments[moment][name] = value
    return OptimizerState(found["rule"], found["step"], moments)


def read_notes(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the notes that `save` wrote. Errors as in `load`."""
    return read(path, None)[0]["notes"]


def jax_array(path: str | os.PathLike[str], value: np.ndarray) -> jax.Array:
    """Return an array of a file in JAX."""
    if not switched_on(dtype_name(value.dtype)):
        fix = 'Call jax.config.update("jax_enable_x64", True) first.'
        got = f"{os.fspath(path)!r} in float64"
        fail("load", "path", "a dtype that JAX has switched on", got, fix)
    return jnp.asarray(value)
