"""A hull as numpy arrays, from a model of either package or from its file. No framework is imported for it.

Letters: D in, H hidden, P petals, O out.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import safetensors
from numpy.typing import NDArray

from .inspection import inspect
from .tables import InputError

__all__ = ["PlainHull", "effective_shapes", "plain_hull", "read_hull"]

Arrays = dict[str, NDArray[np.float64]]
POSITIVE_SHARE = 0.5  # as positive.py of both packages has it
WIDTHS = {"F64": np.float64, "F32": np.float32, "F16": np.float16}
CHOICES: dict[str, tuple[Any, ...]] = {
    "trunk": ("shared", "private"),
    "group_size": (1, 2),
    "activation": ("softplus", "relu", "huber_relu"),
    "gate": (False, True),
}
SIDES, MOMENTS = {"input": "in_dim", "output": "out_dim"}, ("mean", "scale")
REFUSED = {
    "NonConvexHull": "Its gates are not convex: fit a VectorHull in its place.",
    "HierarchicalCELMoE": "Its routes choose among experts: pass the hull of one, expert.hull.",
    "HullExpert": "Pass its hull, expert.hull.",
}


class PlainHull(NamedTuple):
    """A hull without a framework.

    Args:
        config: the fields of its `HullConfig`, as JSON holds them.
        weights: its effective parameters by dotted name in float64: `positive_weight` >= 0 in place of `raw_weight`.
    """

    config: dict[str, Any]
    weights: Arrays


def plain_hull(model: Any, owner: str) -> PlainHull:
    """Return a hull as numpy arrays after all checks.

    Args:
        model: a `VectorHull` or `FoldedHull` of either package, or the path of a file that `save` wrote.
        owner: who asks, for the messages.

    Raises:
        TypeError: it is neither, or a model that is not convex.
        ValueError: a damaged file, weights that are not finite, or non-negative weights that are negative.
    """
    if isinstance(model, (str, os.PathLike)):
        config, arrays = read_hull(Path(model))
    else:
        _check_class(model, owner)
        config = json.loads(model.config.to_json())
        arrays = {name: _float64(value) for name, value in _leaves(model)}
    weights = {}
    for name, value in arrays.items():
        if name.endswith("raw_weight"):
            name = name.replace("raw_weight", "positive_weight")
            value = np.logaddexp(value, 0.0) * math.sqrt(POSITIVE_SHARE / config["hidden_dim"])
        weights[name] = value
    _check_weights(owner, config, weights)
    return PlainHull(config, weights)


def read_hull(path: Path) -> tuple[dict[str, Any], Arrays]:
    """Return config and raw parameters, in float64, of the hull in a neutral file, its sha256 checked.

    Raises:
        InputError: no such file, none of ours, damaged, of a newer schema, or of another model than a hull.
    """
    found = inspect(path)
    damaged = "Fetch the file again or save the model anew."
    if found.kind != "VectorHull":
        raise InputError(
            f"{path}: expected a VectorHull; got a {found.kind}. {REFUSED.get(found.kind, 'Name a hull.')}"
        )
    try:
        parts = sorted(safetensors.deserialize(path.read_bytes()))
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: expected a .safetensors file; got another ({error}). {damaged}") from None
    header = {"schema": found.schema, "kind": found.kind, "config": found.config, "notes": found.notes}
    header |= {} if found.optimizer is None else {"optimizer": found.optimizer}
    total = hashlib.sha256(json.dumps(header, sort_keys=True, allow_nan=False).encode())
    arrays = {}
    for name, part in parts:
        total.update(f"\n{name} {part['dtype']} {list(part['shape'])}\n".encode())
        total.update(part["data"])
        if name.startswith("params/"):
            arrays[name.removeprefix("params/")] = _numbers(part)
    if total.hexdigest() != found.sha256:
        raise InputError(
            f"{path}: expected a file whose content has the sha256 it states; got one that differs. {damaged}"
        )
    if not _is_config(found.config):
        raise InputError(f"{path}: expected the config of a hull; got {str(found.config)[:160]}. {damaged}")
    return found.config, arrays


def _is_config(config: Any) -> bool:
    """Return whether the config of a file has what is used of it, in range."""
    try:
        sizes = [config[name] for name in ("in_dim", "petals", "out_dim", "hidden_dim", "depth")]
        temperature, units = config["temperature"], config["normalization"]
        strong = 0 <= config["strong_convexity"] < math.inf
        known = all(config[name] in values for name, values in CHOICES.items())
        plain = units is None or all(math.isfinite(v) for values in units.values() for v in values)
        positive = units is None or all(v > 0 for side in SIDES for v in units[f"{side}_scale"])
        fit = units is None or all(
            len(units[f"{s}_{m}"]) == config[n] for s, n in SIDES.items() for m in MOMENTS
        )
        warm = temperature == "learned" or (math.isfinite(temperature) and temperature >= 0)
    except (TypeError, LookupError, AttributeError, ValueError):
        return False
    whole = all(type(size) is int and size >= 1 for size in sizes)
    return strong and known and plain and positive and fit and warm and whole


def effective_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return dotted name -> shape of every effective parameter."""
    D, P, O, H = (config[name] for name in ("in_dim", "petals", "out_dim", "hidden_dim"))
    unit = (P, H) if config["trunk"] == "private" else (H,)
    shapes: dict[str, tuple[int, ...]] = {"trunk.0.weight": (D, *unit), "trunk.0.bias": unit}
    for k in range(1, config["depth"]):
        shapes[f"trunk.{k}.positive_weight"] = (H, *unit)
        shapes |= {f"trunk.{k}.weight": (D, *unit), f"trunk.{k}.bias": unit}
    shapes |= {"readout.positive_weight": (H, P, O), "readout.weight": (D, P, O), "readout.bias": (P, O)}
    shapes["shifts"] = (P,)
    if config["temperature"] == "learned":
        shapes["raw_temperature"] = (O,)
    if config["gate"]:
        shapes |= {"gate.weight": (D, H), "gate.bias": (H,)}
    return shapes


def _check_class(model: Any, owner: str) -> None:
    """Check that an object is a hull of one of the packages; a package that is not loaded made none."""
    for name in ("convexmoe_jax", "convexmoe_torch"):
        package = sys.modules.get(name)
        if package is not None and isinstance(model, (package.VectorHull, package.FoldedHull)):
            return
    kind = type(model).__name__
    fix = REFUSED.get(kind, "Pass one of these.")
    _fail(owner, "a VectorHull, a FoldedHull or the path of a file", kind, fix, TypeError)


def _leaves(model: Any) -> list[tuple[str, Any]]:
    """Return the parameters of a hull with their dotted names."""
    if hasattr(model, "named_parameters"):
        return list(model.named_parameters())
    return list(sys.modules["convexmoe_jax"].hull.flatten(model.params).items())


def _float64(value: Any) -> NDArray[np.float64]:
    """Return an array of JAX or a tensor of PyTorch, wherever it lies, as a copy in float64."""
    own = value.detach().double().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
    return own.astype(np.float64)


def _numbers(part: dict[str, Any]) -> NDArray[np.float64]:
    """Return a tensor of a file in float64; bfloat16 is the upper half of a float32."""
    if part["dtype"] == "BF16":
        bits = np.frombuffer(part["data"], "<u2").astype(np.uint32) << 16
        return bits.view(np.float32).astype(np.float64).reshape(part["shape"])
    return np.frombuffer(part["data"], WIDTHS[part["dtype"]]).astype(np.float64).reshape(part["shape"])


def _check_weights(owner: str, config: dict[str, Any], weights: Arrays) -> None:
    """Check names, shapes and values of effective parameters, and report every difference at once."""
    shapes = effective_shapes(config)
    faults = [f"missing {name}" for name in sorted(shapes.keys() - weights.keys())]
    faults += [f"unexpected {name}" for name in sorted(weights.keys() - shapes.keys())]
    for name in sorted(shapes.keys() & weights.keys()):
        value = weights[name]
        if value.shape != shapes[name]:
            faults.append(f"{name} has shape {list(value.shape)}, not {list(shapes[name])}")
        elif not np.isfinite(value).all():
            faults.append(f"{name} holds NaN or infinity")
        elif name.endswith("positive_weight") and (value < 0).any():
            faults.append(f"{name} holds {value.min():g}, which is negative")
    if faults:
        fix = "Load the model again, or fit it anew."
        _fail(owner, "finite weights that belong to its config", "; ".join(faults), fix)


def _fail(owner: str, expected: str, got: str, fix: str, kind: type[Exception] = ValueError) -> NoReturn:
    """Raise `kind` with the house's message."""
    raise kind(f"{owner}.model: expected {expected}; got {got}. {fix}")
