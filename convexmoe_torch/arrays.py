"""PyTorch as a library of arrays for the core."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from convexmoe.arrays import Library, iterate, namespace, register, repeat


def _factorize(system: Tensor) -> Callable[[Tensor], Tensor]:
    root, fault = torch.linalg.cholesky_ex(system)
    root = torch.where(fault[..., None, None] > 0, torch.nan, root)
    return lambda columns: torch.cholesky_solve(columns, root)


register(
    namespace(torch.zeros(0)),
    Library(
        while_loop=iterate,
        repeat=repeat,
        factorize=_factorize,
        sigmoid=torch.sigmoid,
        xlogy=torch.xlogy,
        logsumexp=lambda u: torch.logsumexp(u, dim=-1),
        softmax=lambda u: torch.softmax(u, dim=-1),
        stop_gradient=torch.Tensor.detach,
        gradient=lambda f, z: torch.func.grad(lambda at: f(at).sum())(z) if torch.is_grad_enabled() else None,
    ),
)
