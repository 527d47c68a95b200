"""Variables of a problem as solvers see them: in the units of the hull that they enter.

A variable of size 1e5 makes the curvature of a hull by it 1e-10 of what it is in normalized units: less than what
interior-point methods regularize by, so that they stop far from the optimum, some with the status "optimal". Rows such
as `x <= 1e5` keep their own scaling from seeing it. So where CVXPY compiles a problem, `m + s u` takes the place of x
everywhere, u of order one, and x itself stands in one equation, `x / s - u = m / s`.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from cvxpy.reductions.dcp2cone import canonicalizers, dcp2cone
from numpy.typing import NDArray

Vector = NDArray[np.float64]
ATTRIBUTE = "convexmoe_units"  # of a variable
FAR = 1e4  # beyond so many units from 0 solvers round what is left of a variable
FAIR = 10.0  # as far from 0 and from 1 a variable may be, in its own units
BOUNDS = ("nonneg", "nonpos", "pos", "neg", "bounds")  # the attributes of a variable that its image can have


class Units(NamedTuple):
    """The units of a variable.

    Args:
        mean, scale: of its shape; image: `(x - mean) / scale`, a variable.
    """

    mean: Vector
    scale: Vector
    image: cp.Variable


def scale_variables(expression: Any, mean: Vector, scale: Vector) -> None:
    """Have CVXPY compile the variables of an affine expression in the units that a hull has of the expression.

    A variable takes the largest unit that moves no column by more than its scale, and a mean from a column that depends
    on nothing else. It keeps the units of the first hull that it enters; problems and values stay as they are.

    Args:
        expression: `(D,)` or `(N, D)`.
        mean, scale: (D,), of the hull.
    """
    variables, rows = expression.variables(), expression.size // len(mean)
    slopes, offset = linearize(expression, variables)
    if offset is None or not hasattr(dcp2cone.Dcp2Cone, "_make_cache_key"):  # elsewhere each use is compiled anew
        return
    distance, width = np.repeat(mean, rows) - np.ravel(offset, "F"), np.repeat(scale, rows)
    matrices = [sp.csr_array(slopes[variable]).reshape(variable.size, -1) for variable in variables]
    alone = sum(np.diff(matrix.tocsc().indptr) for matrix in matrices) == 1
    for variable, matrix in zip(variables, matrices, strict=True):
        odd = [name for name, value in variable.attributes.items() if name not in BOUNDS and value]
        if odd or hasattr(variable, ATTRIBUTE):
            continue
        largest = (abs(matrix) / width).max(axis=1).toarray()
        unit = 1 / np.where(largest > 0, largest, 1.0)
        center, cells = np.zeros(variable.size), matrix.tocoo()
        own = alone[cells.col]
        center[cells.row[own]] = (distance[cells.col] / cells.data)[own]
        if max(unit.max(), 1 / unit.min(), (np.abs(center) / unit).max()) > FAIR:
            center, unit = (part.reshape(variable.shape, order="F") for part in (center, unit))
            setattr(variable, ATTRIBUTE, Units(center, unit, cp.Variable(variable.shape)))
            _warn_of_offset(center.flat, unit.flat)


def _warn_of_offset(center: Any, unit: Any) -> None:
    k = int(np.argmax(np.abs(np.divide(center, unit))))
    if abs(center[k]) > FAR * unit[k]:
        got = f"one near {center[k]:.6g} with a scale of {unit[k]:.3g}"
        fix = "Pass m + cvxpy.multiply(s, u) in its place, m and s such numbers, and state the constraints of u."
        rule = f"variables that solvers tell apart, within {FAR:g} scales of 0"
        warnings.warn(f"to_cvxpy.variable: expected {rule}; got {got}. {fix}", stacklevel=4)


def linearize(expression: Any, variables: list[Any]) -> tuple[dict[Any, Any], Vector | None]:
    """Return the derivatives of an affine expression, and its value where its variables are 0; None without values."""
    values = [variable.value for variable in variables]
    try:
        for variable in variables:
            variable.save_value(np.zeros(variable.shape))
        return expression.grad, expression.value
    finally:
        for variable, value in zip(variables, values, strict=True):
            variable.save_value(value)


def compile_variable(expr: Any, args: Any, solver_context: Any = None) -> Any:
    """Return what stands for a variable in a compiled problem, and the constraints that come with it."""
    units: Units | None = getattr(expr, ATTRIBUTE, None)
    if units is None:
        return expr, []
    image, plain = units.mean + cp.multiply(units.scale, units.image), cp.Variable(expr.shape, var_id=expr.id)
    constraints = [cp.multiply(1 / units.scale, plain) - units.image == units.mean / units.scale]
    expr._bound_domain(image, constraints)
    return image, constraints


canonicalizers.CANON_METHODS[cp.Variable] = compile_variable
