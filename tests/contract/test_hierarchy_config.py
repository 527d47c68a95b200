"""The config of a hierarchy, which stands in the core: what is refused, JSON there and back."""

import dataclasses
import json

import pytest

import convexmoe
from convexmoe import CELMoEConfig, ExpertConfig, HierarchyLevelConfig


def example():
    family = [ExpertConfig("slavic", 0.5, True, {"depth": 3}), ExpertConfig("romance")]
    levels = [
        HierarchyLevelConfig("universal", [ExpertConfig("all")]),
        HierarchyLevelConfig("family", family, "romance", True, 7),
        HierarchyLevelConfig("old", [ExpertConfig("x")], enabled=False),
    ]
    return CELMoEConfig(5, levels, use_learned_fusion=False, fusion_dropout=0.25, stop_gradient_from_input=True)


NAME = "a name that is not empty and has no dot; got {}. Dots separate level and expert in the names of losses."
DISTINCT = "one entry at least, all of different names; got {}. Rename or remove some."
FAULTS = {
    "empty expert": (lambda: ExpertConfig(""), f"ExpertConfig.name: expected {NAME.format(repr(''))}"),
    "dotted expert": (lambda: ExpertConfig("a.b"), f"ExpertConfig.name: expected {NAME.format(repr('a.b'))}"),
    "empty level": (
        lambda: HierarchyLevelConfig("", [ExpertConfig("a")]),
        f"HierarchyLevelConfig.name: expected {NAME.format(repr(''))}",
    ),
    "dotted level": (
        lambda: HierarchyLevelConfig("a.", [ExpertConfig("a")]),
        f"HierarchyLevelConfig.name: expected {NAME.format(repr('a.'))}",
    ),
    "expert that no tensor can be named by": (
        lambda: ExpertConfig("a\x1b"),
        "ExpertConfig.name: expected a name without control characters and marks of direction; got 'a\\x1b'. "
        "Leave them out: a tensor of a file cannot be called so.",
    ),
    "experts twice": (
        lambda: HierarchyLevelConfig("l", [ExpertConfig(n) for n in "aba"]),
        f"HierarchyLevelConfig.experts: expected {DISTINCT.format(['a', 'b', 'a'])}",
    ),
    "no experts": (
        lambda: HierarchyLevelConfig("l", []),
        f"HierarchyLevelConfig.experts: expected {DISTINCT.format([])}",
    ),
    "levels twice": (
        lambda: CELMoEConfig(5, [HierarchyLevelConfig("l", [ExpertConfig("a")])] * 2),
        f"CELMoEConfig.levels: expected {DISTINCT.format(['l', 'l'])}",
    ),
    "no levels": (lambda: CELMoEConfig(5, []), f"CELMoEConfig.levels: expected {DISTINCT.format([])}"),
    "none enabled": (
        lambda: CELMoEConfig(5, [HierarchyLevelConfig("l", [ExpertConfig("a")], enabled=False)]),
        "CELMoEConfig.levels: expected one enabled level at least; got none. Set enabled=True on one.",
    ),
    "unknown fallback": (
        lambda: HierarchyLevelConfig("l", [ExpertConfig("a")], "b"),
        "HierarchyLevelConfig.fallback_expert: expected one of ['a']; got 'b'. Name one of level 'l'.",
    ),
    "no width": (
        lambda: HierarchyLevelConfig("l", [ExpertConfig("a")], hidden_size=0),
        "HierarchyLevelConfig.hidden_size: expected a whole number >= 1; got 0. Pass hidden_size=1 or more.",
    ),
    "hidden_size": (
        lambda: dataclasses.replace(example(), hidden_size=0),
        "CELMoEConfig.hidden_size: expected a whole number >= 1; got 0. Pass hidden_size=1 or more.",
    ),
    "enabled": (
        lambda: HierarchyLevelConfig("l", [ExpertConfig("a")], enabled=1),
        "HierarchyLevelConfig.enabled: expected one of [True, False]; got 1. Pass enabled=True, for example.",
    ),
    "fusion": (
        lambda: dataclasses.replace(example(), use_learned_fusion="yes"),
        "CELMoEConfig.use_learned_fusion: expected one of [True, False]; got 'yes'. "
        "Pass use_learned_fusion=True, for example.",
    ),
}
FAULTS |= {
    f"dropout {rate!r}": (
        lambda rate=rate: dataclasses.replace(example(), fusion_dropout=rate),
        f"CELMoEConfig.fusion_dropout: expected a number in [0, 1); got {rate!r}. Pass fusion_dropout=0.1.",
    )
    for rate in (1.0, -0.1, float("nan"), "0.1", True)
}
FAULTS |= {
    f"loss_weight {weight!r}": (
        lambda weight=weight: ExpertConfig("a", weight),
        f"ExpertConfig.loss_weight: expected a finite number >= 0; got {weight!r}. Pass loss_weight=1.0.",
    )
    for weight in (-1.0, float("nan"), float("inf"), "1", True)
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_value_is_refused(name):
    build, message = FAULTS[name]
    with pytest.raises(ValueError) as error:
        build()
    assert str(error.value) == message


def test_a_wrong_type_is_refused():
    for build, message in [
        (lambda: ExpertConfig(3), "ExpertConfig.name: expected a name that is not empty and has no dot; got 3."),
        (lambda: ExpertConfig("a", metadata=[1]), "ExpertConfig.metadata: expected a mapping; got [1]. Pass a dict."),
        (
            lambda: HierarchyLevelConfig("l", ["a"]),
            "HierarchyLevelConfig.experts: expected ExpertConfig entries; got 'a'. Wrap it: ExpertConfig(name).",
        ),
        (
            lambda: CELMoEConfig(5, ["l"]),
            "CELMoEConfig.levels: expected HierarchyLevelConfig entries; got 'l'. Build one for each level.",
        ),
    ]:
        with pytest.raises(TypeError) as error:
            build()
        assert str(error.value).startswith(message)


def test_json_there_and_back():
    config = example()
    again = CELMoEConfig.from_json(config.to_json())
    assert again == config and hash(again) == hash(config) and again.to_json() == config.to_json()
    assert again.levels[1].experts[0].metadata == {"depth": 3} and isinstance(again.levels, tuple)
    assert CELMoEConfig.from_json(config.to_json().replace("0.25", "0.5")) != config  # control


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
def test_json_with_other_fields_is_refused(change, start, got):
    values = json.loads(example().to_json())
    change(values)
    known = [field.name for field in dataclasses.fields(getattr(convexmoe, start))]
    with pytest.raises(ValueError) as error:
        CELMoEConfig.from_json(json.dumps(values))
    fix = "Pass what to_json of this version wrote."
    assert str(error.value) == f"{start}.from_json: expected the fields {known}; got {got}. {fix}"


def test_a_config_is_frozen_and_keeps_no_hold_on_what_it_was_given():
    metadata, experts = {"depth": 3}, [ExpertConfig("a")]
    expert = ExpertConfig("b", metadata=metadata)
    level = HierarchyLevelConfig("l", experts)
    metadata["depth"] = 4
    experts.append(expert)
    assert expert.metadata == {"depth": 3} and level.expert_names == ("a",)
    with pytest.raises(dataclasses.FrozenInstanceError):
        level.enabled = False
