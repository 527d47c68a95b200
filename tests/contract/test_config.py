"""The config, which stands in the core: frozen, hashable, JSON there and back; both packages have this one."""

import dataclasses
import inspect
import json

import cases
import pytest

import convexmoe
import convexmoe_jax
import convexmoe_torch
from convexmoe import HullConfig, Normalization

PACKAGES = (convexmoe_jax, convexmoe_torch)


def names_of(kind):
    return [field.name for field in dataclasses.fields(kind)]


def config_of(fields):
    units = fields["normalization"]
    return HullConfig(**(fields | {"normalization": units and Normalization(**units)}))


def test_json_there_and_back(fields):
    config = config_of(fields)
    again = HullConfig.from_json(config.to_json())
    assert again == config and hash(again) == hash(config)
    assert again.to_json() == config.to_json()
    assert list(json.loads(config.to_json())) == sorted(fields)


@pytest.mark.parametrize("hull", ["default", "everything"])
def test_the_model_keeps_its_config(backend, hull):
    fields = cases.HULLS[hull]
    assert backend.model(fields, cases.random_weights(fields)).config == config_of(fields)


def test_a_config_is_frozen():
    config = config_of(cases.HULLS["units"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.petals = 7
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.normalization.input_mean = ()


def spoiled(text, change):
    values = json.loads(text)
    change(values)
    return json.dumps(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(petal=3), "HullConfig.from_json: expected the fields {known}; got unknown petal. "),
        (lambda v: v.pop("depth"), "HullConfig.from_json: expected the fields {known}; got missing depth. "),
        (
            lambda v: (v.update(petal=3, zz=1), v.pop("depth"), v.pop("trunk")),
            "HullConfig.from_json: expected the fields {known}; "
            "got unknown petal; unknown zz; missing depth; missing trunk. ",
        ),
        (
            lambda v: v["normalization"].update(mean=[0.0]),
            "Normalization.from_json: expected the fields {units}; got unknown mean. ",
        ),
        (lambda v: v.update(petals=0), "HullConfig.petals: expected a whole number >= 1; got 0. "),
    ],
)
def test_json_with_other_fields_is_refused(change, message):
    config = config_of(cases.HULLS["units"])
    known = {"known": names_of(HullConfig), "units": names_of(Normalization)}
    with pytest.raises(ValueError) as error:
        HullConfig.from_json(spoiled(config.to_json(), change))
    assert str(error.value).startswith(message.format(**known))


def test_json_that_is_no_object_is_refused():
    with pytest.raises(TypeError, match=r"HullConfig.from_json: expected an object; got list\."):
        HullConfig.from_json("[]")


def test_both_packages_have_what_the_core_has():
    for package in PACKAGES:
        shared = [name for name in package.__all__ if name in convexmoe.__all__]
        assert len(shared) >= 12
        assert all(getattr(package, name) is getattr(convexmoe, name) for name in shared)
    for name in ("VectorHull", "fit"):  # control
        assert getattr(convexmoe_jax, name) is not getattr(convexmoe_torch, name), name


@pytest.mark.parametrize("name", ["VectorHull", "fit", "train", "save", "load", "read_notes", "find_violation"])
def test_signatures_differ_by_the_framework_only(name):
    own = {"self", "rngs", "params", "model", "module", "dtype"}
    functions = [getattr(package, name) for package in PACKAGES]
    functions = [f.__init__ if inspect.isclass(f) else f for f in functions]
    first, second = (inspect.signature(function).parameters for function in functions)

    def shared(parameters):
        return [(p.name, p.default, p.kind) for p in parameters.values() if p.name not in own]

    assert shared(first) == shared(second)
    assert first.keys() ^ second.keys() <= own


def test_options_of_the_class_have_the_defaults_of_the_config(backend):
    options = inspect.signature(backend.package.VectorHull.__init__).parameters
    for field in dataclasses.fields(HullConfig):
        if field.default is not dataclasses.MISSING:
            assert options[field.name].default == field.default
