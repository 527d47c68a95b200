"""Dropout by sample: which units of a sample are dropped depends on its own key, not on other samples or routes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from convexmoe.errors import share

# Constants and shifts of SplitMix64 (Steele, Lea, Flood 2014); as signed integers, which wrap around in PyTorch.
CONSTANTS = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
STEP, FIRST, SECOND = (value - 2**64 for value in CONSTANTS)
BITS = 31  # of a hash, that are compared with the rate


def sample_dropout(x: Tensor, rate: float, key: Tensor | None, index: int = 0) -> Tensor:
    """Return `x` with a share `rate` of its units zero and the rest divided by `1 - rate`.

    Unlike `torch.nn.Dropout`, which draws for the rows of an expert together, it drops the same units of a sample
    whatever the routes of the others are.

    Args:
        x: `[rows, ...]`.
        rate: in [0, 1).
        key: `batch.key`, int64 `[rows]`; None, as outside training, returns `x`.
        index: another number for each dropout of an expert, so that they differ.

    Raises:
        ValueError: a rate out of range.
    """
    share("sample_dropout", "rate", rate)
    if key is None or rate == 0.0:
        return x
    units = torch.arange(math.prod(x.shape[1:]), device=x.device)
    bits = hash_bits(hash_bits(key + (index + 1))[:, None] + STEP * units) & (2**BITS - 1)
    keep = (bits >= int(rate * 2**BITS)).reshape(x.shape)
    return torch.where(keep, x / (1.0 - rate), 0.0)


def sample_keys(rows: int, device: torch.device) -> Tensor:
    """Return a key for each sample, int64 `[rows]`, from one draw of PyTorch's generator."""
    seed = torch.randint(2**62, (), device=device)
    return hash_bits(seed + STEP * torch.arange(rows, device=device))


def hash_bits(z: Tensor) -> Tensor:
    """Return a hash of int64 values: the finalizer of SplitMix64."""
    z = (z ^ _shift_right(z, 30)) * FIRST
    z = (z ^ _shift_right(z, 27)) * SECOND
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Return `z >> bits` without the sign."""
    return (z >> bits) & (2 ** (64 - bits) - 1)
