"""Thousands of changed model files through every reader: no traceback, no silent change, no unreadable file written."""

import json
import shutil
import warnings

import mutations
import numpy as np
import pytest
import safetensors.numpy
import saved_models
from commands import invoke

import convexmoe_jax
import convexmoe_torch
from convexmoe import inspect
from convexmoe.errors import InputError
from convexmoe.files.hulls import read_hull
from interop.convert import convert

PACKAGES = (convexmoe_jax, convexmoe_torch)
NOTES = {"columns": ["a", "b", "c"], "target": "y", "ranges": [[0.0, 2.0], [0.0, 4.0], [-5.0, 9.0]]}


@pytest.fixture(scope="module")
def goods(tmp_path_factory):
    """The bytes of a hull as `convexmoe fit` writes it, of one with an optimizer, and of a hierarchy with one."""
    folder, hull, hierarchy = tmp_path_factory.mktemp("good"), saved_models.hull(), saved_models.hierarchy()
    models = [(hull, None), (hull, saved_models.stepped(hull)), (hierarchy, saved_models.stepped(hierarchy))]
    for number, (model, optimizer) in enumerate(models):
        convexmoe_torch.save(model, folder / str(number), notes=NOTES, optimizer=optimizer)
    return [(folder / str(number)).read_bytes() for number in range(len(models))]


def content(data):
    """What a file says and holds, whatever the order and the spaces of its header."""
    header, _ = mutations.parts(data)
    entry = json.loads(header["__metadata__"]["convexmoe"])
    tensors = safetensors.numpy.load(data)
    return entry, {name: (str(a.dtype), a.shape, a.tobytes()) for name, a in sorted(tensors.items())}


def read_everything(path, folder):
    """What loads of a file: each reader gives what the file says, or refuses it as an `InputError` or in our words."""
    loaded = []
    for package in PACKAGES:
        try:
            model, state = package.load(path), package.read_optimizer(path)
        except ValueError as error:
            assert ": expected " in str(error) and "\x1b" not in str(error), error
            continue
        package.save(model, folder / "again", notes=package.read_notes(path), optimizer=state)
        assert content((folder / "again").read_bytes()) == content(path.read_bytes())
        loaded.append(package)
    try:
        assert inspect(path).to_json()
        described = True
    except InputError:
        described = False
    assert len(loaded) in (0, 2) and (described or not loaded)
    return loaded


def convert_everywhere(path, folder, forms):
    """Each form that is written is read back to the same content; returns how many were written."""
    written = 0
    for form in forms:
        try:
            convert(path, folder / form, form)
        except InputError:
            assert not (folder / form).exists()
            continue
        convert(folder / form, folder / "back", "neutral")
        if form == "neutral":
            assert content((folder / "back").read_bytes()) == content(path.read_bytes())
        for package in PACKAGES:
            package.load(folder / "back")
        shutil.rmtree(folder / form) if form == "orbax" else (folder / form).unlink()
        (folder / "back").unlink()
        written += 1
    return written


def run_commands(path, table, framework):
    """The codes of the commands: 0 or 1 for a result, 2 for one line."""
    codes = []
    for command in ("inspect", "minimize", "certify", "predict"):
        arguments = [command, path, *([table] if command == "predict" else [])]
        result = invoke(*arguments, *([] if command == "inspect" else ["--framework", framework]))
        assert result.exception is None or isinstance(result.exception, SystemExit), (command, result.exception)
        assert "\x1b" not in result.output and " nan" not in result.stdout, result.output
        assert result.exit_code < 2 or (result.exit_code == 2 and len(result.stderr.splitlines()) == 1)
        codes.append(result.exit_code)
    path.with_name(path.name + ".certificate.json").unlink(missing_ok=True)
    return codes


def put(*place, value):
    """A change of one value of the description."""

    def change(entry):
        part = entry
        for key in place[:-1]:
            part = part[key]
        part[place[-1]] = value
        return entry

    return change


FORMS = {
    "a number for the optimizer": put("optimizer", value=0),
    "a list for the config": put("config", value=[]),
    "text for the config": put("config", value="x"),
    "text for numbers": put("config", "normalization", "input_mean", value=["1", "2", "3"]),
    "a number for a switch": put("config", "gate", value=0),
    "a switch for a number": put("config", "depth", value=True),
    "a field that the config would fill in": put("config", "hidden_dim", value=None),
    "a list for the notes": put("notes", value=[]),
    "nesting": put("notes", "x", value=mutations.nested(600)),
    "NaN": put("notes", "x", value=float("nan")),
    "infinity": put("notes", "x", value=float("-inf")),
    "no Unicode": put("notes", "target", value="\ud800"),
    "a number for the sum": lambda entry: entry | {"sha256": 7},
    "a schema below the first": put("schema", value=0),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_description_of_another_form_is_refused_by_every_reader(name, goods, tmp_path):
    path = tmp_path / "bad"
    path.write_bytes(mutations.sealed(goods[0], FORMS[name]))
    if name == "a number for the sum":
        path.write_bytes(mutations.described(goods[0], FORMS[name]))
    assert read_everything(path, tmp_path) == [] and convert_everywhere(path, tmp_path, ["neutral", "torch"]) == 0
    with pytest.raises(InputError):
        inspect(path)
    with pytest.raises(ValueError, match="expected"):
        read_hull(path, "test")


def test_control_a_file_sealed_anew_without_a_change_is_read(goods, tmp_path):
    for good in goods:
        path = tmp_path / "same"
        path.write_bytes(mutations.sealed(good, lambda entry: entry))
        assert len(read_everything(path, tmp_path)) == 2 and convert_everywhere(path, tmp_path, ["torch"]) == 1


@pytest.mark.parametrize("number", [-np.inf, np.nan, np.inf])
@pytest.mark.parametrize("name", ["params/readout.raw_weight", "params/raw_temperature", "params/trunk.0.weight"])
def test_weights_that_are_not_finite_are_carried_and_not_computed_with(name, number, goods, tmp_path):
    """`load` reads what a run that went wrong has left, `convert` says what it carries, the others refuse."""
    path, table = tmp_path / "bad", tmp_path / "t.csv"
    table.write_text("a,b,c\n1,2,3\n")
    path.write_bytes(
        mutations.sealed(goods[0], arrays=lambda tensors: tensors[name].reshape(-1).__setitem__(0, number))
    )
    assert len(read_everything(path, tmp_path)) == 2
    assert set(run_commands(path, table, "torch")[1:]) == {2}
    assert name in invoke("minimize", path, "--framework", "torch").stderr
    assert f"NaN or infinity in {name}" in invoke("convert", path, tmp_path / "state", "--to", "torch").stderr
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        read_hull(path, "test")
    path.write_bytes(goods[0])  # control
    assert set(run_commands(path, table, "torch")) == {0}
    assert "infinity" not in invoke("convert", path, tmp_path / "state", "--to", "torch").stderr


def test_names_are_shown_without_what_a_terminal_obeys(goods, tmp_path):
    names = {"columns": ["\x1b[2Ja", "b\u202e", "c\nd"], "target": "\x1b]0;evil\x07", "ranges": NOTES["ranges"]}
    path, table = tmp_path / "bad", tmp_path / "t.csv"
    path.write_bytes(mutations.sealed(goods[0], put("notes", value=names)))
    table.write_text('\x1b[2Ja,b\u202e,"c\nd"\n1,2,3\n')
    assert len(read_everything(path, tmp_path)) == 2
    for command in (["inspect", path], ["minimize", path], ["predict", path, table], ["certify", path]):
        result = invoke(*command, *(["--framework", "torch"] if command[0] != "inspect" else []))
        assert result.exit_code == 0, result.output
        assert not any(mark in result.output for mark in "\x1b\x07\u202e"), result.output
    assert invoke("predict", path, table, "--framework", "torch", "--out", tmp_path / "out").exit_code == 0
    assert (tmp_path / "out").read_text().startswith("predicted_\x1b]0;evil\x07\n")  # a file has the name as it is
    assert "\\x1b[2Ja" in invoke("minimize", path, "--framework", "torch").stdout


@pytest.mark.parametrize(
    ("number", "seed"), [(180, 0), pytest.param(3000, 1, marks=pytest.mark.release)], ids=["some", "thousands"]
)
def test_changed_files(number, seed, goods, tmp_path):
    rng, path, table = np.random.default_rng(seed), tmp_path / "bad", tmp_path / "t.csv"
    table.write_text("a,b,c\n1,2,3\n")
    counts = {"loaded": 0, "refused": 0, "converted": 0, "commands": 0}
    for k in range(number):
        change = mutations.MUTATIONS[k % len(mutations.MUTATIONS)]
        data = change(goods[k // len(mutations.MUTATIONS) % len(goods)], rng)
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numbers that overflow
            loaded = read_everything(path, tmp_path)
            counts["loaded" if loaded else "refused"] += 1
            forms = ["neutral", "torch"] + ["orbax"] * (k % 9 == 8)
            counts["converted"] += bool(convert_everywhere(path, tmp_path, forms) and loaded)
            if k % 45 < 9 or (loaded and k % 5 == 0):
                codes = run_commands(path, table, "jax" if k % 2 and number > 1000 else "torch")
                assert loaded or set(codes[1:]) == {2}, (k, change.__name__, codes)
                counts["commands"] += 0 in codes
        assert path.read_bytes() == data
    assert counts["refused"] > 0.6 * number and counts["loaded"] > 0.04 * number, counts
    assert counts["converted"] == counts["loaded"] and counts["commands"] > 0, counts
