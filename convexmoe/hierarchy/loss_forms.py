"""The forms that a loss function may have, told apart by its signature. No framework is imported here."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from ..errors import fail

# scope -> the arguments of the documented form, and how many of them the short form takes
FORMS = {
    "global": (("output", "targets", "context"), 1),
    "level": (("level_output", "output", "targets", "context"), 1),
    "bridge": (("parent_output", "child_output", "output", "targets", "context"), 2),
}
NAMED = ("output", "targets", "context")  # what may also be handed by name
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class LossForm(NamedTuple):
    """How a loss function is called.

    Args:
        places: names of the arguments that it gets by position, in order.
        names: of those that it gets by name.
    """

    places: tuple[str, ...]
    names: tuple[str, ...]

    def call(self, function: Callable[..., Any], given: dict[str, Any], loss: str) -> Any:
        """Return `function` of its part of what is given, argument -> value.

        Raises:
            ValueError: it fails on targets or a context that are None; `loss` is its name.
        """
        absent = [name for name in (*self.places, *self.names) if given[name] is None]
        try:
            return self._apply(function, given)
        except Exception as error:
            if not absent or "None" not in str(error) or not self._uses(function, given, absent):
                raise
            got = f"None ({type(error).__name__}: {error})"
            fix = "Pass compute(output, targets=..., context=...)."
            fail("CELMoELossAPI", "compute", f"the {' and '.join(absent)} that {loss!r} uses", got, fix)

    def _apply(self, function: Callable[..., Any], given: dict[str, Any]) -> Any:
        return function(*(given[name] for name in self.places), **{name: given[name] for name in self.names})

    def _uses(self, function: Callable[..., Any], given: dict[str, Any], absent: list[str]) -> bool:
        """Return whether it is an absent argument that a loss fails on: called again, it fails on what stands for it.

        A fault of its own that also speaks of None is the same in both calls.
        """
        try:
            self._apply(function, given | {name: _AbsentArgument() for name in absent})
        except Exception as error:
            return _AbsentArgument.__name__ in str(error)
        return False


class _AbsentArgument:
    """Stands for targets or a context that are None; errors that it causes name its type."""


def loss_form(scope: str, function: Callable[..., Any]) -> LossForm:
    """Return how a loss function of a scope ("global", "level", "bridge") is to be called.

    It takes all arguments of the documented form, or the first only (`f(output)`, `f(level)`, `f(parent, child)`).
    Of a function that takes the first only, a parameter with a default keeps it unless it is called `output`, `targets`
    or `context`. `*args` take the documented form. What a partial has set is left alone.

    Raises:
        TypeError: it cannot be called, its signature cannot be read, or it fits neither form.

    >>> loss_form("global", lambda output, weight=2.0: 0.0)
    LossForm(places=('output',), names=())
    >>> loss_form("level", lambda level, targets=None: 0.0)
    LossForm(places=('level_output',), names=('targets',))
    """
    parameters = _parameters(scope, function)
    full, short = FORMS[scope]
    preset = function.keywords if isinstance(function, functools.partial) else {}
    slots = _open_slots(scope, function, full)
    places = [p for p in parameters if p.kind in POSITIONAL]
    by_name = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in preset]
    required = sum(p.default is p.empty for p in places)
    filled = [p for p in places[required : len(slots)] if p.name in NAMED or p.default is None]
    takes_all = any(p.kind is p.VAR_POSITIONAL for p in parameters) and required <= len(slots)
    fits_full = short < required <= len(slots) == required + len(filled)
    fits_short = required <= short <= len(places)
    foreign = any(p.default is p.empty and p.name not in NAMED for p in by_name)
    if foreign or not (takes_all or fits_full or fits_short):
        _refuse(scope, function)
    count = len(slots) if takes_all or fits_full else short
    # by position `f(output, context, targets)` would get one for the other; a level may be called `output`
    named = set(full) - ({"output"} if count == short else set())
    if any(p.name in named and p.name != slot for p, slot in zip(places, slots[:count], strict=False)):
        _refuse(scope, function)
    by_name = [p for p in places[count:] if p.kind is p.POSITIONAL_OR_KEYWORD] + by_name
    names = tuple(p.name for p in by_name if p.name in NAMED and p.name not in slots[:count])
    return LossForm(slots[:count], names)


def _open_slots(scope: str, function: Any, full: tuple[str, ...]) -> tuple[str, ...]:
    """Return the arguments of the documented form that a partial has not set already."""
    if not isinstance(function, functools.partial):
        return full
    open_parameters = _parameters(scope, functools.partial(function.func, *function.args))
    places = [parameter for parameter in open_parameters if parameter.kind in POSITIONAL][: len(full)]
    preset = {place for place, parameter in enumerate(places) if parameter.name in function.keywords}
    return tuple(name for place, name in enumerate(full) if place not in preset)


def _parameters(scope: str, function: Any) -> list[inspect.Parameter]:
    """Return the parameters of a callable."""
    if not callable(function):
        _refuse(scope, function)
    try:
        return list(inspect.signature(_signature_owner(function)).parameters.values())
    except ValueError:
        _refuse(scope, function)


def _signature_owner(function: Any) -> Any:
    """Return what has the signature of a callable: of a module of PyTorch, also in a partial, its `forward`."""
    if isinstance(function, functools.partial):
        return functools.partial(_signature_owner(function.func), *function.args, **function.keywords)
    forward = None if isinstance(function, type) else getattr(function, "forward", None)
    if not callable(forward):
        return function
    parameters = inspect.signature(function).parameters.values()
    return forward if any(p.kind is p.VAR_POSITIONAL for p in parameters) else function


def _refuse(scope: str, function: Any) -> NoReturn:
    full, short = FORMS[scope]
    forms = [f"f({', '.join(names)})" for names in (full, full[:short])]
    name = getattr(function, "__name__", type(function).__name__)
    try:
        got = f"{name}{inspect.signature(_signature_owner(function))}" if callable(function) else repr(function)
    except ValueError:
        got = f"{name}, whose signature cannot be read"
    fix = "Give it the parameters of one form; others need a default."
    fail("CELMoELossAPI", f"add_{scope}", " or ".join(forms), got, fix, TypeError)
