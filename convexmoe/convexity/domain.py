"""The box on which a function is certified, as one row of the chosen inputs."""

from __future__ import annotations

from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  # gives numpy the dtype bfloat16
import numpy as np

from ..errors import describe, fail

Array = np.ndarray

ENDLESS = 1e30  # a bound of this size counts as none, as in a `Box`


class Domain(NamedTuple):
    """The points with `lower <= x <= upper`, the faces included.

    Args:
        lower: float64 `[size]`, -inf where there is no bound.
        upper: float64 `[size]`, inf where there is no bound.
    """

    lower: Array
    upper: Array

    def __str__(self) -> str:
        below, above = ("" if np.isinf(side).all() else _text(side) for side in self)
        return (below and f"{below} <= ") + "x" + (above and f" <= {above}")

    def round_inward(self, dtype: str) -> Domain:
        """Return the domain with bounds that are numbers of a dtype: what is rounded to it stays inside."""
        kind, sides = np.dtype(dtype), []
        with np.errstate(over="ignore"):
            for side, inward in zip(self, (1, -1), strict=True):
                near = side.astype(kind)
                outside = inward * near.astype(np.float64) < inward * side
                sides.append(np.where(outside, np.nextafter(near, kind.type(inward * np.inf)), near).astype(np.float64))
        lower, upper = sides
        return Domain(lower, upper) if ((lower <= upper) & (lower < np.inf) & (upper > -np.inf)).all() else self

    def spread(self) -> tuple[Array, Array]:
        """Return a point and a step for each coordinate, such that the point, one step from it and two are inside.

        Both are exact; NaN where there are none. A coordinate that does not move has the step 0.
        """
        lower, upper = self
        with np.errstate(all="ignore"):
            step = np.exp2(np.floor(np.log2(np.minimum(upper - lower, 4.0) / 4)))
            start = np.where(np.isfinite(lower), np.ceil(lower / step), np.floor(upper / step) - 2) * step
            start = np.where((lower <= 0) & (upper >= 2 * step), 0.0, start)
            start = np.where(np.abs(start) < 2.0**50 * step, start, np.nan)
        return np.where(lower == upper, lower, start), np.where(lower == upper, 0.0, step)


def _text(side: Array) -> str:
    if len(set(side.tolist())) == 1:
        return repr(float(side[0])).removesuffix(".0")
    return np.array2string(side, threshold=12, max_line_width=100000, floatmode="unique")


def read_domain(owner: str, domain: Any, shapes: list[tuple[int, ...]]) -> Domain | None:
    """Return the domain of arguments of these shapes, of a `Box` for each or of a tuple with one, or None, for each."""
    boxes = domain if isinstance(domain, tuple) else (domain,) * len(shapes)
    rule, fix = "a Box, or a tuple with one for each argument that moves", "Pass Box(lower=[0.1], upper=[np.inf])."
    if len(boxes) != len(shapes):
        fail(owner, "domain", rule, f"{len(boxes)} for {len(shapes)} arguments", fix)
    if all(box is None for box in boxes):
        return None
    sides: dict[str, list[Array]] = {"lower": [], "upper": []}
    for box, shape in zip(boxes, shapes, strict=True):
        for name, end in (("lower", -np.inf), ("upper", np.inf)):
            side = np.asarray(end) if box is None else getattr(box, name, None)
            if not isinstance(side, np.ndarray):
                text = f"{fix} What is proved on a box around another set holds on the set."
                fail(owner, "domain", rule, type(box).__name__, text, TypeError)
            try:
                side = np.broadcast_to(side.reshape(()) if side.size == 1 else side, shape).reshape(-1)
            except ValueError:
                fail(owner, "domain", f"bounds for an argument of shape {list(shape)}", f"{name} {describe(side)}", fix)
            sides[name].append(np.where(np.abs(side) >= ENDLESS, end, side))
    lower, upper = map(np.concatenate, sides.values())
    if not (lower <= upper).all():
        fail(owner, "domain", "lower <= upper", f"{Domain(lower, upper)}", "Exchange the two.")
    return Domain(lower, upper)
