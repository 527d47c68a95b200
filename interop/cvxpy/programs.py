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
from convexmoe.hull.context import at_context, check_one_context, context_heads
from convexmoe.hull.parameters import flatten, nest
from convexmoe.hull.rows import CARRIED, as_numbers, check_finite
from convexmoe.hull.weights import NUMPY, HullWeights, effective_weights

from .. import is_installed
from .matrices import hull_matrices, input_units, structure_of, units_of

LARGEST_SCALE = 1e7
TOLERANCE = 1e-8  # that solvers have when none is given, of Clarabel


def to_cvxpy(
    model_or_path: Any, variable: Any, *, output: int | None = None, parameters: bool = False, context: Any = None
) -> Any:
    """Return the hull of `variable` as an expression of CVXPY, in the units of the model.

    Guarantee: the expression is DCP and convex by CVXPY's own rules, of a concave hull concave, and equal to the model
    (tests/test_programs.py, tests/test_programs_context.py).

    Args:
        model_or_path: a `VectorHull` or `FoldedHull` of either package, or the path of a file, which is read
            without either framework.
        variable: an affine expression of CVXPY, `(in_dim,)` or `(rows, in_dim)`.
        output: index of one output; None for all.
        parameters: make the weights `cvxpy.Parameter`s that `set_weights` changes; the problem is then DPP. Each row
            and output has hidden variables of its own, and `expression.value` is computed by a solver.
        context: `[context_dim]`, in original units, for a hull that has one: the expression is the hull at it. With
            parameters `set_context` changes it.

    Returns:
        `(out_dim,)` or `(rows, out_dim)`; with `output`, `()` or `(rows,)`.

    Raises:
        ImportError: CVXPY is not installed.
        TypeError: no hull (a `NonConvexHull` is none), `variable` is no expression, or no context where there is one.
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

    hull = program_weights(model_or_path, context, "to_cvxpy")
    _check_variable(cp, variable, hull.config.in_dim, parameters)
    outputs = _outputs(output, hull.config.out_dim)
    scale_variables(variable, *input_units(hull))
    warn_of_tolerance(units_of(hull.config), outputs)
    one = variable.ndim == 1
    x_ND = cp.reshape(variable, (1, variable.shape[0]), order="C") if one else variable
    y_NO = (ParameterProgram if parameters else ConstantProgram)(hull).hull(x_ND, outputs)
    y_NO = -y_NO if hull.config.is_concave else y_NO
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


def set_weights(expression: Any, model_or_path: Any, *, context: Any = None) -> None:
    """Give the parameters of an expression of `to_cvxpy(..., parameters=True)` the weights and units of another hull.

    Args:
        expression: what `to_cvxpy` returned.
        model_or_path: a hull of the same options and sizes.
        context: `[context_dim]`, in original units, for a hull that has one.

    Raises:
        TypeError: no hull, or no context where there is one.
        ValueError: the expression is not of one such hull with parameters.
    """
    set_parameters(expression, model_or_path, context, "set_weights")


def set_context(expression: Any, model_or_path: Any, context: Any) -> None:
    """Give the parameters of an expression of `to_cvxpy(..., parameters=True)` the values for another context.

    A compiled problem is solved again without compilation: what the hull is at a context is another plain hull.

    Args:
        expression: what `to_cvxpy` returned.
        model_or_path: its hull.
        context: `[context_dim]`, in original units.

    Raises:
        TypeError, ValueError: as of `set_weights`; the hull has no context.

    >>> import cvxpy, convexmoe_torch
    >>> hull, x = convexmoe_torch.VectorHull(2, petals=2, out_dim=1, context_dim=1), cvxpy.Variable(2)
    >>> cost = to_cvxpy(hull, x, output=0, parameters=True, context=[0.0])
    >>> set_context(cost, hull, [1.0])
    """
    set_parameters(expression, model_or_path, context, "set_context")


def set_parameters(expression: Any, model_or_path: Any, context: Any, owner: str) -> None:
    """Give the parameters of an expression the values of a hull at a context; `owner` asks."""
    hull = program_weights(model_or_path, context, owner)
    structure = structure_of(hull.config)
    values = {f"{name} ({structure})": value for name, value in hull_matrices(hull).items()}
    parameters = expression.parameters()
    got = {parameter.name(): parameter.shape for parameter in parameters}
    if len(got) < len(parameters) or got != {name: value.shape for name, value in values.items()}:
        shapes = ", ".join(f"{name} {list(shape)}" for name, shape in sorted(got.items())[:3])
        rule = f"the {len(values)} parameters of one hull ({structure})"
        fix = "Build it by to_cvxpy(model, x, parameters=True) from such a hull."
        fail(owner, "expression", rule, f"{len(parameters)}: {shapes or 'none'}", fix)
    for parameter in parameters:
        parameter.value = values[parameter.name()]


def program_weights(model: Any, context: Any, owner: str) -> HullWeights:
    """Return the effective weights of a plain hull, that which a hull is at a context where it has one.

    Args:
        model: as of `hull_weights`; context: `[context_dim]`, in original units, or None without one.
        owner: who asks, for the messages.
    """
    config, arrays = hull_weights(model, owner)
    if context is None and config.context_dim:
        rule = f"one context, [context_dim={config.context_dim}]"
        fail(owner, "context", rule, "None", "Pass context=c, in original units.", TypeError)
    if context is not None:
        context = as_numbers(owner, "context", context)
        check_one_context(owner, config, context, (np.ndarray,))
        check_finite(owner, "context", context, "Pass finite numbers.")
        weights = nest(arrays)
        heads = context_heads(weights, config, context, NUMPY)
        weights, config = at_context(weights, config, heads, NUMPY)
        arrays = flatten(weights)
    return HullWeights(config, arrays)


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
