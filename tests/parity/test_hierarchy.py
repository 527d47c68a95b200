"""Hierarchies cross the frameworks and the file: ready experts on their own, a user's layers by the table of rules."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from page_formulas import program

import convexmoe_jax
import convexmoe_torch
from interop import to_jax, to_torch

pytestmark = pytest.mark.usefixtures("quick_compilation")

SIZE, ROWS, LENGTH, TOKENS = 7, 11, 5, 13
ROUTES = {"family": np.arange(ROWS) % 3, "language": np.arange(ROWS) % 2}


def config_of(package):
    """With names that modules of PyTorch, and of their containers, have already."""

    def level(name, names):
        return package.HierarchyLevelConfig(name, [package.ExpertConfig(each) for each in names])

    levels = [level("items", ["train"]), level("family", ["a", "b", "keys"]), level("language", ["x", "y"])]
    return package.CELMoEConfig(SIZE, levels, fusion_dropout=0.0)


def ready_jax(level, expert, metadata, *, rngs):
    if level == "items":
        return convexmoe_jax.HullExpert(convexmoe_jax.VectorHull(SIZE, 3, hidden_dim=5, dtype=jnp.float64, rngs=rngs))
    if expert == "b":
        return convexmoe_jax.LinearExpert(SIZE, dtype=jnp.float64, rngs=rngs)
    return convexmoe_jax.MLPExpert(SIZE, 17, dtype=jnp.float64, rngs=rngs)


class OwnJax(convexmoe_jax.ExpertModule):
    """One of each of the usual layers."""

    def __init__(self, rngs):
        exact = {"param_dtype": jnp.float64, "rngs": rngs}
        self.embed = nnx.Embed(TOKENS, SIZE, **exact)
        self.norm = nnx.LayerNorm(SIZE, epsilon=1e-5, use_fast_variance=False, **exact)
        self.rms = nnx.RMSNorm(SIZE, epsilon=1e-6, use_fast_variance=False, **exact)
        self.conv = nnx.Conv(SIZE, 3, kernel_size=(3,), padding=1, **exact)
        self.out = nnx.Sequential(nnx.Linear(3, 2, **exact), nnx.relu, nnx.Linear(2, SIZE, **exact))

    def __call__(self, batch):
        x = self.norm(batch.hidden) + self.rms(batch.hidden) + self.embed(batch.context)
        return convexmoe_jax.ExpertResult(self.out(self.conv(x)))


class OwnTorch(convexmoe_torch.ExpertModule):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(TOKENS, SIZE)
        self.norm = torch.nn.LayerNorm(SIZE, eps=1e-5)
        self.rms = torch.nn.RMSNorm(SIZE, eps=1e-6)
        self.conv = torch.nn.Conv1d(SIZE, 3, kernel_size=3, padding=1)
        self.out = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU(), torch.nn.Linear(2, SIZE))

    def forward(self, batch):
        x = self.norm(batch.hidden) + self.rms(batch.hidden) + self.embed(batch.context)
        return convexmoe_torch.ExpertResult(self.out(self.conv(x.transpose(1, 2)).transpose(1, 2)))


def own_jax(level, expert, metadata, *, rngs):
    return OwnJax(rngs)


def own_torch(level, expert, metadata):
    return OwnTorch()


def jax_model(factory, seed=0):
    model = convexmoe_jax.HierarchicalCELMoE(config_of(convexmoe_jax), factory, rngs=nnx.Rngs(seed))
    widths = [SIZE] * 3
    model.fusion = convexmoe_jax.LearnedFusion(SIZE, widths, dtype=jnp.float64, rngs=nnx.Rngs(seed))
    state = nnx.state(model)
    rng = np.random.default_rng(seed)  # biases and scales too
    nnx.update(model, jax.tree.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape), state))
    return model


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(ROWS, LENGTH, SIZE)), rng.integers(TOKENS, size=(ROWS, LENGTH))


@partial(jax.jit, static_argnums=0)
def fused_in_jax(graph, state, x, context):
    return nnx.merge(graph, state)(x, ROUTES, context=context).fused_hidden


def outputs(model, twin, x, context):
    there = twin(torch.tensor(x), ROUTES, context=torch.tensor(context)).fused_hidden.detach().numpy()
    return np.asarray(fused_in_jax(*nnx.split(model), jnp.asarray(x), jnp.asarray(context))), there


FACTORIES = {"ready": (ready_jax, None), "own": (own_jax, own_torch)}


@pytest.mark.parametrize("kind", FACTORIES)
def test_twins_agree(kind, tmp_path, x64):
    model = jax_model(FACTORIES[kind][0])
    twin = to_torch(model, expert_factory=FACTORIES[kind][1])
    ours, theirs = outputs(model, twin, *inputs())
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
    back = to_jax(twin, expert_factory=None if kind == "ready" else own_jax)
    assert (outputs(back, twin, *inputs())[0] == ours).all()
    if kind == "ready":  # so do the formulas of docs/pages/files.md
        convexmoe_jax.save(model, tmp_path / "file")
        page = program()
        config, p = page["read"](tmp_path / "file")
        routes = {lv.name: [lv.expert_names[i] for i in ROUTES.get(lv.name, [0] * ROWS)] for lv in model.levels}
        found = page["hierarchy"](config, page["below"]("params/", p), inputs()[0], routes)
        np.testing.assert_allclose(found, ours, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["family.b.out.0.weight", "language.y.conv.weight", "items_.train_.norm.bias"])
def test_a_slip_in_one_layer_is_seen(name, x64):
    model = jax_model(own_jax)
    twin = to_torch(model, expert_factory=own_torch)
    parameter = dict(twin.named_parameters())[f"level_modules.{name}"]
    with torch.no_grad():
        parameter.copy_(parameter.flip(0))
    ours, theirs = outputs(model, twin, *inputs())
    assert np.abs(ours - theirs).max() > 1e-6


@pytest.mark.parametrize("kind", FACTORIES)
def test_the_file_is_the_same_from_both(kind, tmp_path, x64):
    jax_factory, torch_factory = FACTORIES[kind]
    jax_factory = None if kind == "ready" else jax_factory
    model = jax_model(FACTORIES[kind][0])
    files = [tmp_path / name for name in ("jax", "torch", "again")]
    convexmoe_jax.save(model, files[0])
    convexmoe_torch.save(convexmoe_torch.load(files[0], expert_factory=torch_factory), files[1])
    convexmoe_jax.save(convexmoe_jax.load(files[1], expert_factory=jax_factory), files[2])
    assert files[0].read_bytes() == files[1].read_bytes() == files[2].read_bytes()


@pytest.mark.parametrize("package", [convexmoe_jax, convexmoe_torch])
def test_a_file_with_own_experts_asks_for_their_factory(package, tmp_path, x64):
    convexmoe_jax.save(jax_model(own_jax), tmp_path / "file")
    with pytest.raises(ValueError, match=r"load\.expert_factory: expected a factory for the experts \['family\.a'"):
        package.load(tmp_path / "file")


class Unknown(nnx.Module):
    def __init__(self):
        self.scale = nnx.Param(jnp.ones(SIZE))

    def __call__(self, batch):
        return convexmoe_jax.ExpertResult(batch.hidden * self.scale[...])


class UnknownTorch(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(SIZE))


def test_an_unknown_layer_is_named():
    model = convexmoe_jax.HierarchicalCELMoE(config_of(convexmoe_jax), lambda *_, rngs: Unknown(), rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"got Unknown\.scale\. Add one: convexmoe_jax\.names\.RULES\[Unknown\]"):
        convexmoe_jax.files.layers.neutral_arrays(model)
    twin = convexmoe_torch.HierarchicalCELMoE(config_of(convexmoe_torch), lambda *_: UnknownTorch())
    with pytest.raises(TypeError, match=r"got UnknownTorch\.scale\. Add one: convexmoe_torch\.names\.RULES"):
        convexmoe_torch.files.layers.neutral_arrays(twin)


def test_an_own_rule_is_followed(monkeypatch):
    monkeypatch.setitem(
        convexmoe_jax.files.layers.RULES, Unknown, {"scale": ("scale", convexmoe_jax.files.layers.same)}
    )
    model = convexmoe_jax.HierarchicalCELMoE(config_of(convexmoe_jax), lambda *_, rngs: Unknown(), rngs=nnx.Rngs(0))
    assert "level_modules.family.b.scale" in convexmoe_jax.files.layers.neutral_arrays(model)
