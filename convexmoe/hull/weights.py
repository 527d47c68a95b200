"""A hull as numpy arrays: its config and its effective parameters. No framework is imported.

Letters: D in, H hidden, P petals, O out.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import fail
from .config import HullConfig
from .parameters import parameter_shapes, positive_scale

Arrays = dict[str, NDArray[np.float64]]


class HullWeights(NamedTuple):
    """A hull without a framework.

    Args:
        config: its config.
        arrays: its effective parameters by dotted name in float64: `positive_weight` >= 0 in place of `raw_weight`.
    """

    config: HullConfig
    arrays: Arrays


def positive_weight(raw: NDArray[np.float64], fan_in: int) -> NDArray[np.float64]:
    """Return `softplus(raw) * sqrt(POSITIVE_SHARE / fan_in)`, which is >= 0 for every raw value."""
    return np.logaddexp(raw, 0.0) * positive_scale(fan_in)


def signed_weight(
    raw: NDArray[np.float64], signs: tuple[int, ...], axis: int = 0, offset: float = 0.0
) -> NDArray[np.float64]:
    """Return a weight on inputs with the sign of each: `sign * positive_weight(raw + offset)`, as it is where it is 0.

    Args:
        raw: `[..., in_dim, ...]`, the inputs along `axis`; signs: -1, 0 or 1 for each input.
    """
    sign = np.asarray(signs, raw.dtype).reshape(-1, *[1] * (raw.ndim - 1 - axis))
    return np.where(sign == 0, raw, sign * positive_weight(raw + offset, len(signs)))


def effective_weights(config: HullConfig, parameters: Arrays, owner: str) -> HullWeights:
    """Return the effective weights of a hull: non-negative ones are softplus(raw) times a constant.

    Args:
        config: of the hull.
        parameters: by dotted name in float64; `raw_weight` as it is trained, or `positive_weight` as `fold` gives it.
        owner: who asks, for the messages.

    Raises:
        ValueError: names or shapes are not those of the config, a value is not finite, or a `positive_weight` is
            negative; all faults are listed.
    """
    arrays, finite, raw = {}, {}, any(name.endswith("raw_weight") for name in parameters)
    for name, value in parameters.items():
        effective = name.replace("raw_weight", "positive_weight")
        with np.errstate(invalid="ignore"):
            if name.endswith("raw_weight"):
                arrays[effective] = positive_weight(value, config.hidden_dim)
            elif raw and config.signs is not None and name.endswith(".weight") and not name.startswith("context."):
                arrays[name] = signed_weight(value, config.signs)
            else:
                arrays[name] = value
        finite[effective] = np.isfinite(value).all()  # softplus makes 0 of -inf, through which no gradient comes back
    shapes = {name.replace("raw_weight", "positive_weight"): s for name, s in parameter_shapes(config).items()}
    faults = [f"missing {name}" for name in sorted(shapes.keys() - arrays.keys())]
    faults += [f"unexpected {name}" for name in sorted(arrays.keys() - shapes.keys())]
    for name in sorted(shapes.keys() & arrays.keys()):
        value = arrays[name]
        if value.shape != shapes[name]:
            faults.append(f"{name} has shape {list(value.shape)}, not {list(shapes[name])}")
        elif not finite[name]:
            faults.append(f"{name} holds NaN or infinity")
        elif name.endswith("positive_weight") and (value < 0).any():
            faults.append(f"{name} holds {value.min():g}, which is negative")
    if faults:
        rule, fix = "finite weights that belong to its config", "Load the model again, or fit it anew."
        fail(owner, "model", rule, "; ".join(faults), fix)
    return HullWeights(config, arrays)
