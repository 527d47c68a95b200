"""Tensors of a neutral file as numpy arrays, and the hull of a file without a framework."""

from __future__ import annotations

import json
import os
from typing import Any

import ml_dtypes  # noqa: F401  (tells numpy, and so safetensors, of bfloat16)
import numpy as np
from safetensors.numpy import save as to_safetensors

from ..errors import refuse
from ..hull.config import HullConfig
from ..hull.weights import HullWeights, effective_weights
from .format import DAMAGED, PREFIX, Tensors, read
from .inspect import inspect

# Why a model of another kind than a hull has no convex function to give.
OTHER_KINDS = {
    "NonConvexHull": "Its gates are not convex: fit a VectorHull in its place.",
    "HierarchicalCELMoE": "Its routes choose among experts: pass the hull of one, expert.hull.",
    "HullExpert": "Pass its hull, expert.hull.",
}


def bytes_of(value: np.ndarray) -> Any:
    """Return the elements in C order, little-endian."""
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8).data


def own_copy(value: Any) -> np.ndarray:
    """Return a copy in C order that shares no memory: the serializer reads strided memory as if it were contiguous."""
    return np.array(value, order="C", copy=True)


NUMPY = Tensors("numpy", to_safetensors, bytes_of, own_copy)


def read_hull(path: str | os.PathLike[str], owner: str) -> HullWeights:
    """Return the hull in a neutral file as numpy arrays, after all checks of the file.

    Raises:
        InputError: there is no such file; it is damaged, of a newer schema, or holds another model than a hull.
        ValueError: its content is not what its sha256 says, or its weights are not those of its config.
    """
    found = inspect(path)
    if found.kind != "VectorHull":
        refuse(path, "a VectorHull", f"a {found.kind}", OTHER_KINDS.get(found.kind, "Name a hull."))
    try:
        config = HullConfig.from_json(json.dumps(found.config))
    except (ValueError, TypeError, LookupError, AttributeError):
        refuse(path, "the config of a hull", str(found.config)[:160], DAMAGED)
    _, arrays = read(path, PREFIX, NUMPY)
    parameters = {name.removeprefix(PREFIX): value.astype(np.float64) for name, value in arrays.items()}
    return effective_weights(config, parameters, owner)
