"""Metadata and notes come back from a file as they were given, or are refused with the place where they cannot."""

import copy
import enum
import json
import sys

import numpy as np
import pytest
from flax import nnx

from convexmoe import CELMoEConfig, ExpertConfig, HierarchyLevelConfig
from convexmoe.errors import copy_plain


class Name(str, enum.Enum):  # noqa: UP042  (a StrEnum formats as its text)
    SLAVIC = "slavic"


def nest(depth):
    return {} if depth == 0 else {"a": nest(depth - 1)}


def cycle():
    values = []
    values.append(values)
    return {"a": values}


RULE = "expected text, bool, None, an int, a finite float, or lists and dicts of them; got "
KEYS = "expected keys of text; got "
FAULTS = {
    "whole-number key": ({1: "a"}, TypeError, f"metadata: {KEYS}1. "),
    "key of None": ({"a": [{None: 1}]}, TypeError, f"metadata['a'][0]: {KEYS}None. "),
    "key of a tuple": ({"a": {(1, 2): 1}}, TypeError, f"metadata['a']: {KEYS}(1, 2). "),
    "key of numpy": ({np.str_("k"): 1}, TypeError, f"metadata: {KEYS}np.str_('k'). "),
    "key that is no text": ({"\ud800": 1}, ValueError, f"metadata: {KEYS}'\\ud800'. "),
    "tuple": ({"a": [1, {"b": (1, 2)}]}, TypeError, f"metadata['a'][1]['b']: {RULE}(1, 2) (tuple). "),
    "set": ({"a": {1}}, TypeError, f"metadata['a']: {RULE}{{1}} (set). "),
    "bytes": ({"a": b"x"}, TypeError, f"metadata['a']: {RULE}b'x' (bytes). "),
    "number of numpy": ({"a": np.float64(2)}, TypeError, f"metadata['a']: {RULE}np.float64(2.0) (numpy.float64). "),
    "bool of numpy": ({"a": np.True_}, TypeError, f"metadata['a']: {RULE}np.True_ (numpy.bool). "),
    "text of numpy": ({"a": np.str_("x")}, TypeError, f"metadata['a']: {RULE}np.str_('x') (numpy.str_). "),
    "array": ({"a": np.arange(2)}, TypeError, f"metadata['a']: {RULE}array([0, 1]) (numpy.ndarray). "),
    "enum": ({"a": Name.SLAVIC}, TypeError, f"metadata['a']: {RULE}<Name.SLAVIC: 'slavic'> ("),
    "complex": ({"a": 1j}, TypeError, f"metadata['a']: {RULE}1j (complex). "),
    "NaN": ({"a": [0.5, float("nan")]}, ValueError, f"metadata['a'][1]: {RULE}nan (float). "),
    "infinity": ({"a": -float("inf")}, ValueError, f"metadata['a']: {RULE}-inf (float). "),
    "too many digits": ({"a": 10**5000}, ValueError, f"metadata['a']: {RULE}an int of 16610 bits. "),
    "text that is no text": ({"a": "\ud83d\ude00"}, ValueError, f"metadata['a']: {RULE}'\\ud83d\\ude00' (str). "),
    "too deep": (nest(60), ValueError, f"{RULE}a dict in too many others. "),
    "in itself": (cycle(), ValueError, f"{RULE}a list in too many others. "),
}
PLAIN = {
    "b": -0.0,
    "a": {"d": [2**128, -(2**63), None, True], "c": 1e-320},
    "é\x1b": "\U0001f600",
    "": [],
    "n": nest(40),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_a_file_would_change_is_refused(name):
    metadata, kind, message = FAULTS[name]
    with pytest.raises(kind) as error:
        ExpertConfig("a", metadata=metadata)
    assert (
        type(error.value) is kind
        and str(error.value).startswith("ExpertConfig.metadata")
        and message in str(error.value)
    )


def test_a_message_names_a_deep_place_in_few_characters():
    deep = {"k" * 500: 0.5j}
    for depth in range(40):
        deep = {f"level {depth}": deep}
    for metadata in (deep, {"a" * 500: {1: 2}}, {("a",) * 500: 1}, nest(60)):
        with pytest.raises((TypeError, ValueError)) as error:
            ExpertConfig("a", metadata=metadata)
        assert len(str(error.value)) < 400 and str(error.value).startswith("ExpertConfig.metadata")
    with pytest.raises(TypeError, match=r"ExpertConfig.metadata\['level 39'\].*\.\.\.k+'\]: expected text"):
        ExpertConfig("a", metadata=deep)


def changed_by_json(metadata):
    """Whether JSON, without these checks, would refuse a value by itself, or give back another."""
    try:
        again = json.loads(json.dumps(metadata, allow_nan=False))
        same = repr(again) == repr(metadata)
    except (TypeError, ValueError, RecursionError):
        return True
    return not same


def test_control_json_alone_would_change_or_drop_them():
    assert not changed_by_json(PLAIN)
    sound = [name for name, (metadata, *_) in FAULTS.items() if not changed_by_json(metadata)]
    assert sound == ["key that is no text", "too deep"]  # refused for the other readers of a file


def text_of(config):
    """Everything that a config holds, with the types and the order of its keys."""
    return repr([[expert.metadata for expert in level.expert_configs] for level in config.levels])


def config_with(metadata, name="a"):
    return CELMoEConfig(3, [HierarchyLevelConfig("l", [ExpertConfig(name, metadata=metadata)])])


def test_what_is_taken_comes_back_as_it_is():
    config = config_with(PLAIN)
    again = CELMoEConfig.from_json(config.to_json())
    assert again == config and text_of(again) == text_of(config)
    assert repr(again.levels[0].experts["a"].metadata) == repr(copy_plain("", "", PLAIN))
    assert json.loads(json.dumps(PLAIN)) == copy_plain("", "", PLAIN) == PLAIN
    assert list(config.levels[0].experts["a"].metadata) == sorted(PLAIN)  # before a file as after it
    limit = sys.get_int_max_str_digits()
    try:
        sys.set_int_max_str_digits(640)  # the least that Python can be set to
        assert CELMoEConfig.from_json(config_with({"a": 2**2000 - 1}).to_json()).levels[0].experts[0].metadata["a"] > 0
    finally:
        sys.set_int_max_str_digits(limit)


def test_metadata_cannot_be_changed_from_outside():
    given = {"sizes": [1, 2], "more": {"a": [3]}}
    expert = ExpertConfig("a", metadata=given)
    wanted = copy.deepcopy(given)
    given["sizes"].append(3)
    given["more"]["a"][0] = (1,)
    assert expert.metadata == wanted
    taken = expert.copy_metadata()
    taken["sizes"].clear()
    assert expert.metadata == wanted
    config = config_with({"a": [1]})
    config.levels[0].experts["a"].metadata["a"].append((2,))  # what is put in by force is found when it is written
    with pytest.raises(TypeError, match=r"ExpertConfig.metadata\['a'\]\[1\]: expected text.*got \(2,\) \(tuple\)"):
        config.to_json()


def test_the_factory_sees_the_same_before_a_file_and_after_it(engine, tmp_path):
    """In the same order; and what one call does with it reaches no other."""
    package, seen = engine.package, []
    config = package.CELMoEConfig(
        5, [package.HierarchyLevelConfig("l", [package.ExpertConfig("e0", metadata=PLAIN | {"sizes": [5, 7]})])]
    )

    def factory(level, expert, metadata, **options):
        seen.append(repr(metadata))
        return package.MLPExpert(5, metadata["sizes"].pop(), metadata["sizes"].pop(), **options)

    options = {"rngs": nnx.Rngs(0)} if engine.name == "jax" else {}
    model = package.HierarchicalCELMoE(config, factory, **options)
    package.save(model, tmp_path / "model.safetensors")
    again = package.load(tmp_path / "model.safetensors", expert_factory=factory)
    assert seen[0] == seen[-1] and again.config == config and text_of(again.config) == text_of(config)


@pytest.mark.parametrize("name", ["whole-number key", "tuple", "number of numpy", "NaN"])
def test_notes_follow_the_same_rule(engine, name, tmp_path):
    metadata, kind, message = FAULTS[name]
    options = {"rngs": nnx.Rngs(0)} if engine.name == "jax" else {}
    hull = engine.package.VectorHull(2, petals=2, **options)
    with pytest.raises(kind) as error:
        engine.package.save(hull, tmp_path / "hull.safetensors", notes=metadata)
    assert message.replace("metadata", "save.notes", 1) in str(error.value) and not list(tmp_path.iterdir())
    engine.package.save(hull, tmp_path / "hull.safetensors", notes=PLAIN)
    again = engine.package.read_notes(tmp_path / "hull.safetensors")
    assert repr(again) == repr(copy_plain("", "", PLAIN))


def test_names_are_plain_text():
    """A member of an enum that is text is spelled in its own way by `format`, and so in the names of parameters."""
    expert = ExpertConfig(Name.SLAVIC)
    level = HierarchyLevelConfig(np.str_("family"), {Name.SLAVIC: expert}, Name.SLAVIC)
    assert [type(name) for name in (expert.name, level.name, *level.expert_names)] == [str] * 3
    assert expert.name == "slavic" and level.default_expert == "slavic"
    for build in (lambda: ExpertConfig("\ud800"), lambda: HierarchyLevelConfig("\udfff", [ExpertConfig("a")])):
        with pytest.raises(ValueError, match=r"Config.name: expected text"):
            build()
