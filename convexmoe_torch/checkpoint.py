"""The neutral file: one `.safetensors` file that both packages read and write, byte for byte the same.

Tensors are named `params/<dotted name>`, raw parameters in the layout of `init.parameter_shapes`. One metadata
entry, `convexmoe`, holds JSON with sorted keys: schema, kind, config, notes, and the sha256 of all of it and of
every tensor. There is no pickle in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from ._checks import dtype_name, fail, same_keys
from .config import CELMoEConfig, HullConfig
from .hierarchy import HierarchicalCELMoE
from .hull import VectorHull, flatten, nest
from .init import parameter_shapes
from .names import built, fill, neutral_arrays, recipes_of

SCHEMA = 1
KINDS = ("VectorHull", "HierarchicalCELMoE")
ENTRY = "convexmoe"
PREFIX = "params/"
DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}
FRAMEWORK = "pt"
DAMAGED = "Fetch the file again or save the model anew."


Model = VectorHull | HierarchicalCELMoE


def save(model: Model, path: str | os.PathLike[str], *, notes: dict[str, Any] | None = None) -> None:
    """Write a hull or a hierarchy to a neutral file. An existing file is replaced whole or not at all.

    Args:
        model: the model. A hierarchy's own layers need a rule each (`names.RULES`).
        path: the file; its folder must exist.
        notes: what JSON can hold, to be read by `read_notes`, for example the names of the columns.

    Raises:
        FileNotFoundError: the folder does not exist.
        OSError: it cannot be written to.
        TypeError: a layer of a hierarchy has no rule.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(VectorHull(3, petals=4), f"{folder}/hull.safetensors")
    ...     load(f"{folder}/hull.safetensors").config.petals
    4
    """
    header, arrays = content_of(model)
    header |= {"schema": SCHEMA, "notes": plain_notes(notes)}
    header["sha256"] = digest(header, arrays)
    text = json.dumps(header, sort_keys=True, allow_nan=False)
    write_whole(Path(path), to_safetensors(arrays, {ENTRY: text}))


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


def content_of(model: Model) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return kind and config of a model, and its arrays as the file names them."""
    if isinstance(model, HierarchicalCELMoE):
        config = {"hierarchy": json.loads(model.config.to_json()), **recipes_of(model)}
        arrays = neutral_arrays(model)
    elif isinstance(model, VectorHull):
        config = json.loads(model.config.to_json())
        # C order and an own copy: the serialiser reads strided memory as if it were contiguous
        arrays = {name: own_copy(value) for name, value in flatten(model.params).items()}
    else:
        fail("save", "model", f"one of {list(KINDS)}", type(model).__name__, "Pass such a model.", TypeError)
    header = {"kind": type(model).__name__, "config": config}
    return header, {PREFIX + name: value for name, value in arrays.items()}


def load(path: str | os.PathLike[str], *, expert_factory: Any = None, fusion_module: Any = None) -> Any:
    """Return the model of a neutral file, in the dtype it was saved in.

    Args:
        path: the file.
        expert_factory: of a hierarchy with experts of your own: what it was built with. Ready experts need none.
        fusion_module: of a hierarchy with a fusion of your own: such a module.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no neutral file, is damaged, of a newer schema, or does not fit its config; everything
            that is missing, unexpected, mis-shaped or mis-typed is listed.
    """
    header, arrays = read(path)
    name = os.fspath(path)
    dtypes = {key: dtype_name(value.dtype) for key, value in arrays.items()}
    unknown = sorted(set(dtypes.values()) - set(DTYPES))
    if unknown:
        fail("load", "path", f"parameters of one of {list(DTYPES)}", f"{name!r} with {unknown[0]}", DAMAGED)
    own = {key.removeprefix(PREFIX): value for key, value in arrays.items()}
    if header["kind"] == "VectorHull":
        config = HullConfig.from_json(json.dumps(header["config"]))
        dtype = dtypes.get(PREFIX + "shifts", "float32")
        expected = {PREFIX + key: (shape, dtype) for key, shape in parameter_shapes(config).items()}
        same_keys("load", expected, {key: (value.shape, dtypes[key]) for key, value in arrays.items()})
    check_digest(name, header, arrays)
    if header["kind"] == "VectorHull":
        return VectorHull.from_params(config, nest(own))
    recipes = header["config"]
    hierarchy = CELMoEConfig.from_json(json.dumps(recipes["hierarchy"]))
    model = built(hierarchy, recipes, expert_factory, fusion_module)
    fill(model, own)
    return model


def read_notes(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the notes that `save` wrote. Errors as in `load`."""
    header, arrays = read(path)
    check_digest(os.fspath(path), header, arrays)
    return header["notes"]


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return header and tensors of a neutral file after the checks of its form."""
    name = os.fspath(path)
    if not os.path.isfile(name):
        fail("load", "path", "a file", repr(name), "Check the name.", FileNotFoundError)
    try:
        with safe_open(name, framework=FRAMEWORK) as file:
            text = (file.metadata() or {}).get(ENTRY)
            arrays = {} if text is None else {key: file.get_tensor(key) for key in sorted(file.keys())}
    except SafetensorError as error:
        fail("load", "path", "a .safetensors file", f"{name!r} ({error})", DAMAGED)
    if text is None:
        fail("load", "path", "a file that convexmoe saved", repr(name), "Write it with save(model, path).")
    return checked_header(name, text), arrays


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
    fields = {"schema", "kind", "config", "notes", "sha256"}
    if not isinstance(header, dict) or type(header.get("schema")) is not int:
        fail("load", "path", f"metadata with the fields {sorted(fields)}", repr(name), DAMAGED)
    if header["schema"] > SCHEMA:
        fix = "Install a newer convexmoe."
        fail("load", "path", f"schema {SCHEMA} or older", f"{name!r} with schema {header['schema']}", fix)
    if set(header) != fields or header["kind"] not in KINDS or not isinstance(header["notes"], dict):
        fail("load", "path", f"one of {list(KINDS)} with the fields {sorted(fields)}", repr(name), DAMAGED)
    return header


def check_digest(name: str, header: dict[str, Any], arrays: dict[str, Any]) -> None:
    """Check that the content of a file is what its sha256 says."""
    known = all(dtype_name(value.dtype) in DTYPES for value in arrays.values())
    if not known or header["sha256"] != digest({k: v for k, v in header.items() if k != "sha256"}, arrays):
        got = f"{name!r}, which differs"
        fail("load", "path", "a file whose content has the sha256 it states", got, DAMAGED)


def digest(header: dict[str, Any], arrays: dict[str, Any]) -> str:
    """Return the sha256 of the header and of every tensor: name, dtype, shape, bytes."""
    total = hashlib.sha256(json.dumps(header, sort_keys=True, allow_nan=False).encode())
    for name, value in sorted(arrays.items()):
        dtype = DTYPES[dtype_name(value.dtype)]
        total.update(f"\n{name} {dtype} {list(value.shape)}\n".encode())
        total.update(bytes_of(value))
    return total.hexdigest()


def write_whole(path: Path, data: bytes) -> None:
    """Write a file beside `path`, flush it to the disk, and rename it: `path` is always whole.

    A link is followed; what is there and is no regular file (a device, a folder) is left alone.
    """
    path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        fail(
            "save",
            "path",
            "a folder that exists",
            repr(str(path)),
            "Make the folder first.",
            FileNotFoundError,
        )
    if path.exists() and not path.is_file():
        fail("save", "path", "a regular file", repr(str(path)), "Choose another name.", FileExistsError)
    beside = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with open(beside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def bytes_of(value: Tensor) -> bytes:
    """Return the elements in C order, little-endian."""
    return value.view(torch.uint8).numpy().tobytes()


def own_copy(value: Tensor) -> Tensor:
    """Return a contiguous copy on the CPU that shares no memory."""
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)
