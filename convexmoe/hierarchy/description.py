"""What the description of a hierarchy in a file says of its parameters, known before anything is built."""

from __future__ import annotations

from typing import Any

from ..errors import fail
from ..hull.config import HullConfig, read_exactly
from ..hull.parameters import parameter_shapes
from .config import LEARNED, POSITION_AWARE, CELMoEConfig

USER = "user"  # the kind of an expert or a fusion that is not one of ours
# fusion_type -> kind of the fusion
FUSIONS = {LEARNED: "LearnedFusion", POSITION_AWARE: "PositionAwareFusion"}
FIELDS = {"hierarchy", "experts", "fusion"}
RULE, FIX = "a config that describes a hierarchy", "Fetch the file again or save the model anew."
Shapes = dict[str, tuple[int, ...]]


def parameters_described_by(config: Any) -> tuple[Shapes, tuple[str, ...]]:
    """Return name -> shape of the parameters that a config describes, and what the names of all others begin with.

    Args:
        config: of a file: that of the hierarchy, and the kind and the sizes of every expert and of the fusion. Of
            parts that a user wrote it says only that they exist.

    Raises:
        ValueError, TypeError: it describes no hierarchy.
    """
    if not isinstance(config, dict) or set(config) != FIELDS or not isinstance(config["experts"], dict):
        fail("load", "config", RULE, f"other fields than {sorted(FIELDS)}", FIX)
    try:
        hierarchy = read_exactly(CELMoEConfig, config["hierarchy"])
    except (TypeError, LookupError, AttributeError) as error:
        fail("load", "config", RULE, str(error), FIX)
    levels = hierarchy.enabled_levels
    names = [f"{level.name}.{expert}" for level in levels for expert in level.expert_names]
    if set(config["experts"]) != set(names):
        fail("load", "config", RULE, f"experts other than {names}", FIX)
    shapes: Shapes = {}
    user_prefixes = []
    for name, recipe in config["experts"].items():
        leaves = _expert_shapes(name, recipe)
        if leaves is None:
            user_prefixes.append(f"level_modules.{name}.")
        else:
            shapes |= {f"level_modules.{name}.{leaf}": shape for leaf, shape in leaves.items()}
    if config["fusion"] == FUSIONS[hierarchy.fusion_type]:
        width, aware = hierarchy.hidden_size, config["fusion"] == "PositionAwareFusion"
        for index, level in enumerate(levels):
            shapes[f"fusion.gates.{index}.weight"] = (1 if aware else width, hierarchy.width_of(level))
        if aware:
            shapes["fusion.position_bias"] = (hierarchy.fusion_max_positions, len(levels))
        shapes |= {"fusion.norm.weight": (width,), "fusion.norm.bias": (width,)}
    elif config["fusion"] == USER:
        user_prefixes.append("fusion.")
    elif config["fusion"] is not None:
        fail("load", "config", RULE, f"the fusion {config['fusion']!r}", FIX)
    return shapes, tuple(user_prefixes)


def _expert_shapes(name: str, recipe: Any) -> Shapes | None:
    """Return the shapes of a ready expert's parameters, None for one of a user's own."""
    kind = recipe.get("kind") if isinstance(recipe, dict) else None
    if recipe == {"kind": USER}:
        return None
    if kind == "HullExpert" and set(recipe) == {"kind", "config"}:
        hull = read_exactly(HullConfig, recipe["config"])
        return {f"hull.{leaf}": shape for leaf, shape in parameter_shapes(hull).items()}
    sizes: Any = recipe.get("sizes") if isinstance(recipe, dict) and set(recipe) == {"kind", "sizes"} else []
    if isinstance(sizes, list) and all(type(size) is int and size > 0 for size in sizes):
        if kind == "LinearExpert" and len(sizes) == 2:
            return {"weight": tuple(sizes), "bias": (sizes[1],)}
        if kind == "MLPExpert" and len(sizes) == 3:
            wide, inner, out = sizes
            first: Shapes = {"weight_1": (wide, inner), "bias_1": (inner,)}
            return first | {"weight_2": (inner, out), "bias_2": (out,)}
    fail("load", "config", RULE, f"{recipe!r} for the expert {name}", FIX)
