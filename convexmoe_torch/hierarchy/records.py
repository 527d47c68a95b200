"""The core's records as pytree nodes of PyTorch.

What is no node is a leaf to it: `DistributedDataParallel` would not find the tensors in what a forward returns, and
with `static_graph=True` never average a gradient.
"""

from __future__ import annotations

import ast
from typing import Any

from torch.utils._pytree import GetAttrKey, register_pytree_node

from convexmoe import hierarchy as core


def register(kind: Any, data_fields: list[str], meta_fields: list[str]) -> None:
    """Make a record a pytree node with the children `data_fields`, and `meta_fields` as constants of its structure."""

    def flatten(record: Any) -> tuple[list[Any], tuple[Any, ...]]:
        children, constants = ([getattr(record, name) for name in names] for names in (data_fields, meta_fields))
        return children, tuple(constants)

    def unflatten(children: Any, constants: Any) -> Any:
        return kind(**dict(zip([*data_fields, *meta_fields], [*children, *constants], strict=True)))

    def flatten_with_keys(record: Any) -> tuple[list[Any], tuple[Any, ...]]:
        children, constants = flatten(record)
        return [(GetAttrKey(name), child) for name, child in zip(data_fields, children, strict=True)], constants

    register_pytree_node(
        kind,
        flatten,
        unflatten,
        flatten_with_keys_fn=flatten_with_keys,
        serialized_type_name=f"convexmoe.{kind.__name__}",
        to_dumpable_context=repr,
        from_dumpable_context=ast.literal_eval,
    )


register(core.ExpertBatch, ["hidden", "context", "mask", "state", "key"], [])
for _record in core.RECORDS:
    register(*_record)
