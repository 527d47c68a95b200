"""What was recorded of the published packages: the archives, and how their hierarchies were defined."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import convexmoe_jax
import convexmoe_torch

FOLDER = Path(__file__).parent / "data"
CELMOE = sorted(FOLDER.glob("celmoe_1.1.1_*.npz"))
MICE = sorted(FOLDER.glob("torch_mice_0.2.0_*.npz"))
BOUND = 1e-10


def archive(path):
    """Everything in an archive, and its state dict."""
    with np.load(path, allow_pickle=False) as file:
        data = dict(file)
    return data, {name[6:]: data[name] for name in data if name.startswith("state/")}


def config_of(package, meta):
    levels = []
    for name, names in meta["levels"]:
        stop = name in meta["stop"]
        experts = {n: package.ExpertConfig(name=n, stop_gradient_from_parent=stop) for n in names}
        levels.append(package.HierarchyLevelConfig(name, experts, fallback_expert=names[0]))
    return package.CELMoEConfig(meta["hidden"], levels, fusion_dropout=0.0)


def losses_of(package, meta):
    """The losses of the recordings in the documented forms; LOSS_INPUTS holds what they take of targets and context."""
    api = package.CELMoELossAPI()
    first, last = meta["levels"][0][0], meta["levels"][-1][0]

    def l2(output, targets, context):
        return ((output.fused_hidden - targets["fused"]) ** 2).mean() * context["scale"]

    def norm(level, output, targets, context):
        own = output.levels[level.name].hidden - targets["level"]
        return {"a": abs(own).mean() * context["scale"], "b": (level.hidden**2).mean()}

    def gap(parent, child, output, targets, context):
        return ((parent.hidden - child.hidden - targets["gap"]) ** 2).mean() * context["scale"]

    api.add_global("l2", l2, weight=0.5)
    api.add_level(last, "norm", norm, weight=2.0)
    api.add_bridge(first, last, "gap", gap, weight=0.1)
    return api


LOSS_INPUTS = {"targets": {"fused": 0.0, "level": 0.0, "gap": 0.0}, "context": {"scale": 1.0}}


class TorchExpert(convexmoe_torch.ExpertModule):
    def __init__(self, size):
        super().__init__()
        self.proj = torch.nn.Linear(size, size)

    def forward(self, batch):
        hidden = torch.tanh(self.proj(batch.hidden)) * batch.mask[..., None] + batch.context[:, None]
        return convexmoe_torch.ExpertResult(hidden, {"act": (hidden**2).mean()})


class JaxExpert(convexmoe_jax.ExpertModule):
    def __init__(self, size, rngs):
        self.proj = nnx.Linear(size, size, rngs=rngs, param_dtype=jnp.float64)

    def __call__(self, batch):
        hidden = jnp.tanh(self.proj(batch.hidden)) * batch.mask[..., None] + batch.context[None]
        return convexmoe_jax.ExpertResult(hidden, {"act": (hidden**2).mean()})
