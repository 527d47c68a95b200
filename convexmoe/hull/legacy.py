"""The model of torch-mice 0.2.0, for its checkpoints only. It is not convex, whatever its documentation says.

Letters: N rows, D in, H hidden, P petals, O out; sp softplus, S the sigmoid.

    z_0 = sp(sp(x W_0 + b_0 + S(gate0 x)) + S(petal_gate0_p x))           W = sp(raw_weight)^2
    z_1 = sp(sp(z_0 W_1 + b_1 + S(gate1 x)) + S(petal_gate1_p x))
    f_p = sp(z_1 + [x, x] W_skip + b_skip) + bias_p
    y   = max_p ((f_p + f_{p+1 mod P}) / 2 + shift_p),  f itself at P = 1

The sigmoid gates are not convex; about 5 % of random segments violate convexity.
"""

from __future__ import annotations

from typing import Any

from ..arrays import Array, as_array, einsum, library, namespace
from ..errors import last_axis, same_dtype, same_keys
from .activations import ACTIVATIONS
from .parameters import Tree, flatten


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


def apply(params: Tree, x: Any, kinds: tuple[Any, ...]) -> Array:
    """Return the value at `x`, `[..., D]` -> `[..., O]`, an array of one of `kinds`."""
    last_axis("NonConvexHull", "x", x, params["layer0"]["raw_weight"].shape[0], kinds)
    same_dtype("NonConvexHull", "x", x, params["output"]["shifts"].dtype)
    xp, softplus = namespace(params["output"]["shifts"]), ACTIVATIONS["softplus"].value
    rows = xp.reshape(as_array(x, params["output"]["shifts"]), (-1, x.shape[-1]))

    def gate(name: str) -> Array:
        layer = params[name]
        value = library(rows).sigmoid(xp.tensordot(rows, layer["weight"], axes=1) + layer["bias"])
        return value if value.ndim == 3 else value[:, None]

    def squared(name: str) -> Array:
        return softplus(params[name]["raw_weight"]) ** 2

    u = xp.tensordot(rows, squared("layer0"), axes=1) + params["layer0"]["bias"]
    z = softplus(softplus(u + gate("gate0")) + gate("petal_gate0"))
    u = einsum("nph,hpo->npo", z, squared("layer1")) + params["layer1"]["bias"]
    z = softplus(softplus(u + gate("gate1")) + gate("petal_gate1"))
    skip = xp.tensordot(xp.concat([rows, rows], axis=1), squared("skip"), axes=1) + params["skip"]["bias"]
    f_NPO = softplus(z + skip) + params["output"]["bias"]
    if f_NPO.shape[1] > 1:
        f_NPO = 0.5 * (f_NPO + xp.roll(f_NPO, -1, axis=1)) + params["output"]["shifts"][:, None]
    return xp.reshape(xp.max(f_NPO, axis=1), (*x.shape[:-1], f_NPO.shape[-1]))


def check_parameters(params: Tree) -> dict[str, Array]:
    """Return parameters by dotted name after the check of names and shapes; all faults are listed."""
    flat = flatten(params)
    sizes = [flat[name].shape for name in ("layer0.raw_weight", "output.bias") if name in flat]
    if [len(size) for size in sizes] == [3, 2]:
        (D, P, H), (_, O) = sizes
        expected = parameter_shapes(D, H, P, O)
    else:
        expected = parameter_shapes(0, 0, 0, 0)
    got = {name: (tuple(value.shape), "") for name, value in flat.items()}
    same_keys("NonConvexHull", {name: (shape, None) for name, shape in expected.items()}, got)
    return flat
