"""Losses of a hierarchy over three scopes: global, one level, the bridge between two; beside the experts' own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from convexmoe.errors import check_scalar, describe, fail, finite_number
from convexmoe.hierarchy.loss_forms import FORMS, LossForm, loss_form

from .module import CELMoEOutput

LossMap = Mapping[str, Tensor]
LossResult = Tensor | LossMap
LossCallable = Callable[..., LossResult]  # (output, targets, context) or (output)
LevelLossCallable = Callable[..., LossResult]  # (level_output, output, targets, context) or (level_output)
# (parent_output, child_output, output, targets, context) or (parent_output, child_output)
BridgeLossCallable = Callable[..., LossResult]


@dataclass(frozen=True)
class LossTerm:
    """One term of a loss.

    Args:
        name: `level.expert.loss`, `global.n`, `<level>.n` or `<parent>-><child>.n`.
        value: unweighted, a scalar.
        weight: its factor in the total.
        scope: "global", the name of the level, "<parent>-><child>", or "expert".
    """

    name: str
    value: Tensor
    weight: float = 1.0
    scope: str = "global"


@dataclass(init=False)
class LossBundle:
    """All terms of a loss.

    Args:
        terms: `LossTerm` entries, in order; the list is copied. None for none.
    """

    terms: list[LossTerm]

    def __init__(self, terms: Iterable[LossTerm] | None = None) -> None:
        self.terms = [] if terms is None else list(terms)

    def add(self, name: str, value: Any, weight: float = 1.0, scope: str = "global") -> None:
        """Add a term.

        Raises:
            ValueError: its value is no scalar, or its weight no finite number.
        """
        value = _scalar("LossBundle", name, value)
        self.terms.append(LossTerm(name, value, _checked_weight("LossBundle", weight), scope))

    @property
    def total(self) -> Tensor:
        """The sum of `weight * value` over all terms, a scalar."""
        total = torch.zeros(())
        for term in self.terms:
            value = torch.as_tensor(
                term.value
            )  # a product in half precision may overflow where the total does not
            wide = value.to(torch.promote_types(value.dtype, torch.float32))
            total = total.to(value.device) + term.weight * wide
        return total

    def as_dict(self) -> dict[str, float]:
        """Return name -> unweighted value, `name.weighted` -> weighted value, and "total", in one transfer.

        Terms of one name stay apart: the second is called `name#2`.

        Raises:
            ValueError: a term is no scalar, as after `vmap`.
        """
        for term in self.terms:
            _scalar("LossBundle", term.name, term.value)
        with torch.no_grad():
            total = self.total
            values = torch.stack(
                [total, *[torch.as_tensor(term.value).to(total) for term in self.terms]]
            ).tolist()
        result = {"total": values[0]}
        for term, value in zip(self.terms, values[1:], strict=True):
            name, count = term.name, 1
            while name in result or f"{name}.weighted" in result:
                count += 1
                name = f"{term.name}#{count}"
            result |= {name: value, f"{name}.weighted": term.weight * value}
        return result


class _Entry(NamedTuple):
    scope: str
    path: tuple[str, ...]
    name: str
    function: LossCallable | LevelLossCallable | BridgeLossCallable
    form: LossForm
    weight: float


class CELMoELossAPI:
    """Named losses, added once and computed for every output.

    A loss gives a scalar or a dict of scalars, called `<scope>.<name>` and `<scope>.<name>.<item>`.

    >>> api = CELMoELossAPI()
    >>> api.add_global("mse", lambda output, targets, context: ((output.fused_hidden - targets) ** 2).mean())
    >>> api.add_level("family", "size", lambda level: (level.hidden ** 2).mean(), weight=0.1)
    """

    def __init__(self) -> None:
        self._entries: list[_Entry] = []

    def add_global(self, name: str, f: LossCallable, weight: float = 1.0) -> None:
        """Add `f(output, targets, context)` or `f(output)`, called `global.<name>`.

        Raises:
            TypeError: the function fits neither form (see `loss_form`).
            ValueError: the weight is no finite number.
        """
        self._add("global", (), name, f, weight)

    def add_level(self, level: str, name: str, f: LevelLossCallable, weight: float = 1.0) -> None:
        """Add `f(level_output, output, targets, context)` or `f(level_output)`, called `<level>.<name>`.

        Raises: as `add_global`.
        """
        self._add("level", (level,), name, f, weight)

    def add_bridge(
        self, parent: str, child: str, name: str, f: BridgeLossCallable, weight: float = 1.0
    ) -> None:
        """Add a loss between two levels, called `<parent>-><child>.<name>`.

        It is `f(parent_output, child_output, output, targets, context)` or `f(parent_output, child_output)`.

        Raises: as `add_global`.
        """
        self._add("bridge", (parent, child), name, f, weight)

    def _add(self, scope: str, path: tuple[str, ...], name: str, function: Any, weight: float) -> None:
        weight = _checked_weight(f"CELMoELossAPI.add_{scope}", weight)
        self._entries.append(_Entry(scope, path, name, function, loss_form(scope, function), weight))

    def compute(self, output: CELMoEOutput, targets: Any = None, context: Any = None) -> LossBundle:
        """Return all terms for an output: the experts' own losses first, then those added, in order.

        Args:
            output: of a hierarchy.
            targets, context: handed to the losses that take them, as they are.

        Raises:
            ValueError: a loss names a level that the output does not have, is no scalar, or uses targets or a context
                that are None.
        """
        factors = output.loss_weights
        terms = [
            LossTerm(name, value, factors.get(name, 1.0), "expert") for name, value in output.losses.items()
        ]
        for entry in self._entries:
            unknown = [name for name in entry.path if name not in output.levels]
            if unknown:
                rule, fix = f"levels among {list(output.levels)}", "Correct the name, or enable the level."
                fail("CELMoELossAPI", f"add_{entry.scope}", rule, repr(unknown[0]), fix)
            scope = "->".join(entry.path) or "global"
            values = [*(output.levels[name] for name in entry.path), output, targets, context]
            given = dict(zip(FORMS[entry.scope][0], values, strict=True))
            full = f"{scope}.{entry.name}"
            value = entry.form.call(entry.function, given, full)
            parts = (
                {f"{full}.{key}": v for key, v in value.items()}
                if isinstance(value, Mapping)
                else {full: value}
            )
            for name, part in parts.items():
                terms.append(LossTerm(name, _scalar("CELMoELossAPI", name, part), entry.weight, scope))
        return LossBundle(terms)


def _checked_weight(owner: str, weight: Any) -> float:
    """Return the factor of a term as a float."""
    return finite_number(owner, "weight", weight, -math.inf, "Pass weight=1.0, or multiply inside the loss.")


def _scalar(owner: str, name: str, value: Any) -> Tensor:
    """Return what a loss gave as an array without axes."""
    if value is None or isinstance(value, (str, Mapping)):
        fix = "Return the value of the loss."
        fail(owner, name, "a scalar, or a dict of scalars", describe(value), fix, TypeError)
    array = torch.as_tensor(value)
    check_scalar(owner, name, array)
    return array
