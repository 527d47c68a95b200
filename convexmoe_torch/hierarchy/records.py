"""The core's records as pytree nodes of PyTorch.

What is no node is a leaf to it: `DistributedDataParallel` would not find the tensors in what a forward returns, and
with `static_graph=True` never average a gradient.
"""

from __future__ import annotations

import ast
from typing import Any

from torch.utils._pytree import GetAttrKey, register_pytree_node

from convexmoe import hierarchy as core

from .losses import LossBundle


def _register(kind: Any, fields: list[str], constants: list[str]) -> None:
    """Make a record a pytree node with the children `fields`; its `constants` belong to the structure."""

    def flatten(record: Any) -> Any:
        return [getattr(record, name) for name in fields], tuple(getattr(record, name) for name in constants)

    def flatten_with_keys(record: Any) -> Any:
        children, rest = flatten(record)
        return [(GetAttrKey(name), child) for name, child in zip(fields, children, strict=True)], rest

    def unflatten(children: Any, rest: Any) -> Any:
        return kind(**dict(zip([*fields, *constants], [*children, *rest], strict=True)))

    keys: Any = {"flatten_with_keys_fn": flatten_with_keys, "serialized_type_name": f"convexmoe.{kind.__name__}"}
    dump: Any = {"to_dumpable_context": repr, "from_dumpable_context": ast.literal_eval}
    register_pytree_node(kind, flatten, unflatten, **keys, **dump)


_BATCH: Any = (core.ExpertBatch, ["hidden", "context", "mask", "state", "key"], [])
for _record in (*core.RECORDS, _BATCH, (LossBundle, ["terms"], [])):
    _register(*_record)
