"""`convexmoe certify`: a verdict, a file beside the model with its sha256, an exit code."""

import hashlib
import json

import pytest
import torch
from commands import FRAMEWORKS, assert_one_line_refusal, invoke
from saved_models import hierarchy, hull

import convexmoe_torch
from interop import frameworks

pytestmark = pytest.mark.usefixtures("quick_compilation")


def saved(folder, model=None):
    path = folder / "model.safetensors"
    convexmoe_torch.save(hull() if model is None else model, path)
    return path


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_hull_is_proved_and_the_proof_names_its_file(framework, tmp_path):
    path = saved(tmp_path)
    result = invoke("certify", path, "--framework", framework)
    assert result.exit_code == 0, result.output
    assert "proved: convex in its input, for every value of the parameters, in exact arithmetic" in result.stdout
    record = json.loads((tmp_path / "model.certificate.json").read_text())
    assert (record["verdict"], record["strength"]) == ("proved", "structural")
    assert record["model"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["model"]["framework"] == framework
    assert record["steps"] and record["failed"] is None
    # control: another model has another sha256
    assert record["model"]["sha256"] != hashlib.sha256(saved(tmp_path, hull(1)).read_bytes()).hexdigest()


def test_the_proof_is_printed_where_it_is_asked_for(tmp_path):
    short = invoke("certify", saved(tmp_path), "--framework", "jax").stdout.splitlines()
    long = invoke("certify", saved(tmp_path), "--framework", "jax", "--proof").stdout.splitlines()
    assert len(long) > len(short) + 10 and long[0] == short[0]


def test_float64_and_one_strength(tmp_path):
    path = saved(tmp_path, hull(dtype=torch.float64))
    for strength in ("structural", "numeric"):
        result = invoke("certify", path, "--framework", "jax", "--strength", strength)
        assert result.exit_code == 0 and f"({strength})" in result.stdout, result.output


def test_what_is_not_proved_ends_with_one(tmp_path, monkeypatch):
    path, package = saved(tmp_path), frameworks.get("jax").package
    certify = package.certify
    monkeypatch.setattr(package, "certify", lambda model, x, **options: certify(lambda u: -model(u), x, **options))
    result = invoke("certify", path, "--framework", "jax")
    assert result.exit_code == 1 and "refuted: not convex" in result.stdout
    assert json.loads((tmp_path / "model.certificate.json").read_text())["verdict"] == "refuted"


def test_refusals_are_one_line(tmp_path):
    assert_one_line_refusal(invoke("certify", tmp_path / "none"), "expected a file; found none")
    path = saved(tmp_path, hierarchy())
    assert_one_line_refusal(invoke("certify", path), "expected a VectorHull; got a HierarchicalCELMoE")
    path = saved(tmp_path)
    assert_one_line_refusal(invoke("certify", path, "--strength", "x"), "expected structural or numeric")
    path.write_bytes(path.read_bytes()[:-4] + b"abcd")
    assert_one_line_refusal(invoke("certify", path), "sha256")
    assert not (tmp_path / "model.certificate.json").exists()
