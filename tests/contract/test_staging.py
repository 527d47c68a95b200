"""Freezing by level and by expert: what is frozen stays to the bit, the rest trains, and both packages agree."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hierarchies import Case, Level, random_inputs, random_weights
from tolerances import relative_error

import convexmoe_jax
import convexmoe_torch

pytestmark = pytest.mark.usefixtures("quick_compilation")

CASE = Case((Level("a", ("linear", "mlp7", "linear")), Level("b", ("linear",) * 2)))
RATE, STEPS = 1e-2, 3
NAMES = {
    "level": ("a",),
    "expert": ("a.e2",),
    "an expert of its own structure": ("a.e1",),
    "fusion and expert": ("fusion", "b.e0"),
    "twice": ("b.e1", "b", "a.e0"),
}


def frozen_by(names):
    """The parameters that the names stand for."""
    prefixes = ["fusion." if name == "fusion" else f"level_modules.{name}." for name in names]
    return {key for key in random_weights(CASE) if key.startswith(tuple(prefixes))}


def jax_weights(engine, model):
    return {
        path.format(member): np.array(leaf[place] if member else leaf).T
        if "gates" in path
        else np.array(leaf[place] if member else leaf)
        for path, members, leaf in engine.parameters(model)
        for place, member in enumerate(members)
    }


@functools.cache
def jax_gradient(graph):
    """The gradient of the loss, compiled once for the file: only the optimizers differ."""

    def loss(params, x, routes):
        return (nnx.merge(graph, params)(x, routes).fused_hidden ** 2).mean()

    return jax.jit(jax.grad(loss))


def jax_trained(engine, model, stages, inputs):
    graph, params = nnx.split(model)
    gradient = jax_gradient(graph)
    for names in stages:
        optimizer = convexmoe_jax.adam(RATE)
        if names:
            optimizer = convexmoe_jax.freeze(optimizer, model, *names)

        @jax.jit
        def step(params, state, gradients, optimizer=optimizer):
            updates, state = optimizer.update(gradients, state, params)
            return jax.tree.map(jnp.add, params, updates), state

        state = optimizer.init(params)
        for _ in range(STEPS):
            gradients = gradient(params, jnp.array(inputs["x"]), inputs["routes"])
            params, state = step(params, state, gradients)
    return jax_weights(engine, nnx.merge(graph, params))


def torch_trained(model, stages, inputs):
    x, routes = torch.tensor(inputs["x"]), inputs["routes"]
    for names in stages:
        convexmoe_torch.unfreeze(model)
        if names:
            convexmoe_torch.freeze(model, *names)
        optimizer = torch.optim.Adam(model.parameters(), RATE)
        for _ in range(STEPS):
            optimizer.zero_grad()
            model(x, routes).fused_hidden.square().mean().backward()
            optimizer.step()
    return {name: value.detach().numpy().copy() for name, value in model.named_parameters()}


def trained(engine, stages):
    """The weights after a few steps in each stage, in float64; a stage names what is frozen."""
    inputs = random_inputs(CASE)
    with engine.precision("float64"):
        model = engine.build(CASE, random_weights(CASE))
        if engine.name == "jax":
            return jax_trained(engine, model, stages, inputs)
        return torch_trained(model, stages, inputs)


def moved(weights):
    return {name for name, value in random_weights(CASE).items() if not np.array_equal(weights[name], value)}


@pytest.mark.parametrize("choice", NAMES)
def test_what_is_frozen_stays_and_the_rest_trains(engine, choice):
    frozen = frozen_by(NAMES[choice])
    assert 0 < len(frozen) < len(random_weights(CASE))
    assert moved(trained(engine, [NAMES[choice]])) == set(random_weights(CASE)) - frozen


def test_control_without_freezing_everything_moves(engine):
    assert moved(trained(engine, [()])) == set(random_weights(CASE))


def test_stages_agree_between_the_packages():
    from engines import ENGINES

    stages = [("b", "fusion"), ("a.e2", "a.e1"), ()]
    ours, twin = (trained(engine, stages) for engine in ENGINES)
    for name, value in ours.items():
        assert relative_error(value, twin[name]) < 1e-10, name
    assert moved(ours) == set(random_weights(CASE))


UNKNOWN = "expected a level or level.expert, levels among ['a', 'b', 'fusion']"
OTHER = "expected level.expert, experts among ['e0', 'e1', 'e2']"
MESSAGES = {
    (): "freeze.names: expected a level, an expert or 'fusion'; got none. Name what is to be held fast.",
    ("c",): f"freeze.names: {UNKNOWN}; got 'c'. Correct the name.",
    ("a.e3",): f"freeze.names: {OTHER}; got 'a.e3'. Correct the name.",
    ("a.",): f"freeze.names: {OTHER}; got 'a.'. Correct the name.",
    ("a", "e1"): f"freeze.names: {UNKNOWN}; got 'e1'. Correct the name.",
}


@pytest.mark.parametrize("names", MESSAGES)
def test_wrong_names_are_errors_before_anything_is_frozen(engine, names):
    model = engine.build(CASE, random_weights(CASE), "float32")
    with pytest.raises(ValueError) as caught:
        if engine.name == "jax":
            convexmoe_jax.freeze(convexmoe_jax.adam(RATE), model, *names)
        else:
            convexmoe_torch.freeze(model, *names)
    assert str(caught.value) == MESSAGES[names]
    if engine.name == "torch":
        assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_hierarchy_without_fusion_has_none_to_freeze(engine):
    case = Case(CASE.levels, fusion=False)
    model = engine.build(case, random_weights(case), "float32")
    given = (convexmoe_jax.adam(RATE), model, "fusion") if engine.name == "jax" else (model, "fusion")
    with pytest.raises(ValueError, match=r"levels among \['a', 'b'\]; got 'fusion'"):
        engine.package.freeze(*given)


def test_in_jax_the_parameters_may_be_those_of_a_module_around_it():
    from engines import ENGINES

    class Around(nnx.Module):
        def __init__(self):
            self.fusion = nnx.Linear(2, 2, rngs=nnx.Rngs(0))  # its own, which the name does not stand for
            self.inner = ENGINES[0].build(CASE, random_weights(CASE), "float32")

    model = Around()
    optimizer = convexmoe_jax.freeze(convexmoe_jax.adam(RATE), model.inner, "a", "fusion")
    params = nnx.state(model, nnx.Param)
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = jax.jit(optimizer.update)(ones, optimizer.init(params), params)
    still = {tuple(path): bool((np.asarray(leaf[...]) == 0).all()) for path, leaf in nnx.to_flat_state(updates)}
    assert still == {path: path[0] == "inner" and path[1:3] != ("level_modules", "b") for path in still}
    with pytest.raises(ValueError, match="one hierarchy in them; got 0 of them"):
        optimizer.update({"weight": jnp.ones(2)}, optimizer.init({"weight": jnp.ones(2)}))


def test_in_torch_the_gradients_of_what_is_frozen_are_dropped():
    """An optimizer that was made before would go on with them."""
    from engines import ENGINES

    model = ENGINES[1].build(CASE, random_weights(CASE), "float32")
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    inputs = random_inputs(CASE)
    model(torch.tensor(inputs["x"]).float(), inputs["routes"]).fused_hidden.sum().backward()
    before = model.level_modules["a"]["e0"].weight.detach().clone()
    convexmoe_torch.freeze(model, "a")
    optimizer.step()
    assert torch.equal(model.level_modules["a"]["e0"].weight, before)
    convexmoe_torch.unfreeze(model, "a.e0")
    assert [p.requires_grad for p in model.level_modules["a"].parameters()] == [True] * 2 + [False] * 6
