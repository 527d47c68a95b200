"""Hulls with a context or another shape in the neutral file, which has schema 2 for them and 1 for all others."""

import json

import cases
import jax
import numpy as np
import pytest
import torch
from backends import BACKENDS
from commands import invoke

import convexmoe_jax
import convexmoe_torch
from convexmoe import inspect
from convexmoe.errors import InputError
from convexmoe.files import schema
from convexmoe.files.hulls import read_hull
from convexmoe.files.schema import schema_of
from convexmoe.hull.weights import effective_weights
from convexmoe_torch.hull.petals import effective
from interop import check_parity, to_jax, to_torch
from interop.parity import relative_error

pytestmark = pytest.mark.usefixtures("quick_compilation")

JAX, TORCH = sorted(BACKENDS, key=lambda backend: backend.name)


@pytest.mark.parametrize("name", cases.SHAPED)
def test_both_packages_read_and_write_the_same_bytes(name, tmp_path):
    fields, path, again = cases.SHAPED[name], tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    hull = TORCH.model(fields, cases.random_weights(fields), "float32")
    convexmoe_torch.save(hull, path)
    assert inspect(path).schema == 2
    loaded = convexmoe_jax.load(path)
    assert loaded.config == hull.config
    convexmoe_jax.save(loaded, again)
    assert again.read_bytes() == path.read_bytes()
    weights = read_hull(path, "test").arrays
    wanted = convexmoe_torch.hull.flatten(effective(hull.params, hull.config))
    assert weights.keys() == wanted.keys()
    assert all(np.allclose(weights[key], value.detach().numpy(), atol=1e-6) for key, value in wanted.items())


@pytest.mark.parametrize("name", ["default", "units", "everything"])
def test_a_plain_hull_has_the_first_schema_and_no_later_field(name, tmp_path):
    fields = cases.HULLS[name]
    hull = TORCH.model(fields, cases.random_weights(fields), "float32")
    convexmoe_torch.save(hull, tmp_path / "file")
    found = inspect(tmp_path / "file")
    assert found.schema == 1 and sorted(found.config) == sorted(cases.fields())
    later = TORCH.config(fields | {"monotone": (0,) * 5, "curvature": "convex", "nonnegative": False})
    assert later == hull.config and later.to_json() == hull.config.to_json()


def of_expert(fields):
    config = convexmoe_torch.CELMoEConfig(
        5, [convexmoe_torch.HierarchyLevelConfig("a", [convexmoe_torch.ExpertConfig(name) for name in "xy"])]
    )
    torch.manual_seed(0)
    hulls = {"x": fields, "y": cases.fields(out_dim=5)}
    return convexmoe_torch.HierarchicalCELMoE(
        config, lambda level, name, _: convexmoe_torch.HullExpert(TORCH.fresh(hulls[name], 0))
    )


def test_a_hierarchy_has_the_schema_of_its_hulls(tmp_path):
    for number, more in ((1, {}), (2, {"curvature": "concave"}), (2, cases.CONTEXT)):
        model = of_expert(cases.fields(out_dim=5, **more))
        convexmoe_torch.save(model, tmp_path / "file")
        assert inspect(tmp_path / "file").schema == number
    twin = convexmoe_jax.load(tmp_path / "file")
    x, c = (np.random.default_rng(0).normal(size=(4, width)).astype(np.float32) for width in (5, 3))
    routes = {"a": [0, 1, 0, 1]}
    y = model.eval()(torch.tensor(x), routes, torch.tensor(c)).levels["a"].hidden.detach().numpy()
    assert np.allclose(twin(JAX.array(x), routes, JAX.array(c)).levels["a"].hidden, y, atol=1e-5)


def test_an_older_reader_asks_for_a_newer_version_and_a_wrong_schema_is_refused(tmp_path, monkeypatch):
    fields = cases.SHAPED["all"]
    hull, path = TORCH.model(fields, cases.random_weights(fields), "float32"), tmp_path / "file"
    convexmoe_torch.save(hull, path)
    with monkeypatch.context() as older:
        older.setattr(schema, "SCHEMA", 1)
        with pytest.raises(ValueError, match=r"schema 1 or older; got .* with schema 2. Install a newer convexmoe."):
            convexmoe_jax.load(path)
    monkeypatch.setattr("convexmoe.files.models.schema_of", lambda kind, config: 1)
    with pytest.raises(ValueError, match="schema 1, where its config has 2"):
        convexmoe_torch.save(hull, path)
    plain = TORCH.fresh(cases.fields(), 0)
    monkeypatch.setattr("convexmoe.files.models.schema_of", lambda kind, config: 2)
    with pytest.raises(ValueError, match="schema 2, where its config has 1"):
        convexmoe_torch.save(plain, path)
    assert schema_of("VectorHull", json.loads(plain.config.to_json())) == 1


def test_a_folded_weight_of_the_wrong_sign_is_refused():
    fields = cases.SHAPED["rising"]
    folded = TORCH.model(fields, cases.random_weights(fields)).fold()
    arrays = {name: value.numpy() for name, value in folded.named_parameters()}
    assert effective_weights(folded.config, arrays, "test").arrays.keys() == arrays.keys()
    arrays["trunk.0.weight"] = -arrays["trunk.0.weight"]
    with pytest.raises(ValueError, match=r"trunk.0.weight has the wrong sign on the inputs \[0, 2, 3\]"):
        effective_weights(folded.config, arrays, "test")


@pytest.mark.parametrize("name", ["context_units", "rising", "nonnegative", "all"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_twins_agree_in_values_gradients_and_hessians(name, dtype):
    fields = cases.SHAPED[name]
    x, *context = cases.random_arguments(fields, (7,))
    with jax.enable_x64(dtype == "float64"):
        hull = TORCH.model(fields, cases.random_weights(fields), dtype)
        twin = to_jax(hull)
        given = {"context": context[0]} if context else {}
        report = check_parity(twin, hull, x, **given, steps=3, floor=dtype == "float32")
        assert report.ok, str(report)
        both = [TORCH.weights(model).values() for model in (hull, to_torch(twin))]
        assert all(np.array_equal(a, b) for a, b in zip(*both, strict=True))
        if context:  # control: a context that is left out of one head
            with torch.no_grad():
                hull.context["readout"]["shifts"].mul_(1.01)
            assert not check_parity(twin, hull, x, **given).ok


def test_a_damaged_config_is_refused(tmp_path):
    fields = cases.SHAPED["context"]
    hull = TORCH.model(fields, cases.random_weights(fields), "float32")
    convexmoe_torch.save(hull, tmp_path / "file")
    data = (tmp_path / "file").read_bytes()
    (tmp_path / "file").write_bytes(data.replace(b'\\"context_dim\\": 3', b'\\"context_dim\\": 4'))
    with pytest.raises(InputError):
        inspect(tmp_path / "file")


def test_the_command_proves_and_compares_such_hulls(tmp_path):
    fields, path = cases.SHAPED["all"], tmp_path / "model.safetensors"
    convexmoe_torch.save(TORCH.model(fields, cases.random_weights(fields), "float32"), path)
    result = invoke("certify", path, "--framework", "torch")
    assert result.exit_code == 0 and "proved: concave in argument 0" in result.stdout
    record = json.loads((tmp_path / "model.certificate.json").read_text())
    assert (record["property"], record["verdict"]) == ("concave", "proved")
    result = invoke("verify", path, "--rows", "5", "--steps", "0")
    assert result.exit_code == 0 and "gradient context.readout.shifts" in result.stdout


def test_a_folded_hull_with_a_context_goes_over():
    fields = cases.SHAPED["context_units"]
    x, c = cases.random_arguments(fields, (5,))
    with jax.enable_x64(True):
        folded = TORCH.model(fields, cases.random_weights(fields)).fold()
        twin = to_jax(folded)
        pairs = [(folded, twin, (x, c)), (folded.at(torch.tensor(c[2])), twin.at(JAX.array(c[2])), (x,))]
        for one, other, given in pairs:
            y = one(*map(torch.tensor, given)).numpy()
            assert relative_error(np.asarray(other(*map(JAX.array, given))), y) < 1e-13
