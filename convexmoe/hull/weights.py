"""A hull as numpy arrays: its config and its effective parameters. No framework is imported.

Letters: D in, H hidden, P petals, O out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import fail
from .activations import ACTIVATIONS
from .config import HullConfig
from .parameters import Operations, effective, flatten, nest, parameter_shapes

Arrays = dict[str, NDArray[np.float64]]


class HullWeights(NamedTuple):
    """A hull without a framework.

    Args:
        config: its config.
        arrays: its effective parameters by dotted name in float64: `positive_weight` >= 0 in place of `raw_weight`.
    """

    config: HullConfig
    arrays: Arrays


def act(u: Any, activation: str) -> Any:
    """Return the standardized activation of `u`, an array of any library."""
    row = ACTIVATIONS[activation]
    return row.standardize(row.value(u))


NUMPY = Operations(lambda u: np.logaddexp(u, 0.0), act, lambda n, like: np.asarray(n, like.dtype), np.broadcast_to)


def effective_weights(config: HullConfig, parameters: Arrays, owner: str) -> HullWeights:
    """Return the effective weights of a hull: non-negative ones are softplus(raw) times a constant.

    Args:
        config: of the hull.
        parameters: by dotted name in float64; `raw_weight` as it is trained, or `positive_weight` as `fold` gives it.
        owner: who asks, for the messages.

    Raises:
        ValueError: names or shapes are not those of the config, a value is not finite, or an effective weight has a
            wrong sign; all faults are listed.
    """
    shapes, raw = parameter_shapes(config), any(name.endswith("raw_weight") for name in parameters)
    if not raw:
        shapes = {name.replace("raw_weight", "positive_weight"): shape for name, shape in shapes.items()}
    faults = [f"missing {name}" for name in sorted(shapes.keys() - parameters.keys())]
    faults += [f"unexpected {name}" for name in sorted(parameters.keys() - shapes.keys())]
    for name in sorted(shapes.keys() & parameters.keys()):
        value, signs = parameters[name], config.signs
        if value.shape != shapes[name]:
            faults.append(f"{name} has shape {list(value.shape)}, not {list(shapes[name])}")
        elif not np.isfinite(value).all():
            faults.append(f"{name} holds NaN or infinity")
        elif name.endswith("positive_weight") and (value < 0).any():
            faults.append(f"{name} holds {value.min():g}, which is negative")
        elif not raw and signs is not None and name.endswith(".weight") and not name.startswith("context."):
            wrong = [j for j, sign in enumerate(signs) if (sign * value[j] < 0).any()]
            faults += [f"{name} has the wrong sign on the inputs {wrong}"] if wrong else []
    if faults:
        rule, fix = "finite weights that belong to its config", "Load the model again, or fit it anew."
        fail(owner, "model", rule, "; ".join(faults), fix)
    return HullWeights(config, flatten(effective(nest(parameters), config, NUMPY)))
