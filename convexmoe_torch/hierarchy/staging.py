"""Staged training: levels, experts or the fusion are frozen while the rest is trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from convexmoe.hierarchy import select_parts

from .module import HierarchicalCELMoE


def freeze(model: HierarchicalCELMoE, *names: str) -> None:
    """Freeze the named parts: their parameters require no gradients, and lose those that they have.

    Args:
        model: the hierarchy.
        names: "level", "level.expert", or "fusion" (where no level is called so).

    Raises:
        ValueError: no name, or an unknown one; nothing is changed then.
    """
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
    experts, fusion = select_parts(owner, model.config, names, model.fusion is not None)
    levels: dict[str, Any] = dict(model.level_modules)
    named = {level.name: level.expert_names for level in model.config.levels}
    chosen = [(level, named[level][index]) for level, members in experts.items() for index in sorted(members)]
    modules = [levels[level][name] for level, name in chosen if name in levels[level]]  # of a placed model its own
    if fusion:
        modules.append(model.fusion)
    return (parameter for module in modules for parameter in module.parameters())
