"""The folder for a model hub: what is in it, who reads it, what it replaces; and `convert --to hub`."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import cases
import numpy as np
import pytest
import torch
from backends import BACKENDS
from commands import assert_one_line_refusal, invoke
from saved_models import hierarchy, hull

import convexmoe_torch
from convexmoe.files import atomic, hub

FIELDS = cases.fields(in_dim=3, petals=5, out_dim=1, hidden_dim=7)
NOTES = {
    "columns": ["a|b", "<i>c", "line\nbreak"],
    "target": "price `x`",
    "ranges": [[0.0, 1.0], [-2.0, 3.5], [1e6, 2e6]],
    "target_range": [10.0, 20.0],
}
METRICS = {"rows": 40, "test_rmse": {"hull": 0.25, "linear": 1.5}, "framework": "torch"}


def model_of(backend):
    return backend.model(FIELDS, cases.random_weights(FIELDS), "float32")


def save(backend, folder, **options):
    model = model_of(backend)
    backend.package.save_pretrained(model, folder, notes=NOTES, **options)
    return model


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_is_read_by_both_packages_and_its_files_are_plain(backend, tmp_path):
    folder = tmp_path / "hull"
    model = save(backend, folder, metrics=METRICS)
    assert os.listdir(tmp_path) == ["hull"]
    assert sorted(content(folder)) == ["README.md", "config.json", "metrics.json", "model.safetensors"]
    backend.package.save(model, tmp_path / "file", notes=NOTES)
    assert (tmp_path / "file").read_bytes() == (folder / "model.safetensors").read_bytes()
    config = json.loads((folder / "config.json").read_text())
    assert config == {"library_name": "convexmoe", "kind": "VectorHull", "config": json.loads(model.config.to_json())}
    assert json.loads((folder / "metrics.json").read_text()) == METRICS
    for reader in BACKENDS:
        loaded, weights = reader.package.load_pretrained(folder), backend.weights(model)
        assert loaded.config == model.config
        assert all(np.array_equal(value, weights[name]) for name, value in reader.weights(loaded).items())
        save(reader, tmp_path / reader.name, metrics=METRICS)
        assert content(tmp_path / reader.name) == content(folder)  # whoever writes it


def test_the_card_says_what_it_predicts_and_how_it_is_loaded(backend, tmp_path):
    save(backend, tmp_path / "hull", metrics=METRICS)
    card = (tmp_path / "hull" / "README.md").read_text()
    lines = card.splitlines()
    assert lines[:3] == ["---", "library_name: convexmoe", "license: unknown"] and lines.count("---") == 2
    for line in (
        r"# price \`x\`",
        r"A convex function of a\|b, \<i\>c, line break.",
        r"| a\|b | 0 | 1 |",
        r"| price \`x\` | 10 | 20 |",
        r"| test\_rmse.hull | 0.25 |",
        "| rows | 40 |",
        'model = convexmoe_torch.load_pretrained("FOLDER")',
    ):
        assert line in lines, line
    assert "<i>" not in card and "framework |" not in card


def test_a_certificate_stands_in_the_card_with_the_sha256_of_the_file(tmp_path):
    model = hull()
    proof = convexmoe_torch.certify(model, torch.zeros(3), strength="structural")
    convexmoe_torch.save_pretrained(model, tmp_path / "hull", certificate=proof)
    digest = hashlib.sha256((tmp_path / "hull" / "model.safetensors").read_bytes()).hexdigest()
    record = json.loads((tmp_path / "hull" / "certificate.json").read_text())
    assert record["verdict"] == "proved" and record["model"]["sha256"] == digest
    card = (tmp_path / "hull" / "README.md").read_text()
    assert digest in card and "proved: convex, structural" in card
    convexmoe_torch.save_pretrained(model, tmp_path / "bare")  # control
    assert "proved" not in (tmp_path / "bare" / "README.md").read_text()


def test_a_hierarchy_goes_and_comes(tmp_path):
    model = hierarchy()
    convexmoe_torch.save_pretrained(model, tmp_path / "h")
    again = convexmoe_torch.load_pretrained(tmp_path / "h")
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
    assert "- b.z: MLPExpert" in (tmp_path / "h" / "README.md").read_text()


def test_only_an_unchanged_folder_of_ours_is_replaced(tmp_path, monkeypatch):
    torch_backend, folder = BACKENDS[-1], tmp_path / "hull"
    folder.mkdir()  # empty
    save(torch_backend, folder, metrics=METRICS)
    save(torch_backend, folder)
    assert "metrics.json" not in content(folder)
    before = content(folder)
    for name, text in {"notes.txt": "mine", "README.md": before["README.md"].decode() + "my words"}.items():
        (folder / name).write_text(text)
        with pytest.raises(FileExistsError, match="expected a new folder, or one as save_pretrained wrote it; got"):
            save(torch_backend, folder)
        assert (folder / name).read_text() == text
        (folder / name).write_bytes(before[name]) if name in before else (folder / name).unlink()
    save(torch_backend, folder, metrics={"rmse": 1.5, "by": "us"})
    before = content(folder)
    for name in ("config.json", "metrics.json", "model.safetensors"):  # a letter of what the card does not show
        text = before[name].replace(b'"us"', b'"me"') if name == "metrics.json" else before[name][:-1] + b" "
        (folder / name).write_bytes(text)
        with pytest.raises(FileExistsError):
            save(torch_backend, folder)
        assert (folder / name).read_bytes() == text != before[name]
        (folder / name).write_bytes(before[name])
    (folder / "certificate.json").mkdir()  # under a name of ours
    (folder / "certificate.json" / "words").write_text("mine")
    with pytest.raises(FileExistsError):
        save(torch_backend, folder)
    assert (folder / "certificate.json" / "words").read_text() == "mine"
    shutil.rmtree(folder / "certificate.json")
    save(torch_backend, folder)  # control: as it was
    monkeypatch.chdir(folder)
    with pytest.raises(FileExistsError, match="one that is not the current; got"):
        save(torch_backend, ".")
    assert content(folder)
    with pytest.raises(FileNotFoundError, match="a folder in one that exists"):
        save(torch_backend, tmp_path / "none" / "hull")
    with pytest.raises(FileExistsError):
        save(torch_backend, tmp_path / "hull" / "README.md")


def test_a_mode_that_cannot_be_copied_moves_nothing(tmp_path, monkeypatch):
    def refuse(*paths):
        raise PermissionError("no modes here")

    save(BACKENDS[-1], tmp_path / "hull")
    before = content(tmp_path / "hull")
    monkeypatch.setattr(atomic.shutil, "copymode", refuse)
    with pytest.raises(PermissionError):
        save(BACKENDS[-1], tmp_path / "hull", metrics=METRICS)
    assert content(tmp_path / "hull") == before and os.listdir(tmp_path) == ["hull"]


@pytest.mark.parametrize("before", [False, True])
def test_a_folder_is_there_whole_or_not_at_all(before, tmp_path, monkeypatch):
    torch_backend, folder = BACKENDS[-1], tmp_path / "hull"
    if before:
        save(torch_backend, folder)
    whole = content(folder) if before else None

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(hub, "json", type("json", (), {"dumps": stop, "loads": json.loads}))
    with pytest.raises(KeyboardInterrupt):
        save(torch_backend, folder, metrics=METRICS)
    assert os.listdir(tmp_path) == ["hull"] * before
    if before:
        assert content(folder) == whole


def test_what_does_not_belong_together_is_refused(backend, tmp_path):
    folder = tmp_path / "hull"
    save(backend, folder)
    load = backend.package.load_pretrained
    config = json.loads((folder / "config.json").read_text())
    config["config"]["petals"] = 6
    for text in (json.dumps(config), "[", "[]"):
        (folder / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"load_pretrained.folder: expected the config of model.safetensors in"):
            load(folder)
    (folder / "config.json").unlink()
    for place in (folder, tmp_path / "none", folder / "model.safetensors"):
        with pytest.raises(FileNotFoundError, match=r"a folder with model.safetensors and config.json"):
            load(place)
    for metrics in ({"loss": float("nan")}, {"a": {1}}):
        with pytest.raises((ValueError, TypeError), match=r"save_pretrained\.metrics"):
            save(backend, tmp_path / "other", metrics=metrics)
    assert os.listdir(tmp_path) == ["hull"]


@pytest.mark.parametrize("name, other", [("jax", "torch"), ("torch", "jax")])
def test_neither_framework_needs_the_other(name, other, tmp_path):
    save(next(b for b in BACKENDS if b.name == other), tmp_path / "hull")
    program = f"import sys\nsys.modules['{other}'] = None\nimport convexmoe_{name} as package\n"
    program += "model = package.load_pretrained('hull')\npackage.save_pretrained(model, 'again')\n"
    program += (
        f"try:\n    import convexmoe_{other}\nexcept (ImportError, ValueError):\n    print('blocked')\n"  # control
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "blocked\n", done.stderr
    assert (tmp_path / "again" / "config.json").is_file()


def test_convert_takes_what_stands_beside_a_model_and_is_of_it(tmp_path):
    path, beside = tmp_path / "model.safetensors", tmp_path / "model.certificate.json"
    convexmoe_torch.save(hull(), path, notes=NOTES)
    assert invoke("certify", path, "--framework", "torch").exit_code == 0
    metrics = METRICS | {"data": {"columns": NOTES["columns"], "target": NOTES["target"]}}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    result = invoke("convert", path, tmp_path / "hub", "--to", "hub")
    assert result.exit_code == 0, result.output
    assert sorted(content(tmp_path / "hub")) == sorted(hub.FILES)
    assert (tmp_path / "hub" / "model.safetensors").read_bytes() == path.read_bytes()
    for target, options in {"back": (), "hub2": ("--to", "hub"), "state.safetensors": ("--to", "torch")}.items():
        assert invoke("convert", tmp_path / "hub", tmp_path / target, *options).exit_code == 0
    assert (tmp_path / "back").read_bytes() == path.read_bytes()
    assert content(tmp_path / "hub2") == content(tmp_path / "hub")

    convexmoe_torch.save(hull(1), path, notes=NOTES | {"target": "another"})  # control: neither is of this one
    assert beside.is_file() and invoke("convert", path, tmp_path / "hub", "--to", "hub").exit_code == 0
    assert sorted(content(tmp_path / "hub")) == ["README.md", "config.json", "model.safetensors"]
    for text in ('{"data": 3, "model": 3}', "[", '{"data": null, "model": {"sha256": 3}}'):  # of others
        for other in (beside, tmp_path / "metrics.json"):
            other.write_text(text)
        assert invoke("convert", path, tmp_path / "hub", "--to", "hub").exit_code == 0
        assert len(content(tmp_path / "hub")) == 3
    (tmp_path / "hub" / "mine").touch()
    assert_one_line_refusal(invoke("convert", path, tmp_path / "hub", "--to", "hub"), "something else", "Name another")
