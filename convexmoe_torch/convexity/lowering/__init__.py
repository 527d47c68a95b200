"""The operators of ATen in terms of the few operations that have rules, by name."""

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
    "special_expit": "sigmoid",
    "special_xlogy": "xlogy",
    **{f"special_{name}": name for name in ("erf", "erfc", "exp2", "expm1", "log1p", "log_softmax", "logsumexp")},
    "subtract": "sub",
}

LOWERINGS: dict[str, Lowering] = {**ELEMENTWISE, **REDUCTIONS, **PRODUCTS, **MOVES}
LOWERINGS |= {alias: LOWERINGS[name] for alias, name in ALIASES.items()}
