"""The table of the frameworks: what they are called, what they need, and the module with what a command asks of one.

`in_jax` and `in_torch` have the same names; each is imported when its framework is first used.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any, NoReturn

from convexmoe.errors import InputError, fail, refuse

from . import is_installed

LABELS = {"jax": "JAX", "torch": "PyTorch"}
_NEEDS = {"jax": ("jax", "flax", "optax"), "torch": ("torch",)}
Framework = ModuleType


def not_installed(owner: str, expected: str, missing: str, extra: str) -> NoReturn:
    """Raise an `InputError` about a package that is not installed, with the extra of convexmoe that brings it."""
    raise InputError(f"{owner}: expected {expected}; {missing} is not installed. {how_to_install(extra)}")


def how_to_install(extra: str) -> str:
    """Return the sentence that says which command brings an extra of convexmoe."""
    return f'Run, in a clone of convexmoe: pip install -e ".[{extra}]".'


def installed() -> tuple[str, ...]:
    """Return the names of the installed frameworks, JAX first."""
    return tuple(name for name, modules in _NEEDS.items() if all(map(is_installed, modules)))


def choose(wanted: str | None) -> Framework:
    """Return the framework asked for, or JAX where it is installed, else PyTorch."""
    if wanted is not None and wanted not in LABELS:
        refuse("convexmoe --framework", "jax or torch", repr(wanted), "Try --framework jax.")
    names = installed()
    if wanted is None and not names:
        message = 'expected JAX or PyTorch; neither is installed. Run, in a clone of convexmoe: pip install -e ".[jax]"'
        raise InputError(f'convexmoe: {message} (or ".[torch]").')
    name = wanted or names[0]
    if name not in names:
        not_installed("convexmoe --framework", f"{LABELS[name]} for {name}", "it", name)
    return get(name)


def get(name: str) -> Framework:
    """Return the module of a framework; imports it."""
    return import_module(f"interop.in_{name}")


def of(owner: str, model: Any) -> Framework:
    """Return the module of the framework of a hull, by the package that its class is from.

    Raises:
        TypeError: it is no hull of either package; ValueError: it has several outputs.
    """
    packages = {base.__module__.partition(".")[0] for base in type(model).__mro__}
    names = [name for name in LABELS if f"convexmoe_{name}" in packages and hasattr(model, "config")]
    if not names or not hasattr(model.config, "petals"):
        fix = "Pass the hull itself, as load or fit(...).model gives it."
        fail(owner, "model", "a hull of convexmoe_jax or convexmoe_torch", type(model).__name__, fix, TypeError)
    if model.config.out_dim != 1:
        fix = "Fit one hull an output: a picture shows one."
        fail(owner, "model", "a hull with out_dim=1", f"out_dim={model.config.out_dim}", fix)
    return get(names[0])
