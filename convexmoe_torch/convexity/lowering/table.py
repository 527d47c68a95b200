"""All operators of ATen that are written as operations with rules, by name."""

from __future__ import annotations

from .elementwise import ELEMENTWISE, Lowering
from .moves import MOVES
from .products import PRODUCTS
from .reductions import REDUCTIONS

# Other names of operators, which `torch.export` keeps.
ALIASES = {
    "absolute": "abs",
    "arcsinh": "asinh",
    "arctan": "atan",
    "clip": "clamp",
    "divide": "div",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "multiply": "mul",
    "negative": "neg",
    "not_equal": "ne",
    "special_erf": "erf",
    "special_erfc": "erfc",
    "special_exp2": "exp2",
    "special_expit": "sigmoid",
    "special_expm1": "expm1",
    "special_log1p": "log1p",
    "special_log_softmax": "log_softmax",
    "special_logsumexp": "logsumexp",
    "subtract": "sub",
}

LOWERINGS: dict[str, Lowering] = {**ELEMENTWISE, **REDUCTIONS, **PRODUCTS, **MOVES}
LOWERINGS |= {alias: LOWERINGS[name] for alias, name in ALIASES.items()}
