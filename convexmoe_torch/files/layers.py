"""Names and layouts of a hierarchy's parameters in the neutral file, which are those of its PyTorch state dict.

PyTorch needs no permutation: what stands here is the list of layers that have a counterpart in JAX. A layer that is not
in it is an error: nothing is guessed. Add your own with `RULES.add(MyLayer)`, and its rule in `convexmoe_jax.names`.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from convexmoe.errors import fail, same_keys
from convexmoe.files import check_own_parts, describe_parts, make_expert
from convexmoe.hierarchy import CELMoEConfig

from ..hierarchy.experts import HullExpert, LinearExpert, MLPExpert
from ..hierarchy.fusion import LearnedFusion, PositionAwareFusion
from ..hierarchy.module import HierarchicalCELMoE
from ..hull.module import VectorHull

MODELS = VectorHull, HierarchicalCELMoE
OURS: dict[str, type[nn.Module]] = {
    "LinearExpert": LinearExpert,
    "MLPExpert": MLPExpert,
    "HullExpert": HullExpert,
    "LearnedFusion": LearnedFusion,
    "PositionAwareFusion": PositionAwareFusion,
}
RULES: set[type] = {
    nn.Linear,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.Embedding,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    VectorHull,
    *OURS.values(),
}


def unwrap(model: Any) -> Any:
    """Return the model inside a compiled module or `DistributedDataParallel`, another as it is."""
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif isinstance(model, nn.Module) and "_orig_mod" in model._modules:  # torch.compile(model)
            model = model._modules["_orig_mod"]
        else:
            return model


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Return a copy of a tensor in numpy, in C order, whole where processes have shards; bfloat16 crosses as bits."""
    tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    copy = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    bits = copy.dtype == torch.bfloat16
    return copy.view(torch.uint16).numpy().view(ml_dtypes.bfloat16) if bits else copy.numpy()


def from_numpy(value: Any, path: Any = None) -> Tensor:
    """Return an array of numpy as a tensor that shares its memory, and a tensor as it is; bfloat16 crosses as bits."""
    if isinstance(value, Tensor):
        return value
    bits = value.dtype == ml_dtypes.bfloat16
    return torch.from_numpy(value.view(np.uint16)).view(torch.bfloat16) if bits else torch.from_numpy(value)


def leaves_of(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Return neutral name -> parameter of a module.

    Raises:
        TypeError: a layer without a rule; the message names it.
    """
    if isinstance(module, VectorHull):
        return {f"{prefix}.{name}": value for name, value in module.named_parameters()}
    leaves: dict[str, Tensor] = {}
    kind = type(module).__name__
    for name, value in module.named_parameters(recurse=False):
        if not isinstance(module, tuple(RULES)):
            fix = f"Add one: convexmoe_torch.names.RULES.add({kind})."
            fail("names", prefix, "layers that have a rule", f"{kind}.{name}", fix, TypeError)
        leaves[f"{prefix}.{name}"] = value
    for name, _ in module.named_buffers(recurse=False):
        if name not in module._non_persistent_buffers_set:
            fix = "Make it a parameter, or a buffer with persistent=False."
            fail("names", prefix, "parameters alone", f"{kind} with the buffer {name}", fix, TypeError)
    for name, child in module.named_children():
        leaves |= leaves_of(child, f"{prefix}.{name}")
    return leaves


def experts_of(model: HierarchicalCELMoE) -> dict[str, nn.Module]:
    """Return "level.expert" -> the expert."""
    levels: Any = model.level_modules.items()
    return {f"{level}.{name}": expert for level, experts in levels for name, expert in experts.items()}


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """Return neutral name -> parameter of a hull, or of a hierarchy: its experts, then its fusion."""
    if not isinstance(model, HierarchicalCELMoE):
        return dict(model.named_parameters())
    parts = {f"level_modules.{name}": expert for name, expert in experts_of(model).items()}
    parts |= {} if model.fusion is None else {"fusion": model.fusion}
    return {name: value for part, module in parts.items() for name, value in leaves_of(module, part).items()}


def neutral_arrays(model: nn.Module) -> dict[str, np.ndarray]:
    """Return neutral name -> a copy of the array, in C order, of every parameter."""
    return {name: to_numpy(value) for name, value in parameters_of(model).items()}


@torch.no_grad()
def fill(model: HierarchicalCELMoE, arrays: dict[str, Any]) -> None:
    """Set every parameter of a model from neutral arrays; all differences in names and shapes are reported at once.

    Raises:
        ValueError: names or shapes differ.
    """
    parameters = parameters_of(model)
    expected = {name: (tuple(value.shape), None) for name, value in parameters.items()}
    same_keys("HierarchicalCELMoE", expected, {name: (tuple(v.shape), "") for name, v in arrays.items()})
    for name, parameter in parameters.items():
        parameter.data = from_numpy(arrays[name]).detach().clone().to(parameter.device)


def recipes_of(model: HierarchicalCELMoE) -> dict[str, Any]:
    """Return what is needed to build the model's experts and fusion again: see `convexmoe.files.describe_parts`."""
    return describe_parts(experts_of(model), model.fusion, model.config, OURS)


def build(config: CELMoEConfig, recipes: dict[str, Any], expert_factory: Any, fusion_module: Any) -> HierarchicalCELMoE:
    """Return a model by its config and recipes, its weights still to be filled in.

    Raises:
        ValueError: an expert or the fusion is a user's own, and there is no factory or module for it.
    """
    check_own_parts(config, recipes, expert_factory, fusion_module)

    def ready(level: str, expert: str, metadata: Any) -> nn.Module:
        return make_expert(recipes["experts"][f"{level}.{expert}"], OURS, VectorHull.from_config)

    return HierarchicalCELMoE(config, expert_factory or ready, fusion_module)
