"""What a package gives to `certify`: its rules (`Engine`), and how a function is traced and evaluated (`Problem`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..errors import describe, fail, one_of
from ..hull.config import CURVATURES
from .domain import Domain
from .facts import Value
from .graph import Graph
from .refinements import Sorts
from .search import Evaluator
from .walk import Atoms, Rule

BY_VALUE = "the function decides in Python by the value of its input"


class NotTraced(Exception):
    """A function cannot be traced; the text says why.

    Args:
        by_value: because the function looks at the value of an array.
    """

    def __init__(self, text: str, by_value: bool = False) -> None:
        super().__init__(text)
        self.by_value = by_value


class Trace(NamedTuple):
    """A traced program.

    Args:
        graph: its inputs are the leaves and the arguments.
        names: of its outputs.
        run: (leaves, arguments) -> its outputs in numpy: the program by itself, without the function.
        slopes: (leaves, arguments) -> derivatives of a weighted sum of its outputs by the chosen arguments, in numpy.
        doubt: why it may be another program than the function, "" for no reason.
    """

    graph: Graph
    names: list[str]
    run: Callable[[list[Any], list[Any]], list[np.ndarray]]
    slopes: Callable[[list[Any], list[Any]], list[np.ndarray]]
    doubt: str = ""


class Engine(NamedTuple):
    """What a package knows of its operations.

    Args:
        rules: operation -> rule.
        recognize: the atoms of a program.
        sorts: the operations that sort.
    """

    rules: Mapping[str, Rule]
    recognize: Atoms
    sorts: Sorts


@dataclass(frozen=True)
class Problem:
    """A function as `certify` takes it; the methods are the package's.

    Args:
        call: (leaves of the parameters, arguments) -> what the function returns.
        leaves: of the parameters.
        names: of the leaves.
        arguments: the arrays of `x_example`.
        chosen: which of the arguments move; the others are fixed.
        is_refused: the function is a `NonConvexHull`, which promises no convexity.
        itself: arguments -> what a module returns as it is, with its own parameters; None for other functions.
        is_known: the function is a module of ours that is what is traced of it.
        roots: what the function is made of, each with what its call takes from the leaves.
        fixed: what the caller names as fixed.
        domain: where the chosen arguments lie, as one row; None for everywhere.
        curvature: what is to be proved, "convex" or "concave".
    """

    call: Callable[[list[Any], list[Any]], Any]
    leaves: list[Any]
    names: list[str]
    arguments: list[Any]
    chosen: tuple[int, ...]
    is_refused: bool
    roots: list[tuple[Any, list[Any]]]
    fixed: Any
    itself: Callable[[list[Any]], Any] | None = None
    is_known: bool = False
    domain: Domain | None = None
    curvature: str = CURVATURES[0]

    def trace(self) -> Trace:
        """Return the program.

        Raises:
            NotTraced: there is no program to look at.
        """
        raise NotImplementedError

    def leaf_value(self, leaf: Any) -> Value:
        """Return what is known of a leaf of known value."""
        raise NotImplementedError

    def center(self) -> np.ndarray | None:
        """Return the chosen arguments as one row in float64, None where the function has no values to evaluate."""
        raise NotImplementedError

    def filled(self) -> Problem:
        """Return the problem with values for the leaves that have a shape alone."""
        return self

    def place(self, row: np.ndarray) -> list[Any]:
        """Return the arguments with those chosen from a row."""
        raise NotImplementedError

    def calls(self, leaves: list[Any] | None, arguments: list[Any]) -> list[tuple[str, Callable[[], list[np.ndarray]]]]:
        """Return the ways to call the function itself, told in words; leaves are None for those that it has."""
        raise NotImplementedError

    def slopes(self, leaves: list[Any] | None, arguments: list[Any]) -> list[np.ndarray]:
        """Return what `Trace.slopes` gives, of the function itself; leaves as for `calls`.

        Raises:
            Exception: whatever the package raises where there is no derivative.
        """
        raise NotImplementedError

    def evaluator(self, corners: np.ndarray) -> Evaluator:
        """Return the function of rows of the chosen arguments, to be searched around two corners, `[2, in_dim]`."""
        raise NotImplementedError


def convert_arguments(convert: Callable[[Any], Any], x_example: Any, argnum: Any) -> tuple[list[Any], tuple[int, ...]]:
    """Return the arguments as arrays of the package, and the indices of those that move."""
    arguments = []
    for x in x_example if isinstance(x_example, tuple) else (x_example,):
        try:
            arguments.append(convert(x))
        except (TypeError, ValueError, RuntimeError):
            fix = "Pass one array for each argument."
            fail("certify", "x_example", "an array, or a tuple of arrays", type(x).__name__, fix, TypeError)
    count, chosen = len(arguments), argnum if isinstance(argnum, tuple) else (argnum,)
    inside = all(isinstance(k, int) and not isinstance(k, bool) and 0 <= k < count for k in chosen)
    if not (chosen and inside and len(set(chosen)) == len(chosen)):
        fix = "Pass argnum=0, or a tuple of examples."
        fail("certify", "argnum", f"indices of {count} arguments, each once", repr(argnum), fix)
    return arguments, chosen


def read_curvature(owner: str, curvature: Any, function: Any) -> str:
    """Return the curvature that is asked for; None is that of a hull or of its expert, else "convex".

    Args:
        owner: who asks, for the message.
        curvature: "convex", "concave" or None.
        function: a model of ours, None for another function.
    """
    if curvature is not None:
        return one_of(owner, "curvature", curvature, CURVATURES)
    config = getattr(getattr(function, "hull", function), "config", None)
    return getattr(config, "curvature", CURVATURES[0])


def output_weights(count: int) -> np.ndarray:
    """Return the weights of an output's elements in the sum whose slopes are compared."""
    return np.cos(1.0 + np.arange(count))


def check_no_params(params: Any) -> None:
    """Check that no parameters are given beside those of a module."""
    if params is not None:
        fail("certify", "params", "None for a module", describe(params), "The module has its own.")


def leaf_name(path: tuple[Any, ...], leave_out: tuple[str, ...] = ()) -> str:
    """Return the name of a leaf of a tree, as in `trunk.0.weight`, from the keys of its path."""
    keys = [next((getattr(key, name) for name in ("key", "name", "idx") if hasattr(key, name)), key) for key in path]
    return ".".join(str(key) for key in keys if key not in leave_out)
