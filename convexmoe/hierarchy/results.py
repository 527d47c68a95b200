"""What experts and a fusion of the user's own give, checked. No framework is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import describe, fail


def check_result(result: Any, is_array: bool) -> None:
    """Check the parts of an `ExpertResult`; `is_array` says whether its hidden is an array of the framework."""
    if not is_array:
        fix = "Give the expert's output."
        fail(
            "ExpertResult",
            "hidden",
            "an array of this framework",
            type(result.hidden).__name__,
            fix,
            TypeError,
        )
    if not isinstance(result.losses, Mapping):
        fix = "Leave it out where there are none."
        fail(
            "ExpertResult", "losses", "a mapping of names to scalars", describe(result.losses), fix, TypeError
        )
    empty = [name for name, value in result.losses.items() if value is None]
    if empty:
        fail("ExpertResult", f"losses[{empty[0]!r}]", "a scalar", "None", "Leave it out.", TypeError)


def check_fused(fused: Any, is_array: bool, rows: int) -> None:
    """Check that a fusion gave an array with a leading axis of samples."""
    if not is_array or len(fused.shape) == 0 or fused.shape[0] != rows:
        rule, fix = f"a fused array of {rows} rows", "Return the fused hidden."
        fail("HierarchicalCELMoE", "fusion_module", rule, describe(fused), fix, TypeError)
