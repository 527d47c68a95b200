"""The sets that a hull is minimized over: plain, frozen, validated values. No framework is imported here.

Every field may have leading axes, one set a problem. Values that are known are kept as numpy in float64, and checked in
a single set; of a batch, and of values under `jax.jit`, shapes are checked: `Minimum.status` tells which is no set.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ..errors import describe, fail
from ..hull.rows import as_numbers

FEW = 1  # axes of one vector
AXES = {"A": 2, "radius": 0, "total": 0}  # axes of other fields of one set
LEAST_AXES = AXES | {"lower": 0, "upper": 0}  # of the domain of a certificate
ENDLESS = 1e30  # a bound of this size counts as none, and other numbers are smaller


def store_numbers(entry: Any) -> None:
    """Replace the fields of a frozen record by arrays, and check how many axes they have at least."""
    owner = type(entry).__name__
    for name, least in ((field.name, LEAST_AXES.get(field.name, FEW)) for field in fields(entry)):
        value = as_numbers(owner, name, getattr(entry, name), may_be_traced=True)
        if len(value.shape) < least:
            rule = "numbers, one for each coordinate" if least == FEW else "rows of numbers, one for each coordinate"
            got = f"{value:g}" if isinstance(value, np.ndarray) and not value.shape else describe(value)
            fix = "Pass [-3.0, -3.0], for example, in two dimensions."
            fail(owner, name, rule, got, fix if least == FEW else "Pass [[1.0, 1.0]], for example, for one row.")
        object.__setattr__(entry, name, value)


def is_single(entry: Any) -> bool:
    """Return whether no field of a set has leading axes."""
    values = [(getattr(entry, field.name), AXES.get(field.name, FEW)) for field in fields(entry)]
    return all(len(value.shape) <= axes for value, axes in values)


def check_values(entry: Any, argument: str, rule: str, holds: Any, fix: str) -> None:
    """Check known values of a single set by `holds(value)`, elementwise; the message shows the first that does not."""
    value = getattr(entry, argument)
    if isinstance(value, np.ndarray) and is_single(entry):
        good = np.broadcast_to(holds(value), value.shape)
        if not good.all():
            fail(type(entry).__name__, argument, rule, f"{value[~good].ravel()[0]:g}", fix)


def check_together(entry: Any, first: str, second: str) -> None:
    """Check that two fields broadcast."""
    one, other = getattr(entry, first), getattr(entry, second)
    try:
        np.broadcast_shapes(one.shape, other.shape)
    except ValueError:
        fix = "Give both one number for each coordinate."
        fail(type(entry).__name__, second, f"a shape that goes with {first}", describe(other), fix)


@dataclass(frozen=True, eq=False)
class Box:
    """The points with `lower <= x <= upper`, coordinate by coordinate.

    Args:
        lower, upper: `[..., in_dim]`, lower <= upper; infinite, or 1e30 in size, where there is no bound. For the
            domain of a certificate one number for all coordinates will do.

    Raises:
        ValueError: of a single set a lower bound above its upper one, or not a number.

    >>> Box([0.0, 1.0], [4.0, 1.0]).lower.shape
    (2,)
    """

    lower: Any
    upper: Any

    def __post_init__(self) -> None:
        store_numbers(self)
        check_together(self, "lower", "upper")
        for name, sign in (("lower", 1), ("upper", -1)):
            end, endless = ("below 1e30", "-inf") if name == "lower" else ("above -1e30", "inf")
            rule = f"numbers {end}, or {endless} where there is no bound"
            check_values(self, name, rule, lambda v, s=sign: s * v < ENDLESS, "Remove it.")
        lower, upper = self.lower, self.upper
        if isinstance(lower, np.ndarray) and isinstance(upper, np.ndarray) and is_single(self):
            lower, upper = np.broadcast_arrays(np.atleast_1d(lower), upper)
            for k in np.flatnonzero(lower > upper)[:1]:
                got = f"{lower[k]:g} > {upper[k]:g} in coordinate {k}"
                fail("Box", "lower", "lower <= upper", got, "Exchange the two.")


@dataclass(frozen=True, eq=False)
class Ball:
    """The points with `||x - center|| <= radius`, in the units of the input.

    Args:
        center: `[..., in_dim]`, of size below 1e30.
        radius: `[...]`, >= 0, below 1e30.

    Raises:
        ValueError: of a single set a value that is as large or not a number, or a negative radius.
    """

    center: Any
    radius: Any

    def __post_init__(self) -> None:
        store_numbers(self)
        rule = "numbers of size below 1e30"
        check_values(self, "center", rule, lambda v: np.abs(v) < ENDLESS, "Remove it.")
        rule = "numbers >= 0, below 1e30"
        check_values(self, "radius", rule, lambda v: (v >= 0) & (v < ENDLESS), "Pass radius=1.0.")


@dataclass(frozen=True, eq=False)
class Simplex:
    """The points with `x >= 0` and `sum x = total`.

    Args:
        total: `[...]`, >= 0, below 1e30.

    Raises:
        ValueError: of a single set a total that is negative, as large or not a number.
    """

    total: Any

    def __post_init__(self) -> None:
        store_numbers(self)
        rule = "numbers >= 0, below 1e30"
        check_values(self, "total", rule, lambda v: (v >= 0) & (v < ENDLESS), "Pass total=1.0.")


@dataclass(frozen=True, eq=False)
class Polytope:
    """The points with `A x <= b`.

    Args:
        A: `[..., rows, in_dim]`, finite.
        b: `[..., rows]`, finite.

    Raises:
        ValueError: shapes that do not go together, or of a single set a value that is not finite.
    """

    A: Any
    b: Any

    def __post_init__(self) -> None:
        store_numbers(self)
        rows = self.A.shape[-2]
        if self.b.shape[-1] != rows:
            fail("Polytope", "b", f"last axis of {rows}, one number a row of A", describe(self.b), "Match the two.")
        for name in ("A", "b"):
            check_values(self, name, "finite numbers", np.isfinite, "Leave that row out.")


Constraints = Box | Ball | Simplex | Polytope


def leading_axes(owner: str, constraints: Any, in_dim: int) -> tuple[int, ...]:
    """Return the leading axes of a set after the check that it lies in `in_dim` dimensions."""
    if not isinstance(constraints, Constraints):
        rule = "a Box, Ball, Simplex or Polytope"
        fail(owner, "constraints", rule, type(constraints).__name__, "Pass Box(lower, upper).", TypeError)
    shapes = []
    for field in fields(constraints):
        value = getattr(constraints, field.name)
        wide, axes = field.name in ("lower", "upper", "center", "A"), AXES.get(field.name, FEW)
        if wide and value.shape[-1:] != (in_dim,):
            kind = type(constraints).__name__
            rule = f"a {kind} in in_dim={in_dim} dimensions"
            fix = "Give one number for each input of the model."
            fail(owner, "constraints", rule, f"{field.name} {describe(value)}", fix)
        shapes.append(tuple(value.shape[: len(value.shape) - axes]))
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        got = ", ".join(str(list(shape)) for shape in shapes)
        fail(owner, "constraints", "leading axes that go together", got, "Give both the same number of problems.")
