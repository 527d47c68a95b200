"""The config of a hierarchy: what is refused, JSON there and back; the same in both packages."""

import dataclasses
import json

import pytest

import convexmoe_jax
import convexmoe_torch

PACKAGES = (convexmoe_jax, convexmoe_torch)


@pytest.fixture(params=PACKAGES, ids=lambda package: package.__name__)
def package(request):
    return request.param


def config_of(package):
    expert, level = package.ExpertConfig, package.HierarchyLevelConfig
    family = [expert("slavic", 0.5, True, {"depth": 3}), expert("romance")]
    levels = [level("universal", [expert("all")]), level("family", family, "romance", True, 7)]
    levels.append(level("old", [expert("x")], enabled=False))
    return package.CELMoEConfig(
        5, levels, use_learned_fusion=False, fusion_dropout=0.25, stop_gradient_from_input=True
    )


NAME = (
    "a name that is not empty and has no dot; got {}. Dots separate level and expert in the names of losses."
)
DISTINCT = "one entry at least, all of different names; got {}. Rename or remove some."
FAULTS = {
    "empty expert": (lambda p: p.ExpertConfig(""), f"ExpertConfig.name: expected {NAME.format(repr(''))}"),
    "dotted expert": (
        lambda p: p.ExpertConfig("a.b"),
        f"ExpertConfig.name: expected {NAME.format(repr('a.b'))}",
    ),
    "empty level": (
        lambda p: p.HierarchyLevelConfig("", [p.ExpertConfig("a")]),
        f"HierarchyLevelConfig.name: expected {NAME.format(repr(''))}",
    ),
    "dotted level": (
        lambda p: p.HierarchyLevelConfig("a.", [p.ExpertConfig("a")]),
        f"HierarchyLevelConfig.name: expected {NAME.format(repr('a.'))}",
    ),
    "experts twice": (
        lambda p: p.HierarchyLevelConfig("l", [p.ExpertConfig(n) for n in "aba"]),
        f"HierarchyLevelConfig.experts: expected {DISTINCT.format(['a', 'b', 'a'])}",
    ),
    "no experts": (
        lambda p: p.HierarchyLevelConfig("l", []),
        f"HierarchyLevelConfig.experts: expected {DISTINCT.format([])}",
    ),
    "levels twice": (
        lambda p: p.CELMoEConfig(5, [p.HierarchyLevelConfig("l", [p.ExpertConfig("a")])] * 2),
        f"CELMoEConfig.levels: expected {DISTINCT.format(['l', 'l'])}",
    ),
    "no levels": (lambda p: p.CELMoEConfig(5, []), f"CELMoEConfig.levels: expected {DISTINCT.format([])}"),
    "none enabled": (
        lambda p: p.CELMoEConfig(5, [p.HierarchyLevelConfig("l", [p.ExpertConfig("a")], enabled=False)]),
        "CELMoEConfig.levels: expected one enabled level at least; got none. Set enabled=True on one.",
    ),
    "unknown fallback": (
        lambda p: p.HierarchyLevelConfig("l", [p.ExpertConfig("a")], "b"),
        "HierarchyLevelConfig.fallback_expert: expected one of ['a']; got 'b'. Name one of level 'l'.",
    ),
    "no width": (
        lambda p: p.HierarchyLevelConfig("l", [p.ExpertConfig("a")], hidden_size=0),
        "HierarchyLevelConfig.hidden_size: expected a whole number >= 1; got 0. Pass hidden_size=1 or more.",
    ),
    "hidden_size": (
        lambda p: dataclasses.replace(config_of(p), hidden_size=0),
        "CELMoEConfig.hidden_size: expected a whole number >= 1; got 0. Pass hidden_size=1 or more.",
    ),
    "enabled": (
        lambda p: p.HierarchyLevelConfig("l", [p.ExpertConfig("a")], enabled=1),
        "HierarchyLevelConfig.enabled: expected one of [True, False]; got 1. Pass enabled=True, for example.",
    ),
    "fusion": (
        lambda p: dataclasses.replace(config_of(p), use_learned_fusion="yes"),
        "CELMoEConfig.use_learned_fusion: expected one of [True, False]; got 'yes'. "
        "Pass use_learned_fusion=True, for example.",
    ),
}
FAULTS |= {
    f"dropout {rate!r}": (
        lambda p, rate=rate: dataclasses.replace(config_of(p), fusion_dropout=rate),
        f"CELMoEConfig.fusion_dropout: expected a number in [0, 1); got {rate!r}. Pass fusion_dropout=0.1.",
    )
    for rate in (1.0, -0.1, float("nan"), "0.1", True)
}
FAULTS |= {
    f"loss_weight {weight!r}": (
        lambda p, weight=weight: p.ExpertConfig("a", weight),
        f"ExpertConfig.loss_weight: expected a finite number >= 0; got {weight!r}. Pass loss_weight=1.0.",
    )
    for weight in (-1.0, float("nan"), float("inf"), "1", True)
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_value_is_refused(package, name):
    build, message = FAULTS[name]
    with pytest.raises(ValueError) as error:
        build(package)
    assert str(error.value) == message


def test_a_wrong_type_is_refused(package):
    for build, message in [
        (
            lambda: package.ExpertConfig(3),
            "ExpertConfig.name: expected a name that is not empty and has no dot; got 3.",
        ),
        (
            lambda: package.ExpertConfig("a", metadata=[1]),
            "ExpertConfig.metadata: expected a mapping; got [1]. Pass a dict.",
        ),
        (
            lambda: package.HierarchyLevelConfig("l", ["a"]),
            "HierarchyLevelConfig.experts: expected ExpertConfig entries; got 'a'. Wrap it: ExpertConfig(name).",
        ),
        (
            lambda: package.CELMoEConfig(5, ["l"]),
            "CELMoEConfig.levels: expected HierarchyLevelConfig entries; got 'l'. Build one for each level.",
        ),
    ]:
        with pytest.raises(TypeError) as error:
            build()
        assert str(error.value).startswith(message)


def test_json_there_and_back(package):
    config = config_of(package)
    again = package.CELMoEConfig.from_json(config.to_json())
    assert again == config and hash(again) == hash(config) and again.to_json() == config.to_json()
    assert again.levels[1].experts[0].metadata == {"depth": 3} and isinstance(again.levels, tuple)
    assert package.CELMoEConfig.from_json(config.to_json().replace("0.25", "0.5")) != config  # control


def test_json_of_one_package_is_read_by_the_other():
    texts = [config_of(package).to_json() for package in PACKAGES]
    assert texts[0] == texts[1]
    assert convexmoe_jax.CELMoEConfig.from_json(texts[1]) == config_of(convexmoe_jax)


@pytest.mark.parametrize(
    ("change", "start", "got"),
    [
        (lambda v: v.update(level=3), "CELMoEConfig", "unknown level"),
        (lambda v: (v.pop("levels"), v.update(a=1)), "CELMoEConfig", "unknown a; missing levels"),
        (lambda v: v["levels"][1].update(size=7), "HierarchyLevelConfig", "unknown size"),
        (lambda v: v["levels"][0].pop("enabled"), "HierarchyLevelConfig", "missing enabled"),
        (lambda v: v["levels"][0]["experts"][0].update(weight=1), "ExpertConfig", "unknown weight"),
        (lambda v: v["levels"][1]["experts"][1].pop("name"), "ExpertConfig", "missing name"),
    ],
)
def test_json_with_other_fields_is_refused(package, change, start, got):
    values = json.loads(config_of(package).to_json())
    change(values)
    known = [field.name for field in dataclasses.fields(getattr(package, start))]
    with pytest.raises(ValueError) as error:
        package.CELMoEConfig.from_json(json.dumps(values))
    fix = "Pass what to_json of this version wrote."
    assert str(error.value) == f"{start}.from_json: expected the fields {known}; got {got}. {fix}"


def test_a_config_is_frozen_and_keeps_no_hold_on_what_it_was_given(package):
    metadata, experts = {"depth": 3}, [package.ExpertConfig("a")]
    expert = package.ExpertConfig("b", metadata=metadata)
    level = package.HierarchyLevelConfig("l", experts)
    metadata["depth"] = 4
    experts.append(expert)
    assert expert.metadata == {"depth": 3} and level.expert_names == ("a",)
    with pytest.raises(dataclasses.FrozenInstanceError):
        level.enabled = False


@pytest.mark.parametrize("name", ["ExpertConfig", "HierarchyLevelConfig", "CELMoEConfig"])
def test_fields_order_types_and_defaults_are_the_same(name):
    first, second = (dataclasses.fields(getattr(package, name)) for package in PACKAGES)
    assert [(f.name, f.type, f.default) for f in first] == [(f.name, f.type, f.default) for f in second]
