"""A proof that a function is convex, or concave, for the very program that runs; a counterexample; or what is open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import jaxpr_as_fun
from jax.interpreters import partial_eval

from convexmoe.convexity import SEGMENTS, Certificate, Engine, Problem, Trace, Value, certify_problem, facts, problem

from ..hierarchy.experts import ExpertBatch, ExpertModule, HullExpert
from ..hull.legacy import NonConvexHull
from ..hull.module import FoldedHull, VectorHull
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
    fixed: Any = None,
    argnum: int | tuple[int, ...] = 0,
    strength: str | None = None,
    per_input: bool = False,
    segments: int = SEGMENTS,
    seed: int = 0,
    domain: Any = None,
    curvature: str | None = None,
) -> Certificate:
    """Prove that every output of a function is convex in its chosen input, refute it, or say what stops the proof.

    A concave hull is proved to be concave. A hull with a context takes `(x, context)`, and what is proved of x holds
    for every context.

    The function is traced at the shape of the example, and the jaxpr is walked with the rules of disciplined convex
    programming (Grant, Boyd and Ye, 2006), element by element; known functions whose bodies do not follow those rules
    are recognized by their operations. A proof holds in exact arithmetic, for the program as it was traced: its shapes
    and dtypes, and the branches it takes in Python; the function is called at some points near and far, outside of
    the trace and under `jax.vjp`, and must give what its program gives.

    Guarantee: what is "proved" is convex in exact arithmetic; a primitive without a rule proves nothing
    (tests/certificates).

    Args:
        function: `function(*x)`, or `function(params, *x)` where params are given; or a module of Flax, such as
            `VectorHull`, whose parameters are its own.
        x_example: an array, or a tuple of arrays, one for each argument: their shapes, and where to look for a
            counterexample.
        params: nested dicts or any tree of arrays. Numbers that the function closes over are known numbers.
        fixed: arrays, or anything that leads to them, that no training changes. A structural proof holds for their
            present values; other arrays that the function reaches by a reference make a proof numeric.
        argnum: which of the arguments move, an index or indices; of the others nothing is assumed but that they
            are fixed real numbers.
        strength: "structural" (parameters are unknown real numbers), "numeric" (they have the given values), or None:
            the first, and where that proves nothing the second.
        per_input: also find the monotonicity in each coordinate of the chosen input, one walk each.
        segments: how many segments are tried for a counterexample; 0 for none.
        seed: of that search.
        domain: a `Box` in which the chosen input lies, its faces included, a tuple of them for several, or None for
            everywhere. A proof holds on all of it, where 1 / x must be a number: its lower bound is above 0.
        curvature: what is to be proved, "convex" or "concave"; None means "convex", of our models what their config
            says.

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
    given = _problem(function, x_example, params, argnum, fixed, curvature)
    return certify_problem(Engine(RULES, recognize, sorts), given, strength, per_input, segments, seed, domain)


class JaxProblem(Problem):
    """A function of JAX as `certify` takes it; `Problem` says what the methods do."""

    def trace(self) -> Trace:
        try:
            closed, tree = jax.make_jaxpr(self.call, return_shape=True)(self.leaves, self.arguments)
        except BY_VALUE as error:
            raise problem.NotTraced(f"{problem.BY_VALUE}: {str(error).splitlines()[0]}") from error
        except jax.errors.TracerArrayConversionError as error:
            raise problem.NotTraced(f"the function takes its input out of JAX: {str(error).splitlines()[0]}") from error
        closed = closed.replace(consts=[np.array(x) if isinstance(x, np.ndarray) else x for x in closed.consts])
        names = [_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
        return Trace(graph_of(closed), names, _run(closed), self._slopes_of(jaxpr_as_fun(closed)))

    def leaf_value(self, leaf: Any) -> Value:
        """Return what is known of a leaf; nothing of what has no numbers, such as a key or a shape alone."""
        is_key = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
        has_none = is_key or isinstance(leaf, jax.ShapeDtypeStruct)
        return facts.nothing(leaf.shape) if has_none else facts.array_value(np.asarray(jnp.asarray(leaf)))

    def center(self) -> np.ndarray | None:
        """Return the chosen arguments as one row, None where arrays have a shape alone."""
        moving = [self.arguments[k] for k in self.chosen]
        if any(isinstance(x, jax.ShapeDtypeStruct) or not hasattr(x, "dtype") for x in [*self.leaves, *moving]):
            return None
        return np.concatenate([np.asarray(x, np.float64).reshape(-1) for x in moving])

    def place(self, row: np.ndarray) -> list[Any]:
        return list(map(jnp.asarray, self._put(row, list(self.arguments))))

    def _put(self, row: Any, arguments: list[Any]) -> list[Any]:
        start = 0
        for k in self.chosen:
            shape, end = arguments[k].shape, start + arguments[k].size
            arguments[k], start = row[start:end].reshape(shape).astype(arguments[k].dtype), end
        return arguments

    def filled(self) -> JaxProblem:
        leaves = [jnp.full(x.shape, 0.5, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x for x in self.leaves]
        return replace(self, leaves=leaves)

    def calls(self, leaves: list[Any] | None, arguments: list[Any]) -> list[tuple[str, Callable[[], list[np.ndarray]]]]:
        given = self.leaves if leaves is None else leaves

        def call() -> list[np.ndarray]:
            itself = self.itself if leaves is None else None
            return _flatten(itself(arguments) if itself else self.call(given, arguments))

        return [("", call), (" while gradients are taken", lambda: self._differentiated(given, arguments))]

    def slopes(self, leaves: list[Any] | None, arguments: list[Any]) -> list[np.ndarray]:
        itself = self.itself if leaves is None else None
        given = self.leaves if leaves is None else leaves
        call = (lambda *given: itself(list(given[len(self.leaves) :]))) if itself else self._call_flat
        return self._slopes_of(call)(given, arguments)

    def _call_flat(self, *given: Any) -> Any:
        return self.call(list(given[: len(self.leaves)]), list(given[len(self.leaves) :]))

    def _slopes_of(self, call: Callable[..., Any]) -> Callable[[list[Any], list[Any]], list[np.ndarray]]:
        """Return `Trace.slopes` of a function of leaves and arguments in a row."""

        def weighted_sum(*given: Any) -> jax.Array:
            parts = [jnp.ravel(part) for part in jax.tree.leaves(call(*given))]
            weights = [problem.output_weights(part.size).astype(part.dtype) for part in parts]
            return jnp.concatenate(list(map(jnp.multiply, parts, weights))).sum()

        places = tuple(len(self.leaves) + k for k in self.chosen)
        return lambda leaves, arguments: _flatten(jax.grad(weighted_sum, places)(*leaves, *arguments))

    @cached_property
    def _differentiated(self) -> Callable[..., list[np.ndarray]]:
        """The program of the values under `jax.vjp`: `custom_vjp` and `custom_jvp` have others there."""
        try:
            closed = jax.make_jaxpr(lambda *given: jax.vjp(self.call, *given)[0])(self.leaves, self.arguments)
        except Exception:  # it has no derivative
            return lambda *given: _flatten(self.call(*given))
        jaxpr, _ = _cut(closed.jaxpr, [True] * len(closed.out_avals))
        return _run(closed.replace(jaxpr=jaxpr))

    def evaluator(self, corners: np.ndarray) -> Evaluator:
        moving = [self.arguments[k] for k in self.chosen]

        def one(row: jax.Array) -> jax.Array:
            leaves, arguments = self.leaves, list(self.arguments)
            if row.dtype == jnp.float64:
                leaves, arguments = in_float64(leaves), in_float64(arguments)
            arguments = self._put(row, arguments)
            outputs = jax.tree.leaves(self.call(leaves, arguments))
            values = jnp.concatenate([jnp.ravel(part).astype(row.dtype) for part in outputs])
            return -values if self.curvature == "concave" else values

        dtype = jnp.result_type(*(x.dtype for x in moving))
        return Evaluator(jax.vmap(one), jnp.asarray(corners, dtype))


def _problem(
    function: Any, x_example: Any, params: Any, argnum: int | tuple[int, ...], fixed: Any, curvature: str | None
) -> JaxProblem:
    """Return the function, its parameters and its arguments in one form."""
    arguments, chosen = problem.convert_arguments(jnp.asarray, x_example, argnum)
    if isinstance(function, nnx.Module):
        problem.check_no_params(params)
        graph, state = nnx.split(function)
        roots: list[tuple[Any, list[Any]]] = [(graph, [])]
        flat, tree = jax.tree_util.tree_flatten_with_path(state)

        def apply(module: Any, xs: list[Any]) -> Any:
            return module(ExpertBatch(*xs)).hidden if isinstance(function, ExpertModule) else module(*xs)

        def call(leaves: list[Any], xs: list[Any]) -> Any:
            return apply(nnx.merge(graph, jax.tree.unflatten(tree, leaves)), xs)

    else:
        flat, tree = jax.tree_util.tree_flatten_with_path(params)
        roots = [(function, []), (params, [leaf for _, leaf in flat])]

        def call(leaves: list[Any], xs: list[Any]) -> Any:
            return function(*xs) if params is None else function(jax.tree.unflatten(tree, leaves), *xs)

    names, leaves = [_name(path) for path, _ in flat], [leaf for _, leaf in flat]
    # One copy for all calls: it may count them.
    itself = partial(apply, nnx.clone(function)) if isinstance(function, nnx.Module) else None
    # Outside of a trace every operation is compiled: seconds for a hull, which does not look whether it is traced.
    is_known = type(function) in (VectorHull, FoldedHull)
    is_refused, ours = isinstance(function, NonConvexHull), isinstance(function, (VectorHull, FoldedHull, HullExpert))
    wanted = problem.read_curvature("certify", curvature, function if ours else None)
    return JaxProblem(
        call, leaves, names, arguments, chosen, is_refused, roots, fixed, itself, is_known, curvature=wanted
    )


def _run(closed: Any) -> Callable[..., list[np.ndarray]]:
    """Return a program as a function of leaves and arguments."""
    run = jaxpr_as_fun(closed)
    return lambda *given: _flatten(run(*jax.tree.leaves(given)))


def _flatten(outputs: Any) -> list[np.ndarray]:
    """Return the outputs of a function in numpy."""
    return [np.asarray(part, np.float64) for part in jax.tree.leaves(outputs)]


# Takes what only a derivative needs out of a program; not public, and not needed.
_cut = getattr(partial_eval, "dce_jaxpr", lambda jaxpr, used: (jaxpr, used))
# The name of a leaf; Flax keeps a parameter under "value".
_name = partial(problem.leaf_name, leave_out=("value",))
