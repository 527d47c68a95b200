"""The weights of a hull as matrices that multiply rows: what a program of a solver is built from.

Letters: D in, H hidden, P petals, O out; a trunk t serves p petals, all of them or one.

Units are taken into the weights (`x / scale - mean / scale` is affine), and so are the means of neighboring petals
where the trunk is shared. Read-outs have the columns of one output side by side: column `o p + i` is petal i of o.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convexmoe.hull import HullConfig, Normalization
from convexmoe.hull.config import LEARNED, LEAST_TEMPERATURE
from convexmoe.hull.weights import Arrays, HullWeights


def structure_of(config: HullConfig) -> str:
    """Return in words what a program depends on beside its numbers and sizes."""
    fusion = "maximum" if config.temperature == 0.0 else "smooth maximum"
    shape = ", non-negative" * config.nonnegative + ", concave" * config.is_concave
    return f"{config.trunk} trunk, {config.activation}, groups of {config.group_size}, {fusion}{shape}"


def trunk_suffixes(config: HullConfig) -> list[str]:
    """Return the endings of the names of the trunks: one for all petals, or one each."""
    return [f".{p}" for p in range(config.petals)] if config.trunk == "private" else [""]


def means_matrix(petals: int) -> NDArray[np.float64]:
    """Return the (P, P) matrix that turns petals into means of neighbors.

    >>> means_matrix(3)
    array([[0.5, 0. , 0.5],
           [0.5, 0.5, 0. ],
           [0. , 0.5, 0.5]])
    """
    return 0.5 * (np.eye(petals) + np.roll(np.eye(petals), -1, axis=1))


def units_of(config: HullConfig) -> Normalization:
    """Return the normalization of a hull; without one, that which changes nothing."""
    D, O = config.in_dim, config.out_dim
    return config.normalization or Normalization((0.0,) * D, (1.0,) * D, (0.0,) * O, (1.0,) * O)


def input_units(hull: HullWeights) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and scale of each input, (D,): of the normalization, or those that its first layer was made for."""
    units, (D, weights) = hull.config.normalization, (hull.config.in_dim, hull.arrays)
    if units is not None:
        return np.asarray(units.input_mean), np.asarray(units.input_scale)
    weight = weights["trunk.0.weight"].reshape(D, -1)
    size = math.sqrt(D) * np.sqrt(np.mean(weight**2, axis=1))
    scale = 1 / np.where(size > 0, size, 1.0)
    mean = np.linalg.lstsq((weight * scale[:, None]).T, -weights["trunk.0.bias"].ravel(), rcond=1e-3)[0]
    return scale * mean, scale


def hull_matrices(hull: HullWeights) -> Arrays:
    """Return name -> matrix of everything that multiplies or shifts rows (of minus a concave hull); biases (1, n)."""
    config, weights = hull
    P, O, units = config.petals, config.out_dim, units_of(config)
    mean, scale = np.asarray(units.input_mean), np.asarray(units.input_scale)

    def on_input(name: str, weight: Any, bias: Any) -> Arrays:
        """Return weight and bias for an input in its own units."""
        return {f"{name}.weight": weight / scale[:, None], f"{name}.bias": bias - (mean / scale) @ weight}

    matrices: Arrays = {}
    if config.gate:
        matrices |= on_input("gate", weights["gate.weight"], weights["gate.bias"][None])
    for p, trunk in enumerate(trunk_suffixes(config)):
        of_trunk = (..., p, slice(None)) if trunk else (...,)
        for k in range(config.depth):
            layer = f"trunk.{k}"
            bias = weights[f"{layer}.bias"][of_trunk][None]
            matrices |= on_input(layer + trunk, weights[f"{layer}.weight"][of_trunk], bias)
            if k:
                matrices[f"{layer}{trunk}.positive_weight"] = weights[f"{layer}.positive_weight"][of_trunk]
        positive, weight, bias = (
            _columns(weights[f"readout.{kind}"], config, slice(p, p + 1) if trunk else slice(None))
            for kind in ("positive_weight", "weight", "bias")
        )
        matrices |= on_input(f"readout{trunk}", weight, bias) | {f"readout{trunk}.positive_weight": positive}
    if P > 1:
        matrices["shifts"] = weights["shifts"][None]
        if config.temperature == LEARNED:
            matrices["temperature"] = np.logaddexp(weights["raw_temperature"], 0.0)[None] + LEAST_TEMPERATURE
        elif config.temperature != 0.0:
            matrices["temperature"] = np.full((1, O), config.temperature)
    if config.strong_convexity > 0:
        root = math.sqrt(config.strong_convexity / 2) / scale
        matrices |= {"bowl.scale": root[None], "bowl.bias": (-mean * root)[None]}
    matrices["output.mean"] = (-1.0 if config.is_concave else 1.0) * np.asarray(units.output_mean)[None]
    matrices["output.scale"] = np.asarray(units.output_scale)[None]
    return matrices


def _columns(value: NDArray[np.float64], config: HullConfig, petals: slice) -> NDArray[np.float64]:
    """Return a read-out (n, P, O), or (P, O), of some petals as a matrix (n, O p); a shared trunk's as means."""
    if config.trunk == "shared" and config.group_size == 2 and config.petals > 1:
        value = 0.5 * (value + np.roll(value, -1, axis=-2))
    value = value[None] if value.ndim == 2 else value
    return value[:, petals].swapaxes(1, 2).reshape(len(value), -1)
