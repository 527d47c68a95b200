"""What both fusions of the levels' outputs are built from, and the checks of what they are given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..errors import describe, fail, whole_number
from .config import POSITION_AWARE, CELMoEConfig

EPSILON = 1e-5  # of the LayerNorm


def level_widths(owner: str, hidden_size: int, num_levels: Any) -> tuple[int, ...]:
    """Return the width of each level's output: `num_levels` of them equal to `hidden_size`, or as it lists them."""
    if isinstance(num_levels, Iterable) and not isinstance(num_levels, str):
        widths = tuple(whole_number(owner, "num_levels", width, 1) for width in num_levels)
        if not widths:
            fail(owner, "num_levels", "one level at least", "none", "Pass the width of each level.")
        return widths
    return (hidden_size,) * whole_number(owner, "num_levels", num_levels, 1)


def check_levels(owner: str, hiddens: Sequence[Any], number: int) -> None:
    """Check that a fusion is given the outputs of as many levels as it was built for."""
    if len(hiddens) != number:
        fail(owner, "hiddens", f"the outputs of {number} levels", str(len(hiddens)), "Build it with num_levels.")


def check_length(hidden: Any, max_positions: int) -> int:
    """Return the number of positions of `hidden`, `[rows, hidden_size]` or `[rows, length, hidden_size]`."""
    length = hidden.shape[1] if hidden.ndim == 3 else 1
    if length > max_positions:
        rule, fix = f"at most {max_positions} positions", "Raise fusion_max_positions."
        fail("PositionAwareFusion", "hiddens", rule, describe(hidden), fix)
    return length


def build_fusion(config: CELMoEConfig, learned: Callable[..., Any], aware: Callable[..., Any]) -> Any:
    """Return the fusion that a config asks for, None where the last level's output is the fused one.

    Args:
        config: the hierarchy.
        learned: builds a `LearnedFusion` from the hidden size, the levels' widths and the dropout rate.
        aware: builds a `PositionAwareFusion` from the hidden size, the number of levels, the dropout rate and
            `max_positions`.
    """
    if not config.use_learned_fusion:
        return None
    widths = [config.width_of(level) for level in config.enabled_levels]
    if config.fusion_type == POSITION_AWARE:
        positions = config.fusion_max_positions
        return aware(config.hidden_size, len(widths), config.fusion_dropout, max_positions=positions)
    return learned(config.hidden_size, widths, config.fusion_dropout)
