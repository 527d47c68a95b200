"""A hierarchy as the documented package has it, in both packages: experts by name, losses with targets and context."""

import functools
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx

import convexmoe_jax
import convexmoe_torch

ROWS, LENGTH, WIDTH, CONTEXT = 5, 3, 7, 11
ROUTING = {"alpha": ["b", "a", "b", "a", "a"]}
SEEN: list[Any] = []  # the batches that experts were given


class TorchProjection(convexmoe_torch.ExpertModule):
    def __init__(self, width):
        super().__init__()
        self.proj = torch.nn.Linear(width, width)

    def forward(self, batch):
        SEEN.append(batch)
        largest = batch.hidden.flatten(1).amax(1)
        losses = {"size": batch.hidden.square().mean()}
        return convexmoe_torch.ExpertResult(self.proj(batch.hidden), losses, {"largest": largest})


class JaxProjection(convexmoe_jax.ExpertModule):
    def __init__(self, width, rngs):
        self.proj = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, batch):
        SEEN.append(batch)
        losses = {"size": (batch.hidden**2).mean()}
        return convexmoe_jax.ExpertResult(self.proj(batch.hidden), losses, {"largest": batch.hidden.max()})


def config_of(package, **options):
    """Two levels whose names are not in alphabetical order."""
    expert, level = package.ExpertConfig, package.HierarchyLevelConfig
    parent = level("zeta", experts={"core": expert("core", loss_weight=0.5)}, fallback_expert="core")
    child = level("alpha", experts={"b": expert("b", stop_gradient_from_parent=True), "a": expert("a")})
    return package.CELMoEConfig(hidden_size=WIDTH, levels=[parent, child], **options)


def model_of(engine, config, expert=None, **options):
    """A hierarchy with the experts of a framework; `expert()`, in JAX `expert(rngs=)`, builds another."""
    if engine.name == "jax":
        rngs = nnx.Rngs(0)
        make = (lambda rngs: JaxProjection(config.hidden_size, rngs)) if expert is None else expert
        return convexmoe_jax.HierarchicalCELMoE(
            config, lambda level, expert, metadata, *, rngs: make(rngs=rngs), rngs=rngs, **options
        )
    torch.manual_seed(0)
    make = (lambda: TorchProjection(config.hidden_size)) if expert is None else expert
    return convexmoe_torch.HierarchicalCELMoE(config, lambda level, expert, metadata: make(), **options)


def numpy(value):
    return value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def compiled(engine, model, *given):
    """The fused output of a model as a function of its input: in JAX one program, where eager calls compile many."""

    def run(x):
        output = model(x, *given)
        return getattr(output, "fused_hidden", output)

    return jax.jit(run) if engine.name == "jax" else run


@functools.cache
def inputs():
    """Hidden, embedding and mask of every sample, in float32."""
    draw = np.random.default_rng(0)
    shapes = {"x": (ROWS, LENGTH, WIDTH), "embedding": (ROWS, CONTEXT), "mask": (ROWS, LENGTH)}
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@functools.cache
def example(engine):
    """The config, the output of its model and the batches that the experts got."""
    config = config_of(engine.package, fusion_dropout=0.0)
    model, given = model_of(engine, config), inputs()
    SEEN.clear()

    def run(x, embedding, mask):
        context = {"embedding": embedding, "name": "text", "number": 3}
        return model(x, ROUTING, context, mask)  # positional: hidden, routing, context, mask

    run = jax.jit(run) if engine.name == "jax" else run
    output = run(*(engine.array(given[name]) for name in ("x", "embedding", "mask")))
    return config, model, output, tuple(SEEN)
