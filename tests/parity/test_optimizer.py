"""A run that changes the framework half-way goes on as if it had not: 400 steps, switched at 200, each way."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from engines import ENGINES
from flax import nnx
from hierarchies import Case, Level, random_inputs, random_weights

import convexmoe_jax
from interop import adam_to_optax, adam_to_torch, to_jax, to_torch

pytestmark = pytest.mark.usefixtures("quick_compilation")

HALF, RATE = 200, 2e-3  # at a larger rate Adam swings about a minimum, and rounding grows from step to step
BOUNDS = {"float64": 1e-12, "float32": 1e-5}
CASE = Case((Level("a", ("linear", "mlp7", "linear")), Level("b", ("linear",) * 2)))
RULES = {
    "adam": (lambda: convexmoe_jax.adam(RATE), lambda p: torch.optim.Adam(p, RATE)),
    "adamw": (
        lambda: optax.chain(optax.clip(10.0), convexmoe_jax.adamw(RATE, 0.1)),
        lambda p: torch.optim.AdamW(p, RATE, weight_decay=0.1),
    ),
    "sgd": (lambda: optax.sgd(RATE, 0.9), lambda p: torch.optim.SGD(p, RATE, momentum=0.9)),
    "a schedule": (
        lambda: convexmoe_jax.adam(lambda n: RATE * (1 - 0.9 * n.astype(float) / (2 * HALF))),
        lambda p: torch.optim.Adam([{"params": p, "initial_lr": RATE}], RATE),
    ),
}


def problem(kind, dtype):
    """A JAX model, its input, and what it should give."""
    draw = np.random.default_rng(0)
    if kind == "hull":
        model = convexmoe_jax.VectorHull(5, petals=3, out_dim=2, temperature="learned", rngs=nnx.Rngs(0), dtype=dtype)
        x = draw.normal(size=(31, 5)).astype(dtype)
        return model, (x,), np.abs(x[:, :2]) + x[:, 2:4] ** 2
    model = ENGINES[0].build(CASE, random_weights(CASE), dtype)
    inputs = random_inputs(CASE, 31)
    x = inputs["x"].astype(dtype)
    return model, (x, inputs["routes"]), np.tanh(x[:, ::-1]).copy()


def value(output):
    return getattr(output, "fused_hidden", output)


@cache
def optax_rule(rule):
    """One optimizer a rule, so that its runs share what is compiled."""
    return RULES[rule][0]()


@partial(jax.jit, static_argnames=("graph", "optimizer"))
def scan_steps(params, state, given, y, graph, optimizer):
    def step(carry, _):
        params, state = carry
        loss, gradient = jax.value_and_grad(lambda p: jnp.mean((value(nnx.merge(graph, p)(*given)) - y) ** 2))(params)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), loss

    return jax.lax.scan(step, (params, state), length=HALF)


def jax_run(model, optimizer, state, given, y):
    """The losses before each of `HALF` steps, the model and the state after."""
    graph, params = nnx.split(model)
    (params, state), losses = scan_steps(params, state, given, y, graph=graph, optimizer=optimizer)
    return np.array(losses), nnx.merge(graph, params), state


def torch_run(model, optimizer, given, y, steps, last=None):
    """The losses before each step; `last` is the step that a linear schedule goes on from."""
    x, *routes = given
    x, y = torch.tensor(x), torch.tensor(y)
    schedule = None
    if last is not None:
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 - 0.9 * n / (2 * HALF), last - 1)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (value(model(x, *routes)) - y).square().mean()
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        losses.append(loss.item())
    return np.array(losses)


def relative(a, b):
    return float(np.max(np.abs(a - b) / np.abs(b)))


def to_torch_half_way(kind, rule, dtype, keep=True):
    """How far the second half in torch is from the second half in JAX."""
    optimizer, make_torch = optax_rule(rule), RULES[rule][1]
    model, given, y = problem(kind, dtype)
    state = optimizer.init(nnx.state(model, nnx.Param))
    _, model, state = jax_run(model, optimizer, state, given, y)
    expected, _, _ = jax_run(model, optimizer, state, given, y)
    twin = to_torch(model)
    theirs = make_torch(list(twin.parameters()))
    steps = adam_to_torch(state, model, theirs, twin) if keep else 0
    assert steps == (HALF if keep and rule != "sgd" else 0)
    return relative(torch_run(twin, theirs, given, y, HALF, HALF if rule == "a schedule" else None), expected)


def to_optax_half_way(kind, rule, dtype, keep=True):
    """How far the second half in JAX is from the second half in torch."""
    make_torch = RULES[rule][1]
    model, given, y = problem(kind, dtype)
    twin = to_torch(model)
    theirs = make_torch(list(twin.parameters()))
    scheduled = rule == "a schedule"
    torch_run(twin, theirs, given, y, HALF, 0 if scheduled else None)
    model, optimizer = to_jax(twin), optax_rule(rule)
    state = optimizer.init(nnx.state(model, nnx.Param))
    if keep:
        state = adam_to_optax(theirs, twin, state, model)
    losses, _, _ = jax_run(model, optimizer, state, given, y)
    return relative(losses, torch_run(twin, theirs, given, y, HALF, HALF if scheduled else None))


WAYS = {"to torch": to_torch_half_way, "to optax": to_optax_half_way}


RUNS = [("hull", rule) for rule in RULES] + [
    ("hierarchy", "adam"),
    ("hierarchy", "sgd"),
    pytest.param("hierarchy", "adamw", marks=pytest.mark.release),
    pytest.param("hierarchy", "a schedule", marks=pytest.mark.release),
]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("kind", "rule"), RUNS)
def test_a_run_goes_on_in_the_other_framework(kind, rule, way):
    with jax.enable_x64(True):
        assert WAYS[way](kind, rule, "float64") < BOUNDS["float64"]
    if rule == "adam":
        assert WAYS[way](kind, rule, "float32") < BOUNDS["float32"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "rule", "way"),
    [
        ("hull", "adam", "to torch"),
        ("hull", "adamw", "to optax"),
        ("hull", "sgd", "to torch"),
        ("hierarchy", "adam", "to optax"),
        ("hierarchy", "sgd", "to torch"),
    ],
)
def test_control_dropping_the_state_would_be_seen(kind, rule, way):
    assert WAYS[way](kind, rule, "float32", keep=False) > 100 * BOUNDS["float32"]


def small():
    """A hull, its parameters, its twin, the twin's parameters."""
    model = convexmoe_jax.VectorHull(3, petals=2, rngs=nnx.Rngs(0))
    twin = to_torch(model)
    return model, nnx.state(model, nnx.Param), twin, list(twin.parameters())


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: optax.amsgrad(RATE), "ScaleByAmsgradState"),
        (lambda: optax.rmsprop(RATE), "ScaleByRmsState"),
        (lambda: optax.adabelief(RATE), "ScaleByBeliefState"),
        (lambda: optax.chain(optax.adam(RATE), optax.ema(0.9)), "EmaState, ScaleByAdamState"),
        (lambda: optax.sgd(RATE), "none of them"),
    ],
)
def test_other_rules_of_optax_are_refused_by_name(make, name):
    model, params, twin, weights = small()
    with pytest.raises(TypeError, match=f"expected one ScaleByAdamState .*; got {name}"):
        adam_to_torch(make().init(params), model, torch.optim.Adam(weights), twin)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: torch.optim.NAdam(p), "got NAdam"),
        (lambda p: torch.optim.RMSprop(p), "got RMSprop"),
        (
            lambda p: torch.optim.SGD(p, RATE, momentum=0.9),
            "OptimizerState.rule: expected '(sgd|adam)', as the optimizer has; got",
        ),
        (lambda p: torch.optim.Adam(p, amsgrad=True), "expected amsgrad=False; got Adam with amsgrad=True"),
        (lambda p: torch.optim.AdamW(p, maximize=True), "got AdamW with maximize=True"),
    ],
)
def test_other_rules_of_torch_are_refused_by_name(make, words):
    model, params, twin, weights = small()
    state = convexmoe_jax.adam(RATE).init(params)
    for call in (
        lambda: adam_to_torch(state, model, make(weights), twin),
        lambda: adam_to_optax(make(weights), twin, state, model),
    ):
        with pytest.raises(TypeError, match=words):
            call()


def test_moments_of_another_model_are_all_listed():
    _, _, twin, weights = small()
    other = convexmoe_jax.VectorHull(5, petals=2, depth=2, rngs=nnx.Rngs(0))
    state = convexmoe_jax.adam(RATE).init(nnx.state(other, nnx.Param))
    with pytest.raises(ValueError) as caught:
        adam_to_torch(state, other, torch.optim.Adam(weights), twin)
    for part in ("unexpected mu/trunk.1.bias", "nu/trunk.0.weight has shape [5, 64], not [3, 64]"):
        assert part in str(caught.value)


def test_parameters_of_different_ages_are_refused():
    model, params, twin, weights = small()
    optimizer = torch.optim.Adam(weights)
    twin(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    twin.shifts.grad = None
    optimizer.step()
    with pytest.raises(ValueError, match="one number of steps for all parameters; got 1 for shifts and 2 for"):
        adam_to_optax(optimizer, twin, convexmoe_jax.adam(RATE).init(params), model)


def test_moments_go_by_name_and_share_no_memory():
    """The twin's parameters are given to torch in another order, and in two groups."""
    model, params, twin, weights = small()
    state = convexmoe_jax.adam(RATE).init(params)
    number = iter(range(1, 100))
    mu = jax.tree.map(lambda leaf: leaf + next(number), state[0].mu)
    state = (state[0]._replace(mu=mu, count=jnp.asarray(7)), *state[1:])
    optimizer = torch.optim.Adam([{"params": weights[3:]}, {"params": weights[:3]}])
    assert adam_to_torch(state, model, optimizer, twin) == 7
    expected = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(mu)}
    for name, parameter in twin.named_parameters():
        assert np.array_equal(optimizer.state[parameter]["exp_avg"], expected[name][...]), name
        assert optimizer.state[parameter]["step"] == 7
        optimizer.state[parameter]["exp_avg"].add_(1.0)
    assert all(float(leaf.max()) < len(weights) + 1 for leaf in jax.tree.leaves(mu))
    back = adam_to_optax(optimizer, twin, convexmoe_jax.adam(RATE).init(params), model)
    assert jax.tree.structure(back) == jax.tree.structure(state) and int(back[0].count) == 7
    for new, old in zip(jax.tree.leaves(back[0].mu), jax.tree.leaves(mu), strict=True):
        assert np.array_equal(new, old + 1)
