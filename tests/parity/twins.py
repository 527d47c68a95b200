"""Twins for the parity tests: every dimension another prime, every bias and shift random."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch

import convexmoe_jax
import convexmoe_torch
from interop import to_jax

CONFIGS = {
    "default": {},
    "deep shared": {"depth": 3, "activation": "huber_relu"},
    "deep private": {"depth": 2, "trunk": "private"},
    "smooth": {"temperature": "learned", "gate": True},
    "plain maximum": {"group_size": 1, "activation": "relu", "depth": 2},
    "fixed temperature": {"temperature": 0.2, "trunk": "private", "gate": True},
}
SIZES = {"in_dim": 5, "petals": 7, "out_dim": 3, "hidden_dim": 11}
ROWS = 13


def torch_hull(seed, dtype="float64", **options):
    torch.manual_seed(seed)
    hull = convexmoe_torch.VectorHull(**{**SIZES, **options}, dtype=getattr(torch, dtype))
    with torch.no_grad():
        for parameter in hull.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return hull


def rows(seed, in_dim=SIZES["in_dim"], scale=1.0):
    return np.random.default_rng(seed).normal(size=(ROWS, in_dim)) * scale


def tied_hull(seed, petals=SIZES["petals"]):
    """A hull whose groups tie everywhere, to the last bit, and rows for it.

    Its petals are one affine map in dyadic numbers: sums of those are exact in whatever order they are made.
    """
    hull = torch_hull(seed, petals=petals)
    with torch.no_grad():
        hull.readout["raw_weight"].fill_(-800.0)  # softplus underflows to 0
        for name in ("weight", "bias"):
            one = torch.round(hull.readout[name][..., :1, :] * 64) / 64
            hull.readout[name].copy_(one.expand_as(hull.readout[name]))
        hull.shifts.fill_(0.25)
    return hull, np.round(rows(seed) * 8) / 8


@partial(jax.jit, static_argnames=("config", "adam"))
def losses_in_jax(params, batches, config, adam):
    """The loss before each step; `adam` is what `train_step` takes from its module: another is another program."""
    model, carry = convexmoe_jax.training.engine.HullFunction(config), (params, adam.init(params))
    return jax.lax.scan(lambda c, b: convexmoe_jax.training.engine.train_step(model, c, b), carry, batches)[1]


def trajectories(hull, seed, steps=200):
    """The loss before each of `steps` steps of Adam on the same batches, (JAX, PyTorch)."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(steps, 17, hull.config.in_dim)), rng.normal(size=(steps, 17, hull.config.out_dim))
    rates = 0.01 * np.ones(steps)
    twin = to_jax(hull)
    dtype = twin.params["shifts"].dtype

    batches = tuple(jnp.asarray(part, dtype) for part in (x, y, rates))
    ours = np.asarray(losses_in_jax(twin.params, batches, twin.config, convexmoe_jax.training.engine.ADAM))
    optimizer = convexmoe_torch.training.engine.adam(hull)
    like = next(hull.parameters())
    batches = zip(torch.as_tensor(x).to(like), torch.as_tensor(y).to(like), rates.tolist(), strict=True)
    theirs = [convexmoe_torch.training.engine.train_step(hull, optimizer, batch) for batch in batches]
    return ours, torch.stack(theirs).numpy()
