"""A model as the folder that a model hub shows: config.json, model.safetensors, and a card in README.md."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..errors import copy_plain, fail, printable
from .atomic import follow, write_folder, write_whole
from .inspect import Inspection, inspect
from .schema import has_form

MODEL, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
METRICS, CERTIFICATE = "metrics.json", "certificate.json"
FILES = {MODEL, CONFIG, CARD, METRICS, CERTIFICATE}
FRONT = """---
library_name: convexmoe
license: unknown
tags:
- convexmoe
- convex
- mixture-of-experts
- jax
- pytorch
---
"""
USE = """## Use

```python
import {package}  # or convexmoe_jax, with the same names: each reads the folder without the other framework

model = {package}.load_pretrained("FOLDER")
{call}
```

<!-- sha256 of the names and contents of the other files, as save_pretrained wrote them: {seal} -->
"""
NAMED = "convexmoe_torch"  # the package that a card shows
CALLS = {"VectorHull": "y = {package}.predict(model, x{context})", "HierarchicalCELMoE": "y = model(x, routing)"}
_MARKS = re.compile(r"([\\`*_{}\[\]<>|#~$!&])")  # of Markdown and HTML
Folder = str | os.PathLike[str]


@contextmanager
def write_pretrained(folder: Folder, metrics: Any = None, certificate: Any = None) -> Iterator[Path]:
    """Give a path to write the neutral file at; the folder is there, whole, when the block ends well.

    Args:
        folder: a new or an empty one, or one that this function wrote and nobody has changed since: it is replaced.
        metrics: a dict of plain values for metrics.json and the card, or None.
        certificate: the record of one, as `Certificate.to_json` has it, or None.

    Raises:
        FileExistsError: something else is there. OSError: it cannot be written.
    """
    target, owner = follow(folder), "save_pretrained"
    if not target.parent.is_dir():
        fix = "Make that one first."
        fail(owner, "folder", "a folder in one that exists", repr(str(target)), fix, FileNotFoundError)
    if target.exists() and not (target.is_dir() and (not any(target.iterdir()) or _is_as_written(target))):
        rule, got = "a new folder, or one as save_pretrained wrote it", f"{str(target)!r}, which holds something else"
        fail(owner, "folder", rule, got, "Name another folder.", FileExistsError)
    parts = {} if metrics is None else {METRICS: copy_plain(owner, "metrics", metrics)}
    with write_folder(target) as fresh:
        yield fresh / MODEL
        found = inspect(fresh / MODEL)
        parts[CONFIG] = {"library_name": "convexmoe", "kind": found.kind, "config": found.config}
        if certificate is not None:
            of_model = {"file": MODEL, "kind": found.kind, "sha256": digest_of(fresh / MODEL)}
            parts[CERTIFICATE] = certificate | {"model": certificate.get("model", {}) | of_model}
        for name, content in parts.items():
            text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False)
            write_whole(fresh / name, f"{text}\n".encode())
        write_whole(fresh / CARD, describe(fresh).encode())


def is_pretrained(folder: Path) -> bool:
    """Return whether a folder has the files of a model for a hub."""
    return (folder / MODEL).is_file() and (folder / CONFIG).is_file()


def find_model(folder: Folder) -> Path:
    """Return the neutral file in a folder, once it is known to have the config that config.json states.

    Raises:
        FileNotFoundError: there is no such folder, or no model in it.
        ValueError: its config.json states another config; as `inspect`.
    """
    path, owner = Path(folder), "load_pretrained"
    if not is_pretrained(path):
        rule, fix = f"a folder with {MODEL} and {CONFIG}", "Check the path; load reads a file alone."
        fail(owner, "folder", rule, repr(str(path)), fix, FileNotFoundError)
    found, stated = inspect(path / MODEL), read_json(path / CONFIG)
    if [stated.get(name) for name in ("kind", "config")] != [found.kind, found.config]:
        rule, fix = f"the config of {MODEL} in {CONFIG}", "Save the model anew with save_pretrained."
        fail(owner, "folder", rule, f"another in {str(path)!r}", fix)
    return path / MODEL


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a file of JSON, {} where there is none."""
    with suppress(OSError, ValueError, RecursionError):
        values = json.loads(path.read_bytes())
        return values if isinstance(values, dict) else {}
    return {}


def read_certificate(model: Path, proof: Path | None = None) -> dict[str, Any] | None:
    """Return the certificate beside a model, None where there is none of this very file; `proof`: its own place."""
    record = read_json(proof or model.with_name(model.name.removesuffix(".safetensors") + ".certificate.json"))
    of = record and {"verdict": str, "property": str, "strength": object, "model": {"sha256": digest_of(model)}}
    return record if record and has_form(record, of) else None


def digest_of(path: Path) -> str:
    """Return the sha256 of the bytes of a file."""
    return sha256(path.read_bytes()).hexdigest()


def _is_as_written(folder: Path) -> bool:
    """Return whether a folder holds what `write_pretrained` wrote, to the letter, and nothing else."""
    with suppress(OSError, ValueError):
        return {*os.listdir(folder)} <= FILES and (folder / CARD).read_bytes() == describe(folder).encode()
    return False


def describe(folder: Path) -> str:
    """Return the card of a model, in Markdown, from the other files of its folder alone."""
    found = inspect(folder / MODEL)
    target = found.notes.get("target")
    lines = [FRONT, f"# {plain(target if isinstance(target, str) else found.kind)}", ""]
    lines += _of_hull(found) if found.kind == "VectorHull" else _of_hierarchy(found)
    lines += [f"{found.num_parameters:,} parameters.", ""]
    if rows := [f"| {plain(name)} | {value} |" for name, value in _numbers(read_json(folder / METRICS))]:
        lines += ["## Metrics", "", "| metric | value |", "| --- | ---: |", *rows, ""]
    if proof := read_json(folder / CERTIFICATE):
        verdict = f"{proof.get('verdict')}: {proof.get('property')}, {proof.get('strength')}"
        digest = f"sha256 of {MODEL}: {digest_of(folder / MODEL)}"
        lines += ["## Certificate", "", f"{plain(verdict)} ({CERTIFICATE}). {digest}", ""]
    context = ", context" if found.config.get("context_dim") else ""
    call = CALLS[found.kind].format(package=NAMED, context=context)
    others = [f"{digest_of(folder / name)} {name}\n" for name in sorted({*os.listdir(folder)} - {CARD})]
    seal = sha256("".join(others).encode()).hexdigest()
    return "\n".join([*lines, USE.format(package=NAMED, call=call, seal=seal)])


def _of_hull(found: Inspection) -> list[str]:
    """Return what a hull is, and of its inputs and its target the ranges in training, where the notes have them."""
    config, notes = found.config, found.notes
    signs, sizes = config.get("monotone") or (), {"columns": config["in_dim"], "context": config.get("context_dim", 0)}
    names = [notes[key] if key in notes else [f"{key[0]}{k}" for k in range(n)] for key, n in sizes.items()]
    inputs, contexts = ([plain(name) for name in part] if isinstance(part, list) else [] for part in names)
    words = [f"A {config.get('curvature', 'convex')} function of {', '.join(inputs)}"]
    for verb, wanted in (("rises in", 1), ("falls in", -1)):
        words += [f"{verb} {name}" for name, sign in zip(inputs, signs, strict=False) if sign == wanted]
    words += [f"for every value of {', '.join(contexts)}"] if contexts else []
    ranges, ends = notes.get("ranges"), notes.get("target_range")
    named = list(zip([*inputs, *contexts], ranges if isinstance(ranges, list) else (), strict=False))
    rows = [
        f"| {name} | {end[0]:.6g} | {end[1]:.6g} |"
        for name, end in [*named, (plain(notes.get("target", "target")), ends)]
        if isinstance(end, list) and [type(value) for value in end] == [float, float]
    ]
    table = ["| in training | least | largest |", "| --- | ---: | ---: |", *rows, ""] if rows else []
    return [f"{', '.join(words)}.", "", *table]


def _of_hierarchy(found: Inspection) -> list[str]:
    """Return the experts of a hierarchy, level by level."""
    experts = [f"- {plain(name)}: {plain(recipe['kind'])}" for name, recipe in found.config["experts"].items()]
    return ["A hierarchy of experts (level.expert), a route a sample:", "", *experts, ""]


def _numbers(values: dict[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted names, and the numbers in nested dicts as text."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{above}{name}.")
        elif type(value) in (int, float):
            yield f"{above}{name}", f"{value:.6g}" if type(value) is float else str(value)


def plain(text: Any) -> str:
    """Return text in one line that Markdown shows as it is.

    >>> print(plain("a|b" + chr(10) + "c"))
    a\\|b c
    """
    return _MARKS.sub(r"\\\1", " ".join(printable(str(text)).split()))
