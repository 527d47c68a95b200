"""A function of JAX as a `Graph`: its jaxpr, with every call written out."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from convexmoe.convexity import Graph, NotTraced

from ..settings import standard_promotion

# Primitives that call a program with their own inputs: what custom_jvp and custom_vjp add is of derivatives.
CALLS = {"jit", "pjit", "closed_call", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call", "composite"}
PROGRAMS = ("jaxpr", "call_jaxpr")  # where it stands in their parameters, by the version of JAX
# The identity on values.
IDENTITIES = {"stop_gradient", "copy", "sharding_constraint", "optimization_barrier", "pvary"}
# Parameters that do not change the value.
SILENT = {"sharding", "out_sharding", "weak_type", "accuracy"}


@standard_promotion
def trace(function: Callable[..., Any], *examples: Any) -> Graph:
    """Return the graph of a function of arrays at the shapes and dtypes of the examples, alike by any switch."""
    with jax.disable_jit(False):
        return graph_of(jax.make_jaxpr(function)(*examples))


def graph_of(closed: Any) -> Graph:
    """Return the graph of a jaxpr and its constants."""
    graph = Graph()
    graph.inputs = [graph.value(*_kind(variable.aval)) for variable in closed.jaxpr.invars]
    graph.outputs = _write(graph, closed.jaxpr, closed.consts, graph.inputs, "")
    graph.seen.clear()
    return graph


def _kind(aval: Any) -> tuple[tuple[int, ...], str]:
    """Return shape and dtype, as a graph keeps them."""
    return tuple(getattr(aval, "shape", ())), str(getattr(aval, "dtype", "none"))


def _write(graph: Graph, jaxpr: Any, consts: Any, inputs: list[int], caller: str) -> list[int]:
    """Append the operations of a jaxpr to a graph; return the numbers of its outputs."""
    numbers: dict[Any, int] = dict(zip(jaxpr.invars, inputs, strict=True))
    for variable, const in zip(jaxpr.constvars, consts, strict=True):
        numbers[variable] = graph.constant(_array(const))

    def number(atom: Any) -> int:
        if isinstance(atom, core.Literal):
            return graph.constant(np.asarray(atom.val, getattr(atom.aval, "dtype", None)))
        return numbers[atom]

    for equation in jaxpr.eqns:
        arguments = [number(atom) for atom in equation.invars]
        source = source_line(equation) or caller
        name = name_of(equation.primitive)
        body = next((equation.params.get(key) for key in PROGRAMS if name in CALLS and key in equation.params), None)
        if (
            name == "custom_linear_solve" and {"jaxprs", "const_lengths"} <= equation.params.keys()
        ):  # the program of its solution, with that program's constants
            body, sizes = equation.params["jaxprs"].solve, equation.params["const_lengths"]
            before = sizes.matvec + sizes.vecmat
            arguments = arguments[before : before + sizes.solve] + arguments[sum(sizes) :]
        inner = getattr(body, "jaxpr", body)
        if _is_body(inner, arguments, equation):
            outputs = _write(graph, inner, getattr(body, "consts", ()), arguments, source)
        elif _is_identity(name, equation, graph, arguments):
            outputs = arguments
        elif name == "convert_element_type" and (known := _converted(graph.array(arguments[0]), equation)) is not None:
            outputs = [graph.constant(known)]
        else:
            params = {key: value for key, value in equation.params.items() if key not in SILENT}
            kinds = [_kind(variable.aval) for variable in equation.outvars]
            outputs = list(graph.add(name, tuple(arguments), params, kinds, source, pure=not equation.effects))
        numbers.update(zip(equation.outvars, outputs, strict=True))
    return [number(atom) for atom in jaxpr.outvars]


@lru_cache(maxsize=1)
def primitives_of_jax() -> dict[str, Any]:
    """Return the primitives of JAX itself by name."""
    public = [vars(module).values() for module in (core.primitives, lax, lax.linalg)]
    values = (value for values in public for value in values)
    primitives = {value.name: value for value in values if isinstance(value, core.Primitive)}
    by_platform = partial(lax.platform_dependent, cpu=jnp.sin, default=jnp.cos)
    for call in (jax.checkpoint(jnp.sin), lax.composite(jnp.sin, name="convexmoe.sin"), by_platform):  # not public
        primitives |= {each.primitive.name: each.primitive for each in jax.make_jaxpr(call)(1.0).eqns}
    return primitives


def name_of(primitive: Any) -> str:
    """Return the name under which a primitive has a rule: anyone may call another one by a name of JAX."""
    own = primitives_of_jax().get(primitive.name) is primitive
    return primitive.name if own else f"{primitive.name} (not JAX's own)"


def _is_body(inner: Any, arguments: list[int], equation: Any) -> bool:
    """Return whether a program takes and gives what an equation does."""
    sizes = [len(getattr(inner, name, ())) for name in ("invars", "outvars")]
    return hasattr(inner, "eqns") and sizes == [len(arguments), len(equation.outvars)]


def _is_identity(name: str, equation: Any, graph: Graph, arguments: list[int]) -> bool:
    """Return whether an equation gives back what it takes."""
    if name == "convert_element_type":
        return graph.dtypes[arguments[0]] == str(equation.outvars[0].aval.dtype)
    return name in IDENTITIES and len(arguments) == len(equation.outvars)


def _converted(array: np.ndarray | None, equation: Any) -> np.ndarray | None:
    """Return a constant in the dtype of an equation's output, as the literal 1 beside floats; None if it is rounded."""
    if array is None:
        return None
    known = array.astype(equation.outvars[0].aval.dtype)
    return known if np.array_equal(known, array) else None


def _array(const: Any) -> np.ndarray:
    """Return a constant as an array; a key of random numbers as its bits."""
    if hasattr(const, "dtype") and jax.dtypes.issubdtype(const.dtype, jax.dtypes.extended):
        return np.asarray(jax.random.key_data(const))
    try:
        return np.array(const)  # its memory may be that of an array that the function changes
    except (TypeError, ValueError) as error:
        raise NotTraced(f"the function holds a {type(const).__name__}, whose value may change") from error


def source_line(equation: Any) -> str:
    """Return file, line and function of the user's program for an equation, "" where JAX does not tell."""
    try:
        from jax._src import source_info_util  # there is no public way

        frame = source_info_util.user_frame(equation.source_info.traceback)
        if frame is None:
            return ""
        file = "/".join(frame.file_name.replace("\\", "/").split("/")[-2:])
        return f"{file}:{frame.start_line} ({frame.function_name})"
    except Exception as error:  # private, and free to change: a proof without line numbers is a proof
        warnings.warn(f"no source lines from this JAX: {error}", stacklevel=2)
        return ""
