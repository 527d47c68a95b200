"""What both packages plan alike of grouped products: the checks, the choice of a backend, the sizes of static blocks.

Letters: B rows, E experts, I in, O out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

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


def check_sum(counts: Sequence[int], rows: int) -> None:
    """Check sizes that are on the host: none of them negative, and no more rows than there are."""
    if min(counts) < 0 or sum(counts) > rows:
        got, fix = f"{min(counts)} at least, {sum(counts)} in all", "Count the rows of each expert."
        fail(GROUPED, "sizes", f"integers >= 0 whose sum is at most {rows}, the number of rows", got, fix)


class Backend(NamedTuple):
    """How a platform computes grouped products, for a table of a package.

    Args:
        product: (rows `[B, I]`, weights `[E, I, O]`, sizes `[E]`) -> `[B, O]`; what it gives for rows of no expert is
            not looked at.
        outer: (rows `[B, I]`, grads `[B, O]`, sizes `[E]`) -> `[E, I, O]`, the sum over an expert's rows of
            `rows[r, :, None] * grads[r, None, :]`; what it gives for an expert without rows is not looked at.
        takes: the first two operands of either -> whether they may be given.
    """

    product: Callable[[Any, Any, Any], Any]
    outer: Callable[[Any, Any, Any], Any]
    takes: Callable[[Any, Any], bool] = lambda one, other: True


Backends = Mapping[str, Backend]


def read_choice(backends: Backends) -> str | None:
    """Return the backend that the environment variable names, None where it is not set.

    Raises:
        ValueError: there is none of this name.
    """
    name, known = os.environ.get(ENVIRONMENT), list(backends)
    if name and name not in known:
        fail(GROUPED, ENVIRONMENT, f"one of {known}", repr(name), f"Set {ENVIRONMENT}={known[0]}, for example.")
    return name or None


def choose_backend(implementation: str | None, backends: Backends, order: Sequence[str], one: Any, other: Any) -> str:
    """Return the backend of a product: the one asked for, else the first in `order` that takes the operands.

    Args:
        implementation: the name that the caller gave; the environment variable is read where it is None.
        backends: all of the package; order: the names of those for this platform, of which the last takes everything.
        one, other: the first two operands.

    Raises:
        TypeError, ValueError: the name is unknown, or the backend asked for does not take the operands.
    """
    if implementation is not None:
        one_of(GROUPED, "implementation", implementation, tuple(backends))
    asked, able = implementation or read_choice(backends), [n for n, b in backends.items() if b.takes(one, other)]
    if asked is None:
        return next(name for name in order if name in able)
    if asked not in able:
        rule = "a backend that takes these operands"
        fail(GROUPED, "implementation", rule, repr(asked), f"Pass one of {able}, or None.")
    return asked


def hierarchy_backend(backends: Backends, order: Sequence[str]) -> str | None:
    """Return the backend for the experts of a hierarchy; None where the dispatch's own loop is best, as on CPUs."""
    name = read_choice(backends) or order[0]
    return None if name == LOOP else name


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
