"""A proof that a function is convex, for the very program that runs; or a counterexample; or where the proof stops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convexmoe.convexity.calculus import LAWS
from convexmoe.convexity.certificate import (
    EXACT,
    STRENGTHS,
    Certificate,
    Output,
    coarsest,
    first_failure,
    monotonicity,
    no_claim,
    word_arrays,
)
from convexmoe.convexity.facts import CONVEX, Value, fixed, nothing, variable
from convexmoe.convexity.graph import Graph
from convexmoe.convexity.refinements import Refinements
from convexmoe.convexity.segments import TOLERANCES, Violation
from convexmoe.convexity.walk import Reason, Step, Walk, no_refinement, number_of
from convexmoe.errors import describe, fail, one_of, whole_number

from ..hierarchy.experts import ExpertBatch, ExpertModule
from ..hull.legacy import NonConvexHull
from .atoms import recognise
from .order import sorts
from .rules import RULES
from .search import in_float64, search
from .trace import graph_of

SEGMENTS = 20_000
BY_VALUE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerIntegerConversionError,
)
REACH = 3.0  # half the width of the box that is searched around the example, in units of its size


class Problem(NamedTuple):
    """A function as `certify` takes it.

    Args:
        call: (leaves of the parameters, arguments) -> what the function returns.
        leaves: of the parameters.
        names: of the leaves.
        arguments: the arrays of `x_example`.
        chosen: which of the arguments move; the others are fixed.
    """

    call: Callable[[list[Any], list[Any]], Any]
    leaves: list[Any]
    names: list[str]
    arguments: list[Any]
    chosen: tuple[int, ...]


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
) -> Certificate:
    """Prove that every output of a function is convex in its chosen input, refute it, or say what stops the proof.

    The function is traced at the shape of the example, and the jaxpr is walked with the rules of disciplined convex
    programming (Grant, Boyd and Ye, 2006), element by element; known functions whose bodies do not follow those rules
    are recognised by their operations. A proof holds in exact arithmetic, for the program as it was traced: its shapes
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

    Returns:
        A `Certificate`.

    Raises:
        TypeError, ValueError: argnum names no argument, or the function cannot be called with the example.

    >>> certify(lambda x: jnp.sum(x**2), jnp.ones(3)).verdict
    'proved'
    >>> certify(lambda x: -jnp.sum(x**2), jnp.ones(3)).verdict
    'refuted'
    """
    problem = _problem(function, x_example, params, argnum)
    if strength is not None:
        one_of("certify", "strength", strength, STRENGTHS)
    whole_number("certify", "segments", segments, 0)
    whole_number("certify", "seed", seed, 0)
    refused = _refusal(problem)
    if refused:
        return Certificate("unknown", strength or "structural", refused)
    graph = graph_of(jax.make_jaxpr(problem.call)(problem.leaves, problem.arguments))
    refused = no_claim(graph)
    if refused:
        return Certificate("unknown", strength or "structural", refused)
    tried = [strength] if strength else list(STRENGTHS[: 2 if problem.leaves else 1])
    tried = tried if problem.leaves or strength else ["numeric"]
    for now in tried:
        walk = _walk(graph, problem, now)
        proved = all(walk.values[number].has(CONVEX).all() for number in graph.outputs)
        if proved:
            break
    outputs = _outputs(graph, problem, walk, now, per_input)
    steps, results = tuple(walk.steps().values()), tuple(graph.outputs)
    if proved and not isinstance(function, NonConvexHull):
        return Certificate("proved", now, _proved_text(problem, now), outputs, None, None, steps, results)
    failures = [first_failure(walk, number) for number in graph.outputs]
    failed = next((step for step in failures if step is not None), None)
    violation, looked = None, "no counterexample was looked for"
    if segments:
        try:
            violation, looked = _violation(problem, walk, segments, seed)
        except (
            Exception
        ) as error:  # it can be traced, which is not to say that it can be batched, or compiled
            looked = f"the search for a counterexample failed: {type(error).__name__}: {error}"
    verdict = "unknown" if violation is None else "refuted"
    reason = _failed_text(function, failed, violation, looked)
    return Certificate(verdict, now, reason, outputs, failed, violation, steps, results)


def _problem(function: Any, x_example: Any, params: Any, argnum: int | tuple[int, ...]) -> Problem:
    """Return the function, its parameters and its arguments in one form."""
    arguments = [_array(x) for x in (x_example if isinstance(x_example, tuple) else (x_example,))]
    chosen = argnum if isinstance(argnum, tuple) else (argnum,)
    inside = all(isinstance(k, int) and not isinstance(k, bool) and 0 <= k < len(arguments) for k in chosen)
    if not (chosen and inside and len(set(chosen)) == len(chosen)):
        fix = "Pass argnum=0, or a tuple of examples."
        fail("certify", "argnum", f"indices of {len(arguments)} arguments, each once", repr(argnum), fix)
    if isinstance(function, nnx.Module):
        if params is not None:
            fail("certify", "params", "None for a module", describe(params), "The module has its own.")
        graph, state = nnx.split(function)
        flat, tree = jax.tree_util.tree_flatten_with_path(state)
        expert = isinstance(function, ExpertModule)

        def call(leaves: list[Any], xs: list[Any]) -> Any:
            module = nnx.merge(graph, jax.tree.unflatten(tree, leaves))
            return module(ExpertBatch(*xs)).hidden if expert else module(*xs)

    else:
        flat, tree = jax.tree_util.tree_flatten_with_path(params)

        def call(leaves: list[Any], xs: list[Any]) -> Any:
            return function(*xs) if params is None else function(jax.tree.unflatten(tree, leaves), *xs)

    names = [_dotted(path) for path, _ in flat]
    return Problem(call, [leaf for _, leaf in flat], names, arguments, chosen)


def _array(x: Any) -> jax.Array:
    """Return an example as an array."""
    try:
        return jnp.asarray(x)
    except (TypeError, ValueError):
        fix = "Pass one array for each argument."
        fail("certify", "x_example", "an array, or a tuple of arrays", type(x).__name__, fix, TypeError)


def _dotted(path: tuple[Any, ...]) -> str:
    """Return the name of a leaf, as in `trunk.0.weight`."""
    keys = [
        next((getattr(key, name) for name in ("key", "name", "idx") if hasattr(key, name)), key)
        for key in path
    ]
    return ".".join(str(key) for key in keys if key != "value")


def _refusal(problem: Problem) -> str:
    """Return why nothing can be proved before looking at the program, "" where that is not so."""
    for k in problem.chosen:
        if not jnp.issubdtype(problem.arguments[k].dtype, jnp.floating):
            return f"argument {k} is {describe(problem.arguments[k])}: convexity is of real inputs"
    try:
        jax.eval_shape(problem.call, problem.leaves, problem.arguments)
    except BY_VALUE as error:
        return f"the function decides in Python by the value of its input: {str(error).splitlines()[0]}"
    except jax.errors.TracerArrayConversionError as error:
        return f"the function takes its input out of JAX: {str(error).splitlines()[0]}"
    return ""


def _walk(graph: Graph, problem: Problem, strength: str, coordinate: int | None = None) -> Walk:
    """Return the walk through the program; with a coordinate, only that entry of the chosen inputs moves."""
    split = len(problem.leaves)
    chosen = [graph.inputs[split + k] for k in problem.chosen]
    # A refinement takes all coordinates for moving.
    refine = Refinements(chosen, sorts) if coordinate is None else no_refinement
    walk = Walk(graph, RULES, recognise, refine)
    values = []
    for number, leaf, name in zip(graph.inputs, problem.leaves, problem.names, strict=False):
        shape = graph.shapes[number]
        exact = strength == "numeric"
        values.append(_given(leaf) if exact else _unknown(shape, graph.dtypes[number]))
        law = "a parameter, of known value" if exact else "a parameter, any real number"
        walk.reasons[number] = Reason("parameter", law, (), name)
    start = 0
    for k, number in enumerate(graph.inputs[split:]):
        shape = graph.shapes[number]
        moves = k in problem.chosen
        values.append(_moving(shape, start, coordinate) if moves else _unknown(shape, graph.dtypes[number]))
        start += int(np.prod(shape)) if moves else 0
        law = LAWS["input"] if moves else "an input that is fixed"
        walk.reasons[number] = Reason("input", law, (), f"argument {k}")
    walk.run(values)
    return walk


def _given(leaf: Any) -> Value:
    """Return a parameter of known value; nothing is known of what is no number, such as a key."""
    if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
        return nothing(leaf.shape)
    return number_of(np.asarray(leaf))


def _unknown(shape: tuple[int, ...], dtype: str) -> Value:
    """Return a fixed number of a dtype."""
    if dtype == "bool":
        return fixed(shape, 0.0, 1.0)
    if not dtype.startswith(("float", "bfloat", "int", "uint")):
        return nothing(shape)
    if dtype.startswith(("int", "uint")):
        bounds = jnp.iinfo(dtype)
        return fixed(shape, float(bounds.min), float(bounds.max))
    return fixed(shape)


def _moving(shape: tuple[int, ...], start: int, coordinate: int | None) -> Value:
    """Return a chosen input, of which all moves, or one coordinate."""
    value = variable(shape)
    if coordinate is None:
        return value
    moves = (start + np.arange(int(np.prod(shape))).reshape(shape)) == coordinate
    still = fixed(shape)
    return Value(value.lower, value.upper, np.where(moves, value.facts, still.facts))


def _outputs(
    graph: Graph, problem: Problem, walk: Walk, strength: str, per_input: bool
) -> tuple[Output, ...]:
    """Return what the walk knows of each output."""
    tree = jax.eval_shape(problem.call, problem.leaves, problem.arguments)
    names = [_dotted(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    count = sum(problem.arguments[k].size for k in problem.chosen)
    alone: list[list[np.ndarray]] = [[] for _ in graph.outputs]
    for coordinate in range(count if per_input else 0):
        single = _walk(graph, problem, strength, coordinate)
        for found, number in zip(alone, graph.outputs, strict=True):
            found.append(monotonicity(single.values[number]))
    return tuple(
        Output(
            name, **word_arrays(walk.values[number]), per_input=np.stack(found, axis=-1) if found else None
        )
        for name, number, found in zip(names, graph.outputs, alone, strict=True)
    )


def _proved_text(problem: Problem, strength: str) -> str:
    whose = (
        ""
        if not problem.leaves
        else (
            ", for every value of the parameters"
            if strength == "structural"
            else ", for the given parameters"
        )
    )
    others = len(problem.arguments) > len(problem.chosen)
    return f"convex in {_what(problem)}{' for fixed others' if others else ''}{whose}, {EXACT} ({strength})"


def _what(problem: Problem) -> str:
    if len(problem.arguments) == 1:
        return "its input"
    return (
        "argument " + " and ".join(map(str, problem.chosen)) + (" jointly" if len(problem.chosen) > 1 else "")
    )


def _failed_text(function: Any, failed: Step | None, violation: Violation | None, looked: str) -> str:
    """Return in a sentence why a function is not proved to be convex."""
    if violation is not None:
        return (
            f"not convex: a segment on which it lies {violation.gap:.3g} above its chord ({violation.dtype})"
        )
    if isinstance(function, NonConvexHull):
        return "a NonConvexHull is refused: its sigmoid gates are not convex, whatever a search finds"
    if failed is None:
        return f"no proof {EXACT}; {looked}"
    where = f" at {failed.source}" if failed.source else ""
    why = failed.note or failed.law
    if failed.curvature != "unknown":
        why = f"it is {failed.curvature}"
    return f"no proof {EXACT}: {failed.operation}{where}: {why}; {looked}"


def _violation(problem: Problem, walk: Walk, segments: int, seed: int) -> tuple[Violation | None, str]:
    """Search around the example, parameters and fixed arguments as they are given; say so where that cannot be."""
    moving = [problem.arguments[k] for k in problem.chosen]
    leaves = [leaf for leaf in problem.leaves if hasattr(leaf, "dtype")]
    if len(leaves) < len(problem.leaves) or any(
        isinstance(x, jax.ShapeDtypeStruct) for x in [*leaves, *moving]
    ):
        return None, "no counterexample was looked for without values of the parameters"
    sizes = np.cumsum([x.size for x in moving])[:-1]
    centre = np.concatenate([np.asarray(x, np.float64).reshape(-1) for x in moving])
    if centre.size == 0 or not np.isfinite(centre).all():
        return None, "no counterexample was looked for around an example that is empty or not finite"

    def one(row: jax.Array) -> jax.Array:
        floats = row.dtype == jnp.float64
        parameters, arguments = problem.leaves, list(problem.arguments)
        if floats:
            parameters, arguments = in_float64(parameters), in_float64(arguments)
        for k, part in zip(problem.chosen, jnp.split(row, sizes), strict=True):
            arguments[k] = part.reshape(arguments[k].shape)
        found = jax.tree.leaves(problem.call(parameters, arguments))
        return jnp.concatenate([jnp.ravel(part).astype(row.dtype) for part in found])

    reach = REACH * np.maximum(1.0, np.abs(centre)) / 2
    dtype = jnp.result_type(*(x.dtype for x in moving))
    points = jnp.asarray(np.stack([centre - reach, centre + reach]), dtype)
    rounded = coarsest(walk, str(dtype))
    tolerance = TOLERANCES.get(rounded, np.inf) if rounded else None
    found = search(jax.vmap(one), points, segments, seed, tolerance, strict=False)
    return found and found._replace(dtype=rounded or found.dtype), "no counterexample found"
