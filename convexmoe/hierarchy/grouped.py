"""What both packages plan alike of grouped products: the checks, the choice of a backend, the sizes of static blocks.

Letters: B rows, E experts, I in, O out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import describe, dtype_name, fail, one_of

GROUPED = "grouped_matmul"
ENVIRONMENT = "CONVEXMOE_GROUPED"  # the name of a backend, for all products and for the hierarchy
LOOP = "loop"


def check_operands(rows: Any, weights: Any, sizes: Any, kinds: tuple[Any, ...]) -> None:
    """Check the operands of `grouped_matmul`: rows `[B, I]`, weights `[E, I, O]` of their dtype, sizes `[E]`.

    Raises:
        TypeError: one is no array, or has another dtype.
        ValueError: one has another shape.
    """
    for argument, value, axes in (("rows", rows, 2), ("weights", weights, 3), ("sizes", sizes, 1)):
        if not isinstance(value, kinds):
            fix = "Convert it to an array of this framework first."
            fail(GROUPED, argument, "an array", type(value).__name__, fix, TypeError)
        if len(value.shape) != axes:
            fix = "Pass rows [B, I], weights [E, I, O] and sizes [E]."
            fail(GROUPED, argument, f"{axes} axes", describe(value), fix)
    width, experts = rows.shape[1], sizes.shape[0]
    if tuple(weights.shape[:2]) != (experts, width) or experts == 0:
        rule = f"[E, I, O] with E={max(experts, 1)} sizes and rows of I={width}"
        fail(GROUPED, "weights", rule, describe(weights), "Stack one weight (in, out) an expert.")
    if weights.dtype != rows.dtype:
        rule = f"dtype {dtype_name(rows.dtype)}, as the rows have"
        fail(GROUPED, "weights", rule, describe(weights), "Cast one to the dtype of the other.", TypeError)
    if "int" not in dtype_name(sizes.dtype):
        fail(GROUPED, "sizes", "integers", describe(sizes), "Cast it to int32.", TypeError)


def read_choice(known: Sequence[str]) -> str | None:
    """Return the backend that the environment variable names, None where it is not set.

    Raises:
        ValueError: it names none of `known`.
    """
    name = os.environ.get(ENVIRONMENT)
    if name and name not in known:
        fail(GROUPED, ENVIRONMENT, f"one of {list(known)}", repr(name), f"Set {ENVIRONMENT}={known[0]}, for example.")
    return name or None


def choose_backend(
    implementation: str | None, known: Sequence[str], order: Sequence[str], takes: Callable[[str], bool]
) -> str:
    """Return the backend of a product: the one asked for, else the first in `order` that takes the operands.

    Args:
        implementation: the name that the caller gave; the environment variable is read where it is None.
        known: the names of all backends; order: those of this platform, the best first, the last takes everything.
        takes: whether a backend takes the operands.

    Raises:
        TypeError, ValueError: the name is unknown, or the backend asked for does not take the operands.
    """
    if implementation is not None:
        one_of(GROUPED, "implementation", implementation, tuple(known))
    asked = implementation or read_choice(known)
    if asked is None:
        return next(name for name in order if takes(name))
    if not takes(asked):
        rule, able = "a backend that takes these operands", [name for name in known if takes(name)]
        fail(GROUPED, "implementation", rule, repr(asked), f"Pass one of {able}, or None.")
    return asked


def tier_rows(rows: int, experts: int) -> int:
    """Return how many rows of every expert are in the first tier: a quarter more than the mean.

    >>> tier_rows(1024, 16), tier_rows(3, 1)
    (80, 3)
    """
    return min(rows, -(-5 * rows // (4 * experts)))


def block_shape(rows: int, experts: int) -> tuple[int, int]:
    """Return (blocks, rows a block): blocks of one expert each that hold any division of the rows.

    Blocks are as long as the mean, so that they hold less than twice as many rows as there are, and an expert each.

    >>> block_shape(1024, 16)
    (31, 64)
    """
    size = max(1, -(-rows // experts))
    return (rows + experts * (size - 1)) // size, size
