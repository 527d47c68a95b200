"""Maximize a concave hull over a set, with a certified gap."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..arrays import Array
from ..hull.parameters import Tree
from .minimum import find_minimum, raise_faults, solve_unchecked
from .sets import Constraints
from .solver import check_curvature, check_hull


class Maximum(NamedTuple):
    """The result of `maximize`; one entry a problem, in float64 and in the units of the model.

    Args:
        x: the best point found, `[..., in_dim]`, in the set.
        value: the hull there, `[...]`, computed in float64.
        upper_bound: `[...]`: no point of the set has a higher value.
        gap: `[...]`: at least `max - value`.
        iterations: steps of Newton's method, int64 `[...]`.
        status: int64 `[...]`: as of `Minimum`; 3 the hull rises without end. upper_bound is inf and gap inf at 2, 3
            and 4, x and value NaN at 2 and 4.
        direction: `[..., in_dim]`: at 3, in which the set has no end and the hull rises without end; 0 elsewhere.
    """

    x: Array
    value: Array
    upper_bound: Array
    gap: Array
    iterations: Array
    status: Array
    direction: Array


def maximize(
    model: Any,
    constraints: Constraints,
    x0: Any = None,
    tol: float = 1e-6,
    *,
    output: int | None = None,
    context: Any = None,
) -> Maximum:
    """Maximize one output of a concave hull over a set, for one problem or for a batch of them.

    Guarantee: `value <= max <= value + gap`, up to `gap` of rounding: it is `minimize` of minus the hull, which is
    convex, in every respect (tests/contract/test_maximize.py). Arguments are those of `minimize`.

    Raises:
        TypeError, ValueError: as of `minimize`; the hull is convex: its maximum lies at a corner of the set.
    """
    solver, _ = check_hull("maximize", model, output)
    got, fix = "a convex one, of which a maximum lies at a corner of the set", "Call minimize."
    check_curvature("maximize", model.config, "concave", got, fix)
    found = solve_unchecked("maximize", find_maximum, model, constraints, x0, tol, output, context)
    raise_faults("maximize", found, solver)
    return found


def find_maximum(weights: Tree, *arrays: Any, **static: Any) -> Maximum:
    """Return the record of `maximize`: that of `find_minimum` for minus the hull, turned."""
    x, value, lower, gap, iterations, status, direction = find_minimum(weights, *arrays, **static)
    return Maximum(x, 0.0 - value, -lower, gap, iterations, status, direction)
