"""Checkpoints of the two packages that this project succeeds: torch-mice 0.2.0 and celmoe-vp 1.1.1."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from convexmoe.errors import InputError, describe, refuse
from convexmoe.hull.parameters import DTYPES

from .frameworks import get

NOT_CONVEX = (
    "torch-mice's models are not convex: their gate, 1 - exp(-softplus(u)), is the sigmoid. This one is loaded as "
    "NonConvexHull, which computes what it did; for a convex model, fit a VectorHull."
)
Source = Mapping[str, Any] | str | Path


def from_torch_mice(source: Source, petals: int | None = None, *, framework: str = "torch") -> Any:
    """Return a `NonConvexHull` of `convexmoe_torch` or `convexmoe_jax` from a checkpoint of torch-mice 0.2.0.

    Args:
        source: a state dict (tensors or arrays), or the path of one: `.safetensors`, or `.pt` and `.pth`, which are
            read with `weights_only=True`.
        petals: how many there should be; None takes what the checkpoint has.
        framework: "torch" or "jax".

    Raises:
        InputError: no such checkpoint; every missing, unexpected or mis-shaped tensor is listed.

    Warns:
        UserWarning: these models are not convex.
    """
    arrays = _read("from_torch_mice", source)
    P = arrays["shifts"].shape[0] if arrays.get("shifts", np.zeros(())).ndim == 1 else 0
    if petals is not None and petals != P:
        refuse("from_torch_mice.petals", f"the {P} that the checkpoint has", str(petals), "Leave it out.")
    side = get(framework)
    params, faults = _translate(arrays, P)
    if faults:
        fix = (
            "Pass the state dict of a VectorHull of torch-mice 0.2.0; that of newer releases, with invert= and "
            "projections, is another model."
        )
        refuse("from_torch_mice.source", "the tensors of its hull", "; ".join(faults), fix)
    try:
        tree = side.package.hull.nest({name: side.own_array(array) for name, array in params.items()})
        model = side.package.NonConvexHull(tree)
    except ValueError as error:
        raise InputError(str(error)) from None
    warnings.warn(NOT_CONVEX, UserWarning, stacklevel=2)
    return model


def from_celmoe(
    source: Source, config: Any, expert_factory: Any, *, fusion_module: Any = None, framework: str = "torch"
) -> Any:
    """Return a `HierarchicalCELMoE` with the weights of a checkpoint of celmoe-vp 1.1.1.

    Args:
        source: as for `from_torch_mice`.
        config: a `CELMoEConfig` of either package: a checkpoint does not hold it.
        expert_factory, fusion_module: as for `HierarchicalCELMoE` of the framework.
        framework: "torch" or "jax".

    Raises:
        InputError: the source is no state dict.
        ValueError: names or shapes differ from the model's; all are listed.
    """
    arrays, side = _read("from_celmoe", source), get(framework)
    layers = import_module(f"{side.package.__name__}.files.layers")
    recipes = {"experts": {}, "fusion": "LearnedFusion"}
    model = layers.build(side.package.CELMoEConfig.from_json(config.to_json()), recipes, expert_factory, fusion_module)
    layers.fill(model, arrays)
    return model


def _translate(arrays: dict[str, np.ndarray], P: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return our names and layouts, (in, [petal,] out), and what is wrong with theirs."""
    rest = dict(arrays)
    faults: list[str] = []

    def take(name: str, axes: int) -> np.ndarray:
        value = rest.pop(name, None)
        if value is None:
            faults.append(f"missing {name}")
        elif value.ndim != axes:
            faults.append(f"{name} has shape {list(value.shape)}, not {axes} axes")
        else:
            return value
        return np.zeros((0,) * axes)

    params = {"output.bias": take("petals.out_bias", 2), "output.shifts": take("shifts", 1)}
    for theirs, ours in {"layer0": "layer0", "layer1": "layer1", "res_proj": "skip"}.items():
        params[f"{ours}.raw_weight"] = take(f"petals.{theirs}.raw", 3).transpose(2, 0, 1)
        params[f"{ours}.bias"] = take(f"petals.{theirs}.bias", 2)
    for gate in ("gate0", "gate1"):
        params[f"{gate}.weight"] = take(f"petals.{gate}_net.lin.weight", 2).T
        params[f"{gate}.bias"] = take(f"petals.{gate}_net.lin.bias", 1)
        each = f"petals.extra_{gate}_nets"
        weights, biases = (
            [take(f"{each}.{p}.lin.{name}", axes) for p in range(P)] for name, axes in (("weight", 2), ("bias", 1))
        )
        for name, petals in (("weight", weights), ("bias", biases)):
            if len({value.shape for value in petals}) != 1:
                faults.append(f"{each}.*.lin.{name} differ in shape")
                continue
            stacked = np.stack(petals)
            params[f"petal_{gate}.{name}"] = stacked.transpose(2, 0, 1) if name == "weight" else stacked
    groups = rest.pop("group_indices", None)
    ring = np.stack([np.arange(P), (np.arange(P) + 1) % max(P, 1)], axis=1)
    if groups is not None and not np.array_equal(groups, ring):
        faults.append("group_indices are not those of neighbours")
    return params, faults + [f"unexpected {name}" for name in sorted(rest)]


def _read(owner: str, source: Source) -> dict[str, np.ndarray]:
    """Return the arrays of a state dict, or of the file of one."""
    state: Any = _load(owner, Path(source)) if isinstance(source, (str, Path)) else source
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and hasattr(value, "shape") for name, value in state.items()
    ):
        refuse(f"{owner}.source", "a state dict", type(state).__name__, "Pass model.state_dict().")
    arrays = {name: _numpy(value) for name, value in state.items()}
    weights = {name: value for name, value in arrays.items() if name != "group_indices"}
    odd = [f"{describe(a)} for {n}" for n, a in weights.items() if str(a.dtype) not in DTYPES or a.size == 0]
    if odd:
        refuse(f"{owner}.source", "weights in floating point", "; ".join(odd), "Pass model.state_dict() as it is.")
    return arrays


def _load(owner: str, path: Path) -> Any:
    """Return what stands in the file of a state dict, read without running code of it."""
    if not path.is_file():
        refuse(f"{owner}.source", "a file", repr(str(path)), "Correct the path.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import load

            return load(path.read_bytes())  # by its bytes: a name need not be UTF-8
        import torch

        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of any kind, from a foreign or damaged file
        # not PyTorch's own words: they recommend to switch the safe reader off
        got = f"{path.name!r}, which cannot be read as one without running code ({type(error).__name__})"
        fix = "Save model.state_dict() with torch.save, or as safetensors."
        refuse(f"{owner}.source", "a state dict of tensors", got, fix)


def _numpy(value: Any) -> np.ndarray:
    """Return a copy of a tensor or array; bfloat16, which numpy has not, becomes float32."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    return np.array(value)
