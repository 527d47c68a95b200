"""The neutral file: what was saved comes back to the bit, and one file serves both packages byte for byte."""

import json
import os

import backends
import cases
import numpy as np
import pytest
from safetensors import safe_open

import convexmoe.files.format

HULLS = ["default", "everything", "learned", "gate_private", "one_petal", "units"]
# every dtype on one hull, every hull in one dtype
SAVED = [("everything", dtype) for dtype in backends.DTYPES] + [
    (hull, "float32") for hull in HULLS if hull != "everything"
]


def saved(backend, hull, path, dtype="float32", **options):
    fields = cases.HULLS[hull]
    model = backend.model(fields, cases.random_weights(fields), dtype)
    with backend.precision(dtype):
        backend.package.save(model, path, **options)
    return model


def loaded(backend, path, dtype="float32"):
    with backend.precision(dtype):
        return backend.package.load(path)


def same_bits(first, second):
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype
        and first[name].shape == second[name].shape
        and first[name].tobytes() == second[name].tobytes()
        for name in first
    )


@pytest.mark.parametrize(("hull", "dtype"), SAVED)
def test_load_gives_what_was_saved(backend, hull, dtype, tmp_path):
    model = saved(backend, hull, tmp_path / "hull.safetensors", dtype)
    again = loaded(backend, str(tmp_path / "hull.safetensors"), dtype)
    assert again.config == model.config
    weights = backend.weights(again)
    assert same_bits(weights, backend.weights(model))
    # control: one bit of one weight
    weights["shifts"].view(np.uint8)[0] ^= 1
    assert not same_bits(weights, backend.weights(model))


@pytest.mark.parametrize(("hull", "dtype"), SAVED)
def test_a_file_goes_round_both_packages_byte_for_byte(hull, dtype, tmp_path):
    jax_backend, torch_backend = backends.BACKENDS
    files = [tmp_path / name for name in ("jax", "torch", "jax_again")]
    saved(jax_backend, hull, files[0], dtype, notes={"columns": ["é", "b"], "n": 3})
    for backend, source, target in [(torch_backend, *files[:2]), (jax_backend, *files[1:])]:
        with backend.precision(dtype):
            notes = backend.package.read_notes(source)
            backend.package.save(loaded(backend, source, dtype), target, notes=notes)
    first, *others = [file.read_bytes() for file in files]
    assert all(other == first for other in others)
    # control: another note is another file
    with torch_backend.precision(dtype):
        torch_backend.package.save(loaded(torch_backend, files[0], dtype), files[1], notes={})
    assert files[1].read_bytes() != first


def test_the_file_has_the_documented_names_and_one_sorted_entry(backend, tmp_path):
    saved(backend, "everything", tmp_path / "hull", notes={"b": 1, "a": 2})
    with safe_open(tmp_path / "hull", framework="numpy") as file:
        metadata, names = file.metadata(), set(file.keys())
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    table = cases.weight_shapes(cases.HULLS["everything"])
    assert shapes == {f"params/{name}": shape for name, shape in table.items()}
    assert list(metadata) == ["convexmoe"]
    header = json.loads(metadata["convexmoe"])
    assert metadata["convexmoe"] == json.dumps(header, sort_keys=True)
    assert set(header) == {"schema", "kind", "config", "notes", "sha256"}
    assert (header["schema"], header["kind"]) == (1, "VectorHull")


def test_notes_come_back(backend, tmp_path):
    notes = {"columns": ["weight", "höhe"], "target": "mpg", "rows": 392, "nested": {"a": [1.5, None, True]}}
    saved(backend, "default", tmp_path / "hull", notes=notes)
    assert backend.package.read_notes(tmp_path / "hull") == notes
    saved(backend, "default", tmp_path / "hull")
    assert backend.package.read_notes(tmp_path / "hull") == {}


@pytest.mark.parametrize("notes", [{"a": float("nan")}, {"a": object()}, {"a": np.float32(1)}])
def test_notes_that_json_cannot_hold_leave_no_file(backend, notes, tmp_path):
    with pytest.raises((TypeError, ValueError)):
        saved(backend, "default", tmp_path / "hull", notes=notes)
    assert list(tmp_path.iterdir()) == []


def test_a_loaded_model_shares_no_memory_with_another(backend, tmp_path):
    saved(backend, "default", tmp_path / "hull")
    first, second = loaded(backend, tmp_path / "hull"), loaded(backend, tmp_path / "hull")
    before = backend.weights(second)
    if backend.name == "torch":
        first.shifts.data.add_(1.0)
    else:
        first.shifts[...] = first.shifts[...] + 1.0
    assert same_bits(before, backend.weights(second))
    assert not same_bits(before, backend.weights(first))


def fail_to_flush(*_):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failed_write_leaves_the_previous_file_whole(backend, function, tmp_path, monkeypatch):
    saved(backend, "default", tmp_path / "hull")
    before = (tmp_path / "hull").read_bytes()
    monkeypatch.setattr(os, function, fail_to_flush)
    with pytest.raises(OSError, match="No space left"):
        saved(backend, "everything", tmp_path / "hull")
    assert [path.name for path in tmp_path.iterdir()] == ["hull"]
    assert (tmp_path / "hull").read_bytes() == before


def test_control_a_write_in_place_destroys_the_previous_file(backend, tmp_path, monkeypatch):
    def in_place(path, data):
        path.write_bytes(data[: len(data) // 2])
        fail_to_flush()

    saved(backend, "default", tmp_path / "hull")
    before = (tmp_path / "hull").read_bytes()
    monkeypatch.setattr(convexmoe.files.format, "write_whole", in_place)
    with pytest.raises(OSError, match="No space left"):
        saved(backend, "everything", tmp_path / "hull")
    assert (tmp_path / "hull").read_bytes() != before


def test_a_previous_file_is_replaced(backend, tmp_path):
    saved(backend, "default", tmp_path / "hull")
    saved(backend, "everything", tmp_path / "hull")
    assert loaded(backend, tmp_path / "hull").config.petals == 13
    assert [path.name for path in tmp_path.iterdir()] == ["hull"]
