"""Between a model and the solver: whose model it is, what of its values is known, and in which library it computes.

Each package registers how its hulls are solved (`solver_of.register`). A call from outside a compiler computes in
numpy or in PyTorch at once; one inside `jax.jit`, `jax.vmap` or `jax.grad` is traced.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch
from typing import Any, Protocol, TypeVar

import numpy as np

from ..errors import describe, fail, whole_number
from ..hull.config import HullConfig
from ..hull.context import check_context
from ..hull.parameters import Tree, flatten
from ..hull.rows import as_numbers, is_tensor

LARGEST_TOLERANCE = 1.0
Record = TypeVar("Record", bound=tuple)
Arrays = tuple[Any, ...]  # and None, and records of arrays


class Solver(Protocol):
    """How a package computes with its hulls."""

    def parameters(self, model: Any) -> Tree:
        """Return the parameters of a hull, nested."""

    def known(self, value: Any) -> np.ndarray | None:
        """Return an array or a number as numpy in float64; None where a compiler traces it."""

    def is_finite(self, value: Any) -> bool | None:
        """Return whether all numbers of an array are finite; None where a compiler traces it."""

    def precision(self, value: Any) -> float | None:
        """Return the unit of rounding of an array's dtype; None where it is not floating."""

    def values(self, model: Any, config: HullConfig, z: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        """Return a hull, with a config without units, at rows `[..., in_dim]` in its own dtype; float64.

        Args:
            context: of all rows, or one a row, without its units too; None for a hull without contexts.
        """

    def solve(
        self, function: Callable[..., Record], model: Any, arrays: Arrays, static: dict[str, Any], beside: Any = None
    ) -> Record:
        """Return `function(weights, *arrays, config=, **static)` in float64, a record of arrays.

        Args:
            function: a pure function over the array API, with a name: compiled functions are kept by it.
            model: the hull; its effective weights and their config are handed on, in float64.
            arrays: arrays, None, and records of arrays; static: hashable values.
            beside: an array whose dtype the record is cast to; with it the record has derivatives, without none.
        """


@singledispatch
def solver_of(model: Any) -> Solver | None:
    """Return how the package of a model solves it; None for what is no hull."""
    return None


def check_hull(owner: str, model: Any, output: int | None) -> tuple[Solver, int]:
    """Return the solver of a hull, and which output of it is meant: `output` may be None where there is only one.

    Raises:
        TypeError: the model is no hull.
        ValueError: it has several outputs and `output` names none of them.
    """
    solver = solver_of(model)
    if solver is None:
        fail(owner, "model", "a VectorHull or FoldedHull", type(model).__name__, "Pass a hull.", TypeError)
    out_dim = model.config.out_dim
    if output is None and out_dim > 1:
        fix = "Pass output=0, for example."
        fail(owner, "model", "a hull with out_dim=1, or an output of it", f"out_dim={out_dim}", fix)
    return solver, 0 if output is None else whole_number(owner, "output", output, 0, out_dim - 1)


def check_contexts(
    owner: str, model: Any, context: Any, axes: tuple[int, ...], solver: Solver, what: str
) -> tuple[Any, tuple[int, ...]]:
    """Return the contexts of problems after the check of their shape and known values, and the problems' leading axes.

    Args:
        axes: the leading axes of what goes with the contexts; what: its name, for the message.
    """
    config = model.config
    if context is None and config.context_dim:
        rule, fix = f"numbers, [..., context_dim={config.context_dim}]", f"Pass it: {owner}(..., context=c)."
        fail(owner, "context", rule, "None", fix, TypeError)
    if context is not None and config.context_dim:
        context = context if is_tensor(context) else as_numbers(owner, "context", context, may_be_traced=True)
    check_context(owner, config, context, (object,))
    if context is None:
        return None, axes
    try:
        axes = np.broadcast_shapes(axes, tuple(context.shape[:-1]))
    except ValueError:
        rule = f"[..., context_dim={config.context_dim}], leading axes as {what} {list(axes)}"
        fail(owner, "context", rule, describe(context), "Give one context, or one a problem.")
    if solver.is_finite(context) is False:
        fail(owner, "context", "finite numbers", "inf or nan", "Remove that row.")
    return context, axes


def check_curvature(owner: str, config: HullConfig, curvature: str, got: str, fix: str) -> None:
    """Check that a hull is "convex", or "concave"."""
    if config.curvature != curvature:
        fail(owner, "model", f"a {curvature} hull", got, fix)


def check_weights(owner: str, model: Any, solver: Solver) -> None:
    """Check that the weights of a hull are finite, where they are known."""
    for leaf in flatten(solver.parameters(model)).values():
        if solver.is_finite(leaf) is False:
            fail(owner, "model", "finite weights", "inf or nan", "Train it again.")


def check_tolerance(owner: str, tol: Any, solver: Solver) -> None:
    """Check that `tol` is a number in (0, 1]; a traced one is taken as it is."""
    if hasattr(tol, "shape") and solver.known(tol) is None:
        return
    if isinstance(tol, bool) or not hasattr(tol, "__float__") or not 0 < tol <= LARGEST_TOLERANCE:
        fail(owner, "tol", "a number in (0, 1]", repr(tol), "Pass tol=1e-6.")


def check_point(owner: str, x0: Any, in_dim: int, problems: tuple[int, ...], solver: Solver) -> Any:
    """Return the starting points after the check of their shape and, where known, of their values."""
    x0 = x0 if is_tensor(x0) else as_numbers(owner, "x0", x0)
    shape = tuple(x0.shape)
    try:
        fits = shape[-1] == in_dim
        np.broadcast_shapes(problems, shape[:-1])
    except (ValueError, IndexError):
        fits = False
    if not fits:
        rule = f"[..., in_dim={in_dim}], leading axes as the set's {list(problems)}"
        fail(owner, "x0", rule, describe(x0), "Give one point a problem.")
    if solver.is_finite(x0) is False:
        fail(owner, "x0", "finite numbers", "inf or nan", "Leave x0 out, or give a point.")
    return x0


def check_rows(argument: str, value: Any, in_dim: int, solver: Solver) -> Any:
    """Return rows after the check of their shape and, where known, of their values."""
    fix = "Pass one row at least, one number for each input."
    known = solver.known(value) if is_tensor(value) else as_numbers("max_affine", argument, value)
    rows = value if known is None else known
    if len(rows.shape) != 2 or rows.shape[-1] != in_dim or not rows.shape[0]:
        fail("max_affine", argument, f"[rows, in_dim={in_dim}]", describe(value), fix)
    if known is not None and not np.isfinite(known).all():
        fail("max_affine", argument, "finite numbers", "inf or nan", "Remove that row.")
    return rows
