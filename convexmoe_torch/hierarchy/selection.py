"""Context, mask and keys, cut into the rows of one expert after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from convexmoe import hierarchy as core
from convexmoe.errors import fail


@dataclass(frozen=True)
class _Split:
    """One array of the context, cut into the rows of one expert after the other."""

    parts: Iterator[Tensor]


def split_batch(batch: core.ExpertBatch, split: Callable[[Tensor], Iterator[Tensor]]) -> Iterator[core.ExpertBatch]:
    """Yield what one expert after the other gets of a batch: its own rows, and whole what they share.

    Args:
        batch: of all rows.
        split: yields the rows of one expert after the other.
    """

    def take_next(leaf: Any) -> Any:
        if isinstance(leaf, _Split):
            return next(leaf.parts)
        return leaf.value if isinstance(leaf, core.Shared) else leaf

    by_sample = (batch.context, batch.mask, batch.key)
    by_expert = core.map_leaves(by_sample, lambda leaf: _Split(split(leaf)) if core.is_array(leaf) else leaf)
    for hidden in split(batch.hidden):
        context, mask, key = core.map_leaves(by_expert, take_next)
        yield core.ExpertBatch(hidden, context, mask, batch.state, key)


def check_kind(argument: str, value: Any) -> None:
    """Check that an array is a tensor."""
    if not isinstance(value, Tensor):
        fail(core.OWNER, argument, "tensors", type(value).__name__, core.CONVERT, TypeError)
