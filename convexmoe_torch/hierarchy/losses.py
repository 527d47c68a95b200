"""Losses of a hierarchy, for tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from convexmoe import hierarchy as core


def _add(total: Tensor, weight: float, value: Tensor) -> Tensor:
    wide = value.to(torch.promote_types(value.dtype, torch.float32))
    return total.to(value.device) + weight * wide


@torch.no_grad()
def _fetch(values: list[Tensor]) -> list[float]:
    total = values[0]
    return torch.stack([value.to(total.device, total.dtype) for value in values]).tolist()


class LossBundle(core.LossBundle):
    __doc__ = core.LossBundle.__doc__

    _arrays = core.LossArrays(torch.zeros, torch.as_tensor, _add, _fetch)


class CELMoELossAPI(core.CELMoELossAPI):
    __doc__ = core.CELMoELossAPI.__doc__

    bundle = LossBundle
