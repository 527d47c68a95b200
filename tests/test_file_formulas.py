"""The formulas of docs/pages/files.md are enough to evaluate a model from its file: its own text, run on files."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from backends import BACKENDS
from cases import HULLS, random_inputs, random_weights
from page_formulas import TEXT, program
from tolerances import relative_error

import convexmoe_jax
import convexmoe_torch
from convexmoe import HullConfig
from convexmoe.hull.config import LATER

BOUND = 1e-12
LEVELS = {"items": ("a",), "b": ("linear", "mlp", "hull"), "off": ("a", "b")}
ROUTES = {"items": ["a"] * 7, "b": ["mlp", "hull", "linear", "hull", "hull", "mlp", "linear"]}


def hull_of_page(path, x, text=TEXT):
    functions = program(text)
    config, p = functions["read"](path)
    return functions["hull"](config, functions["below"]("params/", p), x)


@pytest.mark.parametrize("name", HULLS)
def test_a_hull_of_every_option(name, tmp_path):
    model = BACKENDS[1].model(HULLS[name], random_weights(HULLS[name]))
    convexmoe_torch.save(model, tmp_path / "hull")
    x = random_inputs(HULLS[name], (11,))
    assert relative_error(hull_of_page(tmp_path / "hull", x), BACKENDS[1].apply(model, x)) < BOUND


def test_jax_gives_the_same(tmp_path):
    model = BACKENDS[0].model(HULLS["everything"], random_weights(HULLS["everything"]))
    with BACKENDS[0].precision("float64"):
        convexmoe_jax.save(model, tmp_path / "hull")
    x = random_inputs(HULLS["everything"], (11,))
    assert relative_error(hull_of_page(tmp_path / "hull", x), BACKENDS[0].apply(model, x)) < BOUND


def test_the_hulls_have_every_option():
    """Of each field of plain hulls one value at least is not the default's, and every choice is there."""
    for field in (field for field in fields(HullConfig) if field.name not in LATER["HullConfig"]):
        assert any(config[field.name] != field.default for config in HULLS.values()), field.name
    assert {str(config["activation"]) for config in HULLS.values()} == {"softplus", "relu", "huber_relu"}


CONTROLS = {
    "temperature": ("+ 0.001 if", "+ 0.002 if"),
    "weights >= 0": ("np.sqrt(0.5 /", "np.sqrt(0.6 /"),
    "standardization": ("- mean) / deviation", "- mean)"),
    "neighbors": ("np.roll(f, -1", "np.roll(f, 1"),
    "strong convexity": ('["strong_convexity"] / 2', '["strong_convexity"]'),
    "gate": ('act(affine("gate"))', 'affine("gate")'),
    "units": ('- units["input_mean"]', "+ 0"),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_control_each_part_of_the_formulas_counts(name, tmp_path):
    model, text = (
        BACKENDS[1].model(HULLS["everything"], random_weights(HULLS["everything"])),
        TEXT.replace(*CONTROLS[name]),
    )
    convexmoe_torch.save(model, tmp_path / "hull")
    x = random_inputs(HULLS["everything"], (11,))
    assert text != TEXT
    assert relative_error(hull_of_page(tmp_path / "hull", x, text), BACKENDS[1].apply(model, x)) > 1e-6


def expert(level, name, metadata):
    if name == "hull":
        return convexmoe_torch.HullExpert(convexmoe_torch.VectorHull(5, 3, hidden_dim=7, temperature="learned"))
    return convexmoe_torch.MLPExpert(5, 11) if name == "mlp" else convexmoe_torch.LinearExpert(5)


def hierarchy(**options):
    """A hierarchy with every ready expert, in float64, every parameter drawn."""
    levels = [
        convexmoe_torch.HierarchyLevelConfig(
            level, [convexmoe_torch.ExpertConfig(name) for name in names], enabled=level != "off"
        )
        for level, names in LEVELS.items()
    ]
    torch.manual_seed(0)
    model = (
        convexmoe_torch.HierarchicalCELMoE(convexmoe_torch.CELMoEConfig(5, levels, **options), expert).double().eval()
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("kind", ["learned", "position_aware", "none"])
def test_a_hierarchy(kind, tmp_path):
    options = {"use_learned_fusion": False} if kind == "none" else {"fusion_type": kind, "fusion_max_positions": 13}
    model, functions = hierarchy(**options), program()
    convexmoe_torch.save(model, tmp_path / "model")
    config, p = functions["read"](tmp_path / "model")
    p = functions["below"]("params/", p)
    for shape in ((7, 5), (7, 3, 5)):
        x = np.random.default_rng(0).normal(size=shape)
        found = functions["hierarchy"](config, p, x, ROUTES)
        wanted = model(torch.from_numpy(x), ROUTES).fused_hidden.detach().numpy()
        assert relative_error(found, wanted) < BOUND
        other = functions["hierarchy"](config, p, x, ROUTES | {"b": ROUTES["b"][::-1]})
        assert relative_error(other, wanted) > 1e-3  # control
