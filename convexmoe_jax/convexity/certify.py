"""A proof that a function is convex, for the very program that runs; or a counterexample; or where the proof stops."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convexmoe.convexity import SEGMENTS, Certificate, Engine, Graph, Problem, Value, certify_problem, facts, problem

from ..hierarchy.experts import ExpertBatch, ExpertModule
from ..hull.legacy import NonConvexHull
from .atoms import recognize
from .rules import RULES, sorts
from .search import Evaluator, in_float64
from .trace import graph_of

BY_VALUE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerIntegerConversionError,
)


def certify(
    function: Callable[..., Any],
    x_example: Any,
    *,
    params: Any = None,
    argnum: int | tuple[int, ...] = 0,
    strength: str | None = None,
    per_input: bool = False,
    segments: int = SEGMENTS,
    seed: int = 0,
    domain: Any = None,
) -> Certificate:
    """Prove that every output of a function is convex in its chosen input, refute it, or say what stops the proof.

    The function is traced at the shape of the example, and the jaxpr is walked with the rules of disciplined convex
    programming (Grant, Boyd and Ye, 2006), element by element; known functions whose bodies do not follow those rules
    are recognized by their operations. A proof holds in exact arithmetic, for the program as it was traced: its shapes
    and dtypes, and the branches it takes in Python.

    Guarantee: what is "proved" is convex in exact arithmetic; a primitive without a rule proves nothing
    (tests/certificates).

    Args:
        function: `function(*x)`, or `function(params, *x)` where params are given; or a module of Flax, such as
            `VectorHull`, whose parameters are its own.
        x_example: an array, or a tuple of arrays, one for each argument: their shapes, and where to look for a
            counterexample.
        params: nested dicts or any tree of arrays. Numbers that the function closes over are known numbers.
        argnum: which of the arguments move, an index or indices; of the others nothing is assumed but that they
            are fixed real numbers.
        strength: "structural" (parameters are unknown real numbers), "numeric" (they have the given values), or None:
            the first, and where that proves nothing the second.
        per_input: also find the monotonicity in each coordinate of the chosen input, one walk each.
        segments: how many segments are tried for a counterexample; 0 for none.
        seed: of that search.
        domain: a `Box` in which the chosen input lies, its faces included, a tuple of them for several, or None for
            everywhere. A proof holds on all of it, where 1 / x must be a number: its lower bound is above 0.

    Returns:
        A `Certificate`.

    Raises:
        TypeError, ValueError: argnum names no argument, the domain is no box of its shape, or the function cannot be
            called with the example.

    >>> certify(lambda x: jnp.sum(x**2), jnp.ones(3)).verdict
    'proved'
    >>> certify(lambda x: -jnp.sum(x**2), jnp.ones(3)).verdict
    'refuted'
    """
    given = _problem(function, x_example, params, argnum)
    return certify_problem(Engine(RULES, recognize, sorts), given, strength, per_input, segments, seed, domain)


class JaxProblem(Problem):
    """A function of JAX as `certify` takes it; `Problem` says what the methods do."""

    def trace(self) -> tuple[Graph, list[str]]:
        try:
            closed, tree = jax.make_jaxpr(self.call, return_shape=True)(self.leaves, self.arguments)
        except BY_VALUE as error:
            raise problem.NotTraced(f"{problem.BY_VALUE}: {str(error).splitlines()[0]}") from error
        except jax.errors.TracerArrayConversionError as error:
            raise problem.NotTraced(f"the function takes its input out of JAX: {str(error).splitlines()[0]}") from error
        return graph_of(closed), [_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]

    def leaf_value(self, leaf: Any) -> Value:
        """Return what is known of a leaf; nothing of what is no number, such as a key."""
        is_key = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
        return facts.nothing(leaf.shape) if is_key else facts.array_value(np.asarray(leaf))

    def center(self) -> np.ndarray | None:
        """Return the chosen arguments as one row, None where arrays have a shape alone."""
        moving = [self.arguments[k] for k in self.chosen]
        if any(isinstance(x, jax.ShapeDtypeStruct) or not hasattr(x, "dtype") for x in [*self.leaves, *moving]):
            return None
        return np.concatenate([np.asarray(x, np.float64).reshape(-1) for x in moving])

    def evaluator(self, corners: np.ndarray) -> Evaluator:
        moving = [self.arguments[k] for k in self.chosen]
        ends = np.cumsum([x.size for x in moving])[:-1]

        def one(row: jax.Array) -> jax.Array:
            leaves, arguments = self.leaves, list(self.arguments)
            if row.dtype == jnp.float64:
                leaves, arguments = in_float64(leaves), in_float64(arguments)
            for k, part in zip(self.chosen, jnp.split(row, ends), strict=True):
                arguments[k] = part.reshape(arguments[k].shape)
            outputs = jax.tree.leaves(self.call(leaves, arguments))
            return jnp.concatenate([jnp.ravel(part).astype(row.dtype) for part in outputs])

        dtype = jnp.result_type(*(x.dtype for x in moving))
        return Evaluator(jax.vmap(one), jnp.asarray(corners, dtype))


def _problem(function: Any, x_example: Any, params: Any, argnum: int | tuple[int, ...]) -> JaxProblem:
    """Return the function, its parameters and its arguments in one form."""
    arguments, chosen = problem.convert_arguments(jnp.asarray, x_example, argnum)
    if isinstance(function, nnx.Module):
        problem.check_no_params(params)
        graph, state = nnx.split(function)
        flat, tree = jax.tree_util.tree_flatten_with_path(state)
        is_expert = isinstance(function, ExpertModule)

        def call(leaves: list[Any], xs: list[Any]) -> Any:
            module = nnx.merge(graph, jax.tree.unflatten(tree, leaves))
            return module(ExpertBatch(*xs)).hidden if is_expert else module(*xs)

    else:
        flat, tree = jax.tree_util.tree_flatten_with_path(params)

        def call(leaves: list[Any], xs: list[Any]) -> Any:
            return function(*xs) if params is None else function(jax.tree.unflatten(tree, leaves), *xs)

    names, leaves = [_name(path) for path, _ in flat], [leaf for _, leaf in flat]
    return JaxProblem(call, leaves, names, arguments, chosen, isinstance(function, NonConvexHull))


# The name of a leaf; Flax keeps a parameter under "value".
_name = partial(problem.leaf_name, leave_out=("value",))
