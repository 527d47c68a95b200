"""The hull of a neutral file without a framework."""

from __future__ import annotations

import json
import os

import numpy as np

from ..errors import refuse
from ..hull.config import HullConfig
from ..hull.weights import HullWeights, effective_weights
from .format import read
from .inspect import inspect
from .schema import PREFIX

# Why a model of another kind than a hull has no convex function to give.
OTHER_KINDS = {
    "NonConvexHull": "Its gates are not convex: fit a VectorHull in its place.",
    "HierarchicalCELMoE": "Its routes choose among experts: pass the hull of one, expert.hull.",
    "HullExpert": "Pass its hull, expert.hull.",
}


def read_hull(path: str | os.PathLike[str], owner: str) -> HullWeights:
    """Return the hull in a neutral file as numpy arrays, after all checks of the file.

    Raises:
        InputError: there is no such file; it is damaged, of a newer schema, or holds another model than a hull.
        ValueError: its content is not what its sha256 says, or its weights are not those of its config.
    """
    found = inspect(path)
    if found.kind != "VectorHull":
        refuse(path, "a VectorHull", f"a {found.kind}", OTHER_KINDS.get(found.kind, "Name a hull."))
    config = HullConfig.from_json(json.dumps(found.config))
    _, arrays = read(path, PREFIX)
    parameters = {name.removeprefix(PREFIX): value.astype(np.float64) for name, value in arrays.items()}
    return effective_weights(config, parameters, owner)
