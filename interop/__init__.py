"""Between `convexmoe_jax` and `convexmoe_torch`: weights, files, parity, programs for solvers, the command line.

This package may import both frameworks' packages; they never import it. What needs a framework is imported when
it is first used, so that the command line runs with either one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .legacy import from_celmoe, from_torch_mice
    from .optimizer import adam_to_optax, adam_to_torch
    from .parity import Comparison, ParityReport, check_parity
    from .programs import set_weights, to_cvxpy
    from .weights import to_jax, to_torch

__distribution__ = "convexmoe"  # another distribution has a package of this name: see cli.py
_HOMES = {
    "Comparison": "parity",
    "ParityReport": "parity",
    "adam_to_optax": "optimizer",
    "adam_to_torch": "optimizer",
    "check_parity": "parity",
    "from_celmoe": "legacy",
    "from_torch_mice": "legacy",
    "set_weights": "programs",
    "to_cvxpy": "programs",
    "to_jax": "weights",
    "to_torch": "weights",
}
__all__ = [
    "Comparison",
    "ParityReport",
    "adam_to_optax",
    "adam_to_torch",
    "check_parity",
    "from_celmoe",
    "from_torch_mice",
    "set_weights",
    "to_cvxpy",
    "to_jax",
    "to_torch",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'interop' has no attribute {name!r}")
    return getattr(import_module(f"interop.{_HOMES[name]}"), name)
