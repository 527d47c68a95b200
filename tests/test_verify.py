"""`convexmoe verify`: parity of saved models, hulls and hierarchies; a miss is told, and is exit code 1."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from commands import assert_one_line_refusal, invoke
from saved_models import hierarchy, hull

import convexmoe_torch
from interop import parity, to_jax

pytestmark = pytest.mark.usefixtures("quick_compilation")

MODELS = {"hull": hull, "hull in float64": lambda: hull(dtype=torch.float64), "hierarchy": hierarchy}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("kind", MODELS)
def test_one_file_in_both_frameworks(kind, path):
    model = MODELS[kind]()
    convexmoe_torch.save(model, path)
    result = invoke("verify", path, "--json", "--steps", 5)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    rows = {row["name"]: row for row in told["comparisons"]}
    assert told["ok"] and all(row["ok"] and row["error"] <= row["bound"] for row in rows.values())
    assert {"forward", "gradient x", "hessian", "trajectory"} <= rows.keys()
    assert len(rows) == 4 + len(list(model.parameters()))
    assert rows["hessian"]["floor"] > 0  # of the forward, beside an output mean of 100, one ulp can vanish


@pytest.mark.parametrize("kind", ["hull", "hierarchy"])
def test_another_model_is_a_miss(kind, tmp_path):
    """Control: one weight is off by a ten-thousandth of the largest."""
    model, paths = MODELS[kind](), [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    convexmoe_torch.save(model, paths[0])
    with torch.no_grad():
        weight = list(model.parameters())[-1]
        weight.flatten()[0] += 1e-3
    convexmoe_torch.save(model, paths[1])
    result = invoke("verify", *paths, "--steps", 5)
    assert result.exit_code == 1 and "MISS" in result.stdout
    assert invoke("verify", paths[1], paths[1], "--steps", 5).exit_code == 0


@pytest.fixture(scope="module")
def sharp():
    """A hull whose maximum is as sharp as one that was fitted: rounding is far above the bounds of others."""
    torch.manual_seed(0)
    return convexmoe_torch.VectorHull(3, 8, out_dim=1, hidden_dim=7, temperature=0.003)


def moved(model, change):
    """A copy of a hull with other parameters."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.copy_(change(name, parameter))
    return other


def by_ulps(number):
    signs = torch.Generator().manual_seed(3)
    return lambda _, w: (
        w
        + number
        * (torch.nextafter(w.abs(), torch.tensor(torch.inf)) - w.abs())
        * (2 * torch.randint(2, w.shape, generator=signs) - 1)
    )


CHANGES = {
    "none": (lambda _, w: w, True),
    "a unit in the last place": (by_ulps(1), True),
    "sixty-four": (by_ulps(64), False),
    "one shift": (lambda name, w: w + 1e-4 * (torch.arange(len(w)) == 2) if name == "shifts" else w, False),
    "one unit": (
        lambda name, w: w * (1 + 1e-3 * (torch.arange(w.shape[-1]) == 5)) if "trunk.0.w" in name else w,
        False,
    ),
    "swapped petals": (lambda name, w: w[..., [1, 0, *range(2, 8)], :] if name.startswith("readout") else w, False),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_bounds_are_of_the_noise_of_the_model(name, sharp):
    change, close = CHANGES[name]
    x = np.random.default_rng(1).normal(size=(16, 3))
    report = parity.check_parity(to_jax(sharp), moved(sharp, change), x, steps=5, floor=True)
    assert report.ok == close, str(report)
    known = {c.name: parity.BOUNDS["float32"][c.name.split()[0]] for c in report.comparisons}
    assert all(
        c.bound >= parity.NOISE * c.floor and c.bound <= max(known[c.name], 4 * c.floor) for c in report.comparisons
    )
    assert any(c.error > known[c.name] for c in report.comparisons)


def test_another_activation_is_seen(sharp):
    other = convexmoe_torch.VectorHull.from_params(replace(sharp.config, activation="huber_relu"), sharp.params)
    assert not parity.check_parity(to_jax(sharp), other, np.eye(3), floor=True).ok


def test_the_table_names_every_quantity(path):
    convexmoe_torch.save(hull(), path)
    shown = invoke("verify", path, "--steps", 5).stdout
    for word in ("forward", "hessian", "trajectory", "gradient shifts", "one ulp", "float32: parity"):
        assert word in shown, word


def test_the_floor_is_what_one_ulp_makes():
    """Of a model that is linear in its one moved weight it can be told in advance."""
    from flax import nnx

    from convexmoe_jax import VectorHull

    model = VectorHull(1, 1, hidden_dim=1, out_dim=1, rngs=nnx.Rngs(0))
    moved, signs = parity.nudge(model), set()
    for name, leaf in nnx.to_flat_state(nnx.state(moved, nnx.Param)):
        was = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))[name]
        ends = [np.nextafter(np.asarray(was[...]), np.float32(end)) for end in (-np.inf, np.inf)]
        signs |= {end for end in (0, 1) if np.array_equal(leaf[...], ends[end])}
        assert np.asarray(leaf[...]).tolist() in [end.tolist() for end in ends], name
    assert signs == {0, 1}


def test_two_configs(tmp_path):
    convexmoe_torch.save(hull(), tmp_path / "a.safetensors")
    convexmoe_torch.save(hierarchy(), tmp_path / "b.safetensors")
    assert_one_line_refusal(
        invoke("verify", tmp_path / "a.safetensors", tmp_path / "b.safetensors"), "one config", "inspect"
    )


def test_experts_of_the_users_own(path):
    class Own(convexmoe_torch.LinearExpert):
        pass

    level = convexmoe_torch.HierarchyLevelConfig("a", [convexmoe_torch.ExpertConfig("x")])
    model = convexmoe_torch.HierarchicalCELMoE(convexmoe_torch.CELMoEConfig(3, [level]), lambda *_: Own(3))
    convexmoe_torch.save(model, path)
    assert_one_line_refusal(invoke("verify", path), "expert_factory", "a.x")


@pytest.mark.parametrize("damage", ["missing", "foreign", "flipped"])
def test_bad_files(damage, path):
    if damage != "missing":
        convexmoe_torch.save(hull(), path)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data if damage == "flipped" else b"nothing")
    assert_one_line_refusal(invoke("verify", path), "model.safetensors")


@pytest.mark.parametrize("option", [["--rows", "0"], ["--steps", "-1"], ["--seed", "-1"]])
def test_bad_options(option, path):
    assert_one_line_refusal(invoke("verify", path, *option), f"convexmoe verify {option[0]}", "Try")
