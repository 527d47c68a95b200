"""Losses of a hierarchy over three scopes: global, one level, the bridge between two; beside the experts' own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._checks import check_scalar, fail
from .hierarchy import CELMoEOutput


@dataclass(frozen=True)
class LossTerm:
    """One term of a loss.

    Args:
        name: `level.expert.loss`, `global.n`, `<level>.n` or `<parent>-><child>.n`.
        value: unweighted, a scalar.
        weight: its factor in the total.
        scope: "expert", "global", "level" or "bridge".
    """

    name: str
    value: Tensor
    weight: float
    scope: str


@dataclass(frozen=True)
class LossBundle:
    """All terms of a loss."""

    terms: tuple[LossTerm, ...]

    @property
    def total(self) -> Tensor:
        """The sum of `weight * value` over all terms, a scalar."""
        total = torch.zeros(())
        for term in self.terms:
            total = total.to(term.value.device) + term.weight * term.value
        return total

    def as_dict(self) -> dict[str, float]:
        """Return name -> unweighted value, `name.weighted` -> weighted value, and "total", in one transfer.

        Terms of one name stay apart: the second is called `name#2`.
        """
        with torch.no_grad():
            total = self.total
            values = torch.stack([total, *[term.value.to(total) for term in self.terms]]).tolist()
        result, seen = {"total": values[0]}, Counter[str]()
        for term, value in zip(self.terms, values[1:], strict=True):
            seen[term.name] += 1
            name = term.name if seen[term.name] == 1 else f"{term.name}#{seen[term.name]}"
            result |= {name: value, f"{name}.weighted": term.weight * value}
        return result


class _Entry(NamedTuple):
    scope: str
    path: tuple[str, ...]
    name: str
    function: Callable[..., Any]
    weight: float


class CELMoELossAPI:
    """Named losses, added once and computed for every output.

    >>> api = CELMoELossAPI()
    >>> api.add_global("l2", lambda output: (output.fused_hidden ** 2).mean(), weight=0.5)
    """

    def __init__(self) -> None:
        self._entries: list[_Entry] = []

    def add_global(self, name: str, function: Callable[[CELMoEOutput], Any], weight: float = 1.0) -> None:
        """Add `function(output)`, a scalar or a dict of scalars, called `global.<name>`."""
        self._entries.append(_Entry("global", (), name, function, float(weight)))

    def add_level(self, level: str, name: str, function: Callable[..., Any], weight: float = 1.0) -> None:
        """Add `function(level_output)`, called `<level>.<name>`."""
        self._entries.append(_Entry("level", (level,), name, function, float(weight)))

    def add_bridge(
        self, parent: str, child: str, name: str, function: Callable[..., Any], weight: float = 1.0
    ) -> None:
        """Add `function(parent_output, child_output)`, called `<parent>-><child>.<name>`."""
        self._entries.append(_Entry("bridge", (parent, child), name, function, float(weight)))

    def compute(self, output: CELMoEOutput) -> LossBundle:
        """Return all terms for an output: the experts' own losses first, then those added, in order.

        Raises:
            ValueError: a loss names a level that the output does not have, or is no scalar.
        """
        terms = [
            LossTerm(name, value, output.loss_weights[name], "expert")
            for name, value in output.losses.items()
        ]
        levels = {level.name: level for level in output.levels}
        for entry in self._entries:
            unknown = [name for name in entry.path if name not in levels]
            if unknown:
                fix = "Correct the name, or enable the level."
                fail(
                    "CELMoELossAPI",
                    f"add_{entry.scope}",
                    f"levels among {list(levels)}",
                    repr(unknown[0]),
                    fix,
                )
            args = [levels[name] for name in entry.path] if entry.path else [output]
            value = entry.function(*args)
            full = f"{'->'.join(entry.path) or 'global'}.{entry.name}"
            parts = (
                {f"{full}.{key}": v for key, v in value.items()}
                if isinstance(value, Mapping)
                else {full: value}
            )
            for name, part in parts.items():
                value = torch.as_tensor(part)
                check_scalar("CELMoELossAPI", name, value)
                terms.append(LossTerm(name, value, entry.weight, entry.scope))
        return LossBundle(tuple(terms))
