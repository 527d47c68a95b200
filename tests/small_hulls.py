"""Small scalar hulls in PyTorch, in float64, for tests of programs."""

import torch
from cases import fields

import convexmoe_torch


def hull(seed=0, **changes):
    """A model in PyTorch."""
    torch.manual_seed(seed)
    return convexmoe_torch.VectorHull(**(fields(out_dim=1) | changes), dtype=torch.float64)


def value(model, x):
    with torch.no_grad():
        return model(torch.as_tensor(x, dtype=torch.float64)).numpy()
