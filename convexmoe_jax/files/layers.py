"""Names and layouts of a hierarchy's parameters in the neutral file, which are those of its PyTorch state dict.

One table says, for each kind of layer, what its parameters are called there and how their axes are permuted. A layer
that it does not know is an error: nothing is guessed. Add your own with
`RULES[MyLayer] = {"kernel": ("weight", transposed)}`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convexmoe.errors import describe, dtype_name, fail, same_keys
from convexmoe.files import check_own_parts, describe_parts, make_expert
from convexmoe.hierarchy import CELMoEConfig

from ..hierarchy.experts import HullExpert, LinearExpert, MLPExpert
from ..hierarchy.fusion import LearnedFusion, PositionAwareFusion
from ..hierarchy.module import HierarchicalCELMoE
from ..hull import VectorHull, flatten
from ..hull.initialization import switched_on

MODELS = VectorHull, HierarchicalCELMoE
Permutation = Callable[[int], tuple[int, ...]]
Leaf = tuple[str, Permutation]


def unwrap(model: Any) -> Any:
    """Return the model: JAX wraps none."""
    return model


def same(axes: int) -> tuple[int, ...]:
    """Return the permutation that changes nothing."""
    return tuple(range(axes))


def transposed(axes: int) -> tuple[int, ...]:
    """Return the permutation of (in, out) to (out, in)."""
    return (1, 0)


def channels_first(axes: int) -> tuple[int, ...]:
    """Return the permutation of (spatial..., in, out) to (out, in, spatial...)."""
    return (axes - 1, axes - 2, *range(axes - 2))


FUSIONS: dict[str, type] = {"LearnedFusion": LearnedFusion, "PositionAwareFusion": PositionAwareFusion}
EXPERTS: dict[str, type] = {"LinearExpert": LinearExpert, "MLPExpert": MLPExpert, "HullExpert": HullExpert}
# kind of layer -> name in JAX -> (name in the neutral file, permutation of the axes on the way there);
# a kind whose own names hold everywhere has the rule None
RULES: dict[type, dict[str, Leaf] | None] = {
    nnx.Linear: {"kernel": ("weight", transposed), "bias": ("bias", same)},
    nnx.LayerNorm: {"scale": ("weight", same), "bias": ("bias", same)},
    nnx.RMSNorm: {"scale": ("weight", same)},
    nnx.Embed: {"embedding": ("weight", same)},
    nnx.Conv: {"kernel": ("weight", channels_first), "bias": ("bias", same)},
    VectorHull: None,
    **dict.fromkeys(EXPERTS.values()),
}


def leaves_of(module: nnx.Module, prefix: str) -> dict[tuple[Any, ...], tuple[str, Permutation]]:
    """Return path -> (neutral name, permutation) of every parameter of a module.

    Raises:
        TypeError: a layer without a rule; the message names it.
    """
    owners = {tuple(path): layer for path, layer in nnx.iter_modules(module)}
    leaves = {}
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
        leaves[tuple(path)] = (".".join([prefix, *above, neutral]), permutation)
    return leaves


def _leaf(owner: nnx.Module, name: str, prefix: str) -> Leaf:
    if isinstance(owner, tuple(FUSIONS.values())):
        return name, transposed if name.startswith("gates.") else same
    kind = next((kind for kind in type(owner).__mro__ if kind in RULES), None)
    rule = None if kind is None else RULES[kind]
    if kind is None or (rule is not None and name not in rule):
        fix = f"Add one: convexmoe_jax.names.RULES[{type(owner).__name__}] = {{{name!r}: (neutral name, permutation)}}."
        fail("names", prefix, "layers that have a rule", f"{type(owner).__name__}.{name}", fix, TypeError)
    return (name, same) if rule is None else rule[name]


def experts_of(model: HierarchicalCELMoE) -> list[tuple[str, str, int, nnx.Module]]:
    """Return (level and expert name, group, place in the group, the expert on its own) of every expert."""
    experts = []
    for level in model.config.enabled_levels:
        for number, group in enumerate(dict(model.groups)[level.name]):
            stack = jax.device_get(model.level_modules[level.name][str(number)])  # one may be divided over devices
            for place, member in enumerate(group.members):
                name = f"{level.name}.{level.expert_names[member]}"
                alone = nnx.merge(group.graph, jax.tree.map(lambda leaf, i=place: leaf[i], stack))
                experts.append((name, str(number), place, alone))
    return experts


def neutral_arrays(model: VectorHull | HierarchicalCELMoE) -> dict[str, np.ndarray]:
    """Return neutral name -> a copy of the array, in C order, of every parameter."""
    if isinstance(model, VectorHull):
        return {name: np.array(value, order="C") for name, value in flatten(model.params).items()}
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
    expected = {name: (value.shape, None) for name, value in neutral_arrays(model).items()}
    same_keys("HierarchicalCELMoE", expected, {name: (value.shape, "") for name, value in arrays.items()})
    for name, group, place, expert in experts_of(model):
        level = name.partition(".")[0]
        stack = dict(nnx.to_flat_state(nnx.State(model.level_modules[level][group])))
        for path, (neutral, permutation) in leaves_of(expert, f"level_modules.{name}").items():
            value = from_numpy(arrays[neutral], None, permutation)
            stack[path].set_value(stack[path][...].astype(value.dtype).at[place].set(value))
    if model.fusion is not None:
        leaves = dict(nnx.to_flat_state(nnx.state(model.fusion)))
        for path, (neutral, permutation) in leaves_of(model.fusion, "fusion").items():
            leaves[path].set_value(from_numpy(arrays[neutral], None, permutation))
        nnx.update(model.fusion, nnx.from_flat_state(list(leaves.items())))


def from_numpy(value: Any, path: str | os.PathLike[str] | None, permutation: Permutation = same) -> jax.Array:
    """Return a neutral array in JAX, its axes permuted back.

    Args:
        value: the array.
        path: the file that it is of, for the message of the error, or None.
        permutation: of the axes on the way to the neutral file.

    Raises:
        ValueError: it is float64, which JAX has switched off.
    """
    if not switched_on(dtype_name(value.dtype)):
        fix = 'Call jax.config.update("jax_enable_x64", True) first.'
        got = describe(value) if path is None else f"{os.fspath(path)!r} in float64"
        fail("load", "path", "a dtype that JAX has switched on", got, fix)
    return jnp.asarray(np.asarray(value).transpose(np.argsort(permutation(value.ndim))))


def recipes_of(model: HierarchicalCELMoE) -> dict[str, Any]:
    """Return what is needed to build the model's experts and fusion again: see `convexmoe.files.describe_parts`."""
    experts = {name: expert for name, _, _, expert in experts_of(model)}
    return describe_parts(experts, model.fusion, model.config, EXPERTS | FUSIONS)


def build(config: CELMoEConfig, recipes: dict[str, Any], expert_factory: Any, fusion_module: Any) -> HierarchicalCELMoE:
    """Return a model by its config and recipes, its weights still to be filled in.

    Raises:
        ValueError: an expert or the fusion is a user's own, and there is no factory or module for it.
    """
    check_own_parts(config, recipes, expert_factory, fusion_module)

    def ready(level: str, expert: str, metadata: Any, *, rngs: nnx.Rngs) -> nnx.Module:
        kinds = EXPERTS | {kind: partial(EXPERTS[kind], rngs=rngs) for kind in ("LinearExpert", "MLPExpert")}
        hull = partial(VectorHull.from_config, rngs=rngs)
        return make_expert(recipes["experts"][f"{level}.{expert}"], kinds, hull)

    return HierarchicalCELMoE(config, expert_factory or ready, fusion_module, rngs=nnx.Rngs(0))
