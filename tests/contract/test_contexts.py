"""What an expert sees of context and state: its own rows of arrays, what is marked whole, and what is no array."""

import itertools
import types
from collections import OrderedDict, UserDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import compilations
from documented import model_of, numpy
from engines import ENGINES

import convexmoe_jax
import convexmoe_torch

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROWS, WIDTH, OTHER = 5, 3, 7
ROUTES = [1, 0, 0, 1, 0]
JAX = ENGINES[0]
NUMBER = itertools.count()  # a new level name for every model, so that JAX traces each anew
SEEN: list[Any] = []


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclass(frozen=True)
class Own:
    """An array of which an expert sees the rows of its samples."""

    value: np.ndarray


@dataclass(frozen=True)
class Slot:
    """Stands for an array that was traced."""

    place: int


class Thing:
    """Hashable by identity."""


@dataclass
class Mutable:
    """Equal by value, so not hashable."""

    value: int


def walk(tree, function):
    """A context with `function` done to its leaves."""
    if isinstance(tree, dict):
        return {name: walk(value, function) for name, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(walk(value, function) for value in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(walk(value, function) for value in tree)
    return function(tree)


class JaxViewer(convexmoe_jax.ExpertModule):
    def __call__(self, batch):
        arrays = []

        def take(leaf):
            if not isinstance(leaf, jax.Array):
                return leaf
            arrays.append(leaf)
            return Slot(len(arrays) - 1)

        SEEN.append(walk({"context": batch.context, "state": batch.state}, take))
        return convexmoe_jax.ExpertResult(batch.hidden, {}, {"arrays": arrays})


class TorchViewer(convexmoe_torch.ExpertModule):
    def forward(self, batch):
        SEEN.append({"context": batch.context, "state": batch.state})
        return convexmoe_torch.ExpertResult(batch.hidden)


def config_of(package, level):
    experts = {name: package.ExpertConfig(name) for name in ("x", "y")}
    levels = [package.HierarchyLevelConfig(level, experts)]
    return package.CELMoEConfig(WIDTH, levels, use_learned_fusion=False)


def viewer(engine):
    """A model whose experts note what they see, and its level's name."""
    level = f"level_{next(NUMBER)}"
    experts = {"jax": lambda rngs: JaxViewer(), "torch": TorchViewer}
    return model_of(engine, config_of(engine.package, level), experts[engine.name]), level


def sights(engine, context, state=None):
    """(rows, what is seen) of every expert, in JAX of every sample; and the level's name."""
    model, level = viewer(engine)
    SEEN.clear()
    output = model(engine.array(np.zeros((ROWS, WIDTH), np.float32)), {level: ROUTES}, context, state=state)
    if engine.name == "torch":
        rows = [[row for row, route in enumerate(ROUTES) if route == index] for index in range(2)]
        return list(zip(rows, SEEN, strict=True)), level
    arrays = output.levels[level].aux["x"]["arrays"]
    return [
        (row, walk(SEEN[0], lambda leaf, row=row: arrays[leaf.place][row] if isinstance(leaf, Slot) else leaf))
        for row in range(ROWS)
    ], level


def same(found, wanted, rows):
    """Whether an expert saw what it was to see."""
    if isinstance(wanted, Own):
        return np.array_equal(numpy(found), wanted.value[rows])
    if isinstance(wanted, np.ndarray):
        return np.shape(found) == wanted.shape and np.array_equal(numpy(found), wanted)
    if type(found) is not type(wanted):
        return False
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(same(found[k], v, rows) for k, v in wanted.items())
    if isinstance(wanted, (list, tuple)):
        pairs = zip(found, wanted, strict=False)
        return len(found) == len(wanted) and all(same(a, b, rows) for a, b in pairs)
    return found is wanted or (found == wanted and not isinstance(wanted, Mutable))


EACH = np.arange(ROWS * 2, dtype=np.float32).reshape(ROWS, 2) + 1  # one entry a sample
ALL = np.arange(OTHER, dtype=np.float32) + 1  # of another size
THING, MUTABLE = Thing(), Mutable(3)

# name -> (the context, made of `array` and `Shared`; what is seen of it)
VIEWS = {
    "array": (lambda array, shared: array(EACH), Own(EACH)),
    "dict": (lambda array, shared: {"a": array(EACH), "s": "t"}, {"a": Own(EACH), "s": "t"}),
    "proxy": (lambda array, shared: types.MappingProxyType({"a": array(EACH)}), {"a": Own(EACH)}),
    "user dict": (lambda array, shared: UserDict({"a": array(EACH), "s": "t"}), {"a": Own(EACH), "s": "t"}),
    "ordered": (lambda array, shared: OrderedDict(b=array(EACH), a="x"), {"a": "x", "b": Own(EACH)}),
    "list": (lambda array, shared: [array(EACH), "s", 3, None], [Own(EACH), "s", 3, None]),
    "tuple": (lambda array, shared: (array(EACH), shared(array(ALL))), (Own(EACH), ALL)),
    "named": (lambda array, shared: Pair(array(EACH), "q"), Pair(Own(EACH), "q")),
    "deep": (lambda array, shared: {"a": [{"b": (array(EACH), 2)}]}, {"a": [{"b": (Own(EACH), 2)}]}),
    "empty": (lambda array, shared: {"a": {}, "b": [], "c": ()}, {"a": {}, "b": [], "c": ()}),
    "number": (lambda array, shared: 3, 3),
    "float": (lambda array, shared: 0.5, 0.5),
    "numpy number": (lambda array, shared: np.float32(2.5), np.float32(2.5)),
    "text": (lambda array, shared: "text", "text"),
    "bytes": (lambda array, shared: b"text", b"text"),
    "bool": (lambda array, shared: True, True),
    "none": (lambda array, shared: None, None),
    "object": (lambda array, shared: THING, THING),
    "unhashable": (lambda array, shared: MUTABLE, MUTABLE),
    "set": (lambda array, shared: {1, 2}, {1, 2}),
    "function": (lambda array, shared: len, len),
    "shared": (lambda array, shared: shared(array(ALL)), ALL),
    "shared of that size": (lambda array, shared: shared(array(EACH)), EACH),
    "shared number": (lambda array, shared: shared(3), np.asarray(3)),
    "shared text": (lambda array, shared: shared("text"), "text"),
    "shared none": (lambda array, shared: shared(None), None),
    "shared dict": (
        lambda array, shared: shared({"a": array(ALL), "n": {"s": "t", "k": 2, "o": THING}}),
        {"a": ALL, "n": {"s": "t", "k": np.asarray(2), "o": THING}},
    ),
    "shared list": (lambda array, shared: shared([array(ALL), Pair(array(EACH), "t")]), [ALL, Pair(EACH, "t")]),
}


@pytest.fixture(scope="module")
def whole_sights():
    """What is seen of all views in one context, by package: one trace."""
    found = {}
    for engine in ENGINES:
        views = {name: view(engine.array, engine.package.Shared) for name, (view, _) in VIEWS.items()}
        found[engine.name], _ = sights(engine, views)
    return found


@pytest.mark.parametrize("name", VIEWS)
def test_an_expert_sees_its_part(engine, name, whole_sights):
    wanted = VIEWS[name][1]
    for rows, seen in whole_sights[engine.name]:
        assert same(seen["context"][name], wanted, rows)


def test_control_another_row_or_value_is_seen(engine, whole_sights):
    rows, seen = whole_sights[engine.name][0]
    other = whole_sights[engine.name][1][0]
    for name, (_, wanted) in VIEWS.items():
        text = repr(wanted)
        if "Own" in text:
            assert not same(seen["context"][name], wanted, other), name
        assert not same(seen["context"][name], {"something": "else"}, rows), name
    assert not same(True, 1, rows) and not same(3, 3.0, rows) and not same(Thing(), THING, rows)


@pytest.mark.parametrize("name", ["array", "text", "list", "named", "shared dict", "user dict"])
def test_a_context_need_not_be_a_mapping(engine, name):
    view, wanted = VIEWS[name]
    found, _ = sights(engine, view(engine.array, engine.package.Shared))
    assert len(found) == (ROWS if engine.name == "jax" else 2)
    assert all(same(seen["context"], wanted, rows) for rows, seen in found)


def test_state_is_whole_and_says_where(engine):
    array = engine.array
    state = {"text": "t", "number": 2, "array": array(ALL), "rows": array(EACH), "deep": {"a": array(ALL), "s": "u"}}
    held = dict(state)
    found, level = sights(engine, None, types.MappingProxyType(state))
    assert state == held  # as it was
    for rows, seen in found:
        where = {"level": level, "expert": "xy"[ROUTES[rows[0]]]} if engine.name == "torch" else {"level": level}
        if engine.name == "jax":
            assert seen["state"].pop("expert") == ROUTES[rows]
        number = np.asarray(2)
        wanted = {"text": "t", "number": number, "array": ALL, "rows": EACH, "deep": {"a": ALL, "s": "u"}}
        assert same(seen["state"], wanted | where, rows)
        assert not same(seen["state"], wanted | where | {"text": "u"}, rows)  # control


FIX = "Give it one entry for each sample, or mark it: Shared(value)."
LEADING = f"context: expected a leading axis of {ROWS} samples; got float32"
REFUSED = {
    "another size": (lambda e: {"context": e.array(ALL)}, ValueError, f"{LEADING}[{OTHER}]. {FIX}"),
    "deep inside": (
        lambda e: {"context": {"s": "t", "a": [({"b": e.array(ALL)}, 3)]}},
        ValueError,
        f"{LEADING}[{OTHER}]. {FIX}",
    ),
    "a scalar": (lambda e: {"context": [e.array(np.float32(2.0))]}, ValueError, f"{LEADING}[]. {FIX}"),
    "marked twice": (
        lambda e: {"context": [e.package.Shared({"a": e.package.Shared(e.array(ALL))})]},
        ValueError,
        "context: expected one mark a value; got Shared inside of Shared. Mark the outer one alone.",
    ),
    "marked in state": (
        lambda e: {"state": {"a": [e.package.Shared(3)]}},
        ValueError,
        "state: expected values without a mark; got Shared. Pass the value itself.",
    ),
    "the level": (
        lambda e: {"state": {"level": 1, "a": 2}},
        ValueError,
        "state: expected names other than ['level', 'expert']; got ['level']. Rename it: the hierarchy gives these.",
    ),
    "both": (
        lambda e: {"state": UserDict({"expert": 1, "level": 2})},
        ValueError,
        "state: expected names other than ['level', 'expert']; got ['level', 'expert']. "
        "Rename it: the hierarchy gives these.",
    ),
    "no mapping": (lambda e: {"state": ["a"]}, TypeError, "state: expected a mapping; got ['a']. Pass {name: value}."),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_could_be_misread_is_refused(engine, case):
    given, kind, message = REFUSED[case]
    model, level = viewer(engine)
    x = engine.array(np.zeros((ROWS, WIDTH), np.float32))
    fixed = engine.package.FixedHierarchy(model, {level: ROUTES})
    for call in (lambda **given: model(x, {level: ROUTES}, **given), lambda **given: fixed(x, **given)):
        with pytest.raises(kind) as error:
            call(**given(engine))
        assert type(error.value) is kind and str(error.value) == f"HierarchicalCELMoE.{message}"


def test_arrays_of_text_are_no_arrays_of_the_framework(engine):
    names = np.array(["a"] * ROWS)
    rules = {
        "jax": "arrays of numbers; got <U1[5]. Encode it as numbers.",
        "torch": "tensors; got ndarray. Convert it to an array of this framework first.",
    }
    with pytest.raises(TypeError) as error:
        sights(engine, {"names": names})
    assert str(error.value) == f"HierarchicalCELMoE.context: expected {rules[engine.name]}"
    for _, seen in sights(engine, {"names": engine.package.Shared(names)})[0]:
        assert seen["context"]["names"] is names


class JaxNamed(convexmoe_jax.ExpertModule):
    def __call__(self, batch):
        factor = {"double": 2.0, "triple": 3.0}[batch.context["name"]]
        return convexmoe_jax.ExpertResult(batch.hidden * factor * batch.context["number"])


class TorchNamed(convexmoe_torch.ExpertModule):
    def forward(self, batch):
        factor = {"double": 2.0, "triple": 3.0}[batch.context["name"]]
        return convexmoe_torch.ExpertResult(batch.hidden * factor * batch.context["number"])


def test_what_is_no_array_takes_effect(engine):
    """Also after another value: none is remembered. So for fixed routes."""
    experts = {"jax": lambda rngs: JaxNamed(), "torch": TorchNamed}
    model = model_of(engine, config_of(engine.package, "level"), experts[engine.name])
    x = np.arange(1, 1 + ROWS * WIDTH, dtype=np.float32).reshape(ROWS, WIDTH)
    fixed = engine.package.FixedHierarchy(model, {"level": "y"})
    for name, number, factor in [("double", 1, 2), ("triple", 1, 3), ("double", 5, 10), ("double", 1, 2)]:
        context = {"name": name, "number": number}
        output = model(engine.array(x), {"level": ROUTES}, context).fused_hidden
        assert np.array_equal(numpy(output), factor * x)
        assert np.array_equal(numpy(fixed(engine.array(x), context=context)), factor * x)


@dataclass(frozen=True)
class Point:
    x: int


def test_only_a_new_value_compiles_anew_in_jax():
    model, level = viewer(JAX)
    x, routes = jnp.zeros((ROWS, WIDTH)), {level: np.array(ROUTES, np.int32)}

    def count(name="text", point=Point(3), number=3, thing=THING, each=1.0, whole=1.0, state=1.0):
        context = {"name": name, "point": point, "number": number, "thing": thing, "each": x[:, 0] + each}
        context |= {"whole": convexmoe_jax.Shared({"a": jnp.ones(OTHER) * whole, "n": "s"})}
        values = {"step": state, "text": "t"}
        return compilations(lambda: model(x, routes, UserDict(context), state=values).fused_hidden)

    assert count() > 0
    assert count(name="".join(["te", "xt"]), point=Point(3)) == 0  # equal, another object
    assert count(each=2.0, whole=3.0, state=5.0) == 0  # arrays, and numbers of the state
    for changed in ({"name": "other"}, {"point": Point(5)}, {"number": 5}, {"number": 3.0}, {"thing": Thing()}):
        assert count(**changed) > 0, changed  # control
        assert count(**changed | ({"thing": THING} if "thing" in changed else {})) == 0
