"""What torch-mice 0.2.0 computes, for its checkpoints only. It is not convex, whatever its documentation says.

Letters: N rows, D in, H hidden, P petals, O out; sp softplus, S the sigmoid.

    z_0 = sp(sp(x W_0 + b_0 + S(gate0 x)) + S(petal_gate0_p x))           W = sp(raw_weight)^2
    z_1 = sp(sp(z_0 W_1 + b_1 + S(gate1 x)) + S(petal_gate1_p x))
    f_p = sp(z_1 + [x, x] W_skip + b_skip) + bias_p
    y   = max_p ((f_p + f_{p+1 mod P}) / 2 + shift_p),  f itself at P = 1

The sigmoid gates are not convex; about 5 % of random segments violate convexity.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convexmoe.errors import last_axis, same_dtype, same_keys

from .fusion import group_values, maximum
from .module import flatten, nest
from .positive import softplus

Tree = dict[str, Any]


def parameter_shapes(D: int, H: int, P: int, O: int) -> dict[str, tuple[int, ...]]:
    """Return dotted name -> shape of every parameter."""
    layers = {
        "layer0": ("raw_weight", D, (P, H)),
        "layer1": ("raw_weight", H, (P, O)),
        "skip": ("raw_weight", 2 * D, (P, O)),
        "gate0": ("weight", D, (H,)),
        "gate1": ("weight", D, (O,)),
        "petal_gate0": ("weight", D, (P, H)),
        "petal_gate1": ("weight", D, (P, O)),
    }
    shapes: dict[str, tuple[int, ...]] = {"output.bias": (P, O), "output.shifts": (P,)}
    for layer, (weight, fan_in, out) in layers.items():
        shapes |= {f"{layer}.{weight}": (fan_in, *out), f"{layer}.bias": out}
    return shapes


def apply(params: Tree, x: jax.Array) -> jax.Array:
    """Return the value at `x`, `[..., D]` -> `[..., O]`."""
    last_axis("NonConvexHull", "x", x, params["layer0"]["raw_weight"].shape[0], (jax.Array, np.ndarray))
    same_dtype("NonConvexHull", "x", x, params["output"]["shifts"].dtype)
    rows = x.reshape(-1, x.shape[-1])

    def gate(name: str) -> jax.Array:
        layer = params[name]
        value = jax.nn.sigmoid(jnp.tensordot(rows, layer["weight"], 1) + layer["bias"])
        return value if value.ndim == 3 else value[:, None]

    def squared(name: str) -> jax.Array:
        return softplus(params[name]["raw_weight"]) ** 2

    u = jnp.tensordot(rows, squared("layer0"), 1) + params["layer0"]["bias"]
    z = softplus(softplus(u + gate("gate0")) + gate("petal_gate0"))
    u = jnp.einsum("nph,hpo->npo", z, squared("layer1")) + params["layer1"]["bias"]
    z = softplus(softplus(u + gate("gate1")) + gate("petal_gate1"))
    skip = jnp.tensordot(jnp.concatenate([rows, rows], 1), squared("skip"), 1) + params["skip"]["bias"]
    f_NPO = softplus(z + skip) + params["output"]["bias"]
    y = f_NPO[:, 0] if f_NPO.shape[1] == 1 else maximum(group_values(f_NPO, params["output"]["shifts"], 2))
    return y.reshape(*x.shape[:-1], y.shape[-1])


class NonConvexHull(nnx.Module):
    """A hull of torch-mice 0.2.0. **Not convex.** Made by `interop.from_torch_mice`; for new models use `VectorHull`.

    Args:
        params: nested dict of arrays, as `parameter_shapes` names them; copied.

    Raises:
        ValueError: names or shapes that do not belong together; all are listed.
    """

    def __init__(self, params: Tree) -> None:
        for name, branch in nest(checked(params)).items():
            setattr(self, name, nnx.data({key: nnx.Param(leaf) for key, leaf in branch.items()}))

    @property
    def params(self) -> Tree:
        """The parameters as a nested dict of arrays."""
        return nnx.to_pure_dict(nnx.state(self, nnx.Param))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the value at `x`, `[..., in_dim]` -> `[..., out_dim]`, of the dtype of the parameters."""
        return apply(self.params, x)


def checked(params: Tree) -> dict[str, jax.Array]:
    """Return copies of parameters by dotted name after the check of names and shapes."""
    flat = flatten(params)
    sizes = [flat[name].shape for name in ("layer0.raw_weight", "output.bias") if name in flat]
    if [len(size) for size in sizes] == [3, 2]:
        (D, P, H), (_, O) = sizes
        expected = parameter_shapes(D, H, P, O)
    else:
        expected = parameter_shapes(0, 0, 0, 0)
    got = {name: (tuple(value.shape), "") for name, value in flat.items()}
    same_keys("NonConvexHull", {name: (shape, None) for name, shape in expected.items()}, got)
    return {name: jnp.array(value) for name, value in flat.items()}
