"""The form of the neutral file: header, names, shapes and sums are checked, tensors are read one by one.

Tensors are named `params/<dotted name>` and `opt/<moment>/<dotted name>`. One metadata entry, `convexmoe`, holds JSON
with sorted keys: schema, kind, config, notes, rule and step of the optimizer if there is one, and the sha256 of all of
it and of every tensor. Identical content gives identical bytes. There is no pickle in it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

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


class Tensors(NamedTuple):
    """What a framework does with the tensors of a file.

    Args:
        framework: its name in safetensors.
        serialize: `(arrays, metadata) -> bytes` of a file.
        bytes_of: the elements of a tensor in C order, little-endian.
        own_copy: a copy in C order on the host, that shares no memory.
    """

    framework: str
    serialize: Callable[[dict[str, Any], dict[str, str]], bytes]
    bytes_of: Callable[[Any], Any]
    own_copy: Callable[[Any], Any]


def write_sealed(
    path: str | os.PathLike[str], header: dict[str, Any], arrays: dict[str, Any], tensors: Tensors
) -> None:
    """Write header and arrays as a neutral file, its sha256 added."""
    sealed = header | {"sha256": digest(header, arrays, tensors)}
    text = json.dumps(sealed, sort_keys=True, allow_nan=False)
    write_whole(Path(path), tensors.serialize(arrays, {ENTRY: text}))


def read(
    path: str | os.PathLike[str], kept: str | None, tensors: Tensors
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return header and tensors of a neutral file after all checks, its sha256 included.

    Args:
        path: the file.
        kept: what the names of the tensors to return begin with; the others are read, summed and dropped one by one.
            None for none.
        tensors: of the framework.
    """
    name = os.fspath(path)
    with opened(name, tensors.framework) as (header, file):
        keys = sorted(file.keys())
        slices = {key: file.get_slice(key) for key in keys}
        codes = {code: dtype for dtype, code in DTYPES.items()}
        forms = {key: (tuple(part.get_shape()), codes.get(part.get_dtype())) for key, part in slices.items()}
        unknown = sorted({slices[key].get_dtype() for key, (_, dtype) in forms.items() if dtype is None})
        if unknown:
            fail(
                "load", "path", f"parameters of one of {list(DTYPES)}", f"{name!r} with {unknown[0]}", DAMAGED
            )
        check_keys(header, forms)
        total, arrays = _start(header), {}
        for key in keys:
            value = file.get_tensor(key)
            _add(total, key, value, tensors)
            if kept is not None and key.startswith(kept):
                arrays[key] = tensors.own_copy(value)
    if total.hexdigest() != header["sha256"]:
        got = f"{name!r}, which differs"
        fail("load", "path", "a file whose content has the sha256 it states", got, DAMAGED)
    return header, arrays


@contextmanager
def opened(name: str, framework: str) -> Iterator[tuple[dict[str, Any], Any]]:
    """Give the checked header and the open file of a neutral file."""
    if not os.path.isfile(name):
        fail("load", "path", "a file", repr(name), "Check the name.", FileNotFoundError)
    try:
        with safe_open(name, framework=framework) as file:
            text = (file.metadata() or {}).get(ENTRY)
            if text is None:
                fix = "Write it with save(model, path)."
                fail("load", "path", "a file that convexmoe saved", repr(name), fix)
            yield checked_header(name, text), file
    except SafetensorError as error:
        fail("load", "path", "a .safetensors file", f"{name!r} ({error})", DAMAGED)


def check_keys(header: dict[str, Any], forms: dict[str, tuple]) -> None:
    """Check that a file has the tensors of its config, and a moment of each for its optimizer.

    Args:
        header: as `checked_header` returns it.
        forms: name in the file -> (shape, dtype name). What users' own experts must have, they tell.
    """
    if header["kind"] == "VectorHull":
        config = HullConfig.from_json(json.dumps(header["config"]))
        dtype = forms.get(PREFIX + "shifts", (None, "float32"))[1]
        expected: dict[str, tuple] = {
            PREFIX + name: (shape, dtype) for name, shape in parameter_shapes(config).items()
        }
    else:
        shapes, own = parameters_described_by(header["config"])
        expected = {PREFIX + name: (shape, None) for name, shape in shapes.items()}
        theirs = tuple(PREFIX + part for part in own)
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


def checked_header(name: str, text: str) -> dict[str, Any]:
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
    if not _is_optimizer(header.get("optimizer", {"rule": "adam", "step": 0})):
        rule = f"an optimizer with its rule, one of {list(MOMENTS)}, and its step"
        fail("load", "path", rule, f"{name!r} with {header['optimizer']!r}", DAMAGED)
    return header


def _is_optimizer(field: Any) -> bool:
    """Return whether a field of the header describes an optimizer."""
    if not isinstance(field, dict) or set(field) != {"rule", "step"}:
        return False
    return field["rule"] in list(MOMENTS) and type(field["step"]) is int and 0 <= field["step"] < 2**31


def digest(header: dict[str, Any], arrays: dict[str, Any], tensors: Tensors) -> str:
    """Return the sha256 of the header and of every tensor: name, dtype, shape, bytes."""
    total = _start(header)
    for name, value in sorted(arrays.items()):
        _add(total, name, value, tensors)
    return total.hexdigest()


def _start(header: dict[str, Any]) -> Any:
    """Return a sum that has the header, but for the sum it states, in it."""
    stated = {name: value for name, value in header.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(stated, sort_keys=True, allow_nan=False).encode())


def _add(total: Any, name: str, value: Any, tensors: Tensors) -> None:
    """Add a tensor to a sum."""
    dtype = DTYPES[dtype_name(value.dtype)]
    total.update(f"\n{name} {dtype} {list(value.shape)}\n".encode())
    total.update(tensors.bytes_of(value))


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
