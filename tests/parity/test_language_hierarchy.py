"""A hierarchy of languages with attention experts takes the same steps in JAX, in PyTorch and in a naive loop.

What is trained is the example, at other sizes: three levels, stopped gradients, tied embeddings outside, a learned
fusion, losses on every level, batches that leave experts without rows, AdamW with clipping. Most of the time goes into
compiling the step in JAX, once for each dtype.
"""

import importlib
import math
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from compilations import QUICK
from flax import nnx
from tolerances import HISTORY, relative_error

import convexmoe_jax
from interop import to_torch

pytestmark = pytest.mark.slow
sys.path.append(str(Path(__file__).parents[2] / "examples"))
example = importlib.import_module("language_hierarchy")
torch_expert = importlib.import_module("language_experts").torch_expert

# Every axis has another length; there are seven languages.
SIZES = example.Sizes(
    hidden=13, heads=2, head_dim=31, inner=17, adapter=19, language_dim=23, characters=29, length=5, rows=11
)
STEPS = 20
SEEDS = {"float64": (0, 1), "float32": (2,)}
FAULTY_STEPS = 7
LOSS = {"float64": 1e-12, "float32": HISTORY}
# Adam divides by the root of the second moment, so that the rounding of a small gradient is a large part of a step.
PARAMETERS = {"float64": 1e-11, "float32": 1e-3}

# What the example's config says, once more.
NAMES = ("anu", "eru", "ilo", "osk", "usk", "ber", "tam")
FAMILY = {"anu": "hill", "eru": "hill", "ilo": "hill", "osk": "coast", "usk": "coast"}  # the others: "mixed"
STOPPED = {"family.mixed", "language.usk"}
LOSS_WEIGHTS = {"universal.core": 0.02, "family.hill": 0.05, "family.coast": 0.05, "family.mixed": 0.1}
LOSS_WEIGHTS |= {f"language.{name}": 0.03 for name in NAMES} | {"language.usk": 1.0}
READ_OUT = {"universal": 0.3, "family": 0.2, "language": 0.5}


class CompiledOnce(example.JaxTraining):
    """Trainings of one config and dtype share the compiled step: weights and batches are its arguments."""

    steps: dict = {}  # noqa: RUF012

    def __init__(self, model, tables):
        super().__init__(model, tables)
        compiled = jax.jit(self.advance, compiler_options=QUICK)
        self.compiled_step = self.steps.setdefault(tables["characters"].dtype, compiled)


@cache
def shapes_of_start():
    """What the example starts from, without values, which are slow to draw in JAX."""
    config = example.config_of(convexmoe_jax, SIZES)
    model, tables = nnx.eval_shape(lambda: example.draw_weights(config, SIZES, seed=0))
    return *nnx.split(model), tables


def draw_start(dtype, seed):
    """The hierarchy and the tables, with weights of which none is 0 or 1 and no two are equal."""
    graph, state, tables = shapes_of_start()
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        middle = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0  # of a LayerNorm
        return (middle + 0.2 * rng.normal(size=leaf.shape)).astype(dtype)

    state = jax.tree_util.tree_map_with_path(lambda *leaf: jnp.array(draw(*leaf)), state)
    return nnx.merge(graph, state), jax.tree_util.tree_map_with_path(draw, tables)


def draw_batches(dtype, seed):
    """The example's batches, with holes in the lines: padding at their ends no character would see."""
    batches, rng = (example.draw_batches(SIZES, STEPS, seed, np.dtype(dtype))[:STEPS], np.random.default_rng(seed))
    masks = [batch.mask & (rng.random(batch.mask.shape) < 0.8) for batch in batches]
    for mask in masks:
        mask[:, 0] = True
    return [
        batch._replace(mask=mask, targets=batch.targets * mask[..., None].astype(dtype))
        for batch, mask in zip(batches, masks, strict=True)
    ]


def layer_norm(x, weight, bias):
    centered = x - x.mean(dim=-1, keepdim=True)
    return centered / (centered.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def attend(query, key, value):
    """Attention, `[length, heads, head_dim]`: a character after the other sees what stands before it, and itself."""
    outputs = []
    for at in range(len(query)):
        scores = (key[: at + 1] * query[at]).sum(dim=2) / math.sqrt(SIZES.head_dim)
        weights = (scores - scores.max()).exp()
        shares = weights / weights.sum(dim=0)
        outputs.append((shares[..., None] * value[: at + 1]).sum(dim=0))
    return torch.stack(outputs)


def run_expert(params, name, hidden, language):
    """An expert of one line without padding, `[length, hidden]`."""

    def linear(layer, x):
        bias = params.get(f"{name}.{layer}.bias", 0)  # keys have none
        return x @ params[f"{name}.{layer}.weight"].T + bias

    def norm(layer, x):
        return layer_norm(x, params[f"{name}.{layer}.weight"], params[f"{name}.{layer}.bias"])

    def silu(x):
        return x / (1 + (-x).exp())

    z = norm("attention_norm", hidden)
    heads = [linear(layer, z).unflatten(1, (SIZES.heads, -1)) for layer in ("query", "key", "value")]
    x = hidden + linear("out", attend(*heads).flatten(1))
    x = x + linear("contract", silu(linear("expand", norm("inner_norm", x))))
    condition = linear("condition", language)
    scale, shift = condition[: SIZES.hidden], condition[SIZES.hidden :]
    return x + linear("up", silu(linear("down", norm("adapter_norm", x) * (1 + scale) + shift)))


def naive_loss(params, batch):
    """The loss of a batch, one line after the other, each without what its mask hides."""
    count = int(batch.mask.sum())
    total, changes = 0.0, {}
    for line, (index, mask) in enumerate(zip(batch.languages, batch.mask, strict=True)):
        language, targets = NAMES[index], batch.targets[line, mask].argmax(axis=1)
        hidden = params["characters"][batch.characters[line, mask]] + params["positions"][mask]
        hiddens = {}
        for name in ("universal.core", f"family.{FAMILY.get(language, 'mixed')}", f"language.{language}"):
            parent = hidden.detach() if name in STOPPED else hidden
            hidden = run_expert(params, f"level_modules.{name}", parent, params["languages"][index])
            hiddens[name.partition(".")[0]] = hidden
            changes.setdefault(name, []).append((hidden - parent).square().mean())
        mixed = [h @ params[f"fusion.gates.{n}.weight"].T for n, h in enumerate(hiddens.values())]
        fused = layer_norm(sum(mixed) / 3, params["fusion.norm.weight"], params["fusion.norm.bias"])
        for weight, read in [(1.0, fused), *((READ_OUT[level], hiddens[level]) for level in hiddens)]:
            logits = read @ params["characters"].T
            chosen = logits[range(len(targets)), targets]
            total = total + weight * (logits.logsumexp(dim=1) - chosen).sum() / count
        kinship = (fused - hiddens["family"]).square().mean(dim=1).sum()
        gap = (hiddens["family"] - hiddens["language"]).square().mean(dim=1).sum()
        total = total + (0.01 * kinship + 0.05 * gap) / count
    return total + sum(LOSS_WEIGHTS[name] * sum(values) / len(values) for name, values in changes.items())


class NaiveTraining:
    """The loop over lines; the formula of clipping may be another one, which must then be noticed."""

    def __init__(self, model, tables, epsilon=1e-6):
        arrays = to_torch(model, expert_factory=torch_expert).state_dict()
        arrays |= {name: torch.tensor(table) for name, table in tables.items()}
        self.params = {name: array.clone().requires_grad_() for name, array in arrays.items()}
        self.optimizer = torch.optim.AdamW(self.params.values(), lr=3e-3, weight_decay=1e-2)
        self.epsilon = epsilon

    def step(self, batch):
        loss = naive_loss(self.params, batch)
        leaves = list(self.params.values())
        grads = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        norm = torch.cat([grad.flatten() for grad in grads]).square().sum().sqrt().item()
        for leaf, grad in zip(leaves, grads, strict=True):
            leaf.grad = grad * min(1.0, 1.0 / (norm + self.epsilon))
        self.optimizer.step()
        return loss.item()

    def weights(self):
        return {name: leaf.detach().numpy() for name, leaf in self.params.items()}


TRAININGS = {"jax": CompiledOnce, "torch": example.TorchTraining, "naive": NaiveTraining}


def train(training, dtype, seed, steps=STEPS):
    """The loss at every step, and the parameters after the last."""
    losses = [training.step(batch) for batch in draw_batches(dtype, seed)[:steps]]
    return np.array(losses), training.weights()


@cache
def trained(kind, dtype, seed):
    with jax.enable_x64(dtype == "float64"):
        return train(TRAININGS[kind](*draw_start(dtype, seed)), dtype, seed)


def loss_error(losses, wanted):
    return float(np.max(np.abs(losses - wanted) / np.abs(wanted)))


CASES = [(dtype, seed) for dtype, seeds in SEEDS.items() for seed in seeds]


@pytest.mark.parametrize(
    ("dtype", "seed"), [pytest.param(*case, marks=pytest.mark.release if case[1] == 1 else ()) for case in CASES]
)
@pytest.mark.parametrize(("one", "other"), [("jax", "torch"), ("jax", "naive"), ("torch", "naive")])
def test_the_steps_are_the_same(one, other, dtype, seed):
    losses, weights = trained(one, dtype, seed)
    wanted_losses, wanted_weights = trained(other, dtype, seed)
    assert loss_error(losses, wanted_losses) <= LOSS[dtype]
    assert set(weights) == set(wanted_weights)
    for name, value in weights.items():
        assert value.dtype == wanted_weights[name].dtype == np.dtype(dtype), name
        assert relative_error(value, wanted_weights[name]) <= PARAMETERS[dtype], name


def test_one_compilation_serves_all_batches_and_seeds():
    for dtype, seed in CASES:
        trained("jax", dtype, seed)
    assert [step._cache_size() for step in CompiledOnce.steps.values()] == [1, 1]


@pytest.mark.parametrize("seed", SEEDS["float64"])
def test_the_batches_are_what_they_are_for(seed):
    batches = draw_batches("float64", seed)
    families = [{FAMILY.get(NAMES[index], "mixed") for index in batch.languages} for batch in batches]
    assert min(map(len, families)) < 3 and set.union(*families) == {"hill", "coast", "mixed"}
    assert all(len(set(batch.languages)) < len(NAMES) for batch in batches)
    assert all((~batch.mask).any() and batch.mask[:, 0].all() for batch in batches)  # there is padding


class Unmasked(example.TorchTraining):
    """The experts see what the mask hides; the losses do not."""

    def output(self, batch):
        return super().output(batch._replace(mask=torch.ones_like(batch.mask)))


CONFIG_FAULTS = {
    "an expert's weight": ("family.hill", {"loss_weight": 0.0501}),
    "a gradient that is not stopped": ("family.mixed", {"stop_gradient_from_parent": False}),
    "a gradient that is stopped": ("family.hill", {"stop_gradient_from_parent": True}),
}
FAULTS = (
    *CONFIG_FAULTS,
    "a level's weight",
    "a mask that is not looked at",
    "a family off by one",
    "weight decay",
    "clipping by optax's formula",
)


def changed_config(config, name, changes):
    """The config with one expert changed."""
    levels = []
    for level in config.levels:
        experts = [
            replace(expert, **(changes if f"{level.name}.{expert.name}" == name else {}))
            for expert in level.expert_configs
        ]
        levels.append(replace(level, experts=experts))
    return replace(config, levels=levels)


def build_faulty(fault, model, tables):
    """A training with one thing changed."""
    if fault == "clipping by optax's formula":
        return NaiveTraining(model, tables, epsilon=0.0)
    if fault == "a level's weight":
        return example.TorchTraining(model, tables, example.LEVEL_WEIGHTS | {"family": 0.2001})
    kind = Unmasked if fault == "a mask that is not looked at" else example.TorchTraining
    training = kind(model, tables)
    if fault in CONFIG_FAULTS:
        training.model.config = changed_config(training.model.config, *CONFIG_FAULTS[fault])
    if fault == "a family off by one":
        training.family_of = training.family_of.roll(1)
    if fault == "weight decay":
        training.optimizer.param_groups[0]["weight_decay"] = 1.001e-2
    return training


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault, x64):
    losses, _ = train(build_faulty(fault, *draw_start("float64", 0)), "float64", 0, FAULTY_STEPS)
    wanted, _ = trained("jax", "float64", 0)
    assert loss_error(losses, wanted[:FAULTY_STEPS]) > 100 * LOSS["float64"]


def test_clipping_has_the_formula_of_torch(x64):
    rng = np.random.default_rng(0)
    grads = [rng.normal(size=shape) for shape in ((7, 5), (3,), (2, 11))]
    leaves = [torch.zeros(grad.shape, dtype=torch.float64, requires_grad=True) for grad in grads]
    for leaf, grad in zip(leaves, grads, strict=True):
        leaf.grad = torch.tensor(grad)
    torch.nn.utils.clip_grad_norm_(leaves, 0.7)
    errors = []
    for clip in (example.clip_as_torch(0.7), optax.clip_by_global_norm(0.7)):
        clipped, _ = clip.update([jnp.array(grad) for grad in grads], clip.init(grads))
        errors.append(max(relative_error(ours, leaf.grad) for ours, leaf in zip(clipped, leaves, strict=True)))
    assert errors[0] <= 1e-14 and errors[1] > 1e-8
    small = [jnp.array([0.3, 0.4])]
    assert (example.clip_as_torch(0.7).update(small, None)[0][0] == small[0]).all()


def test_the_example_prints_its_table(monkeypatch, capsys):
    monkeypatch.setattr(example, "Sizes", lambda: SIZES)
    start = draw_start("float32", 0)
    monkeypatch.setattr(example, "draw_weights", lambda *_: start)
    monkeypatch.setitem(example.TRAININGS, "jax", CompiledOnce)
    monkeypatch.setattr(sys, "argv", ["language_hierarchy.py", "--steps", "3"])
    example.main()
    lines = capsys.readouterr().out.splitlines()
    assert sum("universal level" in line for line in lines) == 2
    fused = [line.split() for line in lines if "fused output" in line]
    assert fused[0] == fused[1] and float(fused[0][3]) < float(fused[0][2])
    assert float(next(line for line in lines if "loss of any step" in line).split()[-1]) <= HISTORY
