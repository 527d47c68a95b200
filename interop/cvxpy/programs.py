"""A trained hull inside a problem of CVXPY: one call, from a model of either framework or from its file."""

from __future__ import annotations

import operator
import os
import sys
import warnings
from types import ModuleType
from typing import Any

import numpy as np

from convexmoe.errors import fail
from convexmoe.files.hulls import OTHER_KINDS, read_hull
from convexmoe.hull.config import Normalization
from convexmoe.hull.rows import CARRIED
from convexmoe.hull.weights import HullWeights, effective_weights

from .. import is_installed
from .matrices import hull_matrices, input_units, structure_of, units_of

LARGEST_SCALE = 1e7
TOLERANCE = 1e-8  # that solvers have when none is given, of Clarabel


def to_cvxpy(model_or_path: Any, variable: Any, *, output: int | None = None, parameters: bool = False) -> Any:
    """Return the hull of `variable` as an expression of CVXPY, in the units of the model.

    Guarantee: the expression is DCP and convex by CVXPY's own rules, and equal to the model (tests/test_programs.py).

    Args:
        model_or_path: a `VectorHull` or `FoldedHull` of either package, or the path of a file, which is read
            without either framework.
        variable: an affine expression of CVXPY, `(in_dim,)` or `(rows, in_dim)`.
        output: index of one output; None for all.
        parameters: make the weights `cvxpy.Parameter`s that `set_weights` changes; the problem is then DPP. Each row
            and output has hidden variables of its own, and `expression.value` is computed by a solver.

    Returns:
        `(out_dim,)` or `(rows, out_dim)`; with `output`, `()` or `(rows,)`.

    Raises:
        ImportError: CVXPY is not installed.
        TypeError: no hull (a `NonConvexHull` is none), or `variable` is no expression.
        ValueError: weights with NaN, a damaged file, `variable` of another width or not affine, no such output.

    >>> import cvxpy, convexmoe_torch
    >>> x = cvxpy.Variable(3)
    >>> y = to_cvxpy(convexmoe_torch.VectorHull(3, petals=4), x)
    >>> y.shape, y.is_dcp(), y.is_convex()
    ((3,), True, True)
    """
    if not is_installed("cvxpy"):  # nothing else needs it
        raise ImportError('interop.to_cvxpy needs CVXPY; in a clone of convexmoe: pip install -e ".[solve]"')
    import cvxpy as cp

    from .expressions import ConstantProgram, ParameterProgram
    from .units import scale_variables

    hull = hull_weights(model_or_path, "to_cvxpy")
    _check_variable(cp, variable, hull.config.in_dim, parameters)
    outputs = _outputs(output, hull.config.out_dim)
    scale_variables(variable, *input_units(hull))
    warn_of_tolerance(units_of(hull.config), outputs)
    one = variable.ndim == 1
    x_ND = cp.reshape(variable, (1, variable.shape[0]), order="C") if one else variable
    y_NO = (ParameterProgram if parameters else ConstantProgram)(hull).hull(x_ND, outputs)
    if one:
        return y_NO[0, :] if output is None else y_NO[0, 0]
    return y_NO if output is None else y_NO[:, 0]


def warn_of_tolerance(units: Normalization, outputs: range) -> None:
    """Warn of outputs whose scale a solver does not resolve, or is lost by.

    It stops at `TOLERANCE` of the objective, or of 1; at 1e8 Clarabel has failed, or called it unbounded.
    """
    for o in outputs:
        mean, scale = units.output_mean[o], units.output_scale[o]
        if TOLERANCE * max(1.0, abs(mean)) > CARRIED * scale or scale > LARGEST_SCALE:
            got = f"output {o} of mean {mean:.6g} and scale {scale:.3g}"
            fix = f"Minimize (expression - {mean:.6g}) / {scale:.3g}, and bound that."
            rule = f"outputs that solvers tell apart, to {TOLERANCE:g} of size and of 1, of scales to {LARGEST_SCALE:g}"
            warnings.warn(f"to_cvxpy.model: expected {rule}; got {got}. {fix}", stacklevel=3)


def set_weights(expression: Any, model_or_path: Any) -> None:
    """Give the parameters of an expression of `to_cvxpy(..., parameters=True)` the weights and units of another hull.

    Args:
        expression: what `to_cvxpy` returned.
        model_or_path: a hull of the same options and sizes.

    Raises:
        TypeError: no hull.
        ValueError: the expression is not of one such hull with parameters.
    """
    hull = hull_weights(model_or_path, "set_weights")
    structure = structure_of(hull.config)
    values = {f"{name} ({structure})": value for name, value in hull_matrices(hull).items()}
    parameters = expression.parameters()
    got = {parameter.name(): parameter.shape for parameter in parameters}
    if len(got) < len(parameters) or got != {name: value.shape for name, value in values.items()}:
        shapes = ", ".join(f"{name} {list(shape)}" for name, shape in sorted(got.items())[:3])
        rule = f"the {len(values)} parameters of one hull ({structure})"
        fix = "Build it by to_cvxpy(model, x, parameters=True) from such a hull."
        fail("set_weights", "expression", rule, f"{len(parameters)}: {shapes or 'none'}", fix)
    for parameter in parameters:
        parameter.value = values[parameter.name()]


def hull_weights(model: Any, owner: str) -> HullWeights:
    """Return the effective weights of a hull after all checks.

    Args:
        model: a `VectorHull` or `FoldedHull` of either package, or the path of a file that `save` wrote.
        owner: who asks, for the messages.

    Raises:
        TypeError: it is neither, or a model that is not convex.
        ValueError: a damaged file, weights that are not finite, or non-negative weights that are negative.
    """
    if isinstance(model, (str, os.PathLike)):
        return read_hull(model, owner)
    loaded = [sys.modules[name] for name in ("convexmoe_jax", "convexmoe_torch") if name in sys.modules]
    package = next((p for p in loaded if isinstance(model, (p.VectorHull, p.FoldedHull))), None)
    if package is None:  # a package that is not loaded made none
        kind, rule = type(model).__name__, "a VectorHull, a FoldedHull or the path of a file"
        fail(owner, "model", rule, kind, OTHER_KINDS.get(kind, "Pass one of these."), TypeError)
    if hasattr(model, "named_parameters"):
        values = {name: value.detach().double().cpu().numpy() for name, value in model.named_parameters()}
    else:
        values = package.hull.flatten(model.params)
    arrays = {name: np.array(value, np.float64) for name, value in values.items()}
    return effective_weights(model.config, arrays, owner)


def _check_variable(cp: ModuleType, variable: Any, in_dim: int, parameters: bool) -> None:
    """Check that an expression can be the input of a hull."""
    owner = ("to_cvxpy", "variable")
    example = f"Pass cvxpy.Variable({in_dim}), for example."
    if not isinstance(variable, cp.Expression):
        fail(*owner, "an expression of CVXPY", type(variable).__name__, example, TypeError)
    shape = tuple(variable.shape)
    if len(shape) not in (1, 2) or shape[-1] != in_dim:
        fail(*owner, f"shape ({in_dim},) or (rows, {in_dim})", str(shape), example)
    if not variable.is_affine():
        got, fix = variable.curvature.lower(), "A convex function of a curved expression need not be convex."
        fail(*owner, "an affine expression", got, fix)
    if variable.is_complex():
        fail(*owner, "a real expression", "a complex one", "Pass its real part, cvxpy.real(x).")
    if parameters and variable.parameters():
        rule = "an expression without parameters, as its weights are some"
        fix = "Pass parameters=False, or a variable with an equality constraint."
        fail(*owner, rule, variable.parameters()[0].name(), fix)


def _outputs(output: int | None, out_dim: int) -> range:
    """Return the range of the outputs asked for."""
    if output is None:
        return range(out_dim)
    number = operator.index(output) if hasattr(output, "__index__") and not isinstance(output, bool) else -1
    if not 0 <= number < out_dim:
        rule = f"None or a whole number from 0 to {out_dim - 1}"
        fail("to_cvxpy", "output", rule, repr(output), "Pass output=0, for example.")
    return range(number, number + 1)
