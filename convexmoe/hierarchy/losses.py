"""Losses of a hierarchy over three scopes: global, one level, the bridge between two; beside the experts' own.

A package adds what touches arrays: the conversion of a value, the sum, and the transfer to the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from ..errors import check_scalar, describe, fail, finite_number
from .loss_forms import FORMS, LossForm, loss_form
from .records import Array, CELMoEOutput, ExpertResult, LevelOutput
from .selection import Shared

LossMap = Mapping[str, Array]
"""Scalars by name: what a loss may return, and what an expert does."""
LossResult = Array | LossMap
"""What a loss returns: a scalar, or several by name."""
LossCallable = Callable[..., LossResult]
"""A global loss: of (output, targets, context), or of (output)."""
LevelLossCallable = Callable[..., LossResult]
"""A loss of a level: of (level_output, output, targets, context), or of (level_output)."""
BridgeLossCallable = Callable[..., LossResult]
"""A loss between two levels: of (parent_output, child_output, output, targets, context), or of the first two."""


@dataclass(frozen=True)
class LossTerm:
    """One term of a loss. A pytree node.

    Args:
        name: `level.expert.loss`, `global.n`, `<level>.n` or `<parent>-><child>.n`.
        value: unweighted, a scalar.
        weight: its factor in the total.
        scope: "global", the name of the level, "<parent>-><child>", or "expert".
    """

    name: str
    value: Array
    weight: float = 1.0
    scope: str = "global"


# Records that both packages register as pytree nodes: class, fields with arrays in them, fields that are constants
RECORDS: tuple[tuple[type, list[str], list[str]], ...] = (
    (Shared, ["value"], []),
    (ExpertResult, ["hidden", "losses", "aux"], []),
    (LevelOutput, ["hidden", "routes", "losses", "aux"], ["name", "expert_names"]),
    (CELMoEOutput, ["levels", "fused_hidden", "losses", "aux"], ["weights"]),
    (LossTerm, ["value"], ["name", "weight", "scope"]),
)


class LossArrays(NamedTuple):
    """What the losses need of a framework.

    Args:
        zeros: returns an array of a shape.
        as_array: returns a number or an array as an array.
        add: returns `total + weight * value`, in float32 at least: a product in half precision may overflow where the
            total does not.
        fetch: returns scalars as numbers, in one transfer to the host.
    """

    zeros: Callable[..., Array]
    as_array: Callable[..., Array]
    add: Callable[[Any, float, Any], Array]
    fetch: Callable[[list[Any]], list[float]]


@dataclass(init=False)
class LossBundle:
    """All terms of a loss. A pytree node.

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
        value = self.as_scalar("LossBundle", name, value)
        self.terms.append(LossTerm(name, value, _check_weight("LossBundle", weight), scope))

    @property
    def total(self) -> Array:
        """The sum of `weight * value` over all terms, a scalar."""
        total = self._arrays.zeros(())
        for term in self.terms:
            total = self._arrays.add(total, term.weight, self._arrays.as_array(term.value))
        return total

    def as_dict(self) -> dict[str, float]:
        """Return name -> unweighted value, `name.weighted` -> weighted value, and "total", in one transfer.

        Terms of one name stay apart: the second is called `name#2`.

        Raises:
            ValueError: a term is no scalar, as after `vmap`.
        """
        for term in self.terms:
            self.as_scalar("LossBundle", term.name, term.value)
        total, *values = self._arrays.fetch([self.total, *(self._arrays.as_array(term.value) for term in self.terms)])
        result = {"total": total}
        for term, value in zip(self.terms, values, strict=True):
            name, count = term.name, 1
            while name in result or f"{name}.weighted" in result:
                count += 1
                name = f"{term.name}#{count}"
            result |= {name: value, f"{name}.weighted": term.weight * value}
        return result

    @classmethod
    def as_scalar(cls, owner: str, name: str, value: Any) -> Array:
        """Return the value of a loss as an array without axes."""
        if value is None or isinstance(value, (str, Mapping)):
            fix = "Return the value of the loss."
            fail(owner, name, "a scalar, or a dict of scalars", describe(value), fix, TypeError)
        array = cls._arrays.as_array(value)
        check_scalar(owner, name, array)
        return array

    _arrays: ClassVar[LossArrays]


class _Entry(NamedTuple):
    scope: str
    path: tuple[str, ...]
    name: str
    function: LossCallable | LevelLossCallable | BridgeLossCallable
    form: LossForm
    weight: float


class CELMoELossAPI:
    """Named losses, added once and computed for every output; in JAX inside `jit` and `grad`, too.

    A loss returns a scalar or a dict of scalars, called `<scope>.<name>` and `<scope>.<name>.<item>`.

    >>> api = CELMoELossAPI()
    >>> api.add_global("mse", lambda output, targets, context: ((output.fused_hidden - targets) ** 2).mean())
    >>> api.add_level("family", "size", lambda level: (level.hidden ** 2).mean(), weight=0.1)
    """

    bundle: ClassVar[type[LossBundle]] = LossBundle

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

    def add_bridge(self, parent: str, child: str, name: str, f: BridgeLossCallable, weight: float = 1.0) -> None:
        """Add a loss between two levels, called `<parent>-><child>.<name>`.

        It is `f(parent_output, child_output, output, targets, context)` or `f(parent_output, child_output)`.

        Raises: as `add_global`.
        """
        self._add("bridge", (parent, child), name, f, weight)

    def _add(self, scope: str, path: tuple[str, ...], name: str, function: Any, weight: float) -> None:
        weight = _check_weight(f"CELMoELossAPI.add_{scope}", weight)
        self._entries.append(_Entry(scope, path, name, function, loss_form(scope, function), weight))

    def compute(self, output: CELMoEOutput, targets: Any = None, context: Any = None) -> LossBundle:
        """Return all terms for an output: the experts' own losses first, then those added, in order.

        Args:
            output: of a hierarchy.
            targets: handed to the losses that take them, as they are.
            context: likewise.

        Raises:
            ValueError: a loss names a level that the output does not have, is no scalar, or uses targets or a context
                that are None.
        """
        factors = output.loss_weights
        terms = [LossTerm(name, value, factors.get(name, 1.0), "expert") for name, value in output.losses.items()]
        for entry in self._entries:
            unknown = [name for name in entry.path if name not in output.levels]
            if unknown:
                rule, fix = f"levels among {list(output.levels)}", "Correct the name, or enable the level."
                fail("CELMoELossAPI", f"add_{entry.scope}", rule, repr(unknown[0]), fix)
            scope = "->".join(entry.path) or "global"
            values = [*(output.levels[name] for name in entry.path), output, targets, context]
            given = dict(zip(FORMS[entry.scope][0], values, strict=True))
            loss = f"{scope}.{entry.name}"
            value = entry.form.call(entry.function, given, loss)
            is_map = isinstance(value, Mapping)
            parts = {f"{loss}.{key}": part for key, part in value.items()} if is_map else {loss: value}
            for name, part in parts.items():
                part = self.bundle.as_scalar("CELMoELossAPI", name, part)
                terms.append(LossTerm(name, part, entry.weight, scope))
        return self.bundle(terms)


def _check_weight(owner: str, weight: Any) -> float:
    """Return the factor of a term as a float."""
    return finite_number(owner, "weight", weight, -math.inf, "Pass weight=1.0, or multiply inside the loss.")
