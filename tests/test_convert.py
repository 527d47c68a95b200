"""`convexmoe convert`: neutral file, state dict, Orbax directory and back, byte for byte; each readable on its own."""

import json
import os

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
from commands import assert_one_line_refusal, invoke
from safetensors.torch import load_file
from saved_models import hierarchy, hull, stepped

import convexmoe_torch
from convexmoe import Normalization
from interop import conversion, convert, frameworks

MODELS = {
    "hull": hull,
    "hull in float64": lambda: hull(dtype=torch.float64),
    "hull in bfloat16": lambda: hull(dtype=torch.bfloat16),
    "hierarchy": hierarchy,
}


def saved(kind, folder, trained=False):
    path, model = folder / "model.safetensors", MODELS[kind]()
    optimizer = stepped(model) if trained else None
    convexmoe_torch.save(model, path, notes={"columns": ["a", "b", "c"]}, optimizer=optimizer)
    return path


@pytest.mark.parametrize("kind", MODELS)
def test_round_trips_are_byte_for_byte(kind, tmp_path):
    path = saved(kind, tmp_path)
    steps = [("state.safetensors", "torch"), ("again.safetensors", "neutral"), ("folder", "orbax")]
    steps += [("back.safetensors", "neutral"), ("folder2", "orbax"), ("state2.safetensors", "torch")]
    source = path
    for name, form in steps:
        result = invoke("convert", source, tmp_path / name, "--to", form)
        assert result.exit_code == 0 and form in result.stderr, result.output
        source = tmp_path / name
    for name in ("again.safetensors", "back.safetensors"):
        assert (tmp_path / name).read_bytes() == path.read_bytes()
    assert (tmp_path / "state2.safetensors").read_bytes() == (tmp_path / "state.safetensors").read_bytes()


@pytest.mark.parametrize("kind", MODELS)
def test_an_optimizer_goes_to_orbax_and_back_and_stays_out_of_the_state_dict(kind, tmp_path):
    path = saved(kind, tmp_path, trained=True)
    assert invoke("convert", path, tmp_path / "folder").exit_code == 0
    assert invoke("convert", tmp_path / "folder", tmp_path / "back.safetensors").exit_code == 0
    assert (tmp_path / "back.safetensors").read_bytes() == path.read_bytes()
    result = invoke("convert", path, tmp_path / "state.safetensors")
    assert result.stderr.strip().endswith("torch, without its optimizer")
    assert MODELS[kind]().state_dict().keys() == load_file(tmp_path / "state.safetensors").keys()
    # control: a model alone loses nothing
    result = invoke("convert", saved(kind, tmp_path), tmp_path / "state.safetensors")
    assert result.stderr.strip().endswith("torch")


@pytest.mark.parametrize("kind", MODELS)
def test_the_state_dict_loads_in_torch_alone(kind, tmp_path):
    model = MODELS[kind]()
    assert invoke("convert", saved(kind, tmp_path), tmp_path / "state.safetensors").exit_code == 0
    state = load_file(tmp_path / "state.safetensors")
    wanted = model.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], value) for name, value in wanted.items())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.load_state_dict(state)
    assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())


def test_the_directory_is_read_by_orbax_alone(tmp_path):
    model = hull(dtype=torch.float64)
    assert invoke("convert", saved("hull in float64", tmp_path), tmp_path / "folder").exit_code == 0
    with jax.enable_x64(True), ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(tmp_path / "folder" / "state")
    assert np.array_equal(tree["trunk"]["0"]["weight"], model.trunk["0"]["weight"].detach().numpy())
    assert json.loads((tmp_path / "folder" / "convexmoe.json").read_text())["kind"] == "VectorHull"


def test_the_form_is_chosen_by_what_is_given(tmp_path):
    path = saved("hull", tmp_path)
    for source, target, form in [
        (path, "state.safetensors", "torch"),
        (path, "folder", "orbax"),
        (tmp_path / "folder", "back.safetensors", "neutral"),
        (tmp_path / "state.safetensors", "back", "neutral"),
    ]:
        assert invoke("convert", source, tmp_path / target).stderr.strip().endswith(form)
    assert invoke("convert", path, tmp_path / "folder").exit_code == 0  # one of ours is replaced
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("form", ["neutral", "torch"])
def test_a_flipped_bit_is_refused(form, tmp_path):
    path = saved("hull", tmp_path)
    if form == "torch":
        invoke("convert", path, tmp_path / "state.safetensors")
        path = tmp_path / "state.safetensors"
    flip(path)
    assert_one_line_refusal(invoke("convert", path, tmp_path / "out.safetensors"), path.name, "sha256")
    assert not (tmp_path / "out.safetensors").exists()


def edited(change, unsealed=True):
    """A change of the description of a directory, in place, with its sum or without."""

    def damage(folder):
        header = json.loads((folder / "convexmoe.json").read_text())
        change(header)
        if unsealed:
            header.pop("sha256")
        (folder / "convexmoe.json").write_text(json.dumps(header))

    return damage


def replaced(folder):
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(folder / "state")
        checkpointer.save(folder / "state", tree | {"shifts": np.zeros(4, np.float32)}, force=True)


DAMAGE = {
    "another activation": (edited(lambda header: header["config"].update(activation="relu"), unsealed=False), "sha256"),
    "another kind": (edited(lambda header: header.update(kind="HierarchicalCELMoE")), "a config that describes"),
    "a list for the config": (edited(lambda header: header.update(config=[])), "an object"),
    "a number for the optimizer": (edited(lambda header: header.update(optimizer=0)), "an optimizer with its rule"),
    "an optimizer that is not there": (
        edited(lambda header: header.update(optimizer={"rule": "adam", "step": 3})),
        "optimizer",
    ),
    "other petals": (edited(lambda header: header["config"].update(petals=7)), "shape [5, 1], not [7, 1]"),
    "another tensor": (replaced, "sha256"),
    "no description": (lambda folder: (folder / "convexmoe.json").unlink(), "No such file"),
    "no JSON": (lambda folder: (folder / "convexmoe.json").write_bytes(b"\xff{"), "expected a model"),
    "no names": (lambda folder: (folder / "state" / "_METADATA").write_text("{"), "expected a model"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_directory_is_refused(name, tmp_path):
    damage, words = DAMAGE[name]
    assert invoke("convert", saved("hull", tmp_path), tmp_path / "folder").exit_code == 0
    damage(tmp_path / "folder")
    result = invoke("convert", tmp_path / "folder", tmp_path / "back.safetensors")
    assert result.exit_code == 2 and words in result.stderr and "Traceback" not in result.stderr, result.stderr
    assert not (tmp_path / "back.safetensors").exists()


def test_a_directory_without_a_sum_is_read_and_its_mode_stays(tmp_path):
    path = saved("hull", tmp_path)
    assert invoke("convert", path, tmp_path / "folder").exit_code == 0
    edited(lambda header: None)(tmp_path / "folder")
    (tmp_path / "folder").chmod(0o700)
    (tmp_path / "folder" / "convexmoe.json").chmod(0o600)
    assert invoke("convert", tmp_path / "folder", tmp_path / "back.safetensors").exit_code == 0
    assert (tmp_path / "back.safetensors").read_bytes() == path.read_bytes()
    assert invoke("convert", path, tmp_path / "folder").exit_code == 0  # replaced
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "folder" / "convexmoe.json").stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(tmp_path)) == ["back.safetensors", "folder", "model.safetensors"]


def test_without_jax_a_directory_is_refused_and_files_are_converted(tmp_path, monkeypatch):
    path = saved("hull", tmp_path)
    assert invoke("convert", path, tmp_path / "folder").exit_code == 0
    monkeypatch.setattr(frameworks, "is_installed", lambda module: False)
    for source, target in [(path, "other"), (tmp_path / "folder", "back.safetensors")]:
        assert_one_line_refusal(invoke("convert", source, tmp_path / target), 'pip install -e ".[jax]"')
    assert invoke("convert", path, tmp_path / "state.safetensors").exit_code == 0


def test_the_former_name_of_the_module():
    assert conversion.convert is convert.convert


@pytest.mark.parametrize("units", [{"input_mean": (1e300, 0.0)}, {"input_scale": (1e-60, 1.0)}])
def test_units_that_the_dtype_does_not_hold_are_not_written(units, tmp_path):
    fair = {"input_mean": (1.0, 0.0), "input_scale": (2.0, 1.0), "output_mean": (0.0,), "output_scale": (1.0,)}
    for name, values, code in (("bad", fair | units, 2), ("control", fair, 0)):
        model = convexmoe_torch.VectorHull(2, petals=3, out_dim=1, normalization=Normalization(**values))
        convexmoe_torch.save(model, tmp_path / f"{name}.safetensors")
        result = invoke("convert", tmp_path / f"{name}.safetensors", tmp_path / "state", "--to", "torch")
        assert (result.exit_code, (tmp_path / "state").exists()) == (code, not code), result.output


def test_refusals(tmp_path):
    path = saved("hull", tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").write_text("x")
    foreign = tmp_path / "foreign.safetensors"
    foreign.write_bytes(b"nothing")
    for arguments, words in [
        ([path, tmp_path / "x", "--to", "onnx"], ["--to", "'onnx'", "Try"]),
        ([path, path], ["two places"]),
        ([tmp_path / "none", tmp_path / "x"], ["expected a model in one of the forms"]),
        ([foreign, tmp_path / "x"], ["foreign.safetensors", "expected a model"]),
        ([tmp_path / "other", tmp_path / "x"], ["expected a model"]),
        ([path, tmp_path / "other"], ["something else is there"]),
        ([path, tmp_path / "no" / "x.safetensors"], ["folder that exists"]),
    ]:
        assert_one_line_refusal(invoke("convert", *arguments), *words)
    assert sorted(os.listdir(tmp_path)) == ["foreign.safetensors", "model.safetensors", "other"]
    assert (tmp_path / "other" / "precious").read_text() == "x"


def test_a_directory_to_which_somebody_added_a_file_is_not_replaced(tmp_path):
    path, folder = saved("hull", tmp_path), tmp_path / "folder"
    for _ in range(2):  # the second time it replaces its own
        assert invoke("convert", path, folder, "--to", "orbax").exit_code == 0
    (folder / "precious").write_text("x")
    assert_one_line_refusal(invoke("convert", path, folder, "--to", "orbax"), "something else is there")
    assert (folder / "precious").read_text() == "x"
