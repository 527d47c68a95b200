"""What only JAX has: one compilation for all routes, transformations, keys, pytrees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import compilations
from engines import ENGINES
from flax import nnx
from hierarchies import Case, Level, config_of, random_inputs, random_weights, routes_of, uniform
from tolerances import relative_error

import convexmoe_jax
from convexmoe_jax.hierarchy import dispatch

ENGINE = ENGINES[0]
CASE = Case((Level("a", ("linear",) * 3), Level("b", ("mlp7",) * 2)))
GIVEN = Case((Level("a", ("linear", "tanh")), Level("b", ("tanh",) * 2)))  # "tanh" takes context, mask, state


def ten_routings(case=CASE, rows=13):
    draw = np.random.default_rng(0)
    spreads = ["uniform"] * 6 + ["zipf"] * 3 + ["one"]
    return [{lv.name: routes_of(s, len(lv.kinds), rows, draw) for lv, *_ in case.enabled} for s in spreads]


def split(case=CASE, dtype="float32", every="reverse"):
    return nnx.split(ENGINE.build(case, random_weights(case), dtype, every))


def value_and_gradient(graph):
    """Sum of squares of what is finite in the fused output, with gradients by weights and input."""

    def function(state, x, routes):
        def total(state, x):
            output = nnx.merge(graph, state)(x, routes)
            finite = jnp.where(jnp.isnan(output.fused_hidden), 0, output.fused_hidden)
            return jnp.sum(finite**2), output

        return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(state, x)

    return jax.jit(function)


GRADIENT = {}


def gradient(x, routes):
    """One compilation for the whole file."""
    if not GRADIENT:
        graph, state = split()
        GRADIENT["call"], GRADIENT["state"] = value_and_gradient(graph), state
    return GRADIENT["call"](GRADIENT["state"], jnp.asarray(x), routes)


X = random_inputs(CASE)["x"].astype(np.float32)


def test_ten_routings_compile_once():
    routings = ten_routings()
    gradient(X, routings[0])
    assert compilations(lambda: [gradient(X, routes) for routes in routings]) == 0
    assert GRADIENT["call"]._cache_size() == 1
    found = [np.asarray(gradient(X, routes)[0][0]) for routes in routings]
    assert len(set(map(float, found))) == 10  # control: they are ten


def test_calls_outside_jit_compile_once_too():
    model = ENGINE.build(CASE, random_weights(CASE), "float32")
    x, routings = jnp.asarray(X), ten_routings()

    def run(routes):
        return [level.hidden for level in model(x, routes).levels.values()]

    assert compilations(lambda: run(routings[0])) > 0
    assert compilations(lambda: [run(routes) for routes in routings]) == 0


@pytest.mark.parametrize(("level", "bad"), [("a", 3), ("a", -1), ("a", 2**30), ("b", 2), ("b", -7)])
def test_a_route_out_of_range_is_nan_without_gradient(level, bad):
    row = 5
    routes = ten_routings()[0]
    right = gradient(X, routes)
    wrong = {name: np.array(value) for name, value in routes.items()}
    wrong[level][row] = bad
    (_, output), (by_state, by_x) = gradient(X, wrong)
    lost = np.arange(len(X)) == row
    assert np.array_equal(np.isnan(output.fused_hidden).all(1), lost)
    for one, wanted in zip(output.levels.values(), right[0][1].levels.values(), strict=True):
        expected = lost & (level == "a" or one.name == "b")
        assert np.array_equal(np.isnan(one.hidden).any(1), expected)
        assert relative_error(one.hidden[~lost], wanted.hidden[~lost]) < 1e-5
    assert np.all(by_x[row] == 0) and relative_error(by_x[~lost], right[1][1][~lost]) < 1e-5
    # the gradients are those of a batch without the row: nothing of it has leaked anywhere
    without = jnp.asarray(np.where(lost[:, None], 1e3, X))
    other = gradient(without, wrong)[1][0]
    for got, wanted in zip(jax.tree.leaves(by_state), jax.tree.leaves(other), strict=True):
        assert np.all(np.isfinite(got)) and np.array_equal(got, wanted)


def losses(output):
    api = convexmoe_jax.CELMoELossAPI()
    api.add_global("l2", lambda output: (output.fused_hidden**2).mean(), weight=0.5)
    api.add_level("b", "size", lambda level: {"x": jnp.abs(level.hidden).mean(), "y": 2.0}, weight=2.0)
    return api.compute(output)


def test_outputs_and_bundles_are_pytrees_and_pass_jit():
    graph, state = split(GIVEN)
    inputs = random_inputs(GIVEN)
    context = {"shift": inputs["shift"].astype(np.float32)}
    mask = inputs["mask"].astype(np.float32)

    @jax.jit
    def run(state, x, routes, shift):
        context = {"shift": shift, "of_all": [convexmoe_jax.Shared(np.ones(2, np.float32))]}
        given = {"context": context, "mask": mask, "state": {"scale": 1.5}}
        output = nnx.merge(graph, state)(x, routes, **given)
        return output, losses(output)

    output, bundle = run(state, X, inputs["routes"], context["shift"])
    assert isinstance(output, convexmoe_jax.CELMoEOutput) and isinstance(bundle, convexmoe_jax.LossBundle)
    assert [level.name for level in output.levels.values()] == ["a", "b"]
    again = losses(output)  # what came out of jit serves as well
    assert [(t.name, t.weight, t.scope) for t in again.terms] == [(t.name, t.weight, t.scope) for t in bundle.terms]
    assert relative_error(again.total, bundle.total) < 1e-6
    doubled = jax.tree.map(lambda leaf: 2 * leaf, bundle)
    assert relative_error(doubled.total, 2 * bundle.total) < 1e-6
    assert output.aux["a"]["e1"]["largest"].shape == (len(X),) and output.aux["a"]["e0"] == {}
    own = np.asarray(inputs["routes"]["b"]) == 1
    top = np.asarray(output.levels["b"].hidden).max(1)
    assert np.array_equal(np.asarray(output.aux["b"]["e1"]["largest"])[own], top[own])


def test_as_dict_makes_one_transfer(monkeypatch):
    (_, output), _ = gradient(X, ten_routings()[0])
    bundle, get, calls = losses(output), jax.device_get, []
    monkeypatch.setattr(jax, "device_get", lambda tree: calls.append(tree) or get(tree))
    found = bundle.as_dict()
    assert len(calls) == 1 and calls[0].shape == (4,)
    assert list(found)[:3] == ["total", "global.l2", "global.l2.weighted"]
    assert all(type(value) is float for value in found.values())


@pytest.fixture
def any_order(x64):
    case = uniform("mlp7", 3)
    graph, state = split(case, "float64", "any")
    routes = {"only": jnp.asarray(routes_of("uniform", 3, 6, np.random.default_rng(0)))}

    def total(state, x):
        return jnp.sum(nnx.merge(graph, state)(x, routes).fused_hidden ** 2)

    return total, state, random_inputs(case, 6)["x"], case


def test_second_derivatives_and_forward_mode(any_order):
    total, state, x, _ = any_order
    v = np.random.default_rng(2).normal(size=x.shape)
    step = 1e-5
    by_x = jax.jit(jax.grad(total, argnums=1))
    forward = jax.jit(lambda x: jax.jvp(lambda x: total(state, x), (x,), (v,))[1])(x)
    assert relative_error(forward, jnp.vdot(by_x(state, x), v)) < 1e-12
    wanted = (by_x(state, x + step * v) - by_x(state, x - step * v)) / (2 * step)
    twice = jax.jit(lambda state, x: jax.grad(lambda x: jnp.vdot(jax.grad(total, argnums=1)(state, x), v))(x))
    mixed = jax.jit(lambda state, x: jax.jvp(lambda x: jax.grad(total, argnums=1)(state, x), (x,), (v,))[1])
    for found in (twice(state, x), mixed(state, x)):
        assert relative_error(found, wanted) < 1e-8


def test_reverse_mode_says_that_it_is_no_more(x64):
    graph, state = split(uniform("linear", 2), "float64")
    routes = {"only": jnp.zeros(3, jnp.int32)}
    x = jnp.ones((3, 5))

    def total(x):
        return jnp.sum(nnx.merge(graph, state)(x, routes).fused_hidden ** 2)

    # traced and lowered only: nothing is compiled
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jit(lambda x: jax.jvp(total, (x,), (x,))).lower(x)
    with pytest.raises(ValueError, match="Reverse-mode differentiation does not work"):
        jax.eval_shape(jax.grad(lambda x: jnp.sum(jax.grad(total)(x) ** 2)), x)
    message = "HierarchicalCELMoE.differentiation: expected one of ['reverse', 'any']; got 'forward'. "
    with pytest.raises(ValueError) as error:
        ENGINE.build(CASE, random_weights(CASE), "float32", "forward")
    assert str(error.value).startswith(message)


def test_vmap_over_models():
    case = uniform("linear", 3)
    graph, state = split(case)
    _, other = nnx.split(ENGINE.build(case, random_weights(case, 1), "float32"))
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), state, other)
    routes = ten_routings(case)[0]

    def by_state(state):
        return jax.grad(lambda state: jnp.sum(nnx.merge(graph, state)(X, routes).fused_hidden ** 2))(state)

    together = jax.tree.leaves(jax.jit(jax.vmap(by_state))(both))
    for index, one in enumerate((state, other)):
        for got, wanted in zip(together, jax.tree.leaves(jax.jit(by_state)(one)), strict=True):
            assert relative_error(got[index], wanted) < 1e-5


class Noisy(convexmoe_jax.ExpertModule):
    def __init__(self, rngs):
        self.weight = nnx.Param(jnp.ones(5))
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, batch):
        return convexmoe_jax.ExpertResult(self.dropout(batch.hidden * self.weight))


def test_experts_with_random_state_are_refused():
    with pytest.raises(ValueError) as error:
        convexmoe_jax.HierarchicalCELMoE(config_of(convexmoe_jax, CASE), lambda *_, rngs: Noisy(rngs), rngs=nnx.Rngs(0))
    assert str(error.value) == (
        "HierarchicalCELMoE.a.e0: expected an expert without random state; got Noisy. "
        "Draw from batch.key instead, and build nnx.Dropout without rngs."
    )


class Dropping(convexmoe_jax.ExpertModule):
    def __init__(self):
        self.weight = nnx.Param(jnp.ones(5))

    def __call__(self, batch):
        if batch.key is None:
            return convexmoe_jax.ExpertResult(batch.hidden)
        kept = jax.random.bernoulli(batch.key, 0.5, batch.hidden.shape)
        return convexmoe_jax.ExpertResult(jnp.where(kept, batch.hidden * self.weight, 0))


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_dropout_in_an_expert_is_a_samples_own(make_key):
    case = Case((Level("a", ("linear",) * 3), Level("b", ("linear",) * 3)), fusion=False)
    model = convexmoe_jax.HierarchicalCELMoE(
        config_of(convexmoe_jax, case), lambda *_, rngs: Dropping(), rngs=nnx.Rngs(0)
    )
    x, (one, two, *_) = jnp.ones((13, 5)), ten_routings(case)
    run = jax.jit(lambda x, routes, key: [level.hidden for level in model(x, routes, key=key).levels.values()])
    first, again = run(x, one, make_key(1)), run(x, two, make_key(1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], run(x, one, make_key(2))[0])
    assert not np.array_equal(first[0], first[1])  # levels draw on their own
    assert len({tuple(row) for row in np.asarray(first[0]).tolist()}) > 5  # and so do samples
    assert np.array_equal(run(x, one, None)[1], x)


@pytest.mark.parametrize("num_experts", [7, 2**20])
def test_a_plan_of_more_routes_than_one_key_holds(num_experts):
    """(experts + 1) * rows goes beyond int32, so that route and place do not fit into one."""
    rows = 2999
    assert ((num_experts + 1) * rows >= 2**31) == (num_experts > 7)
    routes = np.random.default_rng(0).integers(-1, num_experts + 1, rows).astype(np.int32)
    plan = dispatch.make_plan(jnp.asarray(routes), num_experts, 4)
    known = np.where((routes < 0) | (routes >= num_experts), num_experts, routes)
    order = np.argsort(known, kind="stable")
    assert np.array_equal(plan.take[:rows], order) and np.array_equal(plan.back[order], np.arange(rows))
    assert np.array_equal(plan.starts, np.searchsorted(known[order], np.arange(num_experts + 1)))


def test_context_with_shared_parts_may_be_an_argument_of_jit():
    graph, state = split(GIVEN)
    inputs = random_inputs(GIVEN)

    @jax.jit
    def run(x, context):
        given = {"mask": jnp.asarray(inputs["mask"]), "state": {"scale": 1.5}}
        return nnx.merge(graph, state)(x, inputs["routes"], context=context, **given).fused_hidden

    x = jnp.asarray(inputs["x"], jnp.float32)
    parts = [convexmoe_jax.Shared(jnp.full(2, value)) for value in (1.0, 2.0)]
    one, two = (run(x, {"shift": jnp.zeros(len(x)), "of_all": [part]}) for part in parts)
    assert relative_error(one, two) > 1e-3 and run._cache_size() == 1


def of_one_expert(expert):
    """A hierarchy of one expert of a user's own."""
    level = convexmoe_jax.HierarchyLevelConfig("a", {"e0": convexmoe_jax.ExpertConfig("e0")})
    config = convexmoe_jax.CELMoEConfig(5, [level], use_learned_fusion=False)
    return convexmoe_jax.HierarchicalCELMoE(config, lambda *_, rngs: expert, rngs=nnx.Rngs(0))


def test_an_expert_with_statistics_of_a_batch_is_refused():
    class Normed(convexmoe_jax.ExpertModule):
        def __init__(self):
            self.norm = nnx.BatchNorm(5, rngs=nnx.Rngs(0))

        def __call__(self, batch):
            return convexmoe_jax.ExpertResult(self.norm(batch.hidden))

    with pytest.raises(ValueError, match=r"a\.e0: expected an expert without statistics of a batch; got Normed"):
        of_one_expert(Normed())


def test_an_expert_that_keeps_a_dict_is_refused_and_an_array_is_kept():
    class Keeping(convexmoe_jax.ExpertModule):
        def __init__(self, table):
            self.table = table

        def __call__(self, batch):
            return convexmoe_jax.ExpertResult(batch.hidden + self.table)

    with pytest.raises(
        TypeError, match=r"HierarchicalCELMoE\.a\.e0: expected attributes that can be hashed; got Keeping"
    ):
        of_one_expert(Keeping({"inner": 8}))
    output = of_one_expert(Keeping(jnp.arange(5.0)))(jnp.ones((3, 5)))
    assert np.array_equal(output.fused_hidden, np.ones((3, 5)) + np.arange(5.0))
