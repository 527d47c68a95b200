"""What stands in a neutral file, read from its header alone: a file of any size is described at once."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .tables import InputError

if TYPE_CHECKING:  # reading a header needs nothing but what Python has
    from rich.console import Console

ENTRY, SCHEMA = "convexmoe", 1
LONGEST = 100_000_000  # bytes of a header, as the format limits it
BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16}


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
        tensors: by name; a moment's begins with `opt/`.
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
    def parameters(self) -> int:
        """How many numbers the model has, those of an optimizer left out."""
        own = (tensor for tensor in self.tensors if not tensor.name.startswith("opt/"))
        return sum(math.prod(tensor.shape) for tensor in own)

    def to_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(asdict(self) | {"parameters": self.parameters}, indent=2, sort_keys=True)


def inspect(path: Path) -> Inspection:
    """Return what the header of a neutral file says.

    Raises:
        InputError: no such file, none of ours, damaged, or of a newer schema.
    """
    fix = "Name a file that convexmoe saved."
    if not path.is_file():
        raise InputError(f"{path}: expected a file; found none. Check the path.")
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length)) if length <= LONGEST else None
        entry = json.loads(header.pop("__metadata__")[ENTRY])  # type: ignore[union-attr]
        newer = entry["schema"] > SCHEMA
        tensors = tuple(_tensor(name, field) for name, field in sorted(header.items()))  # type: ignore[union-attr]
        fields = {name: entry[name] for name in ("kind", "schema", "config", "notes", "sha256")}
        fields["optimizer"] = entry.get("optimizer") and {
            "rule": str(entry["optimizer"]["rule"]),
            "step": int(entry["optimizer"]["step"]),
        }
    except (struct.error, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path}: expected a file of a model; got one without its description ({type(error).__name__}). {fix}"
        ) from None
    if newer:
        raise InputError(
            f"{path}: expected schema {SCHEMA} or older; got {entry['schema']}. Install a newer convexmoe."
        )
    size = 8 + length + sum(tensor.bytes for tensor in tensors)
    if path.stat().st_size != size:
        raise InputError(
            f"{path}: expected {size:,} bytes, as its header says; got {path.stat().st_size:,}. Fetch it again."
        )
    return Inspection(str(path), tensors=tensors, **fields)


def _tensor(name: str, field: dict[str, Any]) -> Tensor:
    """Return a tensor as its field of the header describes it."""
    start, end = field["data_offsets"]
    shape = tuple(int(size) for size in field["shape"])
    if end - start != math.prod(shape) * BITS[field["dtype"]] // 8:
        raise ValueError("a shape does not fit its bytes")
    return Tensor(name.removeprefix("params/"), field["dtype"], shape, end - start)


def show(found: Inspection, console: Console) -> None:
    """Print an inspection: what the model is, then its tensors."""
    from rich.table import Table as RichTable

    console.print(f"{found.path}: {found.kind}, schema {found.schema}", highlight=False, markup=False)
    console.print(f"sha256 of the content {found.sha256}", highlight=False, markup=False, soft_wrap=True)
    for title, values in (("config", found.config), ("notes", found.notes)):
        console.print(f"{title} {json.dumps(values)}", highlight=False, markup=False, soft_wrap=True)
    table = RichTable("name", "dtype", "shape", "bytes", title_justify="left")
    for column in table.columns[2:]:
        column.justify = "right"
    own = [tensor for tensor in found.tensors if not tensor.name.startswith("opt/")]
    for tensor in own:
        table.add_row(tensor.name, tensor.dtype, "x".join(map(str, tensor.shape)) or "-", f"{tensor.bytes:,}")
    console.print(table, markup=False)
    total = sum(tensor.bytes for tensor in own)
    console.print(f"{found.parameters:,} parameters, {total:,} bytes", highlight=False, markup=False)
    if found.optimizer is not None:
        rest = sum(tensor.bytes for tensor in found.tensors) - total
        rule, step = found.optimizer["rule"], found.optimizer["step"]
        console.print(f"optimizer {rule} after {step:,} steps, {rest:,} bytes", highlight=False, markup=False)
