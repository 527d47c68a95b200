"""A hierarchy with fixed routes gives what the model gives with them, and refuses what the model refuses."""

import jax
import numpy as np
import pytest
import torch
from deployments import CASE, ROUTINGS, ROWS, in_full, rows_of, wanted
from engines import ENGINES
from flax import nnx
from hierarchies import Case, Level, random_inputs, random_weights, uniform
from tolerances import relative_error

pytestmark = pytest.mark.usefixtures("quick_compilation")

BOUNDS = {"float64": 1e-12, "float32": 1e-5}


def built(engine, case=CASE, dtype="float32", seed=0):
    return engine.build(case, random_weights(case, seed), dtype)


def fixed(engine, model, routing):
    return engine.package.FixedHierarchy(model, routing)


def served(engine, hierarchy, x, **given):
    """The output of a fixed hierarchy, in numpy."""
    if engine.name == "jax":
        return np.asarray(jax.jit(lambda x, given: hierarchy(x, **given))(x, given))
    return hierarchy(engine.array(x), **given).detach().numpy()


def error_of(engine, model, routing, dtype="float32", rows=ROWS):
    with engine.precision(dtype):
        x = rows_of(CASE, rows, dtype)
        return relative_error(served(engine, fixed(engine, model, routing), x), wanted(engine, model, routing, x))


@pytest.mark.parametrize("name", ROUTINGS)
def test_it_gives_what_the_model_gives(engine, name):
    assert error_of(engine, built(engine, dtype="float64"), ROUTINGS[name], "float64") < BOUNDS["float64"]


@pytest.mark.release
def test_it_gives_what_the_model_gives_in_float32(engine):
    assert error_of(engine, built(engine), ROUTINGS["names"]) < BOUNDS["float32"]


@pytest.mark.parametrize("rows", [0, 17])
def test_one_expert_a_level_leaves_the_size_of_the_batch_free(engine, rows):
    model, routing = built(engine), ROUTINGS["one expert a level"]
    assert fixed(engine, model, routing).rows is None
    assert error_of(engine, model, routing, rows=rows) < BOUNDS["float32"]


@pytest.mark.parametrize("name", [pytest.param("one expert a level", marks=pytest.mark.release), "both"])
def test_control_another_plan_is_seen(engine, name):
    model, x = built(engine), rows_of(CASE, ROWS)
    good = wanted(engine, model, ROUTINGS[name], x)
    for level in "ab":
        names = in_full(ROUTINGS[name], ROWS)[level]
        other = ROUTINGS[name] | {level: [{"e0": "e1", "e1": "e2"}.get(e, "e0") for e in names[:1]] + names[1:]}
        found = served(engine, fixed(engine, model, other), x)
        assert relative_error(found[:1], good[:1]) > 1e-2


def test_control_another_weight_is_seen(engine):
    model, other = built(engine), built(engine, seed=1)
    x = rows_of(CASE, ROWS)
    found = served(engine, fixed(engine, other, ROUTINGS["names"]), x)
    assert relative_error(found, wanted(engine, model, ROUTINGS["names"], x)) > 1e-2


def test_both_packages_give_the_same():
    found = []
    for engine in ENGINES:
        with engine.precision("float64"):
            hierarchy = fixed(engine, built(engine, dtype="float64"), ROUTINGS["both"])
            found.append(served(engine, hierarchy, rows_of(CASE, ROWS, "float64")))
    assert relative_error(*found) < BOUNDS["float64"]


@pytest.mark.parametrize("sequence", [False, True], ids=["samples", "sequences"])
def test_context_mask_and_state_are_those_of_the_model(engine, sequence):
    case = Case((Level("a", ("tanh", "linear")),), fusion=False)
    inputs = random_inputs(case, ROWS, sequence=sequence)
    routing = inputs["routes"] if sequence else {"a": "e0"}
    with engine.precision("float64"):
        model = built(engine, case, "float64")
        array, shared = engine.array, engine.package.Shared
        given = {
            "context": {"shift": array(inputs["shift"]), "of_all": [shared(array(inputs["common"]))], "no": None},
            "mask": array(inputs["mask"]),
            "state": {"scale": array(inputs["scale"])},
        }
        output = model(array(inputs["x"]), in_full(routing, ROWS), **given)
        found = served(engine, fixed(engine, model, routing), inputs["x"], **given)
        assert relative_error(found, engine_numpy(output.fused_hidden)) < BOUNDS["float64"]
        given["context"]["shift"] = given["context"]["shift"][:4]
        with pytest.raises(ValueError, match=r"HierarchicalCELMoE\.context: expected a leading axis of 6"):
            fixed(engine, model, routing)(array(inputs["x"]), **given)
        with pytest.raises(ValueError, match=r"HierarchicalCELMoE\.mask: expected a leading axis of 6"):
            fixed(engine, model, routing)(array(inputs["x"]), mask=given["mask"][:4])


def engine_numpy(value):
    return value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def by_input(engine, function, x):
    """The gradient by x of the sum of squares of `function(x)`."""
    if engine.name == "jax":
        return np.asarray(jax.jit(jax.grad(lambda x: (function(x) ** 2).sum()))(x))
    x = engine.array(x).requires_grad_()
    return torch.autograd.grad((function(x) ** 2).sum(), x)[0].numpy()


def test_the_gradient_by_the_input_is_that_of_the_model(engine):
    """With its stops: of the first level's experts where the config says so, of the second's always."""
    levels = (Level("a", ("linear",) * 2, stops=(1,)), Level("b", ("linear",) * 3, stops=(0, 2), scales=((1, 0.3),)))
    routing = {"a": ["e0", "e1"] * 3, "b": ["e1", "e1", "e2", "e0", "e1", "e1"]}
    with engine.precision("float64"):
        model, x = built(engine, Case(levels, cut_input=True), "float64"), rows_of(CASE, ROWS, "float64")
        good = by_input(engine, lambda x: model(x, routing).fused_hidden, x)
        assert relative_error(by_input(engine, fixed(engine, model, routing), x), good) < 1e-12
        free = tuple(Level(level.name, level.kinds, scales=level.scales) for level in levels)
        found = by_input(engine, fixed(engine, built(engine, Case(free), "float64"), routing), x)
        for row, names in enumerate(zip(*routing.values(), strict=True)):
            assert (relative_error(found[row], good[row]) > 1e-2) == (names != ("e0", "e1"))  # control
        kept = fixed(engine, built(engine, Case(levels), "float64"), routing)
        assert [plan.scales for plan in kept.plans] == [(1.0, 1.0), (0.0, 0.3, 0.0)]


def names_of(hierarchy):
    """The names of the experts that it holds, by level."""
    return {level: sorted(experts.keys()) for level, experts in hierarchy.level_modules.items()}


def test_it_holds_the_experts_of_its_plan_alone(engine):
    model = built(engine)
    held = {name: names_of(fixed(engine, model, routing)) for name, routing in ROUTINGS.items()}
    assert held["one expert a level"] == {"a": ["e3"], "b": ["e1"]}
    assert held["fallback"] == {"a": ["e1"], "b": ["e0"]}
    assert held["names"] == {"a": ["e0", "e1", "e3"], "b": ["e0", "e2"]}


def test_it_is_a_copy(engine):
    model, x = built(engine), rows_of(CASE, ROWS)
    hierarchy = fixed(engine, model, ROUTINGS["both"])
    before = served(engine, hierarchy, x)
    if engine.name == "jax":
        nnx.update(model, jax.tree.map(lambda leaf: leaf + 1.0, nnx.state(model)))
    else:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 1.0
    assert np.array_equal(served(engine, hierarchy, x), before)
    changed = served(engine, fixed(engine, model, ROUTINGS["both"]), x)
    assert relative_error(changed, before) > 1e-2  # control


def test_without_fusion_the_last_level_is_the_output(engine):
    case = uniform("mlp7", 3)
    model, x = built(engine, case), rows_of(case, ROWS)
    routing = {"only": ["e2", "e0", "e0", "e2", "e1", "e0"]}
    found = served(engine, fixed(engine, model, routing), x)
    assert relative_error(found, wanted(engine, model, routing, x)) < BOUNDS["float32"]


def test_a_level_of_one_expert_needs_no_route(engine):
    case = uniform("linear", 1)
    model, x = built(engine, case), rows_of(case, ROWS)
    assert relative_error(served(engine, fixed(engine, model, None), x), wanted(engine, model, {}, x)) < 1e-6


# What the model refuses; a name alone stands for one a row.
WRONG = [
    {"a": "e9", "b": "e0"},
    {"a": ["e0"] * 5 + ["nowhere"], "b": "e0"},
    {"b": ["e0", None] * 3},
    {"a": "e0"},
    {"a": "e0", "b": "e0", "nowhere": "e0"},
    {"a": np.array([0, 1, 2, 3, 4, 0]), "b": "e0"},
    {"a": np.array([0.0] * 6), "b": "e0"},
    {"a": 3, "b": ["e0"] * 6},
    ["e0"],
]


@pytest.mark.parametrize("routing", WRONG, ids=range(len(WRONG)))
def test_a_wrong_routing_is_refused_as_the_model_does(engine, routing):
    model, x = built(engine), engine.array(rows_of(CASE, ROWS))
    with pytest.raises((TypeError, ValueError)) as by_model:
        model(x, in_full(routing, ROWS) if isinstance(routing, dict) else routing)
    with pytest.raises((TypeError, ValueError)) as error:
        fixed(engine, model, routing)
    assert type(error.value) is type(by_model.value) and str(error.value) == str(by_model.value)


def test_what_cannot_be_fixed_is_refused(engine):
    model, owner = built(engine), "FixedHierarchy"
    own_fix = "Fix the routes of a batch of that size, or name one expert a level."
    with pytest.raises(TypeError) as error:
        fixed(engine, model.config, {})
    assert str(error.value) == f"{owner}.model: expected a HierarchicalCELMoE; got CELMoEConfig. Pass the model itself."
    with pytest.raises(ValueError) as error:
        fixed(engine, model, {"a": [], "b": "e0"})
    fix = "Name one expert a level, for batches of any size."
    assert str(error.value) == f"{owner}.routing: expected routes of one sample at least; got 0 entries. {fix}"
    with pytest.raises(ValueError) as error:
        fixed(engine, model, {"a": ["e0"] * 6, "b": ["e0"] * 5})
    rule, fix = "one route for each of 6 samples", "Pass as many as samples."
    assert str(error.value) == f"HierarchicalCELMoE.routing['b']: expected {rule}; got 5 entries. {fix}"
    for name in ("both", "integers"):
        with pytest.raises(ValueError) as error:
            fixed(engine, model, ROUTINGS[name])(engine.array(rows_of(CASE, 5)))
        got = "float32[5, 5]"
        assert str(error.value) == f"{owner}.hidden: expected 6 rows, as the routing has; got {got}. {own_fix}"
    with pytest.raises(ValueError, match=r"HierarchicalCELMoE\.hidden: expected \[rows, hidden_size=5\]"):
        fixed(engine, model, ROUTINGS["fallback"])(engine.array(np.zeros((6, 7), np.float32)))
