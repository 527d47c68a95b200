"""Names and layouts of a hierarchy's parameters in the neutral file, which are those of its PyTorch state dict.

One table says, for each kind of layer, what its parameters are called there and how their axes are permuted. A layer
that it does not know is an error: nothing is guessed. Add your own with
`RULES[MyLayer] = {"kernel": ("weight", transposed)}`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convexmoe.errors import describe, fail, same_keys
from convexmoe.hierarchy.config import CELMoEConfig
from convexmoe.hierarchy.description import FUSIONS, USER
from convexmoe.hull.config import HullConfig

from ..hierarchy.experts import HullExpert, LinearExpert, MLPExpert
from ..hierarchy.fusion import LearnedFusion, PositionAwareFusion
from ..hierarchy.module import HierarchicalCELMoE
from ..hull.module import VectorHull

Permutation = Callable[[int], tuple[int, ...]]
Leaf = tuple[str, Permutation]


def same(axes: int) -> tuple[int, ...]:
    """Return the permutation that changes nothing."""
    return tuple(range(axes))


def transposed(axes: int) -> tuple[int, ...]:
    """Return the permutation of (in, out) to (out, in)."""
    return (1, 0)


def channels_first(axes: int) -> tuple[int, ...]:
    """Return the permutation of (spatial..., in, out) to (out, in, spatial...)."""
    return (axes - 1, axes - 2, *range(axes - 2))


# kind of layer -> name in JAX -> (name in the neutral file, permutation of the axes on the way there);
# a kind whose own names hold everywhere has the rule None
RULES: dict[type, dict[str, Leaf] | None] = {
    nnx.Linear: {"kernel": ("weight", transposed), "bias": ("bias", same)},
    nnx.LayerNorm: {"scale": ("weight", same), "bias": ("bias", same)},
    nnx.RMSNorm: {"scale": ("weight", same)},
    nnx.Embed: {"embedding": ("weight", same)},
    nnx.Conv: {"kernel": ("weight", channels_first), "bias": ("bias", same)},
    VectorHull: None,
    LinearExpert: None,
    MLPExpert: None,
    HullExpert: None,
}


def leaves_of(module: nnx.Module, prefix: str) -> dict[tuple[Any, ...], tuple[str, Permutation]]:
    """Return path -> (neutral name, permutation) of every parameter of a module.

    Raises:
        TypeError: a layer without a rule; the message names it.
    """
    owners = {tuple(path): layer for path, layer in nnx.iter_modules(module)}
    found = {}
    for path, _ in nnx.to_flat_state(nnx.state(module)):
        depth = max(n for n in range(len(path)) if path[:n] in owners)
        owner, name = owners[path[:depth]], ".".join(map(str, path[depth:]))
        neutral, permutation = _leaf(owner, name, prefix)
        # PyTorch's Sequential has its layers under their numbers, without a list between
        above = [
            str(key)
            for n, key in enumerate(path[:depth])
            if key != "layers" or not isinstance(owners[path[:n]], nnx.Sequential)
        ]
        found[tuple(path)] = (".".join([prefix, *above, neutral]), permutation)
    return found


def _leaf(owner: nnx.Module, name: str, prefix: str) -> Leaf:
    if isinstance(owner, (LearnedFusion, PositionAwareFusion)):
        return name, transposed if name.startswith("gates.") else same
    kind = next((kind for kind in type(owner).__mro__ if kind in RULES), None)
    rule = None if kind is None else RULES[kind]
    if kind is None or (rule is not None and name not in rule):
        fix = f"Add one: convexmoe_jax.names.RULES[{type(owner).__name__}] = {{{name!r}: (neutral name, permutation)}}."
        fail("names", prefix, "layers that have a rule", f"{type(owner).__name__}.{name}", fix, TypeError)
    return (name, same) if rule is None else rule[name]


def experts_of(model: HierarchicalCELMoE) -> list[tuple[str, str, int, nnx.Module]]:
    """Return (level and expert name, group, place in the group, the expert on its own) of every expert."""
    found = []
    for level in model.config.enabled_levels:
        for number, group in enumerate(dict(model.groups)[level.name]):
            stack = model.level_modules[level.name][str(number)]
            for place, member in enumerate(group.members):
                name = f"{level.name}.{level.expert_names[member]}"
                alone = nnx.merge(group.graph, jax.tree.map(lambda leaf, i=place: leaf[i], stack))
                found.append((name, str(number), place, alone))
    return found


def neutral_arrays(model: HierarchicalCELMoE) -> dict[str, np.ndarray]:
    """Return neutral name -> a copy of the array, in C order, of every parameter."""
    parts = [(f"level_modules.{name}", expert) for name, _, _, expert in experts_of(model)]
    if model.fusion is not None:
        parts.append(("fusion", model.fusion))
    arrays = {}
    for prefix, module in parts:
        values = {tuple(path): leaf for path, leaf in nnx.to_flat_state(nnx.state(module))}
        for path, (name, permutation) in leaves_of(module, prefix).items():
            value = np.asarray(values[path][...])
            arrays[name] = np.array(value.transpose(permutation(value.ndim)), order="C", copy=True)
    return arrays


def fill(model: HierarchicalCELMoE, arrays: dict[str, Any]) -> None:
    """Set every parameter of a model from neutral arrays; all differences in names and shapes are reported at once.

    Raises:
        ValueError: names or shapes differ.
    """
    current = neutral_arrays(model)
    expected = {name: (value.shape, None) for name, value in current.items()}
    same_keys("HierarchicalCELMoE", expected, {name: (value.shape, "") for name, value in arrays.items()})
    for name, group, place, expert in experts_of(model):
        level = name.partition(".")[0]
        stack = dict(nnx.to_flat_state(nnx.State(model.level_modules[level][group])))
        for path, (neutral, permutation) in leaves_of(expert, f"level_modules.{name}").items():
            value = _returned(arrays[neutral], permutation)
            stack[path].set_value(stack[path][...].astype(value.dtype).at[place].set(value))
    if model.fusion is not None:
        leaves = dict(nnx.to_flat_state(nnx.state(model.fusion)))
        for path, (neutral, permutation) in leaves_of(model.fusion, "fusion").items():
            leaves[path].set_value(_returned(arrays[neutral], permutation))
        nnx.update(model.fusion, nnx.from_flat_state(list(leaves.items())))


def _returned(value: Any, permutation: Permutation) -> jax.Array:
    """Return an array from the neutral layout in that of JAX."""
    back = np.argsort(permutation(value.ndim))
    array = jnp.asarray(np.asarray(value).transpose(back))
    if array.dtype != value.dtype:
        fix = 'Call jax.config.update("jax_enable_x64", True) first.'
        fail("load", "path", "a dtype that JAX has switched on", describe(value), fix)
    return array


def recipes_of(model: HierarchicalCELMoE) -> dict[str, Any]:
    """Return what is needed to build the model's experts and fusion again, as JSON can hold it.

    Ready experts state their sizes; of a user's own only that it is one.
    """
    experts = {
        name: _recipe(expert) for name, expert in ((name, expert) for name, _, _, expert in experts_of(model))
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

    def ready(level: str, expert: str, metadata: Any, *, rngs: nnx.Rngs) -> nnx.Module:
        recipe = recipes["experts"][f"{level}.{expert}"]
        if recipe["kind"] == "HullExpert":
            return HullExpert(
                VectorHull.from_config(HullConfig.from_json(json.dumps(recipe["config"])), rngs=rngs)
            )
        return {"LinearExpert": LinearExpert, "MLPExpert": MLPExpert}[recipe["kind"]](
            *recipe["sizes"], rngs=rngs
        )

    return HierarchicalCELMoE(config, expert_factory or ready, fusion_module, rngs=nnx.Rngs(0))
