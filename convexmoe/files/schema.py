"""The schema of the neutral file, in one place: whoever reads or writes a header holds it to this.

Tensors are named `params/<dotted name>` and `opt/<moment>/<dotted name>`. One metadata entry, `convexmoe`, holds JSON
with sorted keys: schema, kind, config, notes, rule and step of the optimizer if there is one, and the sha256 of all of
it and of every tensor. Schema 2 is that of models with a hull whose config has fields of `LATER`; others have schema 1.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ..errors import fail, printable, same_keys
from ..hierarchy import parameters_described_by
from ..hull.config import LATER, HullConfig, read_exactly
from ..hull.parameters import parameter_shapes
from .optimizer import LARGEST_STEP, MOMENTS

SCHEMA = 2  # the newest; `schema_of` says which a model has
KINDS = ("VectorHull", "HierarchicalCELMoE")
ENTRY = "convexmoe"
PREFIX, OPTIMIZER = "params/", "opt/"
FIELDS = {"schema", "kind", "config", "notes", "sha256"}
DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}
NUMPY = {code: np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name) for name, code in DTYPES.items()}
DAMAGED = "Fetch the file again or save the model anew."
REMEDIES = {"save": "Use plain names and values in it."}  # of an owner; of the others it is that of a damaged file
LONGEST_HEADER = 100_000_000  # bytes, as safetensors limits it
DEEPEST = 64  # lists and objects in each other
MOST_AXES, LARGEST_SIZE = 32, 2**63
# What plain values of another form raise where they are used
UNFIT = (TypeError, ValueError, LookupError, AttributeError, OverflowError, RecursionError)
Header = dict[str, Any]
ANY, LARGEST_FLOAT = ..., float(np.finfo(float).max)  # ANY in a form: each name that it has not


class Place(NamedTuple):
    """Where a tensor stands in a file: its dtype as safetensors spells it, its shape, its first byte and its end."""

    code: str
    shape: tuple[int, ...]
    start: int
    end: int


class TensorFile:
    """An open .safetensors file whose header is checked.

    Attributes:
        metadata: its entries.
        places: name -> `Place`, by name.
    """

    def __init__(self, stream: BufferedReader) -> None:
        size = os.fstat(stream.fileno()).st_size
        length = int.from_bytes(stream.read(8), "little")
        demand(size >= 8 and length <= min(LONGEST_HEADER, size - 8), "no header")
        text = stream.read(length)
        demand(text.startswith(b"{"), "no header")
        fields = parse(text.decode())
        self.metadata = fields.pop("__metadata__", {})
        plain = isinstance(self.metadata, dict) and all(type(value) is str for value in self.metadata.values())
        demand(plain, "metadata that is not text by name")
        self.places = {name: _place(name, fields[name]) for name in sorted(fields)}
        self._stream, self._begin, end = stream, 8 + length, 0
        for name, place in sorted(self.places.items(), key=lambda item: item[1][2:]):
            demand(place.start == end, f"{name!r} does not begin where the tensor before it ends")
            end = place.end
        stated = self._begin + end
        demand(size == stated, f"{size:,} bytes, where its header says {stated:,}")

    def read(self, name: str) -> np.ndarray:
        """Return a tensor, in memory of its own."""
        code, shape, start, _ = self.places[name]
        array = np.empty(shape, NUMPY[code])
        self._stream.seek(self._begin + start)
        if self._stream.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:
            fail("load", "path", "a .safetensors file", f"{self._stream.name!r}, cut off as it was read", DAMAGED)
        return array


@contextmanager
def open_tensors(name: str, owner: str = "load") -> Iterator[TensorFile]:
    """Give an open .safetensors file, its header checked; a name that is not UTF-8 is opened like any other."""
    if not os.path.isfile(name):
        fail(owner, "path", "a file", repr(name), "Check the name.", FileNotFoundError)
    with open(name, "rb") as stream:
        try:
            file = TensorFile(stream)
        except UNFIT as error:
            reason = str(error)[:200] or type(error).__name__
            fail(owner, "path", "a .safetensors file", f"{name!r} ({reason})", DAMAGED)
        yield file


def demand(holds: Any, fault: str) -> None:
    """Raise a ValueError unless a rule holds."""
    if not holds:
        raise ValueError(fault)


def has_form(value: Any, form: Any) -> bool:
    """Return whether a value of JSON has a form: a type, a value, several in a tuple, a list or a dict of forms.

    Of a dict at least these names, of which `ANY` is each other; an int is >= 0, a float finite, or an int.

    >>> [has_form(value, {"a": [int], "b": (None, str)}) for value in ({"a": [1], "b": None}, {"a": [1]})]
    [True, False]
    """
    if isinstance(form, tuple):
        return any(has_form(value, one) for one in form)
    if isinstance(form, list):
        return isinstance(value, list) and all(has_form(part, form[0]) for part in value)
    if isinstance(form, dict):
        named = isinstance(value, dict) and form.keys() - {ANY} <= value.keys()
        return named and all(has_form(part, form.get(name, form.get(ANY, object))) for name, part in value.items())
    if form in (int, float):
        return type(value) in (int, form) and (0 if form is int else -LARGEST_FLOAT) <= value <= LARGEST_FLOAT
    return isinstance(value, form) if isinstance(form, type) else bool(value == form)


def _place(name: str, field: Any) -> Place:
    """Return where a tensor stands, as its field of the header says it."""
    demand(isinstance(field, dict) and set(field) == {"dtype", "shape", "data_offsets"}, f"{name!r} without its form")
    code, shape, offsets = field["dtype"], field["shape"], field["data_offsets"]
    demand(type(code) is str and code in NUMPY, f"{name!r} in {code!r}, not one of {list(DTYPES)}")
    whole = isinstance(shape, list) and isinstance(offsets, list) and len(shape) <= MOST_AXES and len(offsets) == 2
    whole = whole and all(type(size) is int and 0 <= size < LARGEST_SIZE for size in [*shape, *offsets])
    whole = whole and math.prod(size or 1 for size in shape) < LARGEST_SIZE // 8
    fits = whole and offsets[1] - offsets[0] == math.prod(shape) * NUMPY[code].itemsize
    demand(fits, f"{name!r} with a shape that does not fit its bytes")
    return Place(code, tuple(shape), *offsets)


def parse(text: str) -> Any:
    """Return an object of JSON as plain values: see `check_plain`; a name that stands twice is a ValueError as well."""
    try:
        values = json.loads(text, object_pairs_hook=_distinct)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    demand(isinstance(values, dict), "no object")
    check_plain(values)
    return values


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict; a name that stands twice is an error."""
    demand(len(dict(pairs)) == len(pairs), "a name stands twice")
    return dict(pairs)


def check_plain(values: Any) -> None:
    """Check that values of JSON are finite, that their text is Unicode, and that they are nested `DEEPEST` at most."""
    level = [values]
    for _ in range(DEEPEST):
        for part in level:
            if isinstance(part, str):
                part.encode()  # a lone surrogate is a ValueError
            demand(not isinstance(part, float) or math.isfinite(part), "a number that is not finite")
        level = [
            inner
            for part in level
            if isinstance(part, (dict, list))
            for inner in ([*part, *part.values()] if isinstance(part, dict) else part)
        ]
        if not level:
            return
    raise ValueError(f"nested deeper than {DEEPEST}")


def check_header(name: str, text: str, owner: str = "load", *, sealed: bool = True) -> Header:
    """Return the description of a model, JSON in a file of that name, as a dict with all its fields.

    Args:
        name, text: of the file, and what stands in it.
        owner: who asks, for the message.
        sealed: whether it must have a sha256.
    """
    try:
        header = parse(text)
        demand(type(header.get("schema")) is int and header["schema"] > 0, "no schema")
    except UNFIT as error:
        got = f"{name!r} ({str(error)[:200]})"
        fail(owner, "path", "metadata in JSON", got, REMEDIES.get(owner, DAMAGED))
    if header["schema"] > SCHEMA:
        got = f"{name!r} with schema {str(header['schema'])[:20]}"
        fail(owner, "path", f"schema {SCHEMA} or older", got, "Install a newer convexmoe.")
    whole = set(header) - {"optimizer"} | (set() if sealed else {"sha256"}) == FIELDS and header["kind"] in KINDS
    if not whole or not isinstance(header["notes"], dict) or not isinstance(header.get("sha256", ""), str):
        fail(owner, "path", f"one of {list(KINDS)} with the fields {sorted(FIELDS)}", repr(name), DAMAGED)
    optimizer = header.get("optimizer", {"rule": "adam", "step": 0})
    described = has_form(optimizer, {"rule": tuple(MOMENTS), "step": int}) and len(optimizer) == 2
    if not described or optimizer["step"] > LARGEST_STEP:
        rule = f"an optimizer with its rule, one of {list(MOMENTS)}, and its step"
        fail(owner, "path", rule, f"{name!r} with {str(optimizer)[:80]}", DAMAGED)
    return header


def schema_of(kind: str, config: Any) -> int:
    """Return the schema of a model: 2 where one of its hulls has a field that came later, else 1.

    Args:
        kind: of the model; config: as the file has it.
    """
    recipes = [{"config": config}] if kind == KINDS[0] else config["experts"].values()
    return 2 if any(LATER["HullConfig"].keys() & recipe.get("config", {}).keys() for recipe in recipes) else 1


def check_keys(header: Header, forms: Mapping[str, tuple], owner: str = "load") -> None:
    """Check that a config can be built, and that a file has its tensors, and a moment of each for its optimizer.

    Args:
        header: as `check_header` returns it.
        forms: name in the file -> (shape, dtype name). Those of users' own experts are taken as they are.
        owner: who asks, for the message.
    """
    try:
        for name, (_, dtype) in forms.items():
            steps = name.split(".")
            above = {".".join(steps[:n]) for n in range(1, len(steps))}
            plain = printable(name) == name and all(steps) and not {"\n", "\t"} & set(name)
            demand(plain and not above & forms.keys(), f"the tensor name {name!r}")
            demand(dtype in DTYPES, f"{name} in {dtype}, not one of {list(DTYPES)}")
        expected, schema = _expected(header, forms), schema_of(header["kind"], header["config"])
        demand(header["schema"] == schema, f"schema {header['schema']}, where its config has {schema}")
        same_keys(owner, expected, forms)
    except UNFIT as error:
        message = str(error)
        if ": expected " not in message:
            got = message[:200] or type(error).__name__
            rule = f"what a {header['kind']} can be built of"
            message = f"{owner}.model: expected {rule}; got {got}. {REMEDIES.get(owner, DAMAGED)}"
        raise ValueError(message) from None


def _expected(header: Header, forms: Mapping[str, tuple]) -> dict[str, tuple]:
    """Return name in the file -> (shape, dtype name or None where any will do)."""
    if header["kind"] == "VectorHull":
        config = read_exactly(HullConfig, header["config"])
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
    return expected
