"""The model of torch-mice 0.2.0, for its checkpoints only; see `convexmoe.hull.legacy`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convexmoe.hull.legacy import apply, check_parameters, parameter_shapes
from convexmoe.hull.parameters import Tree, nest

from ..settings import standard_promotion

__all__ = ["NonConvexHull", "parameter_shapes"]


class NonConvexHull(nnx.Module):
    """A hull of torch-mice 0.2.0. **Not convex.** Made by `interop.from_torch_mice`; for new models use `VectorHull`.

    Args:
        params: nested dict of arrays, as `parameter_shapes` names them; copied.

    Raises:
        ValueError: names or shapes that do not belong together; all are listed.
    """

    def __init__(self, params: Tree) -> None:
        copies = {name: jnp.array(value) for name, value in check_parameters(params).items()}
        for name, branch in nest(copies).items():
            setattr(self, name, nnx.data({key: nnx.Param(leaf) for key, leaf in branch.items()}))

    @property
    def params(self) -> Tree:
        """The parameters as a nested dict of arrays."""
        return nnx.to_pure_dict(nnx.state(self, nnx.Param))

    @standard_promotion
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the value at `x`, `[..., in_dim]` -> `[..., out_dim]`, of the dtype of the parameters."""
        return apply(self.params, x, (jax.Array, np.ndarray))
