"""What stands in a neutral file, read from its header alone: a file of any size is described at once."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import InputError, refuse
from .format import read_header
from .schema import DAMAGED, OPTIMIZER, PREFIX, open_tensors


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


OF_DIRECTORIES = "Name the model.safetensors in it; convexmoe convert makes one of a directory of Orbax."


def inspect(path: str | os.PathLike[str]) -> Inspection:
    """Return what the header of a neutral file says; no framework is needed.

    Raises:
        InputError: there is no such file; it is damaged, of a newer schema, or was not written by `save`; its config
            cannot be built, or is not that of its tensors.
    """
    name = os.fsdecode(path)
    if not os.path.isfile(name):
        found, fix = "none", "Check the path."
        if os.path.isdir(name):
            found, fix = "a directory", OF_DIRECTORIES
        raise InputError(f"{name}: expected a file; found {found}. {fix}")
    try:
        with open_tensors(name, "inspect") as file:
            header = read_header(name, file, "inspect")
    except ValueError as error:
        if repr(name) in str(error):
            raise InputError(str(error)) from None
        kind = "a hull" if "Hull" in str(error) or "Normalization" in str(error) else "its model"
        refuse(name, f"the config of {kind}", str(error)[:400].rstrip("."), DAMAGED)
    tensors = tuple(
        Tensor(key.removeprefix(PREFIX), place.code, place.shape, place.end - place.start)
        for key, place in file.places.items()
    )
    return Inspection(name, tensors=tensors, **{"optimizer": None} | header)
