"""The table of the frameworks: what they are called, what they need, and the module with what a command asks of one.

`in_jax` and `in_torch` have the same names; each is imported when its framework is first used.
"""

from __future__ import annotations

import importlib.util
from importlib import import_module
from types import ModuleType

from convexmoe.errors import InputError, refuse

LABELS = {"jax": "JAX", "torch": "PyTorch"}
_NEEDS = {"jax": ("jax", "flax", "optax"), "torch": ("torch",)}
Framework = ModuleType


def is_installed(module: str) -> bool:
    """Return whether a top-level module can be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # blocked: sys.modules holds None for it
        return False


def installed() -> tuple[str, ...]:
    """Return the names of the installed frameworks, JAX first."""
    return tuple(name for name, modules in _NEEDS.items() if all(map(is_installed, modules)))


def choose(wanted: str | None) -> Framework:
    """Return the framework asked for, or JAX where it is installed, else PyTorch."""
    if wanted is not None and wanted not in LABELS:
        refuse("convexmoe --framework", "jax or torch", repr(wanted), "Try --framework jax.")
    names = installed()
    if wanted is None and not names:
        raise InputError(
            "convexmoe: expected JAX or PyTorch; neither is installed. "
            'Run: pip install "convexmoe[jax]" (or "convexmoe[torch]").'
        )
    name = wanted or names[0]
    if name not in names:
        raise InputError(
            f"convexmoe --framework: expected {LABELS[name]} for {name}; it is not installed. "
            f'Run: pip install "convexmoe[{name}]".'
        )
    return get(name)


def get(name: str) -> Framework:
    """Return the module of a framework; imports it."""
    return import_module(f"interop.in_{name}")
