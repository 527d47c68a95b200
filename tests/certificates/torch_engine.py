"""The adapter of PyTorch: the names that the table of functions uses, and `certify`. Numpy goes in."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

import convexmoe_torch
from convexmoe_torch.hull.petals import huber_relu


def array(values: Any) -> torch.Tensor:
    return torch.as_tensor(np.array(values, np.float32))


def of_two(function: Any) -> Any:
    """A function of two tensors, of which one may be a number."""

    def called(a: Any, b: Any) -> torch.Tensor:
        kind = next(x for x in (a, b) if isinstance(x, torch.Tensor))
        return function(*(torch.as_tensor(x, dtype=kind.dtype) for x in (a, b)))

    return called


OWN = {
    "array": array,
    "relu": torch.relu,
    "softplus": F.softplus,
    "elu": F.elu,
    "gelu": F.gelu,
    "silu": F.silu,
    "softmax": lambda u: torch.softmax(u, -1),
    "log_softmax": lambda u: torch.log_softmax(u, -1),
    "logsumexp": torch.logsumexp,
    "norm": torch.linalg.vector_norm,
    "top_k": torch.topk,
    "huber_relu": huber_relu,
    "maximum": of_two(torch.maximum),
    "minimum": of_two(torch.minimum),
    "cummax": lambda u: torch.cummax(u, 0).values,
    "entr": torch.special.entr,
    "cumsum": lambda u: torch.cumsum(u, 0),
    "cumprod": lambda u: torch.cumprod(u, 0),
    "flip": lambda u: torch.flip(u, (0,)),
    "sort": lambda u: torch.sort(u).values,
    "cbrt": torch.tanh,  # PyTorch has no cube root: another function that rises, convex and then concave
}


class Torch:
    """Functions of the table in PyTorch."""

    name = "torch"
    package = convexmoe_torch
    xp = SimpleNamespace(**{name: getattr(torch, name) for name in dir(torch) if name[0] != "_"} | OWN)

    def example(self, shape: tuple[int, ...]) -> Any:
        """A point around which a counterexample is looked for."""
        return array(np.random.default_rng(0).normal(size=shape))

    def certify(self, row: Any, **options: Any) -> Any:
        """The certificate of a row of the table; fewer segments than a batch are one shape to compile."""
        options = {"segments": 4096} | options
        shape = getattr(row, "shape", (3,))
        return convexmoe_torch.certify(lambda x: row.function(self.xp, x), self.example(shape), **options)
