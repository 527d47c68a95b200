"""The config: frozen, hashable, JSON there and back; the two packages' are one."""

import dataclasses
import inspect
import json

import cases
import pytest

import convexmoe_jax
import convexmoe_torch

PACKAGES = (convexmoe_jax, convexmoe_torch)


def test_json_there_and_back(backend, fields):
    config = backend.config(fields)
    again = backend.package.HullConfig.from_json(config.to_json())
    assert again == config and hash(again) == hash(config)
    assert again.to_json() == config.to_json()
    assert list(json.loads(config.to_json())) == sorted(fields)


def test_the_model_keeps_its_config(backend, fields):
    model = backend.model(fields, cases.random_weights(fields))
    assert model.config == backend.config(fields)


def test_a_config_is_frozen(backend):
    config = backend.config(cases.HULLS["units"])
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
        (
            lambda v: v.update(petal=3),
            "HullConfig.from_json: expected the fields {known}; got unknown petal. ",
        ),
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
def test_json_with_other_fields_is_refused(backend, change, message):
    config = backend.config(cases.HULLS["units"])
    known = {"known": list(cases.fields()), "units": list(cases.UNITS)}
    with pytest.raises(ValueError) as error:
        backend.package.HullConfig.from_json(spoiled(config.to_json(), change))
    assert str(error.value).startswith(message.format(**known))


def test_json_that_is_no_object_is_refused(backend):
    with pytest.raises(TypeError, match=r"HullConfig.from_json: expected an object; got list\."):
        backend.package.HullConfig.from_json("[]")


def described(package, name):
    cls = getattr(package, name)
    return [(field.name, field.type, field.default) for field in dataclasses.fields(cls)]


@pytest.mark.parametrize("name", ["HullConfig", "Normalization"])
def test_fields_order_types_and_defaults_are_the_same(name):
    assert described(PACKAGES[0], name) == described(PACKAGES[1], name)


def test_there_is_one_config_for_both_packages():
    for name in ("HullConfig", "Normalization", "CELMoEConfig", "Box", "Minimum", "Certificate", "History"):
        assert getattr(convexmoe_jax, name) is getattr(convexmoe_torch, name), name
    for name in ("VectorHull", "fit"):  # control
        assert getattr(convexmoe_jax, name) is not getattr(convexmoe_torch, name), name


def test_json_of_one_package_is_read_by_the_other(fields):
    import backends

    jax_config, torch_config = (backend.config(fields) for backend in backends.BACKENDS)
    assert jax_config.to_json() == torch_config.to_json()
    assert convexmoe_torch.HullConfig.from_json(jax_config.to_json()) == torch_config
    assert convexmoe_jax.HullConfig.from_json(torch_config.to_json()) == jax_config


@pytest.mark.parametrize(
    "name", ["VectorHull", "fit", "train", "save", "load", "read_notes", "find_violation"]
)
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
    for field in dataclasses.fields(backend.package.HullConfig):
        if field.default is not dataclasses.MISSING:
            assert options[field.name].default == field.default
