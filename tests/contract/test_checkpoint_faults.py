"""A file that is damaged, foreign or does not fit its config is refused in the same words by both packages."""

import dataclasses
import hashlib
import json

import backends
import cases
import numpy as np
import pytest
from safetensors.numpy import save as raw_save

from convexmoe import HullConfig

FIELDS = cases.HULLS["default"]
NAMES = [field.name for field in dataclasses.fields(HullConfig)]
WEIGHTS = backends.rounded(cases.random_weights(FIELDS), "float32")
FETCH = "Fetch the file again or save the model anew."


def signed(header, arrays):
    """The header with the sha256 of it and of the arrays, computed apart from the packages."""
    total = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    codes = {"float32": "F32", "float64": "F64", "float16": "F16", "int32": "I32"}
    for name, value in sorted(arrays.items()):
        total.update(f"\n{name} {codes[str(value.dtype)]} {list(value.shape)}\n".encode() + value.tobytes())
    return header | {"sha256": total.hexdigest()}


def write(path, change_header=None, change_arrays=None, sign=True):
    """A neutral file written by hand, with changes to its header or its arrays."""
    arrays = {f"params/{name}": np.ascontiguousarray(value) for name, value in WEIGHTS.items()}
    if change_arrays is not None:
        change_arrays(arrays)
    header = {"schema": 1, "kind": "VectorHull", "config": dict(FIELDS), "notes": {}}
    if change_header is not None:
        change_header(header)
    if sign:
        header = signed(header, arrays)
    path.write_bytes(raw_save(arrays, {"convexmoe": json.dumps(header, sort_keys=True)}))
    return path


def message(backend, path, kind=ValueError):
    with pytest.raises(kind) as error:
        backend.package.load(path)
    assert type(error.value) is kind
    return str(error.value).replace(repr(str(path)), "FILE")


def test_control_a_file_written_by_hand_is_read(backend, tmp_path):
    model = backend.package.load(write(tmp_path / "hull"))
    assert all(np.array_equal(value, WEIGHTS[name]) for name, value in backend.weights(model).items())
    backend.package.save(model, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "hull").read_bytes()


def test_all_faults_of_the_arrays_are_named_at_once(backend, tmp_path):
    def spoil(arrays):
        arrays["params/extra"] = arrays.pop("params/readout.bias")
        arrays["params/readout.weight"] = np.ascontiguousarray(arrays["params/readout.weight"].swapaxes(1, 2))
        arrays["params/trunk.0.bias"] = arrays["params/trunk.0.bias"].astype(np.float64)
        arrays["opt/mu/shifts"] = np.zeros(3, np.float32)

    assert message(backend, write(tmp_path / "hull", change_arrays=spoil)) == (
        "load.weights: expected the 6 arrays of its config; got missing params/readout.bias; "
        "unexpected opt/mu/shifts; unexpected params/extra; "
        "params/readout.weight has shape [5, 2, 3], not [5, 3, 2]; "
        "params/trunk.0.bias has dtype float64, not float32. Use the config that the weights were made with."
    )


def test_weights_without_shifts_are_refused(backend, tmp_path):
    path = write(tmp_path / "hull", change_arrays=lambda arrays: arrays.pop("params/shifts"))
    assert "got missing params/shifts. " in message(backend, path)


KINDS = ["VectorHull", "HierarchicalCELMoE"]
HEADER = ["config", "kind", "notes", "schema", "sha256"]
HEADERS = {
    "newer": (
        lambda header: header.update(schema=3),
        "load.path: expected schema 2 or older; got FILE with schema 3. Install a newer convexmoe.",
    ),
    "newer_with_other_fields": (
        lambda header: header.update(schema=7, router={}),
        "load.path: expected schema 2 or older; got FILE with schema 7. Install a newer convexmoe.",
    ),
    "other_kind": (
        lambda header: header.update(kind="Router"),
        f"load.path: expected one of {KINDS} with the fields {HEADER}; got FILE. {FETCH}",
    ),
    "no_notes": (
        lambda header: header.pop("notes"),
        f"load.path: expected one of {KINDS} with the fields {HEADER}; got FILE. {FETCH}",
    ),
    "unknown_field": (
        lambda header: header["config"].update(router="top2"),
        f"HullConfig.from_json: expected the fields {NAMES}; got unknown router. "
        "Pass what to_json of this version wrote.",
    ),
    "other_petals": (
        lambda header: header["config"].update(petals=7),
        "load.weights: expected the 6 arrays of its config; got params/readout.bias has shape [3, 2], not [7, 2]; "
        "params/readout.raw_weight has shape [7, 3, 2], not [7, 7, 2]; "
        "params/readout.weight has shape [5, 3, 2], not [5, 7, 2]; params/shifts has shape [3], not [7]. "
        "Use the config that the weights were made with.",
    ),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_does_not_fit_is_refused(backend, name, tmp_path):
    change, wanted = HEADERS[name]
    assert message(backend, write(tmp_path / "hull", change_header=change)) == wanted


def test_a_config_that_was_changed_by_hand_is_refused(backend, tmp_path):
    """The activation fits the arrays as well as before; only the sum over the whole header can tell."""

    def change(header):
        header.update(signed(header, {f"params/{name}": value for name, value in WEIGHTS.items()}))
        header["config"] = header["config"] | {"activation": "relu"}

    path = write(tmp_path / "hull", change_header=change, sign=False)
    wanted = "load.path: expected a file whose content has the sha256 it states; got FILE, which differs. "
    assert message(backend, path) == wanted + FETCH


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"a,b\n1,2\n", b"PK\x03\x04" + bytes(200), bytes(300)])
def test_what_is_no_safetensors_file_is_refused(backend, content, tmp_path):
    (tmp_path / "hull").write_bytes(content)
    text = message(backend, tmp_path / "hull")
    assert text.startswith("load.path: expected a .safetensors file; got FILE (") and text.endswith(FETCH)


def test_a_foreign_safetensors_file_is_refused(backend, tmp_path):
    for metadata in (None, {"format": "pt"}):
        (tmp_path / "hull").write_bytes(raw_save({"w": np.zeros(3)}, metadata))
        assert message(backend, tmp_path / "hull") == (
            "load.path: expected a file that convexmoe saved; got FILE. Write it with save(model, path)."
        )


@pytest.mark.parametrize("text", ["{", "[]", "7", "{}", '{"schema": "1"}'])
def test_an_entry_that_is_no_header_is_refused(backend, text, tmp_path):
    (tmp_path / "hull").write_bytes(raw_save({"w": np.zeros(3)}, {"convexmoe": text}))
    assert message(backend, tmp_path / "hull").startswith("load.path: expected metadata ")


def test_missing_files_and_folders_are_named(backend, tmp_path):
    assert message(backend, tmp_path / "none", FileNotFoundError) == (
        "load.path: expected a file; got FILE. Check the name."
    )
    assert message(backend, tmp_path, FileNotFoundError) == "load.path: expected a file; got FILE. Check the name."
    path = tmp_path / "none" / "hull"
    with pytest.raises(FileNotFoundError) as error:
        backend.package.save(backend.model(FIELDS, WEIGHTS, "float32"), path)
    assert str(error.value) == (f"save.path: expected a folder that exists; got {str(path)!r}. Make the folder first.")


@pytest.mark.parametrize("seed", cases.SEEDS)
def test_a_changed_byte_is_never_read_as_another_model(backend, seed, tmp_path):
    """Every third byte of the file in turn, changed at random: refused, or the very same model."""
    good = write(tmp_path / "hull").read_bytes()
    model = backend.package.load(tmp_path / "hull")
    rng = np.random.default_rng(seed)
    refused, places = 0, range(seed, len(good), 3)
    for place in places:
        byte = good[place] ^ int(rng.integers(1, 256))
        (tmp_path / "bad").write_bytes(good[:place] + bytes([byte]) + good[place + 1 :])
        try:
            again = backend.package.load(tmp_path / "bad")
        except ValueError:
            refused += 1
            continue
        assert again.config == model.config, place
        weights = backend.weights(again)
        assert all(np.array_equal(value, weights[name]) for name, value in backend.weights(model).items())
    assert refused > 0.98 * len(places)


@pytest.mark.parametrize("size", [0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_refused(backend, size, tmp_path):
    good = write(tmp_path / "hull").read_bytes()
    (tmp_path / "cut").write_bytes(good[: int(size * len(good))])
    assert message(backend, tmp_path / "cut").endswith(FETCH)
