"""The numbers of the neutral file: tensors are read one by one and summed, and written with the sum.

Identical content gives identical bytes. There is no pickle in it.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import numpy as np
from safetensors.numpy import save as to_safetensors

from ..errors import copy_plain, dtype_name, fail
from .atomic import follow, write_whole
from .schema import DAMAGED, DTYPES, ENTRY, NUMPY, TensorFile, check_header, check_keys, open_tensors

Arrays = dict[str, np.ndarray]


def own_copy(value: Any) -> np.ndarray:
    """Return a copy in C order that shares no memory: the serializer reads strided memory as if it were contiguous."""
    return np.array(value, order="C", copy=True)


def write_sealed(path: str | os.PathLike[str], header: dict[str, Any], arrays: Arrays) -> None:
    """Write header and arrays as a neutral file, its sha256 added."""
    sealed = header | {"sha256": digest(header, arrays)}
    text = json.dumps(sealed, sort_keys=True, allow_nan=False)
    write_whole(follow(path), to_safetensors(arrays, {ENTRY: text}))


def check_content(name: str, header: dict[str, Any], arrays: Arrays, owner: str) -> None:
    """Check that what is to be written is what the schema has, so that it can be read."""
    checked = check_header(name, json.dumps(header), owner, sealed=False)
    check_keys(checked, {key: (value.shape, dtype_name(value.dtype)) for key, value in arrays.items()}, owner)


def infinite(arrays: Arrays) -> list[str]:
    """Return the names of the arrays that hold NaN or infinity: they are saved and loaded, and not computed with."""
    return [name for name, value in arrays.items() if not np.isfinite(value.astype(np.float64)).all()]


def read(path: str | os.PathLike[str], prefix: str | None = "") -> tuple[dict[str, Any], Arrays]:
    """Return header and tensors of a neutral file after all checks, its sha256 included.

    Args:
        path: the file.
        prefix: what the names of the tensors to return begin with; the others are read, hashed and dropped one by one.
            None returns no tensors.
    """
    name = os.fsdecode(path)
    with open_tensors(name) as file:
        return read_open(name, file, prefix)


def read_open(name: str, file: TensorFile, prefix: str | None) -> tuple[dict[str, Any], Arrays]:
    """Return what `read` returns, of an open file."""
    header = read_header(name, file)
    total, arrays = _hash_header(header), {}
    for key in file.places:
        value = file.read(key)
        _hash_array(total, key, value)
        if prefix is not None and key.startswith(prefix):
            arrays[key] = value
    if total.hexdigest() != header["sha256"]:
        got = f"{name!r}, which differs"
        fail("load", "path", "a file whose content has the sha256 it states", got, DAMAGED)
    return header, arrays


def read_header(name: str, file: TensorFile, owner: str = "load") -> dict[str, Any]:
    """Return the header of an open neutral file, once the file is known to have the tensors that it describes."""
    if ENTRY not in file.metadata:
        fail(owner, "path", "a file that convexmoe saved", repr(name), "Write it with save(model, path).")
    header = check_header(name, file.metadata[ENTRY], owner)
    check_keys(header, {key: (place.shape, NUMPY[place.code].name) for key, place in file.places.items()}, owner)
    return header


def digest(header: dict[str, Any], arrays: Arrays) -> str:
    """Return the sha256 of the header and of every tensor: name, dtype, shape, bytes."""
    total = _hash_header(header)
    for name, value in sorted(arrays.items()):
        _hash_array(total, name, value)
    return total.hexdigest()


def _hash_header(header: dict[str, Any]) -> Any:
    """Return the running sha256 of a header, but for the sha256 that it states."""
    stated = {name: value for name, value in header.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(stated, sort_keys=True, allow_nan=False).encode())


def _hash_array(total: Any, name: str, value: np.ndarray) -> None:
    """Add an array to a running sha256: its name, dtype, shape, and its elements in C order, little-endian."""
    total.update(f"\n{name} {DTYPES[dtype_name(value.dtype)]} {list(value.shape)}\n".encode())
    total.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)


def plain_notes(notes: Any) -> dict[str, Any]:
    """Return a copy of the notes, which reading gives back exactly as they are."""
    if notes is not None and type(notes) is not dict:
        fail("save", "notes", "a dict", type(notes).__name__, "Pass {name: value}.", TypeError)
    return copy_plain("save", "notes", {} if notes is None else notes)
