"""One model in four forms: neutral file, PyTorch `state_dict` (safetensors), Orbax directory, folder for a model hub.

The state dict has the names that `model.load_state_dict` wants, buffers included; it holds no optimizer. The directory
holds the parameters as nested dicts below `state`, the moments of an optimizer below `optimizer`. Both carry the
description of the model, so that the way back loses nothing else. Only that directory needs a framework: JAX. The
folder for a hub has the neutral file, with what `convexmoe.files.hub` writes beside it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from convexmoe.errors import InputError, refuse
from convexmoe.files import hub
from convexmoe.files.atomic import follow, write_folder, write_whole
from convexmoe.files.format import (
    check_content,
    digest,
    infinite,
    own_copy,
    read,
    read_open,
    to_safetensors,
    write_sealed,
)
from convexmoe.files.schema import OPTIMIZER, PREFIX, TensorFile, check_header, has_form, open_tensors
from convexmoe.hull.parameters import flatten, nest

from . import frameworks

FORMS = ("neutral", "torch", "orbax", "hub")
ENTRY = "convexmoe_state_dict"  # of the metadata of a state dict
DESCRIPTION, FOLDERS = "convexmoe.json", ("state", "optimizer")  # of an Orbax directory
UNITS = ("input_mean", "input_scale", "output_mean", "output_scale")
Arrays = dict[str, np.ndarray]
Header = dict[str, Any]  # what describes a model in the neutral file, without the digest


class Conversion(NamedTuple):
    """What `convert` did.

    Args:
        form: what it wrote, one of `FORMS`.
        dropped: whether the source holds the state of an optimizer and the form cannot.
        infinite: the tensors that hold NaN or infinity; they are carried as they are.
    """

    form: str
    dropped: bool
    infinite: tuple[str, ...] = ()


def convert(source: Path, target: Path, to: str | None = None) -> Conversion:
    """Write the model of `source` to `target` in another form.

    Args:
        source: a neutral file, a state dict or a directory that this function or `save_pretrained` wrote.
        target: where to; what is there is replaced whole or not at all, a directory only if it is one of these.
        to: one of `FORMS`; None takes neutral for what is not neutral, else orbax for a name without an ending, else
            torch.

    Raises:
        InputError: the source is none of these or is damaged; the target cannot be written.
    """
    if to is not None and to not in FORMS:
        refuse("convexmoe convert --to", f"one of {list(FORMS)}", repr(to), "Try --to torch.")
    if target.exists() and source.exists() and target.samefile(source):
        refuse("convexmoe convert", "two places", f"{source} twice", "Name another target.")
    if source.is_dir() and not hub.is_pretrained(source):
        frameworks.choose("jax")
    form, header, arrays = _read(source)
    if to is None:
        to = "neutral" if form != "neutral" else "torch" if target.suffix else "orbax"
    if not target.parent.is_dir():
        refuse(target, "a folder that exists", str(target.parent), "Make it first.")
    if to == "orbax" and (place := str(target.absolute())) != place.encode(errors="replace").decode():
        refuse("convexmoe convert", "a directory for Orbax with a name in UTF-8", repr(place), "Name another one.")
    if to == "hub":
        _write_hub(source, target, header, arrays)
    else:
        {"neutral": write_sealed, "torch": _write_torch, "orbax": _write_orbax}[to](follow(target), header, arrays)
    return Conversion(to, to == "torch" and "optimizer" in header, tuple(infinite(arrays)))


def _read(source: Path) -> tuple[str, Header, Arrays]:
    """Return the form, the description, and the tensors by their names in the neutral file, held to its schema."""
    name = os.fspath(source)
    try:
        if hub.is_pretrained(source):
            form, header, arrays = "hub", *read(hub.find_model(source))
        elif source.is_dir():
            form, header, arrays = "orbax", *_read_orbax(source)
        else:
            with open_tensors(name) as file:
                form = "torch" if ENTRY in file.metadata else "neutral"
                header, arrays = _read_torch(name, file) if form == "torch" else read_open(name, file, "")
        header = {field: value for field, value in header.items() if field != "sha256"}
        check_content(name, header, arrays, "load")
        return form, header, arrays
    except Exception as error:  # of any kind, from a directory that Orbax reads
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{source}: expected a model in one of the forms {list(FORMS)}; {reason}") from None


def _read_torch(name: str, file: TensorFile) -> tuple[Header, Arrays]:
    """Return what stands in a state dict that `_write_torch` wrote."""
    state = {key: file.read(key) for key in file.places}
    header = check_header(name, file.metadata[ENTRY])
    _check_sum(header, state)
    units = _units(header, state)
    return header, {PREFIX + name: value for name, value in state.items() if name not in units}


def _check_sum(header: Header, arrays: Arrays) -> None:
    if header["sha256"] != digest(header, arrays):
        raise ValueError("its content is not what its sha256 says. Fetch it again.")


def _write_torch(target: Path, header: Header, arrays: Arrays) -> None:
    state = {name.removeprefix(PREFIX): value for name, value in arrays.items() if name.startswith(PREFIX)}
    with np.errstate(over="ignore"):
        units = _units(header, state)
    for name, value in units.items():
        if not np.isfinite(value).all() or (name.endswith("scale") and not value.all()):
            refuse(target, f"units that {value.dtype} holds", f"another number in {name}", "Use --to neutral.")
    state |= units
    described = {name: value for name, value in header.items() if name != "optimizer"}
    text = json.dumps(described | {"sha256": digest(described, state)}, sort_keys=True, allow_nan=False)
    write_whole(target, to_safetensors(state, {ENTRY: text}))


def _units(header: Header, state: Arrays) -> Arrays:
    """Return the buffers of normalizations, which the config holds, by the names of a state dict."""
    hulls = {"": header["config"]}
    if header["kind"] != "VectorHull":
        recipes = header["config"]["experts"]
        hulls = {f"level_modules.{name}.hull.": r["config"] for name, r in recipes.items() if "config" in r}
    return {
        f"{prefix}normalization.{name}": np.asarray(config["normalization"][name]).astype(
            state[f"{prefix}shifts"].dtype
        )
        for prefix, config in hulls.items()
        for name in (UNITS if config.get("normalization") else ())
    }


def _read_orbax(source: Path) -> tuple[Header, Arrays]:
    """Return what stands in a directory that `_write_orbax` wrote; without a sum, as another program leaves it."""
    import jax
    import orbax.checkpoint as ocp

    header = check_header(os.fspath(source), (source / DESCRIPTION).read_text("utf-8"), sealed=False)
    folders = FOLDERS if "optimizer" in header else FOLDERS[:1]
    with jax.enable_x64(True), ocp.StandardCheckpointer() as checkpointer:
        trees = {folder: checkpointer.restore(source.absolute() / folder) for folder in folders}
    arrays = {_neutral_name(name): own_copy(value) for name, value in flatten(trees).items()}
    if "sha256" in header:
        _check_sum(header, arrays)
    return header, arrays


def _write_orbax(target: Path, header: Header, arrays: Arrays) -> None:
    frameworks.choose("jax")
    import orbax.checkpoint as ocp

    own = target.is_dir() and {DESCRIPTION} <= {*os.listdir(target)} <= {DESCRIPTION, *FOLDERS}
    if target.exists() and not own:
        raise InputError(f"{target}: expected a new directory; something else is there. Name another one.")
    trees = nest({_orbax_name(name): value for name, value in arrays.items()})
    text = json.dumps(header | {"sha256": digest(header, arrays)}, sort_keys=True, allow_nan=False) + "\n"
    with write_folder(target, (DESCRIPTION,)) as fresh:
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                for folder, tree in trees.items():
                    checkpointer.save(fresh.absolute() / folder, tree)
            write_whole(fresh / DESCRIPTION, text.encode())
            _read_orbax(fresh)
        except Exception as error:  # of any kind, from names and numbers that Orbax does not take
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            refuse(target, "a model that Orbax can keep", reason, "Use --to neutral.")


def _write_hub(source: Path, target: Path, header: Header, arrays: Arrays) -> None:
    """Write a folder for a hub, with the metrics and the certificate that stand beside the source and are of it."""
    model = source / hub.MODEL if source.is_dir() else source
    metrics = hub.read_json(model.with_name(hub.METRICS))
    data = metrics["data"] if has_form(metrics, {"data": dict}) else {}
    same = source.is_dir() or all(data.get(name, 0) == header["notes"].get(name) for name in ("columns", "target"))
    certificate = hub.read_certificate(model, source / hub.CERTIFICATE if source.is_dir() else None)
    try:
        given = metrics if metrics and same else None, certificate
        with hub.write_pretrained(target, *given) as path:
            write_sealed(path, header, arrays)
    except (FileExistsError, ValueError) as error:
        raise InputError(str(error)) from None


def _orbax_name(name: str) -> str:
    """Return where a tensor of the neutral file stands in the directory: folder, moment if it is one, dotted parts."""
    if name.startswith(PREFIX):
        return f"{FOLDERS[0]}.{name.removeprefix(PREFIX)}"
    return f"{FOLDERS[1]}.{name.removeprefix(OPTIMIZER).replace('/', '.', 1)}"


def _neutral_name(name: str) -> str:
    """Return what a tensor of the directory is called in the neutral file; the inverse of `_orbax_name`."""
    folder, _, parameter = name.partition(".")
    return PREFIX + parameter if folder == FOLDERS[0] else OPTIMIZER + parameter.replace(".", "/", 1)
