"""An `ExpertBatch` with text and objects in it goes through the transforms of JAX."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import convexmoe_jax
import convexmoe_jax.hierarchy.records

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROWS, LENGTH, WIDTH, OTHER = 5, 2, 3, 7
ROUTES = [1, 0, 0, 1, 0]
EACH, ALL = np.arange(ROWS, dtype=np.float32) + 1, np.arange(OTHER, dtype=np.float32) + 1
NUMBER = itertools.count()  # a new level name for every model, so that JAX traces each anew


def config_of(level):
    experts = {name: convexmoe_jax.ExpertConfig(name) for name in ("x", "y")}
    levels = [convexmoe_jax.HierarchyLevelConfig(level, experts)]
    return convexmoe_jax.CELMoEConfig(WIDTH, levels, use_learned_fusion=False)


CONTEXT = {"name": "double", "number": 2, "each": EACH, "whole": convexmoe_jax.Shared(ALL)}


def computed(batch):
    """What the experts below compute: of one position, or of all."""
    assert batch.context["name"] == "double" and batch.state["text"] == "t"
    factor = batch.context["number"] * batch.context["each"] * batch.context["whole"].sum()
    return jnp.tanh(batch.hidden) * batch.mask[..., None] * factor + batch.state["expert"]


class Plain(convexmoe_jax.ExpertModule):
    def __call__(self, batch):
        return convexmoe_jax.ExpertResult(computed(batch))


class Recomputed(convexmoe_jax.ExpertModule):
    def __call__(self, batch):
        return convexmoe_jax.ExpertResult(jax.checkpoint(computed)(batch))


class ByPosition(convexmoe_jax.ExpertModule):
    def __call__(self, batch):
        axes = convexmoe_jax.ExpertBatch(0, None, 0, None)
        return convexmoe_jax.ExpertResult(jax.vmap(computed, in_axes=(axes,))(batch))


class ByPositionAndLeaf(convexmoe_jax.ExpertModule):
    def __call__(self, batch):
        context = {"name": None, "number": None, "each": None, "whole": None}
        axes = convexmoe_jax.ExpertBatch(0, context, 0, None)
        return convexmoe_jax.ExpertResult(jax.vmap(computed, in_axes=(axes,))(batch))


def gradient(expert):
    """Output and gradient of a model whose experts are called on batches with text in them."""
    config = config_of(f"level_{next(NUMBER)}")
    model = convexmoe_jax.HierarchicalCELMoE(config, lambda *_, rngs: expert(), rngs=nnx.Rngs(0))
    draw = np.random.default_rng(0)
    x, mask = draw.normal(size=(ROWS, LENGTH, WIDTH)), draw.normal(size=(ROWS, LENGTH))
    routing = {config.levels[0].name: np.array(ROUTES)}

    def total(x):
        output = model(x, routing, CONTEXT, jnp.asarray(mask, jnp.float32), state={"text": "t"})
        return (output.fused_hidden**2).sum()

    value, slope = jax.jit(jax.value_and_grad(total))(jnp.asarray(x, jnp.float32))
    return np.append(np.asarray(slope).ravel(), value)


@pytest.mark.parametrize("expert", [Recomputed, ByPosition, ByPositionAndLeaf])
def test_transforms_of_jax_take_a_batch(expert):
    """The plain expert multiplies all positions by one factor, so it computes what they compute by position."""
    wanted = gradient(Plain)
    assert np.allclose(gradient(expert), wanted, rtol=1e-5, atol=1e-4) and np.abs(wanted).max() > 1


def test_control_text_as_a_leaf_is_refused_by_jax(monkeypatch):
    monkeypatch.setattr(convexmoe_jax.hierarchy.records, "_is_constant", lambda leaf: False)
    with pytest.raises(TypeError, match="not a valid JAX type"):
        gradient(Recomputed)


def test_a_batch_goes_through_a_tree_and_back():
    batch = convexmoe_jax.ExpertBatch(jnp.ones(WIDTH), {"s": "t", "a": jnp.ones(2), "n": None}, None, {"level": "l"})
    leaves, tree = jax.tree.flatten(batch)
    again = jax.tree.unflatten(tree, leaves)
    assert len(leaves) == 2 and again.context["s"] == "t" and again.state == {"level": "l"}
    other = convexmoe_jax.ExpertBatch(jnp.ones(WIDTH), {"s": "u", "a": jnp.ones(2), "n": None}, None, {"level": "l"})
    assert jax.tree.structure(batch) == jax.tree.structure(again) != jax.tree.structure(other)
