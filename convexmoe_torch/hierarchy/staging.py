"""Staged training: levels, experts or the fusion held fast while the rest is trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from convexmoe.errors import fail
from convexmoe.hierarchy.config import CELMoEConfig

from .module import HierarchicalCELMoE


def freeze(model: HierarchicalCELMoE, *names: str) -> None:
    """Hold the named parts fast: their parameters require no gradients, and lose those that they have.

    Args:
        model: the hierarchy.
        names: "level", "level.expert", or "fusion" (where no level is called so).

    Raises:
        ValueError: no name, or an unknown one; nothing is changed then.
    """
    if not names:
        fail("freeze", "names", "a level, an expert or 'fusion'", "none", "Name what is to be held fast.")
    for parameter in _parameters("freeze", model, names):
        parameter.requires_grad_(False)
        parameter.grad = None  # an optimizer would go on with it


def unfreeze(model: HierarchicalCELMoE, *names: str) -> None:
    """Let the named parts train again, and everything if none is named.

    Args:
        model: the hierarchy.
        names: "level", "level.expert", or "fusion" (where no level is called so).

    Raises:
        ValueError: an unknown name; nothing is changed then.
    """
    for parameter in _parameters("unfreeze", model, names) if names else model.parameters():
        parameter.requires_grad_(True)


def _parameters(owner: str, model: HierarchicalCELMoE, names: tuple[str, ...]) -> Iterator[nn.Parameter]:
    """Return the parameters of the named parts."""
    experts, fusion = chosen(owner, model.config, names, model.fusion is not None)
    levels: dict[str, Any] = dict(model.level_modules)
    modules = [
        module
        for level, members in experts.items()
        for index, module in enumerate(levels[level].values())
        if index in members
    ]
    if fusion and model.fusion is not None:
        modules.append(model.fusion)
    return (parameter for module in modules for parameter in module.parameters())


def chosen(
    owner: str, config: CELMoEConfig, names: tuple[str, ...], has_fusion: bool
) -> tuple[dict[str, set[int]], bool]:
    """Return level -> indices of the named experts, and whether the fusion is named; a level names all its experts."""
    levels = {level.name: level for level in config.enabled_levels}
    experts: dict[str, set[int]] = {}
    fusion = False
    for name in names:
        level, dot, expert = str(name).partition(".")
        if level not in levels:
            if name != "fusion" or not has_fusion:
                known = [*levels, *["fusion"] * has_fusion]
                fail(
                    owner,
                    "names",
                    f"a level or level.expert, levels among {known}",
                    repr(name),
                    "Correct the name.",
                )
            fusion = True
            continue
        members = levels[level].expert_names
        if dot and expert not in members:
            fail(
                owner,
                "names",
                f"level.expert, experts among {list(members)}",
                repr(name),
                "Correct the name.",
            )
        found = {members.index(expert)} if dot else set(range(len(members)))
        experts.setdefault(level, set()).update(found)
    return experts, fusion
