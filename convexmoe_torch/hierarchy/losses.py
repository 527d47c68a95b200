"""The sum of a hierarchy's losses, and their transfer to the host; the rest stands in the core."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convexmoe import hierarchy as core


class LossBundle(core.LossBundle):
    __doc__ = core.LossBundle.__doc__

    @property
    def total(self) -> Tensor:
        """The sum of `weight * value` over all terms, a scalar."""
        total = torch.zeros(())
        for term in self.terms:
            value = torch.as_tensor(term.value)
            # a product in half precision may overflow where the total does not
            wide = value.to(torch.promote_types(value.dtype, torch.float32))
            total = total.to(value.device) + term.weight * wide
        return total

    @staticmethod
    def _as_array(value: Any) -> Tensor:
        return torch.as_tensor(value)

    @torch.no_grad()
    def _fetch(self) -> list[float]:
        total = self.total
        return torch.stack([total, *(torch.as_tensor(t.value).to(total) for t in self.terms)]).tolist()


class CELMoELossAPI(core.CELMoELossAPI):
    __doc__ = core.CELMoELossAPI.__doc__

    bundle = LossBundle
