"""Routes: names to integers and every message, in the core; their arrays, in both packages."""

import numpy as np
import pytest

import convexmoe_jax
import convexmoe_torch
from convexmoe import hierarchy as core

PACKAGES = {"jax": convexmoe_jax, "torch": convexmoe_torch}
encode_routes = core.RouteFunctions(np.asarray, lambda routes: routes, np.concatenate).encode_routes


def test_both_packages_have_the_functions_of_the_core():
    for name in ("encode_routes", "constant_routes", "merged_routes", "routing_summary"):
        functions = [getattr(package, name) for package in PACKAGES.values()]
        assert [f.__func__ for f in functions] == [getattr(core.RouteFunctions, name)] * 2
        assert functions[0].__self__ is not functions[1].__self__  # each with its own arrays
    for name in ("merge_routing", "routing_constant", "validate_routing_length", "Shared"):
        assert [getattr(package, name) for package in PACKAGES.values()] == [getattr(core, name)] * 2


def config_of(package, fallback="b"):
    expert, level = package.ExpertConfig, package.HierarchyLevelConfig
    first = level("first", [expert("a"), expert("b"), expert("c")], fallback_expert=fallback)
    levels = [first, level("off", [expert("z")], enabled=False), level("last", [expert("only")])]
    return package.CELMoEConfig(5, levels)


@pytest.fixture(params=PACKAGES)
def package(request):
    return PACKAGES[request.param]


@pytest.mark.parametrize(
    ("routes", "wanted"),
    [
        (["c", "a", "b", "a"], [2, 0, 1, 0]),
        (("c", "a", "b", "a"), [2, 0, 1, 0]),
        ([None, "a", None, "c"], [1, 0, 1, 2]),
        (None, [1, 1, 1, 1]),
        ([2, 0, 1, 0], [2, 0, 1, 0]),
        ([np.int64(2), 0, np.uint8(1), 0], [2, 0, 1, 0]),
        (np.array(["c", "a", "b", "a"]), [2, 0, 1, 0]),
        (np.array(["c", None, "b", "a"], object), [2, 1, 1, 0]),
    ],
)
def test_names_become_integers(package, routes, wanted):
    encoded = package.encode_routes(config_of(package), {"first": routes}, 4)
    assert list(encoded) == ["first", "last"]
    assert encoded["first"].tolist() == wanted and encoded["last"].tolist() == [0] * 4
    again = package.encode_routes(config_of(package), encoded, 4)
    assert all(np.array_equal(again[name], encoded[name]) for name in encoded)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
def test_integers_of_every_dtype_are_taken(engine, dtype):
    package = engine.package
    routes = np.array([2, 0, 1, 0], dtype)
    encoded = package.encode_routes(config_of(package), {"first": routes}, 4)["first"]
    assert encoded.tolist() == [2, 0, 1, 0]
    held = package.encode_routes(config_of(package), {"first": engine.array(routes)}, 4)["first"]
    assert np.asarray(held).tolist() == [2, 0, 1, 0]


def test_levels_that_are_not_named_are_broadcast():
    for routing in (None, {}, {"last": ["only"] * 3}, {"first": None}, {"off": ["z"] * 3}):
        encoded = encode_routes(config_of(core), routing, 3)
        assert encoded["first"].tolist() == [1, 1, 1] and encoded["last"].tolist() == [0, 0, 0]


def test_the_callers_lists_stay_theirs(package):
    names, routing = ["c", None, "a"], {"first": ["c", None, "a"]}
    encoded = package.encode_routes(config_of(package), routing, 3)
    encoded["first"][:] = 0
    assert routing == {"first": names}
    routing["first"][0] = "b"
    assert encoded["first"].tolist() == [0, 0, 0]


HEAD = "HierarchicalCELMoE.routing"
FAULTS = [
    (["a"], TypeError, f"{HEAD}: expected a mapping of levels to routes; got list. Pass {{level: names}}."),
    (
        {"frist": ["a"] * 4},
        ValueError,
        f"{HEAD}: expected levels among ['first', 'off', 'last']; got ['frist']. Correct the name.",
    ),
    (
        {"first": ["a", "b", "bb", "c"]},
        ValueError,
        f"{HEAD}['first']: expected experts among ['a', 'b', 'c']; got 'bb' at sample 2. Correct the name.",
    ),
    (
        {"first": ["a", 1, "b", "c"]},
        ValueError,
        f"{HEAD}['first']: expected experts among ['a', 'b', 'c']; got 1 at sample 1. Correct the name.",
    ),
    (
        {"first": [True, False, True, False]},
        ValueError,
        f"{HEAD}['first']: expected experts among ['a', 'b', 'c']; got True at sample 0. Correct the name.",
    ),
    (
        {"first": [["a"], "b", "c", "a"]},
        ValueError,
        f"{HEAD}['first']: expected experts among ['a', 'b', 'c']; got ['a'] at sample 0. Correct the name.",
    ),
    (
        {"first": ["a", "b", "c"]},
        ValueError,
        f"{HEAD}['first']: expected one route for each of 4 samples; got 3 entries. Pass as many as samples.",
    ),
    (
        {"first": np.zeros((4, 1), np.int32)},
        ValueError,
        f"{HEAD}['first']: expected one route for each of 4 samples; got int32[4, 1]. Pass as many as samples.",
    ),
    (
        {"first": "aabb"},
        TypeError,
        f"{HEAD}['first']: expected names or integers; got 'aabb'. Pass a list, one for each sample.",
    ),
    ({"first": 3}, TypeError, f"{HEAD}['first']: expected names or integers; got 3. Pass a list, one for each sample."),
    (
        {"first": np.zeros(4, np.float32)},
        TypeError,
        f"{HEAD}['first']: expected names or integers; got float32[4]. Cast them to int32.",
    ),
    (
        {"first": np.zeros(4, bool)},
        TypeError,
        f"{HEAD}['first']: expected names or integers; got bool[4]. Cast them to int32.",
    ),
    (
        {"first": [0, 3, 1, 2]},
        ValueError,
        f"{HEAD}['first']: expected integers in [0, 3); got 3. Index the level's experts.",
    ),
    (
        {"first": np.array([0, 1, -1, 2])},
        ValueError,
        f"{HEAD}['first']: expected integers in [0, 3); got -1. Index the level's experts.",
    ),
]


@pytest.mark.parametrize(("routing", "kind", "message"), FAULTS, ids=[m[19:80] for *_, m in FAULTS])
def test_a_fault_is_named(routing, kind, message):
    with pytest.raises(kind) as error:
        encode_routes(config_of(core), routing, 4)
    assert type(error.value) is kind and str(error.value) == message


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        (
            None,
            "expected one of ['a', 'b', 'c'] a sample; got no routes. Route the level, or give it a fallback_expert.",
        ),
        (
            ["a", None, "b"],
            "expected a route for every sample; got None at sample 1. Give the level a fallback_expert.",
        ),
    ],
)
def test_a_sample_without_a_route_needs_a_fallback(routes, message):
    with pytest.raises(ValueError) as error:
        encode_routes(config_of(core, fallback=None), {"first": routes}, 3)
    assert str(error.value) == f"{HEAD}['first']: {message}"
    assert encode_routes(config_of(core), {"first": routes}, 3)  # control


def test_integers_of_the_framework_are_checked_eagerly(engine):
    routes = engine.array(np.array([0, 1, 7, -2]))
    with pytest.raises(ValueError) as error:
        engine.package.encode_routes(config_of(engine.package), {"first": routes}, 4)
    assert str(error.value) == f"{HEAD}['first']: expected integers in [0, 3); got 7. Index the level's experts."


def test_constant_routes(package):
    routes = package.constant_routes(config_of(package), {"first": "c"}, 3)
    assert routes["first"].tolist() == [2, 2, 2] and routes["last"].tolist() == [0, 0, 0]
    assert len(package.constant_routes(config_of(package), {}, 0)["first"]) == 0
    with pytest.raises(ValueError, match=r"experts among \['a', 'b', 'c'\]; got 'd' at sample 0"):
        package.constant_routes(config_of(package), {"first": "d"}, 3)
    with pytest.raises(ValueError, match=r"constant_routes.rows: expected a whole number >= 0; got -1\."):
        package.constant_routes(config_of(package), {"first": "c"}, -1)


def test_merged_routes(engine):
    package = engine.package
    config = config_of(package)
    parts = [package.constant_routes(config, {"first": name}, rows) for name, rows in (("c", 2), ("a", 1))]
    parts.append({"first": engine.array(np.array([1, 0])), "last": engine.array(np.array([0, 0]))})
    merged = package.merged_routes(*parts)
    assert merged["first"].tolist() == [2, 2, 0, 1, 0] and merged["last"].tolist() == [0] * 5
    with pytest.raises(ValueError) as error:
        package.merged_routes(parts[0], {"first": [0]})
    assert str(error.value) == (
        "merged_routes.parts: expected encoded routes of the same levels; "
        "got [['first', 'last'], ['first']]. Encode each part first."
    )
    with pytest.raises(ValueError, match=r"merged_routes.parts: .*got \[\]\."):
        package.merged_routes()


def test_the_summary_counts_rows(engine):
    package = engine.package
    config = config_of(package)
    routes = package.encode_routes(config, {"first": ["c", None, "c", "b"]}, 4)
    wanted = {"first": {"a": 0, "b": 2, "c": 2}, "last": {"only": 4}}
    assert package.routing_summary(config, routes) == wanted
    held = {name: engine.array(value) for name, value in routes.items()}
    assert package.routing_summary(config, held) == wanted
