"""The weights of a hull as matrices that multiply rows: what a program of a solver is built from.

Letters: D in, H hidden, P petals, O out; a trunk t serves p petals, all of them or one.

Units are taken into the weights (`x / scale - mean / scale` is affine), and so are the means of neighbouring petals
where the trunk is shared. Read-outs have the columns of one output side by side: column `o p + i` is petal i of o.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .plain import Arrays, PlainHull

__all__ = ["LEAST_TEMPERATURE", "blocks_of", "means_matrix", "structure_of", "trunks_of"]

LEAST_TEMPERATURE = 1e-3  # as config.py of both packages has it


def structure_of(config: dict[str, Any]) -> str:
    """Return in words what a program depends on beside its numbers and sizes."""
    fusion = "maximum" if config["temperature"] == 0.0 else "smooth maximum"
    words = [f"{config['trunk']} trunk", config["activation"], f"groups of {config['group_size']}", fusion]
    return ", ".join(words)


def trunks_of(config: dict[str, Any]) -> list[str]:
    """Return the endings of the names of the trunks: one for all petals, or one each."""
    return [f".{p}" for p in range(config["petals"])] if config["trunk"] == "private" else [""]


def means_matrix(petals: int) -> NDArray[np.float64]:
    """Return the (P, P) matrix that turns petals into means of neighbours.

    >>> means_matrix(3)
    array([[0.5, 0. , 0.5],
           [0.5, 0.5, 0. ],
           [0. , 0.5, 0.5]])
    """
    return 0.5 * (np.eye(petals) + np.roll(np.eye(petals), -1, axis=1))


def blocks_of(plain: PlainHull) -> Arrays:
    """Return name -> matrix of everything that multiplies or shifts rows; biases are (1, n)."""
    config, weights = plain
    D, P, O = config["in_dim"], config["petals"], config["out_dim"]
    units = config["normalization"] or {}
    mean, scale = (
        np.asarray(units.get("input_mean", np.zeros(D))),
        np.asarray(units.get("input_scale", np.ones(D))),
    )

    def on_input(name: str, weight: Any, bias: Any) -> Arrays:
        """Return weight and bias for an input in its own units."""
        return {f"{name}.weight": weight / scale[:, None], f"{name}.bias": bias - (mean / scale) @ weight}

    found: Arrays = {}
    if config["gate"]:
        found |= on_input("gate", weights["gate.weight"], weights["gate.bias"][None])
    for p, trunk in enumerate(trunks_of(config)):
        of_trunk = (..., p, slice(None)) if trunk else (...,)
        for k in range(config["depth"]):
            layer = f"trunk.{k}"
            bias = weights[f"{layer}.bias"][of_trunk][None]
            found |= on_input(layer + trunk, weights[f"{layer}.weight"][of_trunk], bias)
            if k:
                found[f"{layer}{trunk}.positive_weight"] = weights[f"{layer}.positive_weight"][of_trunk]
        positive, weight, bias = (
            _columns(weights[f"readout.{kind}"], config, slice(p, p + 1) if trunk else slice(None))
            for kind in ("positive_weight", "weight", "bias")
        )
        found |= on_input(f"readout{trunk}", weight, bias) | {f"readout{trunk}.positive_weight": positive}
    if P > 1:
        found["shifts"] = weights["shifts"][None]
        if config["temperature"] == "learned":
            found["temperature"] = np.logaddexp(weights["raw_temperature"], 0.0)[None] + LEAST_TEMPERATURE
        elif config["temperature"] > 0:
            found["temperature"] = np.full((1, O), config["temperature"])
    if config["strong_convexity"] > 0:
        root = math.sqrt(config["strong_convexity"] / 2) / scale
        found |= {"bowl.scale": root[None], "bowl.bias": (-mean * root)[None]}
    found["output.mean"] = np.asarray(units.get("output_mean", np.zeros(O)))[None]
    found["output.scale"] = np.asarray(units.get("output_scale", np.ones(O)))[None]
    return found


def _columns(value: NDArray[np.float64], config: dict[str, Any], petals: slice) -> NDArray[np.float64]:
    """Return a read-out (n, P, O), or (P, O), of some petals as a matrix (n, O p); a shared trunk's as means."""
    if config["trunk"] == "shared" and config["group_size"] == 2 and config["petals"] > 1:
        value = 0.5 * (value + np.roll(value, -1, axis=-2))
    value = value[None] if value.ndim == 2 else value
    return value[:, petals].swapaxes(1, 2).reshape(len(value), -1)
