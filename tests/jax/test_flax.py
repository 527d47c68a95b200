"""NNX modules, optax on plain params, a Linen module over the pure functions, and folded hulls as pytrees."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from backends import BACKENDS
from flax import linen, nnx

import convexmoe_jax
from convexmoe_jax import FoldedHull, HullConfig, VectorHull, hull

pytestmark = pytest.mark.usefixtures("quick_compilation")

BACKEND = BACKENDS[0]
FIELDS = cases.fields(gate=True, temperature="learned", depth=2)


@pytest.fixture(scope="module")
def model():
    return BACKEND.model(FIELDS, cases.random_weights(FIELDS), "float32")


@pytest.fixture(scope="module")
def call(model):
    """The plain call, compiled once for all tests: operation by operation each of them would be compiled alone."""
    graph, _ = nnx.split(model)
    compiled = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
    return lambda model, x: compiled(nnx.state(model), x)


@pytest.fixture(scope="module")
def x():
    return jnp.array(cases.random_inputs(FIELDS), jnp.float32)


def test_split_and_merge(model, x, call):
    graph, state = nnx.split(model)
    again = nnx.merge(graph, state)
    assert again.config == model.config
    assert jnp.array_equal(call(again, x), call(model, x))
    doubled = nnx.merge(graph, jax.tree.map(lambda leaf: 2 * leaf, state))
    assert not jnp.allclose(call(doubled, x), call(model, x))


def test_state_holds_every_weight_once(model):
    state = nnx.state(model, nnx.Param)
    names = {".".join(str(key) for key in path) for path, _ in nnx.to_flat_state(state)}
    assert names == set(cases.weight_shapes(FIELDS))


def test_params_are_a_new_tree_each_time(model):
    before = hull.flatten(model.params)
    tree = model.params
    tree["shifts"] = tree["shifts"] + 1.0
    tree["readout"].clear()
    assert hull.flatten(model.params).keys() == before.keys()
    assert jnp.array_equal(model.params["shifts"], before["shifts"])


def test_nnx_jit_and_grad(model, x, call):
    value, gradients = nnx.jit(nnx.value_and_grad(lambda model, x: jnp.mean(model(x) ** 2)))(model, x)
    wanted = jax.jit(jax.grad(lambda params: jnp.mean(hull.apply(params, x, model.config) ** 2)))(model.params)
    assert np.isclose(value, jnp.mean(call(model, x) ** 2), rtol=1e-6)
    assert np.allclose(gradients["readout"]["weight"][...], wanted["readout"]["weight"], rtol=1e-4, atol=1e-6)


def test_eval_shape_of_a_new_module(model):
    made = nnx.eval_shape(lambda: VectorHull.from_config(model.config, rngs=nnx.Rngs(0)))
    flat = nnx.to_flat_state(nnx.state(made, nnx.Param))
    shapes = {".".join(path): leaf.get_value().shape for path, leaf in flat}
    assert shapes == cases.weight_shapes(FIELDS)


def fall(step, params, state, x, y):
    """First and last loss of 150 steps."""
    losses = []
    for _ in range(150):
        params, state, loss = step(params, state, x, y)
        losses.append(float(loss))
    return losses[0], losses[-1]


def test_an_optax_loop_on_params_learns():
    fields = cases.fields(in_dim=3, petals=5, out_dim=1, hidden_dim=13, temperature="learned")
    config = HullConfig(**fields)
    x = jax.random.normal(jax.random.key(1), (101, 3))
    y = jnp.sum(jnp.abs(x), axis=1, keepdims=True)
    optimizer = optax.adam(1e-2)
    params = BACKEND.model(fields, cases.random_weights(fields), "float32").params

    @jax.jit
    def step(params, state, x, y):
        loss, grads = jax.value_and_grad(lambda p: jnp.mean((hull.apply(p, x, config) - y) ** 2))(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, loss

    first, last = fall(step, params, optimizer.init(params), x, y)
    assert last < 0.1 * first


class LinenHull(linen.Module):
    """The recipe for Linen: one parameter, which is the tree of `hull.init`."""

    config: HullConfig

    @linen.compact
    def __call__(self, x):
        params = self.param("hull", lambda key: hull.init(self.config, key, dtype=x.dtype))
        return hull.apply(params, x, self.config)


def test_the_linen_recipe(model, x):
    module = LinenHull(model.config)
    made = jax.eval_shape(module.init, jax.random.key(0), x)["params"]["hull"]
    shapes = {name: leaf.shape for name, leaf in hull.flatten(made).items()}
    assert shapes == cases.weight_shapes(FIELDS)
    applied = jax.jit(module.apply)({"params": {"hull": model.params}}, x)
    assert jnp.array_equal(applied, jax.jit(hull.apply, static_argnums=2)(model.params, x, model.config))
    # inside a larger module, differentiated
    chain = linen.Sequential([linen.Dense(5), module])
    dense = {"kernel": jnp.eye(5), "bias": jnp.ones(5)}
    variables = {"params": {"layers_0": dense, "layers_1": {"hull": model.params}}}
    made = jax.eval_shape(chain.init, jax.random.key(0), x)
    assert jax.tree.structure(made) == jax.tree.structure(variables)
    gradients = jax.jit(jax.grad(lambda v: jnp.mean(chain.apply(v, x) ** 2)))(variables)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradients))
    assert len(jax.tree.leaves(gradients)) == 2 + len(cases.weight_shapes(FIELDS))


def test_a_folded_hull_is_a_pytree(model, x):
    folded = model.fold()
    leaves, structure = jax.tree.flatten(folded)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert isinstance(jax.tree.unflatten(structure, leaves), FoldedHull)
    assert hash(structure) == hash(jax.tree.structure(model.fold()))
    apply = jax.jit(lambda folded, x: folded(x))
    y = apply(folded, x)
    assert jnp.array_equal(apply(jax.tree.unflatten(structure, leaves), x), y)
    assert np.allclose(y, folded(x), rtol=1e-5, atol=1e-4)
    gradients = jax.jit(jax.grad(lambda folded: jnp.sum(folded(x))))(folded)
    assert isinstance(gradients, FoldedHull) and gradients.params["readout"]["weight"].any()


BUILDS = {
    "VectorHull": lambda **rngs: VectorHull(3, petals=2, **rngs),
    "LinearExpert": lambda **rngs: convexmoe_jax.LinearExpert(3, **rngs),
    "MLPExpert": lambda **rngs: convexmoe_jax.MLPExpert(3, 5, **rngs),
    "LearnedFusion": lambda **rngs: convexmoe_jax.LearnedFusion(3, 2, **rngs),
    "PositionAwareFusion": lambda **rngs: convexmoe_jax.PositionAwareFusion(3, 2, **rngs),
    "HierarchicalCELMoE": lambda **rngs: convexmoe_jax.HierarchicalCELMoE(
        convexmoe_jax.CELMoEConfig(3, [convexmoe_jax.HierarchyLevelConfig("a", [convexmoe_jax.ExpertConfig("x")])]),
        lambda *_, rngs: convexmoe_jax.LinearExpert(3, rngs=rngs),
        **rngs,
    ),
}


@pytest.mark.parametrize("name", BUILDS)
def test_a_missing_rngs_names_the_remedy(name):
    for rngs in ({}, {"rngs": jax.random.key(0)}, {"rngs": nnx.Rngs(dropout=0)}):
        with pytest.raises(TypeError, match=rf"^{name}\.rngs: expected nnx\.Rngs .* Pass rngs=nnx\.Rngs\(0\)\."):
            BUILDS[name](**rngs)
    nnx.eval_shape(lambda: BUILDS[name](rngs=nnx.Rngs(0)))  # control
