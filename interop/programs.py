"""A trained hull inside a problem of CVXPY: one call, from a model of either framework or from its file."""

from __future__ import annotations

import operator
from types import ModuleType
from typing import Any

from .blocks import blocks_of, structure_of
from .frameworks import is_installed
from .plain import plain_hull

__all__ = ["set_weights", "to_cvxpy"]


def to_cvxpy(
    model_or_path: Any, variable: Any, *, output: int | None = None, parameters: bool = False
) -> Any:
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
    cp = _cvxpy()
    from .expressions import ConstantProgram, ParameterProgram

    plain = plain_hull(model_or_path, "to_cvxpy")
    _check_variable(cp, variable, plain.config["in_dim"], parameters)
    outputs = _outputs(output, plain.config["out_dim"])
    one = variable.ndim == 1
    x_ND = cp.reshape(variable, (1, variable.shape[0]), order="C") if one else variable
    y_NO = (ParameterProgram if parameters else ConstantProgram)(plain).hull(x_ND, outputs)
    if one:
        return y_NO[0, :] if output is None else y_NO[0, 0]
    return y_NO if output is None else y_NO[:, 0]


def set_weights(expression: Any, model_or_path: Any) -> None:
    """Give the parameters of an expression of `to_cvxpy(..., parameters=True)` the weights and units of another hull.

    Args:
        expression: what `to_cvxpy` returned.
        model_or_path: a hull of the same options and sizes.

    Raises:
        TypeError: no hull.
        ValueError: the expression is not of one such hull with parameters.
    """
    plain = plain_hull(model_or_path, "set_weights")
    structure = structure_of(plain.config)
    values = {f"{name} ({structure})": value for name, value in blocks_of(plain).items()}
    own = expression.parameters()
    got = {parameter.name(): parameter.shape for parameter in own}
    if len(got) < len(own) or got != {name: value.shape for name, value in values.items()}:
        shapes = ", ".join(f"{name} {list(shape)}" for name, shape in sorted(got.items())[:3])
        raise ValueError(
            f"set_weights.expression: expected the {len(values)} parameters of one hull ({structure}); "
            f"got {len(own)}: {shapes or 'none'}. Build it by to_cvxpy(model, x, parameters=True) from such a hull."
        )
    for parameter in own:
        parameter.value = values[parameter.name()]


def _cvxpy() -> ModuleType:
    """Return CVXPY, which nothing else needs."""
    if not is_installed("cvxpy"):
        raise ImportError('interop.to_cvxpy needs CVXPY: pip install "convexmoe[solve]"')
    import cvxpy

    return cvxpy


def _check_variable(cp: ModuleType, variable: Any, in_dim: int, parameters: bool) -> None:
    """Check that an expression can be the input of a hull."""
    owner = "to_cvxpy.variable"
    if not isinstance(variable, cp.Expression):
        raise TypeError(
            f"{owner}: expected an expression of CVXPY; got {type(variable).__name__}. "
            f"Pass cvxpy.Variable({in_dim}), for example."
        )
    shape = tuple(variable.shape)
    if len(shape) not in (1, 2) or shape[-1] != in_dim:
        raise ValueError(
            f"{owner}: expected shape ({in_dim},) or (rows, {in_dim}); got {shape}. "
            f"Pass cvxpy.Variable({in_dim}), for example."
        )
    if not variable.is_affine():
        raise ValueError(
            f"{owner}: expected an affine expression; got {variable.curvature.lower()}. "
            "A convex function of a curved expression need not be convex."
        )
    if variable.is_complex():
        raise ValueError(
            f"{owner}: expected a real expression; got a complex one. Pass its real part, cvxpy.real(x)."
        )
    if parameters and variable.parameters():
        raise ValueError(
            f"{owner}: expected an expression without parameters, as its weights are some; got "
            f"{variable.parameters()[0].name()}. Pass parameters=False, or a variable with an equality constraint."
        )


def _outputs(output: int | None, out_dim: int) -> range:
    """Return the range of the outputs asked for."""
    if output is None:
        return range(out_dim)
    whole = hasattr(output, "__index__") and not isinstance(output, bool)
    if not whole or not 0 <= operator.index(output) < out_dim:
        raise ValueError(
            f"to_cvxpy.output: expected None or a whole number from 0 to {out_dim - 1}; got {output!r}. "
            "Pass output=0, for example."
        )
    first = operator.index(output)
    return range(first, first + 1)
