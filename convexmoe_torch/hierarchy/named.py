"""Modules under names of any text."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any

from torch import nn


class NamedModules(nn.ModuleDict):
    """A `nn.ModuleDict` that takes the names of its own attributes too, such as "items", "type" or "forward".

    A module under such a name is an attribute, and part of a `state_dict`, under that name and as many "_" as make it
    a free one: `level_modules["items"]` is `level_modules.items_`. `load_state_dict` takes the name as well.

    Args:
        modules: name -> module; no name is empty or has a dot.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._attributes: dict[str, str] = {}
        for name, module in modules.items():
            attribute = name
            while hasattr(self, attribute) or (attribute != name and attribute in modules):
                attribute += "_"
            self._attributes[name] = attribute
            self.add_module(attribute, module)

    def __getitem__(self, key: str) -> nn.Module:
        return super().__getitem__(self._attributes[key])

    def __setitem__(self, key: str, module: nn.Module) -> None:
        """Replace a module; another name is a KeyError."""
        super().__setitem__(self._attributes[key], module)

    def __delitem__(self, key: str) -> None:
        super().__delitem__(self._attributes.pop(key))

    def __contains__(self, key: object) -> bool:
        return key in self._attributes

    def __iter__(self) -> Iterator[str]:
        return iter(self._attributes)

    def keys(self) -> KeysView[str]:
        return self._attributes.keys()

    def items(self) -> ItemsView[str, nn.Module]:
        return {name: self[name] for name in self}.items()

    def values(self) -> ValuesView[nn.Module]:
        return {name: self[name] for name in self}.values()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        renamed = {f"{prefix}{name}.": f"{prefix}{new}." for name, new in self._attributes.items() if name != new}
        for old, new in renamed.items():
            for key in [key for key in state_dict if key.startswith(old)]:
                state_dict[new + key.removeprefix(old)] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *rest)
