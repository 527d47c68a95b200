"""`state_dict`, its normalization buffers, `.to(dtype)`, frozen folded weights, and files from strided memory."""

import copy

import cases
import numpy as np
import pytest
import torch
from backends import BACKENDS
from tolerances import VALUES, relative_error

import convexmoe_torch as cm
from convexmoe_torch.files import layers

BACKEND = BACKENDS[1]
OTHER_UNITS = {name: tuple(2.0 * value + 1.0 for value in numbers) for name, numbers in cases.UNITS.items()}
NAMES = {f"normalization.{name}" for name in cases.UNITS}


def model_of(fields, seed=0, dtype="float64"):
    return BACKEND.model(fields, cases.random_weights(fields, seed), dtype)


def inputs(fields, dtype=torch.float64):
    return torch.from_numpy(cases.random_inputs(fields)).to(dtype)


@pytest.mark.parametrize("hull", ["default", "units", "everything"])
def test_round_trip(hull):
    fields = cases.HULLS[hull]
    source, target = model_of(fields), model_of(fields, seed=1)
    assert not torch.equal(source(inputs(fields)), target(inputs(fields)))
    assert target.load_state_dict(source.state_dict()).missing_keys == []
    assert torch.equal(source(inputs(fields)), target(inputs(fields)))
    assert target.config == source.config


def test_weights_and_units_are_all_that_is_in_it():
    fields = cases.HULLS["everything"]
    model = model_of(fields)
    assert set(model.state_dict()) == set(cases.weight_shapes(fields)) | NAMES
    assert {name for name, _ in model.named_parameters()} == set(cases.weight_shapes(fields))
    assert set(model_of(cases.HULLS["default"]).state_dict()) == set(cases.weight_shapes(cases.HULLS["default"]))


def test_loading_brings_the_units_along():
    fields = cases.HULLS["units"]
    source, target = model_of(fields), model_of(fields | {"normalization": OTHER_UNITS}, seed=1)
    x = inputs(fields)
    target.load_state_dict(source.state_dict())
    assert target.config == source.config
    assert torch.equal(target(x), source(x)) and torch.equal(target.fold()(x), source.fold()(x))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_model_that_loads_its_own_state_keeps_its_config(dtype):
    """The buffers are rounded to the dtype; the config, and so the next file, must not become so."""
    model = model_of(cases.HULLS["units"], dtype=dtype)
    before = model.config
    model.load_state_dict(model.state_dict())
    assert model.config == before


def test_units_never_vanish_silently():
    plain, units = model_of(cases.HULLS["default"]), model_of(cases.HULLS["units"])
    with pytest.raises(RuntimeError, match=r"Unexpected key.*normalization\.input_mean"):
        plain.load_state_dict(units.state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*normalization\.input_mean"):
        units.load_state_dict(plain.state_dict())


def test_a_copy_loads_into_itself_alone():
    model = model_of(cases.HULLS["units"])
    twin = copy.deepcopy(model)
    twin.load_state_dict(model_of(cases.HULLS["units"] | {"normalization": OTHER_UNITS}).state_dict())
    assert twin.config.normalization.input_mean == OTHER_UNITS["input_mean"]
    assert model.config.normalization.input_mean == cases.UNITS["input_mean"]


@pytest.mark.parametrize("hull", ["learned", "units"])
def test_to_dtype_moves_all_of_it(hull):
    fields = cases.HULLS[hull]
    for model in (model_of(fields), model_of(fields).fold()):
        y = model(inputs(fields)).detach()
        moved = model.to(torch.float32)
        assert {value.dtype for value in moved.state_dict().values()} == {torch.float32}
        got = moved(inputs(fields, torch.float32))
        assert got.dtype == torch.float32 and relative_error(got.detach(), y) < 5 * VALUES["float32"]
        with pytest.raises(TypeError, match="expected dtype float32"):
            moved(inputs(fields))


def test_the_default_dtype_of_torch_is_the_default():
    assert cm.VectorHull(3, petals=2).shifts.dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert {p.dtype for p in cm.VectorHull(3, petals=2).parameters()} == {torch.float64}
    finally:
        torch.set_default_dtype(torch.float32)


def test_folded_weights_are_frozen_and_its_own():
    fields = cases.HULLS["learned"]
    model = model_of(fields)
    folded = model.fold()
    x = inputs(fields)
    y = folded(x)
    assert not y.requires_grad and not any(value.requires_grad for value in folded.parameters())
    with torch.no_grad():
        for value in model.parameters():
            value.add_(1.0)
    assert torch.equal(folded(x), y)


def strided(model):
    """The same weights, each in memory of the reversed order of axes."""
    twin = copy.deepcopy(model)
    for value in twin.parameters():
        axes = tuple(reversed(range(value.ndim)))
        value.data = value.data.permute(axes).contiguous().permute(axes)
    return twin


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_strided_weights_are_written_right(dtype, tmp_path):
    model = model_of(cases.HULLS["everything"], dtype=dtype)
    twin = strided(model)
    assert not twin.get_parameter("readout.raw_weight").is_contiguous()
    cm.save(model, tmp_path / "contiguous")
    cm.save(twin, tmp_path / "strided")
    assert (tmp_path / "strided").read_bytes() == (tmp_path / "contiguous").read_bytes()
    weights = BACKEND.weights(cm.load(tmp_path / "strided"))
    assert all(np.array_equal(value, weights[name]) for name, value in BACKEND.weights(model).items())


def test_control_strided_weights_are_not_written_right_where_nothing_copies_them(monkeypatch, tmp_path):
    """Without the copy in C order safetensors refuses, or the file does not have the content that it states."""
    monkeypatch.setattr(layers, "to_numpy", lambda tensor: tensor.detach().numpy())
    twin = strided(model_of(cases.HULLS["everything"]))
    with pytest.raises(ValueError, match=r"contiguous|sha256"):
        cm.save(twin, tmp_path / "strided")
        cm.load(tmp_path / "strided")


def test_a_wrapped_model_is_saved_as_the_model_inside(tmp_path):
    """What `torch.compile` makes; a module that is not a wrapper is refused."""
    model = cm.VectorHull(3, petals=4)
    cm.save(torch.compile(model), tmp_path / "compiled")
    cm.save(model, tmp_path / "plain")
    assert (tmp_path / "compiled").read_bytes() == (tmp_path / "plain").read_bytes()
    with pytest.raises(TypeError, match="got Sequential"):
        cm.save(torch.nn.Sequential(model), tmp_path / "other")
