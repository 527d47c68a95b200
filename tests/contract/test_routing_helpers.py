"""Routes as lists of names: merged, of one name, of the right length; and experts as a table that cannot be changed."""

import copy
import pickle
from collections import UserDict
from types import MappingProxyType

import numpy as np
import pytest
import torch

import convexmoe_torch
from convexmoe import hierarchy as core


def test_merged_routing_has_the_levels_of_both():
    merge = core.merge_routing
    base, extra = {"family": ["slavic"], "language": ["ru"]}, {"language": ["uk"], "dialect": [None]}
    wanted = {"family": ["slavic"], "language": ["uk"], "dialect": [None]}
    assert merge(base, extra) == wanted and list(merge(base, extra)) == ["family", "language", "dialect"]
    assert merge(extra, base)["language"] == ["ru"]  # control: the order counts
    assert merge(base=MappingProxyType(base), extra=UserDict(extra)) == wanted
    assert merge(base, None) == base and merge(None, extra) == extra and merge(None, None) == {} == merge({}, {})


def test_merging_leaves_what_it_is_given():
    merge = core.merge_routing
    base, extra = {"a": ["x"]}, {"b": np.array([1])}
    merged = merge(base, extra)
    assert base == {"a": ["x"]} and list(extra) == ["b"] and type(merged) is dict
    merged["c"] = ["y"]
    merged["a"] = ["z"]
    assert base == {"a": ["x"]} and "c" not in extra
    assert merge(base, None) is not base  # control: a mapping given back would be the caller's
    assert merged["b"] is extra["b"]  # routes are not copied


@pytest.mark.parametrize(("part", "got"), [([("a", ["x"])], "list"), ("a", "str"), (3, "int"), (0, "int"), ("", "str")])
def test_what_is_no_routing_is_not_merged(part, got):
    for argument, given in (("base", (part, None)), ("extra", ({"a": ["x"]}, part))):
        with pytest.raises(TypeError) as error:
            core.merge_routing(*given)
        rule = "a mapping of levels to routes"
        assert str(error.value) == f"merge_routing.{argument}: expected {rule}; got {got}. Pass {{level: names}}."


def test_constant_routing():
    constant = core.routing_constant
    assert constant("slavic", 3) == ["slavic"] * 3 and constant(None, 2) == [None, None]
    assert constant("slavic", 0) == [] and constant(name="a", batch_size=np.int64(2)) == ["a", "a"]
    first = constant("a", 2)
    first[0] = "b"
    assert constant("a", 2) == ["a", "a"]
    routes = convexmoe_torch.encode_routes(config_of(core), {"l": constant("b", 3)}, 3)
    assert routes["l"].tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ((3, 2), TypeError, "name: expected a name, or None for the fallback; got 3. Pass the name of an expert."),
        (
            (["a"], 2),
            TypeError,
            "name: expected a name, or None for the fallback; got ['a']. Pass the name of an expert.",
        ),
        (("a", -1), ValueError, "batch_size: expected a whole number >= 0; got -1. Pass batch_size=0 or more."),
        (("a", 2.0), TypeError, "batch_size: expected a whole number >= 0; got 2.0. Pass batch_size=0 or more."),
        (("a", True), TypeError, "batch_size: expected a whole number >= 0; got True. Pass batch_size=0 or more."),
    ],
)
def test_a_wrong_constant_is_refused(given, kind, message):
    with pytest.raises(kind) as error:
        core.routing_constant(*given)
    assert type(error.value) is kind and str(error.value) == f"routing_constant.{message}"


def test_the_length_of_routes():
    validate = core.validate_routing_length
    routes = ["a", None, "b"]
    assert validate("l", routes, 3) is None and routes == ["a", None, "b"]
    for right in (("a", "b", "a"), np.array([0, 1, 1]), torch.tensor([0, 1, 1])):
        validate(level="l", routes=right, batch_size=3)
        with pytest.raises(ValueError) as error:  # control
            validate("l", right, 2)
        assert str(error.value) == (
            "validate_routing_length.routing['l']: expected one route for each of 2 samples; got 3 entries. "
            "Pass as many as samples."
        )
    validate("l", [], 0)


@pytest.mark.parametrize("routes", ["abc", None, 3, iter("abc")], ids=["text", "none", "number", "iterator"])
def test_routes_without_a_length_are_refused(routes):
    with pytest.raises(TypeError) as error:
        core.validate_routing_length("l", routes, 3)
    assert str(error.value) == (
        f"validate_routing_length.routing['l']: expected names or integers; got {routes!r}. "
        "Pass a list, one for each sample."
    )


def config_of(package):
    return package.CELMoEConfig(5, [package.HierarchyLevelConfig("l", table_of(package))])


def table_of(package, names="cab"):
    """The experts of a level as its config holds them; the metadata cannot be hashed."""
    experts = [package.ExpertConfig(name, metadata={"depths": [3]}) for name in names]
    return package.HierarchyLevelConfig("l", experts).experts


CHANGES = {
    "set": lambda table: table.__setitem__("d", table["a"]),
    "replace": lambda table: table.__setitem__("a", table["b"]),
    "delete": lambda table: table.__delitem__("a"),
    "update": lambda table: table.update(d=table["a"]),
    "or": lambda table: table.__ior__({"d": table["a"]}),
    "pop": lambda table: table.pop("a"),
    "pop with a default": lambda table: table.pop("d", None),
    "popitem": lambda table: table.popitem(),
    "setdefault": lambda table: table.setdefault("d", table["a"]),
    "clear": lambda table: table.clear(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_table_cannot_be_changed(change):
    table = table_of(core)
    with pytest.raises(TypeError) as error:
        CHANGES[change](table)
    assert str(error.value) == "ExpertTable cannot be changed; build another config with dataclasses.replace."
    assert table == table_of(core) and hash(table) == hash(table_of(core))
    plain = dict(table)  # control: a dict is changed
    CHANGES[change](plain)
    assert plain != table or change == "pop with a default"


def test_the_order_counts():
    one, same, turned = (table_of(core, names) for names in ("cab", "cab", "abc"))
    assert one == same and hash(one) == hash(same) and (one != same) is False
    assert one != turned and (one == turned) is False
    assert dict(one) == dict(turned)  # control: of plain dicts it does not
    assert one == dict(turned) and dict(turned) == one  # nor beside one
    assert one != [*one] and one != {} and len({one, same, turned}) == 2
    level = core.HierarchyLevelConfig
    assert hash(level("l", one)) == hash(level("l", same)) and level("l", one) != level("l", turned)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda table: pickle.loads(pickle.dumps(table))])
def test_a_table_is_copied_and_pickled(copied):
    table = table_of(core)
    again = copied(table)
    assert again == table and type(again) is type(table) and list(again) == list("cab")
    with pytest.raises(TypeError, match="cannot be changed"):
        again.clear()
    assert copied(config_of(core)) == config_of(core)
    assert table.copy() == table and type(table.copy()) is dict  # one that can be changed


def test_experts_by_name_and_by_the_integer_of_a_route():
    table = table_of(core)
    assert [table[name].name for name in "abc"] == list("abc")
    assert [table[place].name for place in (0, 1, np.int64(2), -1)] == list("cabb")
    assert "a" in table and 0 not in table and table.get("d") is None and next(iter(table.values())).name == "c"
    for key in ("d", 3, -4, True, 1.0, None):
        with pytest.raises(KeyError) as error:
            table[key]
        assert error.value.args == (f"expected one of the experts ['c', 'a', 'b']; got {key!r}",)
    with pytest.raises(KeyError):  # control: a dict has no place 0
        dict(table)[0]
