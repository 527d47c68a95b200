"""Files of hierarchies with a fusion by position, and files without later fields, which are as they were."""

import json

import numpy as np
import pytest
import torch
from commands import invoke
from documented import model_of, numpy
from engines import ENGINES
from fusions import (
    AWARE,
    LEVELS,
    POSITIONS,
    ROUTING,
    WIDTH,
    X,
    config_of,
    linear_model,
    linear_of,
    options_of,
    shift_bias,
)
from safetensors import safe_open
from tolerances import VALUES, relative_error

from convexmoe.hierarchy import config as hierarchy_config
from interop import to_jax, to_torch


def test_a_hierarchy_with_it_is_saved_loaded_and_translated(engine, tmp_path):
    """One file serves both packages, byte for byte."""
    model = shift_bias(linear_model(engine, **AWARE))
    wanted = numpy(model(engine.array(X), ROUTING).fused_hidden)
    engine.package.save(model, tmp_path / "own")
    other = next(e for e in ENGINES if e is not engine)
    translate = to_torch if other.name == "torch" else to_jax
    for number, twin in enumerate((other.package.load(tmp_path / "own"), translate(model))):
        assert twin.config == other.package.CELMoEConfig.from_json(model.config.to_json())
        assert type(twin.fusion) is other.package.PositionAwareFusion
        assert twin.fusion.max_positions == POSITIONS
        found = numpy(twin(other.array(X), ROUTING).fused_hidden)
        assert relative_error(found, wanted) < VALUES["float32"]
        other.package.save(twin, tmp_path / f"other{number}")
        assert (tmp_path / f"other{number}").read_bytes() == (tmp_path / "own").read_bytes()
    again = engine.package.load(tmp_path / "own")
    assert np.array_equal(numpy(again(engine.array(X), ROUTING).fused_hidden), wanted)
    plain = linear_model(engine)  # control: the learned fusion is another file and another output
    engine.package.save(plain, tmp_path / "plain")
    assert (tmp_path / "plain").read_bytes() != (tmp_path / "own").read_bytes()
    assert relative_error(numpy(plain(engine.array(X), ROUTING).fused_hidden), wanted) > 1e-3


def test_a_fusion_of_the_users_own_is_one_that_the_config_does_not_describe(engine, tmp_path):
    options = options_of(engine, "float32")
    fusion = engine.package.PositionAwareFusion(WIDTH, LEVELS, max_positions=13, **options)
    config = config_of(engine.package, **AWARE)
    model = model_of(engine, config, linear_of(engine), fusion_module=fusion)
    engine.package.save(model, tmp_path / "own")
    with pytest.raises(ValueError) as error:
        engine.package.load(tmp_path / "own")
    assert str(error.value) == (
        "load.fusion_module: expected the module of a fusion that is not PositionAwareFusion; got None. "
        "Pass the fusion_module that the model was built with."
    )
    again = engine.package.load(tmp_path / "own", fusion_module=fusion)
    assert again.fusion.max_positions == 13


def test_inspect_shows_it(tmp_path):
    ENGINES[1].package.save(linear_model(ENGINES[1], **AWARE), tmp_path / "model.safetensors")
    result = invoke("inspect", tmp_path / "model.safetensors")
    assert result.exit_code == 0
    for text in ("fusion.position_bias", "11x2", '"fusion_type": "position_aware"', '"gradient_scale": 0.25'):
        assert text in result.stdout, text
    told = json.loads(invoke("inspect", tmp_path / "model.safetensors", "--json").stdout)
    assert told["config"]["fusion"] == "PositionAwareFusion"


def level(name, experts, fallback, width, enabled):
    return {"name": name, "experts": experts, "fallback_expert": fallback, "hidden_size": width, "enabled": enabled}


def expert(name, weight=1.0, stop=False, metadata=None):
    fields = {"name": name, "loss_weight": weight, "stop_gradient_from_parent": stop}
    return fields | {"metadata": {} if metadata is None else metadata}


# as the first release wrote it, before there were gradient_scale, fusion_type and fusion_max_positions
OLD_CONFIG = {
    "hidden_size": 5,
    "levels": [
        level("a", [expert("x", 0.5, True, {"depth": 3}), expert("y")], "x", None, True),
        level("b", [expert("z")], None, 3, True),
        level("off", [expert("q")], None, None, False),
    ],
    "use_learned_fusion": True,
    "fusion_dropout": 0.25,
    "stop_gradient_from_input": False,
}
OLD_RECIPES = {
    "experts": {
        name: {"kind": "LinearExpert", "sizes": sizes}
        for name, sizes in {"a.x": [5, 5], "a.y": [5, 5], "b.z": [5, 3]}.items()
    },
    "fusion": "LearnedFusion",
}
OLD_HEADER = {
    "schema": 1,
    "kind": "HierarchicalCELMoE",
    "config": {"hierarchy": OLD_CONFIG} | OLD_RECIPES,
    "notes": {},
    # of its tensors: n / 8 for the n-th number of each
    "sha256": "36e680557f6d81aec2cf83794693bceaf278fd8918e332aa40373be924e1524d",
}


def written(model, path, package):
    """The header's text of a model's file."""
    package.save(model, path)
    with safe_open(path, framework="numpy") as file:
        return file.metadata()["convexmoe"]


def test_what_has_no_later_fields_is_written_as_before(engine, tmp_path, monkeypatch):
    package = engine.package
    config = package.CELMoEConfig.from_json(json.dumps(OLD_CONFIG))
    assert config.to_json() == json.dumps(OLD_CONFIG, sort_keys=True)
    assert config.levels[0].experts["x"].gradient_scale == 1.0
    assert (config.fusion_type, config.fusion_max_positions) == ("learned", 512)
    built = convexmoe_torch_model(OLD_CONFIG)
    model = built if engine.name == "torch" else to_jax(built)
    assert written(model, tmp_path / "new", package) == json.dumps(OLD_HEADER, sort_keys=True)
    again = package.load(tmp_path / "new")
    assert again.config == config
    scaled = dict(OLD_CONFIG, fusion_max_positions=17)  # control: another value is written
    assert json.loads(package.CELMoEConfig.from_json(json.dumps(scaled)).to_json()) == scaled
    monkeypatch.setattr(hierarchy_config, "LATER", {})  # control: so would the defaults be
    assert (
        ENGINES[1].package.CELMoEConfig(5, config_of(ENGINES[1].package).levels).to_json().count("gradient_scale") == 3
    )


def convexmoe_torch_model(config):
    """A model whose n-th number of each parameter is n / 8."""
    package = ENGINES[1].package
    config = package.CELMoEConfig.from_json(json.dumps(config))
    model = package.HierarchicalCELMoE(config, lambda lv, *_: package.LinearExpert(5, 3 if lv == "b" else 5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.arange(parameter.numel()).reshape(parameter.shape) / 8)
    return model


@pytest.mark.parametrize("fields", [{"fusion_typ": "learned"}, {"gradient_scale": 1.0}])
def test_fields_that_are_not_known_are_refused(engine, fields):
    with pytest.raises(ValueError, match="CELMoEConfig"):
        engine.package.CELMoEConfig.from_json(json.dumps(OLD_CONFIG | fields))
