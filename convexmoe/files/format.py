"""The form of the neutral file: header, names, shapes and sums are checked, tensors are read one by one.

Tensors are named `params/<dotted name>` and `opt/<moment>/<dotted name>`. One metadata entry, `convexmoe`, holds JSON
with sorted keys: schema, kind, config, notes, rule and step of the optimizer if there is one, and the sha256 of all of
it and of every tensor. Identical content gives identical bytes. There is no pickle in it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (tells numpy, and so safetensors, of bfloat16)
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

from ..errors import dtype_name, fail, same_keys
from ..hierarchy import parameters_described_by
from ..hull.config import HullConfig
from ..hull.parameters import parameter_shapes
from .atomic import write_whole
from .optimizer import MOMENTS

SCHEMA = 1
KINDS = ("VectorHull", "HierarchicalCELMoE")
ENTRY = "convexmoe"
PREFIX, OPTIMIZER = "params/", "opt/"
FIELDS = {"schema", "kind", "config", "notes", "sha256"}
DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}
DAMAGED = "Fetch the file again or save the model anew."

Arrays = dict[str, np.ndarray]


def own_copy(value: Any) -> np.ndarray:
    """Return a copy in C order that shares no memory: the serializer reads strided memory as if it were contiguous."""
    return np.array(value, order="C", copy=True)


def write_sealed(path: str | os.PathLike[str], header: dict[str, Any], arrays: Arrays) -> None:
    """Write header and arrays as a neutral file, its sha256 added."""
    sealed = header | {"sha256": digest(header, arrays)}
    text = json.dumps(sealed, sort_keys=True, allow_nan=False)
    write_whole(Path(path), to_safetensors(arrays, {ENTRY: text}))


def read(path: str | os.PathLike[str], prefix: str | None = "") -> tuple[dict[str, Any], Arrays]:
    """Return header and tensors of a neutral file after all checks, its sha256 included.

    Args:
        path: the file.
        prefix: what the names of the tensors to return begin with; the others are read, hashed and dropped one by one.
            None returns no tensors.
    """
    name = os.fspath(path)
    with open_checked(name) as (header, file):
        keys = sorted(file.keys())
        slices = {key: file.get_slice(key) for key in keys}
        codes = {code: dtype for dtype, code in DTYPES.items()}
        forms = {key: (tuple(part.get_shape()), codes.get(part.get_dtype())) for key, part in slices.items()}
        unknown = sorted({slices[key].get_dtype() for key, (_, dtype) in forms.items() if dtype is None})
        if unknown:
            rule = f"parameters of one of {list(DTYPES)}"
            fail("load", "path", rule, f"{name!r} with {unknown[0]}", DAMAGED)
        check_keys(header, forms)
        total, arrays = _hash_header(header), {}
        for key in keys:
            value = file.get_tensor(key)
            _hash_array(total, key, value)
            if prefix is not None and key.startswith(prefix):
                arrays[key] = own_copy(value)
    if total.hexdigest() != header["sha256"]:
        got = f"{name!r}, which differs"
        fail("load", "path", "a file whose content has the sha256 it states", got, DAMAGED)
    return header, arrays


@contextmanager
def open_checked(name: str) -> Iterator[tuple[dict[str, Any], Any]]:
    """Give the checked header and the open file of a neutral file."""
    if not os.path.isfile(name):
        fail("load", "path", "a file", repr(name), "Check the name.", FileNotFoundError)
    try:
        with safe_open(name, framework="numpy") as file:
            text = (file.metadata() or {}).get(ENTRY)
            if text is None:
                fix = "Write it with save(model, path)."
                fail("load", "path", "a file that convexmoe saved", repr(name), fix)
            yield check_header(name, text), file
    except SafetensorError as error:
        fail("load", "path", "a .safetensors file", f"{name!r} ({error})", DAMAGED)


def check_keys(header: dict[str, Any], forms: dict[str, tuple]) -> None:
    """Check that a file has the tensors of its config, and a moment of each for its optimizer.

    Args:
        header: as `check_header` returns it.
        forms: name in the file -> (shape, dtype name). Those of users' own experts are taken as they are.
    """
    if header["kind"] == "VectorHull":
        config = HullConfig.from_json(json.dumps(header["config"]))
        dtype = forms.get(PREFIX + "shifts", (None, "float32"))[1]
        shapes = parameter_shapes(config)
        expected: dict[str, tuple] = {PREFIX + name: (shape, dtype) for name, shape in shapes.items()}
    else:
        shapes, users = parameters_described_by(header["config"])
        expected = {PREFIX + name: (shape, None) for name, shape in shapes.items()}
        theirs = tuple(PREFIX + part for part in users)
        expected |= {key: form for key, form in forms.items() if key.startswith(theirs)}
    if "optimizer" in header:
        shapes = {key.removeprefix(PREFIX): shape for key, (shape, _) in expected.items()}
        for moment in MOMENTS[header["optimizer"]["rule"]]:
            expected |= {f"{OPTIMIZER}{moment}/{name}": (shape, None) for name, shape in shapes.items()}
    same_keys("load", expected, forms)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict; a name that stands twice is an error."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name stands twice")
    return dict(pairs)


def check_header(name: str, text: str) -> dict[str, Any]:
    """Return the metadata entry as a dict with all its fields."""
    try:
        header = json.loads(text, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        fail("load", "path", "metadata in JSON", f"{name!r} ({error})", DAMAGED)
    fields = sorted(FIELDS)
    if not isinstance(header, dict) or type(header.get("schema")) is not int:
        fail("load", "path", f"metadata with the fields {fields}", repr(name), DAMAGED)
    if header["schema"] > SCHEMA:
        fix = "Install a newer convexmoe."
        fail("load", "path", f"schema {SCHEMA} or older", f"{name!r} with schema {header['schema']}", fix)
    whole = set(header) - {"optimizer"} == FIELDS and header["kind"] in KINDS
    if not whole or not isinstance(header["notes"], dict):
        fail("load", "path", f"one of {list(KINDS)} with the fields {fields}", repr(name), DAMAGED)
    optimizer = header.get("optimizer", {"rule": "adam", "step": 0})
    described = isinstance(optimizer, dict) and set(optimizer) == {"rule", "step"} and type(optimizer["step"]) is int
    if not described or optimizer["rule"] not in list(MOMENTS) or not 0 <= optimizer["step"] < 2**31:
        rule = f"an optimizer with its rule, one of {list(MOMENTS)}, and its step"
        fail("load", "path", rule, f"{name!r} with {optimizer!r}", DAMAGED)
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
    """Return the notes as reading them will give them."""
    rule, fix = "a dict that JSON can hold, without NaN", "Turn arrays into lists and numbers into float."
    try:
        plain = json.loads(json.dumps({} if notes is None else notes, allow_nan=False))
    except (TypeError, ValueError) as error:
        fail("save", "notes", rule, f"{type(notes).__name__} ({error})", fix)
    if not isinstance(plain, dict):
        fail("save", "notes", rule, type(notes).__name__, fix, TypeError)
    return plain
