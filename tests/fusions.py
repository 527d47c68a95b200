"""Fusions of the levels' outputs in both packages: options, configs and models with one, for several test files."""

import jax.numpy as jnp
import numpy as np
import torch
from documented import model_of
from flax import nnx

ROWS, LENGTH, WIDTH, LEVELS, POSITIONS = 5, 3, 7, 2, 11


def options_of(engine, dtype="float64"):
    if engine.name == "jax":
        return {"rngs": nnx.Rngs(0), "dtype": getattr(jnp, dtype)}
    return {"dtype": getattr(torch, dtype)}


def config_of(package, width=None, **options):
    expert, level = package.ExpertConfig, package.HierarchyLevelConfig
    levels = [
        level("b", {"x": expert("x"), "y": expert("y", gradient_scale=0.25)}, "x"),
        level("a", {"only": expert("only")}, hidden_size=width),
    ]
    return package.CELMoEConfig(WIDTH, levels, fusion_dropout=0.0, **options)


AWARE = {"fusion_type": "position_aware", "fusion_max_positions": POSITIONS}


def linear_of(engine, last=WIDTH):
    """A function that builds linear experts, the third `last` wide."""
    widths = iter((WIDTH, WIDTH, last))
    return lambda **options: engine.package.LinearExpert(WIDTH, next(widths), **options)


def linear_model(engine, **options):
    return model_of(engine, config_of(engine.package, **options), linear_of(engine))


X = np.random.default_rng(6).normal(size=(ROWS, LENGTH, WIDTH)).astype(np.float32)
ROUTING = {"b": ["x", "y", "x", "x", "y"]}


def shift_bias(model):
    """Weights of every position its own."""
    bias = np.random.default_rng(7).normal(size=(POSITIONS, LEVELS)).astype(np.float32)
    if isinstance(model, torch.nn.Module):
        model.fusion.position_bias.data = torch.tensor(bias)
    else:
        model.fusion.position_bias[...] = jnp.asarray(bias)
    return model
