"""What a function reaches by a reference: through names in its code, closures, attributes, lists, bound methods.

A trace holds an array that is reached so as numbers, and of `float(w)` not even that; training may change it.
"""

from __future__ import annotations

import builtins
import dis
import gc
import importlib
import inspect
import logging
import os
import sys
import sysconfig
import weakref
from collections import ChainMap, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from importlib.util import resolve_name
from io import IOBase
from itertools import takewhile
from numbers import Integral, Number
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, ModuleType, WrapperDescriptorType
from typing import Any, NamedTuple

import numpy as np

from ..hull.config import Normalization

# Their code holds no arrays that training changes, and is not looked through.
LIBRARIES = {"convexmoe", "convexmoe_jax", "convexmoe_torch", "flax", "jax", "jaxlib", "numpy", "optax", "torch"}
STANDARD = tuple(os.path.join(os.path.realpath(sysconfig.get_path(name)), "") for name in ("stdlib", "platstdlib"))
WITHOUT_REFERENCES = (str, bytes, int, float, complex, np.generic, np.dtype, CodeType, type(None), logging.Logger)
ARRAYS = ("__array__", "__array_interface__", "__cuda_array_interface__", "__dlpack__")
# Through these everything is reached, as through functions of these modules: they count as arrays.
EVERYTHING = (globals, eval, exec, __import__, sys, gc, importlib, inspect)
OF_EVERYTHING = ("sys", "gc", "importlib", "inspect")
COMPILED = ("torch.jit",)  # classes whose parameters no Python refers to
# Lists of all classes of some kind; and what a compiler notes of a function beside the function.
TABLES = ("PyTreeRegistry", "_abc_data", "PjitInfo", "JitGlobalCppCacheKeys", "Signature")
HIDDEN = ("__builtins__", "__annotations__")
MOST = 100_000  # objects that are looked through
REGISTERED = ("_parameters", "_buffers", "_modules")  # where a module of PyTorch has its own


class Reference(NamedTuple):
    """What a function reaches, and how it is named there."""

    name: str
    thing: Any

    @property
    def holds_numbers(self) -> bool:
        """Whether it is an array, a file, a list, dict or set of numbers beside whole ones, or may lead to any."""
        thing = self.thing
        if isinstance(thing, IOBase):
            return True
        if isinstance(thing, (list, deque, dict, set)):
            return _has_floats(thing.values() if isinstance(thing, dict) else thing)
        if isinstance(thing, FrameType) or any(thing is each for each in EVERYTHING):
            return True
        if isinstance(thing, (FunctionType, BuiltinFunctionType)) and thing.__module__ in OF_EVERYTHING:
            return True
        if any(str(kind.__module__).startswith(COMPILED) for kind in type(thing).__mro__):
            return True
        if any(hasattr(type(thing), name) for name in ARRAYS):
            return True
        with suppress(TypeError, ValueError, BufferError):
            return memoryview(thing) is not None
        return False


def _has_floats(values: Iterable[Any]) -> bool:
    def is_number(value: Any) -> bool:
        return isinstance(value, Number) and not isinstance(value, Integral)

    return any(_has_floats(value) if isinstance(value, tuple) else is_number(value) for value in values)


def look_through(roots: Iterable[tuple[Any, Iterable[Any]]], fixed: Any) -> tuple[list[str], list[Normalization]]:
    """Return the names of what holds numbers and is reached by a reference, and the normalizations of hulls.

    Args:
        roots: where to begin, each with things that are not looked through.
        fixed: what the caller names as fixed: arrays, or anything that leads to them.
    """
    ours = [reference.thing for reference in follow_references(fixed) if reference.holds_numbers]
    names: dict[str, None] = {}
    normalizations = []
    try:
        for reference in (each for root, known in roots for each in follow_references(root, [*known, *ours])):
            if reference.holds_numbers:
                names[reference.name] = None
            elif isinstance(reference.thing, Normalization):
                normalizations.append(reference.thing)
    except Exception as error:  # of an object of the user, which may do what it likes
        names[f"what cannot be looked through ({type(error).__name__}: {error})"] = None
    return list(names), normalizations


def follow_references(root: Any, known: Iterable[Any] = ()) -> Iterator[Reference]:
    """Yield what is reached from a root, each thing once; `known` things are not looked through."""
    seen = {id(thing): thing for thing in known}  # kept, so that no number of a thing is given again
    waiting = deque([Reference("", root)])
    while waiting:
        name, thing = waiting.popleft()
        if id(thing) in seen or isinstance(thing, WITHOUT_REFERENCES) or type(thing).__name__ in TABLES:
            continue
        if len(seen) > MOST:
            yield Reference(f"more than {MOST} objects", sys)
            return
        seen[id(thing)] = thing
        reference = Reference(name.removeprefix(".") or type(thing).__name__, thing)
        yield reference
        if not reference.holds_numbers:
            waiting.extend(_referents(name, thing))


def _referents(name: str, thing: Any) -> Iterator[Reference]:
    """Yield what a thing refers to."""
    attributes: Mapping[str, Any] = {}
    if isinstance(thing, FunctionType):
        cells = {}
        for variable, cell in zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True):
            with suppress(ValueError):  # not assigned yet
                cells[variable] = cell.cell_contents
        if _is_of_library(thing.__globals__.get("__name__"), thing.__globals__):
            attributes = cells
        else:
            yield from _names(thing.__code__, cells, ChainMap(cells, thing.__globals__, vars(builtins)))
        others = [*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values(), vars(thing) or None]
    elif isinstance(thing, (ModuleType, type)):
        is_module = isinstance(thing, ModuleType)
        if _is_of_library(*((thing.__name__, vars(thing)) if is_module else (thing.__module__,))):
            return
        attributes, others = vars(thing), [type(thing), *getattr(thing, "__bases__", ())]
    elif isinstance(thing, partial):
        attributes, others = thing.keywords, [thing.func, thing.args, vars(thing)]
    else:
        attributes = thing if isinstance(thing, dict) else getattr(thing, "__dict__", {})
        others = [each for each in gc.get_referents(thing) if each is not attributes]
        others += [thing()] if isinstance(thing, weakref.ref) else []
        others += [thing.get(None)] if isinstance(thing, ContextVar) else []
    for key, value in attributes.items():
        if key not in HIDDEN:
            yield Reference(name if key in REGISTERED else f"{name}.{key}", value)
    yield from (Reference(name, value) for value in others)


def _is_of_library(name: Any, scope: Mapping[str, Any] | None = None) -> bool:
    """Return whether a module is one of the libraries', and not a user's of the same name.

    Args:
        name: of the module.
        scope: its dict, where that is known.
    """
    top = str(name).partition(".")[0]
    module = sys.modules.get(str(name) if scope is not None else top)
    if module is None or (scope is not None and scope is not vars(module)):
        return False
    spec = getattr(module, "__spec__", None)
    if top in LIBRARIES or spec is None or top not in sys.stdlib_module_names:
        return top in LIBRARIES
    place = str(spec.origin)
    of_users = "site-packages" in place or "dist-packages" in place
    return place in ("built-in", "frozen") or (os.path.realpath(place).startswith(STANDARD) and not of_users)


def _names(code: CodeType, cells: Mapping[str, Any], scope: Mapping[str, Any]) -> Iterator[Reference]:
    """Yield what code names, attribute by attribute: `model.config` does not reach the weights of the model."""
    steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
    for start, step in enumerate(steps, 1):
        loads = step.opname.startswith("LOAD_") and step.opname.endswith(("GLOBAL", "GLOBALS", "DEREF", "NAME"))
        if step.opname == "IMPORT_NAME":
            level, package = steps[start - 3].argval, str(scope.get("__package__"))  # what is loaded before it
            name = resolve_name("." * level + step.argval, package)
            thing = sys.modules.get(name, sys)
        elif loads and step.argval in (cells if step.opname.endswith("DEREF") else scope):
            name, thing = step.argval, scope[step.argval]
        else:
            continue
        in_library = False
        for following in takewhile(lambda step: step.opname in ("LOAD_ATTR", "LOAD_METHOD"), steps[start:]):
            key, cls = following.argval, type(thing)
            is_plain = isinstance(cls.__getattribute__, WrapperDescriptorType)  # and no code of Python
            stands_there = is_plain and not hasattr(cls, key) and key in getattr(thing, "__dict__", ())
            if not stands_there or Reference(name, thing).holds_numbers:
                break
            in_library |= isinstance(thing, ModuleType) and _is_of_library(thing.__name__, vars(thing))
            name, thing = f"{name}.{key}", vars(thing)[key]
        reference = Reference(name, thing)
        is_theirs = in_library and _is_of_library(getattr(thing, "__module__", None) or "numpy")
        if reference.holds_numbers or isinstance(thing, FunctionType) or not is_theirs:
            yield reference
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner, cells, scope)
        else:
            yield Reference("a constant", inner)
