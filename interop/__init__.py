"""Between `convexmoe_jax` and `convexmoe_torch`: weights, files, parity, programs for solvers, the command line.

This package may import both frameworks' packages; they never import it. What needs a framework is imported when
it is first used, so that the command line runs with either one.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cvxpy import set_context, set_weights, to_cvxpy
    from .legacy import from_celmoe, from_torch_mice
    from .optimizer import adam_to_optax, adam_to_torch
    from .parity import Comparison, ParityReport, check_parity
    from .weights import to_jax, to_torch

__distribution__ = "convexmoe"  # another distribution has a package of this name: see cli.py
__all__ = [
    "Comparison",
    "ParityReport",
    "adam_to_optax",
    "adam_to_torch",
    "check_parity",
    "from_celmoe",
    "from_torch_mice",
    "set_context",
    "set_weights",
    "to_cvxpy",
    "to_jax",
    "to_torch",
]
_HOMES = {
    "cvxpy": ("set_context", "set_weights", "to_cvxpy"),
    "legacy": ("from_celmoe", "from_torch_mice"),
    "optimizer": ("adam_to_optax", "adam_to_torch"),
    "parity": ("Comparison", "ParityReport", "check_parity"),
    "weights": ("to_jax", "to_torch"),
}


def is_installed(module: str) -> bool:
    """Return whether a top-level module can be imported, without importing it."""
    try:
        return find_spec(module) is not None
    except ValueError:  # blocked: sys.modules holds None for it
        return False


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"interop.{home}"), name)
    raise AttributeError(f"module 'interop' has no attribute {name!r}")
