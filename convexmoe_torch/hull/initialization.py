"""Initial values of a hull's parameters, drawn from their laws."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from convexmoe.errors import fail
from convexmoe.hull.config import HullConfig
from convexmoe.hull.parameters import Law, initial_law, parameter_shapes, row_factors


def draw(law: Law, shape: tuple[int, ...], dtype: torch.dtype | None) -> Tensor:
    """Draw one parameter from its law, on the default device and generator."""
    if law.kind == "constant" or torch.get_default_device().type == "meta":  # where nothing has a value
        return torch.full(shape, law.mean, dtype=dtype)
    # half precision would cut the tails, where most of the second moment lies
    dtype = torch.get_default_dtype() if dtype is None else dtype
    wide = torch.promote_types(dtype, torch.float32)
    if law.kind == "orthogonal":
        return (law.deviation * orthogonal(shape, wide)).to(dtype)
    values = law.mean + law.deviation * torch.randn(shape, dtype=wide)
    if law.kind == "raw_log_normal":
        positive = torch.exp(values)
        values = positive + torch.log(-torch.expm1(-positive))  # the inverse of softplus
    return values.to(dtype)


def orthogonal(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return entries of variance 1 whose matrix (in, units) has orthogonal rows, or columns where it is narrow."""
    D, units = shape[0], math.prod(shape[1:])
    matrix = nn.init.orthogonal_(torch.empty(D, units, dtype=dtype), math.sqrt(max(D, units)))
    return matrix.reshape(shape)


def initial_parameters(config: HullConfig, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Draw every parameter (dotted name -> tensor) from its `initial_law`."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        fail("VectorHull", "dtype", "a floating dtype", str(dtype), "Pass torch.float32, for example.")
    drawn = {}
    for name, shape in parameter_shapes(config).items():
        drawn[name], factors = draw(initial_law(name, config), shape, dtype), row_factors(name, config)
        if factors is not None:
            drawn[name] *= torch.tensor(factors, dtype=drawn[name].dtype).reshape(-1, *[1] * (len(shape) - 1))
    return drawn
