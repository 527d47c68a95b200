"""The tensors of PyTorch in the neutral file; its form is `convexmoe.files.format`'s."""

from __future__ import annotations

import os
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from convexmoe.files import format as neutral
from convexmoe.files.format import OPTIMIZER, PREFIX, Tensors

__all__ = [
    "FRAMEWORK",
    "OPTIMIZER",
    "PREFIX",
    "bytes_of",
    "digest",
    "own_copy",
    "read",
    "to_safetensors",
    "write_sealed",
]

FRAMEWORK = "pt"


def tensors() -> Tensors:
    """Return what PyTorch does with the tensors of a file."""
    return Tensors(FRAMEWORK, to_safetensors, bytes_of, own_copy)


def write_sealed(path: str | os.PathLike[str], header: dict[str, Any], arrays: dict[str, Any]) -> None:
    """Write header and arrays as a neutral file, its sha256 added."""
    neutral.write_sealed(path, header, arrays, tensors())


def read(path: str | os.PathLike[str], kept: str | None = "") -> tuple[dict[str, Any], dict[str, Any]]:
    """Return header and tensors of a neutral file after all checks; see `convexmoe.files.format.read`."""
    return neutral.read(path, kept, tensors())


def digest(header: dict[str, Any], arrays: dict[str, Any]) -> str:
    """Return the sha256 of the header and of every tensor: name, dtype, shape, bytes."""
    return neutral.digest(header, arrays, tensors())


def bytes_of(value: Tensor) -> Any:
    """Return the elements in C order, little-endian."""
    return value.contiguous().view(-1).view(torch.uint8).numpy().data


def own_copy(value: Tensor) -> Tensor:
    """Return a contiguous copy on the CPU that shares no memory, with no file either."""
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)
