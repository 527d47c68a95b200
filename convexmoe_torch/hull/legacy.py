"""The model of torch-mice 0.2.0, for its checkpoints only; see `convexmoe.hull.legacy`."""

from __future__ import annotations

from torch import Tensor, nn

from convexmoe.hull.legacy import apply, check_parameters, parameter_shapes
from convexmoe.hull.parameters import Tree, nest

from .module import module_of

__all__ = ["NonConvexHull", "parameter_shapes"]


class NonConvexHull(nn.Module):
    """A hull of torch-mice 0.2.0. **Not convex.** Made by `interop.from_torch_mice`; for new models use `VectorHull`.

    Args:
        params: nested dict of tensors, as `parameter_shapes` names them; copied.

    Raises:
        ValueError: names or shapes that do not belong together; all are listed.
    """

    def __init__(self, params: Tree) -> None:
        super().__init__()
        copies = {name: value.detach().clone() for name, value in check_parameters(params).items()}
        for name, branch in nest(copies).items():
            self.add_module(name, module_of(branch, trainable=True))

    @property
    def params(self) -> Tree:
        """The parameters as a nested dict of tensors."""
        return nest(dict(self.named_parameters()))

    def forward(self, x: Tensor) -> Tensor:
        """Return the value at `x`, `[..., in_dim]` -> `[..., out_dim]`, of the dtype of the parameters."""
        return apply(self.params, x, (Tensor,))
