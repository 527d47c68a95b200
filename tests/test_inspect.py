"""`convexmoe inspect`: what stands in a file, from its header alone, and every fault of a file in one line."""

import json
import struct
from contextlib import suppress

import numpy as np
import pytest
from commands import assert_one_line_refusal, invoke

import convexmoe_torch
from convexmoe import inspect
from convexmoe.errors import InputError


@pytest.fixture
def path(tmp_path):
    convexmoe_torch.save(
        convexmoe_torch.VectorHull(3, 2, out_dim=5), tmp_path / "hull.safetensors", notes={"target": "y"}
    )
    return tmp_path / "hull.safetensors"


def parts(path):
    """The header as a dict, and the bytes after it."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def put(path, header, rest):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + rest)


def test_it_says_what_load_gives(path):
    found, model = inspect(path), convexmoe_torch.load(path)
    shapes = {tensor.name: tensor.shape for tensor in found.tensors}
    assert shapes == {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert found.kind == "VectorHull" and found.config == json.loads(model.config.to_json())
    assert found.notes == {"target": "y"} == convexmoe_torch.read_notes(path)
    assert found.num_parameters == sum(p.numel() for p in model.parameters())
    assert {tensor.bytes for tensor in found.tensors} == {4 * p.numel() for p in model.parameters()}


def test_hierarchies_too(tmp_path):
    level = convexmoe_torch.HierarchyLevelConfig("a", [convexmoe_torch.ExpertConfig("x")])
    model = convexmoe_torch.HierarchicalCELMoE(
        convexmoe_torch.CELMoEConfig(3, [level]), lambda *_: convexmoe_torch.LinearExpert(3)
    )
    convexmoe_torch.save(model, tmp_path / "model.safetensors")
    result = invoke("inspect", tmp_path / "model.safetensors")
    assert result.exit_code == 0
    assert "HierarchicalCELMoE, schema 1" in result.stdout and "level_modules.a.x.weight" in result.stdout


def test_the_table_and_the_json(path):
    shown = invoke("inspect", path)
    assert shown.exit_code == 0
    for word in ("VectorHull, schema 1", "readout.raw_weight", "64x2x5", "F32", "2,560", '"petals": 2'):
        assert word in shown.stdout, word
    told = json.loads(invoke("inspect", path, "--json").stdout)
    assert told["parameters"] == inspect(path).num_parameters and told["sha256"] in shown.stdout


def test_it_reads_no_weights(path):
    header, rest = parts(path)
    put(path, header, bytes(len(rest)))  # other numbers: only load computes the sha256
    assert inspect(path).num_parameters > 0


def test_the_command_computes_the_sha256(path):
    assert "as computed" in invoke("inspect", path).stdout
    assert json.loads(invoke("inspect", path, "--json").stdout)["intact"]
    header, rest = parts(path)
    for changed in (lambda: put(path, header, bytes(len(rest))), lambda: entry(notes={"target": "z"})(path)):
        changed()
        shown, told = invoke("inspect", path), invoke("inspect", path, "--json")
        assert shown.exit_code == told.exit_code == 1 and not json.loads(told.stdout)["intact"]
        assert "the content has ANOTHER: fetch the file again" in shown.stdout
        put(path, header, rest)


def edited(change):
    """A damage to the header."""

    def damage(path):
        header, rest = parts(path)
        change(header)
        put(path, header, rest)

    return damage


def entry(**fields):
    def change(header):
        metadata = header["__metadata__"]
        metadata["convexmoe"] = json.dumps(json.loads(metadata["convexmoe"]) | fields)

    return edited(change)


FAULTS = {
    "empty": (lambda path: path.write_bytes(b""), ["expected a .safetensors file", "Fetch the file again"]),
    "no length": (lambda path: path.write_bytes(b"abc"), ["expected a .safetensors file"]),
    "a huge header": (lambda path: path.write_bytes(struct.pack("<Q", 2**62)), ["expected a .safetensors file"]),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-1]), ["bytes, where its header says", "again"]),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"x"), ["bytes, where its header says"]),
    "no metadata": (edited(lambda header: header.pop("__metadata__")), ["expected a file that convexmoe saved"]),
    "another shape": (
        edited(lambda header: header["params/shifts"].update(shape=[2**40])),
        ["expected a .safetensors file"],
    ),
    "another dtype": (
        edited(lambda header: header["params/shifts"].update(dtype="I32")),
        ["expected a .safetensors file"],
    ),
    "newer": (entry(schema=3), ["expected schema 2 or older; got", "with schema 3", "newer convexmoe"]),
    "nested": (lambda path: put(path, json.loads("[" * 500 + "]" * 500), b""), ["expected a .safetensors file"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_one_line(path, fault):
    damage, words = FAULTS[fault]
    damage(path)
    assert_one_line_refusal(invoke("inspect", path), "hull.safetensors", *words)


def test_missing_file(tmp_path):
    assert_one_line_refusal(invoke("inspect", tmp_path / "none"), "expected a file; found none")


def test_any_flipped_byte_of_the_header_is_told_or_harmless(path):
    """Never another error: the command shows an InputError as one line (above)."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    for at in np.random.default_rng(0).integers(0, 8 + length, 300):
        changed = bytearray(data)
        changed[at] ^= 1 << int(at % 8)
        path.write_bytes(changed)
        with suppress(InputError):
            inspect(path)
