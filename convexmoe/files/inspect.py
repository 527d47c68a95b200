"""What stands in a neutral file, read from its header alone: a file of any size is described at once."""

from __future__ import annotations

import json
import math
import os
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, refuse
from .format import ENTRY, OPTIMIZER, PREFIX, SCHEMA, check_header

LONGEST_HEADER = 100_000_000  # bytes, as safetensors limits it
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # bytes of a number


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file: its name, dtype, shape and size in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class Inspection:
    """A neutral file without its numbers.

    Args:
        path: the file.
        kind: the class of the model.
        schema: the version of the format.
        config, notes: as the model was saved with.
        sha256: of the content, as the file states it; only `load` computes it.
        optimizer: rule and step of the optimizer whose moments the file holds, or None.
        tensors: by name; the name of a moment begins with `opt/`.
    """

    path: str
    kind: str
    schema: int
    config: dict[str, Any]
    notes: dict[str, Any]
    sha256: str
    optimizer: dict[str, Any] | None
    tensors: tuple[Tensor, ...]

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The tensors of the model, without those of an optimizer."""
        return tuple(tensor for tensor in self.tensors if not tensor.name.startswith(OPTIMIZER))

    @property
    def num_parameters(self) -> int:
        """The number of the model's parameters."""
        return sum(math.prod(tensor.shape) for tensor in self.parameters)

    def to_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(asdict(self) | {"parameters": self.num_parameters}, indent=2, sort_keys=True)


def inspect(path: str | os.PathLike[str]) -> Inspection:
    """Return what the header of a neutral file says; no framework is needed.

    Raises:
        InputError: there is no such file; it is damaged, of a newer schema, or was not written by `save`.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: expected a file; found none. Check the path.")
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            fields: dict[str, Any] = json.loads(file.read(length) if length <= LONGEST_HEADER else b"{}")
        text = fields.pop("__metadata__")[ENTRY]
        schema = json.loads(text)["schema"]
        header = check_header(str(path), text) if schema <= SCHEMA else None
        tensors = tuple(_tensor(name, field) for name, field in sorted(fields.items()))
    except (struct.error, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        got = f"one without its description ({type(error).__name__})"
        refuse(path, "a file of a model", got, "Name a file that convexmoe saved.")
    if header is None:
        refuse(path, f"schema {SCHEMA} or older", str(schema), "Install a newer convexmoe.")
    stated, size = 8 + length + sum(tensor.bytes for tensor in tensors), path.stat().st_size
    if size != stated:
        refuse(path, f"{stated:,} bytes, as its header says", f"{size:,}", "Fetch it again.")
    return Inspection(str(path), tensors=tensors, **{"optimizer": None} | header)


def _tensor(name: str, field: dict[str, Any]) -> Tensor:
    """Return a tensor as its field of the header describes it."""
    start, end = field["data_offsets"]
    shape = tuple(int(size) for size in field["shape"])
    if end - start != math.prod(shape) * SIZES[field["dtype"]]:
        raise ValueError("a shape does not fit its bytes")
    return Tensor(name.removeprefix(PREFIX), field["dtype"], shape, end - start)
