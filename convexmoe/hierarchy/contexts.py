"""The context that an expert hands to its hull."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import fail
from ..hull.config import HullConfig

ENTRY = "hull"  # of a mapping


def hull_context(config: HullConfig, context: Any) -> Any:
    """Return the context of a hull in that of a batch, or the entry "hull" of a mapping; None for a plain hull.

    Args:
        config: of the hull; context: of an `ExpertBatch`.
    """
    if not config.context_dim:
        return None
    if not isinstance(context, Mapping):
        return context
    if ENTRY not in context:
        rule, got = (
            f"an entry {ENTRY!r} for a hull with context_dim={config.context_dim}",
            repr(sorted(map(str, context))),
        )
        fail("HullExpert", "context", rule, got, "Name the hull's own so.")
    return context[ENTRY]
