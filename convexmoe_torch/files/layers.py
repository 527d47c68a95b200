"""Names and layouts of a hierarchy's parameters in the neutral file, which are those of its PyTorch state dict.

PyTorch needs no permutation: what stands here is the list of layers that have a counterpart in JAX. A layer that is not
in it is an error: nothing is guessed. Add your own with `RULES.add(MyLayer)`, and its rule in `convexmoe_jax.names`.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from convexmoe.errors import fail, same_keys
from convexmoe.hierarchy.config import CELMoEConfig
from convexmoe.hierarchy.description import FUSIONS, USER
from convexmoe.hull.config import HullConfig

from ..hierarchy.experts import HullExpert, LinearExpert, MLPExpert
from ..hierarchy.fusion import LearnedFusion, PositionAwareFusion
from ..hierarchy.module import HierarchicalCELMoE
from ..hull.module import VectorHull

RULES: set[type] = {
    nn.Linear,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.Embedding,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    VectorHull,
    LinearExpert,
    MLPExpert,
    HullExpert,
    LearnedFusion,
    PositionAwareFusion,
}


def leaves_of(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Return neutral name -> parameter of a module.

    Raises:
        TypeError: a layer without a rule; the message names it.
    """
    found: dict[str, Tensor] = {}
    if isinstance(module, VectorHull):
        return {f"{prefix}.{name}": value for name, value in module.named_parameters()}
    for name, value in module.named_parameters(recurse=False):
        if not any(isinstance(module, kind) for kind in RULES):
            fix = f"Add one: convexmoe_torch.names.RULES.add({type(module).__name__})."
            fail(
                "names", prefix, "layers that have a rule", f"{type(module).__name__}.{name}", fix, TypeError
            )
        found[f"{prefix}.{name}"] = value
    for name, _ in module.named_buffers(recurse=False):
        if name not in module._non_persistent_buffers_set:
            fix = "Make it a parameter, or a buffer with persistent=False."
            fail(
                "names",
                prefix,
                "parameters alone",
                f"{type(module).__name__} with the buffer {name}",
                fix,
                TypeError,
            )
    for name, child in module.named_children():
        found |= leaves_of(child, f"{prefix}.{name}")
    return found


def parameters_of(model: HierarchicalCELMoE) -> dict[str, Tensor]:
    """Return neutral name -> parameter of a model: its experts, then its fusion."""
    found = leaves_of(model.level_modules, "level_modules")
    return found if model.fusion is None else found | leaves_of(model.fusion, "fusion")


def neutral_arrays(model: HierarchicalCELMoE) -> dict[str, Tensor]:
    """Return neutral name -> a contiguous copy on the CPU of every parameter."""
    copies = parameters_of(model).items()
    return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in copies}


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
        parameter.data = torch.as_tensor(arrays[name]).detach().clone().to(parameter.device)


def recipes_of(model: HierarchicalCELMoE) -> dict[str, Any]:
    """Return what is needed to build the model's experts and fusion again, as JSON can hold it.

    Ready experts state their sizes; of a user's own only that it is one.
    """
    experts = {
        f"{level}.{name}": _recipe(expert)
        for level, members in model.level_modules.items()
        for name, expert in members.items()  # type: ignore[operator]
    }
    return {"experts": experts, "fusion": _fusion_kind(model)}


def _fusion_kind(model: HierarchicalCELMoE) -> str | None:
    """Return the kind of the model's fusion: ours where the config says how to build it, else a user's own."""
    fusion, config = model.fusion, model.config
    if isinstance(fusion, PositionAwareFusion) and fusion.max_positions != config.fusion_max_positions:
        return USER
    kind = None if fusion is None else type(fusion).__name__
    return kind if kind in (None, FUSIONS[config.fusion_type]) else USER


def _recipe(expert: Any) -> dict[str, Any]:
    if type(expert) is LinearExpert:
        return {"kind": "LinearExpert", "sizes": list(expert.weight.shape)}
    if type(expert) is MLPExpert:
        return {"kind": "MLPExpert", "sizes": [*expert.weight_1.shape, expert.weight_2.shape[1]]}
    if type(expert) is HullExpert:
        return {"kind": "HullExpert", "config": json.loads(expert.hull.config.to_json())}
    return {"kind": USER}


def built(
    config: CELMoEConfig, recipes: dict[str, Any], expert_factory: Any, fusion_module: Any
) -> HierarchicalCELMoE:
    """Return a model by its config and recipes, its weights still to be filled in.

    Raises:
        ValueError: an expert or the fusion is a user's own, and there is no factory or module for it.
    """
    own = [name for name, recipe in recipes["experts"].items() if recipe["kind"] == USER]
    if own and expert_factory is None:
        fix = "Pass the expert_factory that the model was built with."
        fail("load", "expert_factory", f"a factory for the experts {own}", "None", fix)
    if recipes["fusion"] == USER and fusion_module is None:
        fix = "Pass the fusion_module that the model was built with."
        ours = FUSIONS[config.fusion_type]
        fail("load", "fusion_module", f"the module of a fusion that is not {ours}", "None", fix)

    def ready(level: str, expert: str, metadata: Any) -> nn.Module:
        recipe = recipes["experts"][f"{level}.{expert}"]
        if recipe["kind"] == "HullExpert":
            return HullExpert(VectorHull.from_config(HullConfig.from_json(json.dumps(recipe["config"]))))
        return {"LinearExpert": LinearExpert, "MLPExpert": MLPExpert}[recipe["kind"]](*recipe["sizes"])

    return HierarchicalCELMoE(config, expert_factory or ready, fusion_module)
