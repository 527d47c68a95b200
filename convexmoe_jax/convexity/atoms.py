"""Functions whose bodies do not compose, recognised in a program by what it computes, never by a name.

Each is traced afresh at the shapes that the program has, and compared with it operation by operation (`graph.match`).
Those of our models are written out here and not imported: a fault in a model must not become a fault in its proof.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from convexmoe.convexity import calculus, scalars
from convexmoe.convexity.facts import Value, fixed, known
from convexmoe.convexity.graph import Graph, Operation, match
from convexmoe.convexity.walk import Found

from .order import stacked
from .trace import trace

DEPTH = 14  # operations between the end of an atom and the reduction that tells its shapes

Kind = tuple[tuple[int, ...], str]


class Reference(NamedTuple):
    """A function to compare with, at given shapes.

    Args:
        name: of the atom.
        law: the name of its sentence.
        function: to be traced.
        kinds: shapes and dtypes of its arguments.
        apply: what is known of it, from what is known of its arguments.
    """

    name: str
    law: str
    function: Callable[..., Any]
    kinds: tuple[Kind, ...]
    apply: Callable[[list[Value]], Value]


def recognise(graph: Graph, operation: Operation, number: int) -> Iterator[Found]:
    """Yield the atoms that compute a value."""
    if not graph.dtypes[number].startswith(("float", "bfloat")):
        return
    for candidates in CANDIDATES.get(operation.name, ()):
        for reference in candidates(graph, number):
            given = match(_traced(reference.function, reference.kinds), graph, number)
            if given is not None:
                yield Found(reference.name, reference.law, tuple(given), reference.apply)


def _traced(function: Callable[..., Any], kinds: tuple[Kind, ...]) -> Graph:
    wide = any("64" in dtype for _, dtype in kinds)
    return _traced_once(function, kinds, wide or bool(jax.config.read("jax_enable_x64")))


@lru_cache(maxsize=4096)
def _traced_once(function: Callable[..., Any], kinds: tuple[Kind, ...], wide: bool) -> Graph:
    with jax.enable_x64(wide):
        return trace(function, *(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in kinds))


# Elementwise atoms: function, how it is known, and which arguments may be scalars.


def _log_add(a: Any, b: Any) -> Any:
    return jnp.logaddexp(a, b)


def _relu(u: Any) -> Any:
    return jnp.where(u > 0, u, 0.0)


def _relu_with_equality(u: Any) -> Any:
    return jnp.where(u >= 0, u, 0.0)


def _huber_relu(u: Any) -> Any:
    bent = jnp.maximum(jnp.minimum(u, 1.0) + 1.0, 0.0)
    return jnp.where(u < 1.0, bent * bent * 0.25, u)


def _softplus(u: Any) -> Any:
    return jnp.logaddexp(u, jnp.zeros((), u.dtype))


def _softplus_by_log1p(u: Any) -> Any:
    return jnp.maximum(u, 0) + jnp.log1p(jnp.exp(-jnp.abs(u)))


def _of_one(name: str) -> Callable[[list[Value]], Value]:
    return lambda values: scalars.apply(name, values[0])


def _two(values: list[Value]) -> Value:
    shape = np.broadcast_shapes(*(value.shape for value in values))
    return calculus.log_sum_exp(stacked([value.broadcast(shape) for value in values]), (0,))


def _with_zero(values: list[Value]) -> Value:
    return _two([values[0], known(np.zeros(values[0].shape))])


def _maximum_with_zero(values: list[Value]) -> Value:
    return calculus.maximum(values[0], known(np.zeros(values[0].shape)))


def _maximum_with_share(values: list[Value]) -> Value:
    return calculus.maximum(values[0], calculus.multiply(fixed((), 0.0099, 0.0101), values[0]))


ELEMENTWISE: tuple[tuple[str, str, Callable[..., Any], Callable[[list[Value]], Value]], ...] = (
    ("huber_relu", "scalar", _huber_relu, _of_one("huber_relu")),
    ("elu", "scalar", jax.nn.elu, _of_one("elu")),
    ("celu", "scalar", jax.nn.celu, _of_one("elu")),  # at alpha = 1 the two are one function
    ("relu", "maximum", _relu, _maximum_with_zero),
    ("relu", "maximum", _relu_with_equality, _maximum_with_zero),
    ("leaky_relu", "maximum", jax.nn.leaky_relu, _maximum_with_share),
    ("softplus", "log_sum_exp", _softplus, _with_zero),
    ("softplus", "log_sum_exp", _softplus_by_log1p, _with_zero),
    ("huber_loss", "scalar", optax.huber_loss, _of_one("huber")),
)


def _elementwise(graph: Graph, number: int) -> Iterable[Reference]:
    kind = graph.shapes[number], graph.dtypes[number]
    for name, law, function, apply in ELEMENTWISE:
        yield Reference(name, law, function, (kind,), apply)
    scalar = (), graph.dtypes[number]
    for kinds in dict.fromkeys([(kind, kind), (kind, scalar), (scalar, kind)]):
        yield Reference("logaddexp", "log_sum_exp", _log_add, kinds, _two)


# Atoms over axes: where they sum is read off the reduction in the program.


def _reductions(graph: Graph, number: int) -> list[Operation]:
    """Return the sums within `DEPTH` operations before a value."""
    found: dict[int, Operation] = {}
    layer = {number}
    for _ in range(DEPTH):
        makers = {id(graph.makers[value]): graph.makers[value] for value in layer if value in graph.makers}
        found |= {key: maker for key, maker in makers.items() if maker.name == "reduce_sum"}
        layer = {value for maker in makers.values() for value in maker.inputs}
    return list(found.values())


@lru_cache(maxsize=256)
def _log_sum_exp_forms(axes: tuple[int, ...], rank: int) -> tuple[Callable[..., Any], ...]:
    """Return ways of writing log sum exp over axes."""

    def kept(a: Any) -> Any:
        return jax.nn.logsumexp(a, axis=axes, keepdims=True)

    def plain(a: Any) -> Any:
        return jax.nn.logsumexp(a, axis=axes)

    def shifted(a: Any) -> Any:
        top = jnp.max(a, axis=axes, keepdims=True)
        return jnp.squeeze(top, axes) + jnp.log(jnp.sum(jnp.exp(a - top), axis=axes))

    def shifted_kept(a: Any) -> Any:
        top = jnp.max(a, axis=axes, keepdims=True)
        return top + jnp.log(jnp.sum(jnp.exp(a - top), axis=axes, keepdims=True))

    def whole(a: Any) -> Any:
        top = jnp.max(a, axis=axes)
        return top + jnp.log(jnp.sum(jnp.exp(a - jnp.expand_dims(top, axes)), axis=axes))

    def scalar(a: Any) -> Any:
        top = jnp.max(a)
        return top + jnp.log(jnp.sum(jnp.exp(a - top)))

    def scalar_sum_first(a: Any) -> Any:
        top = jnp.max(a)
        return jnp.log(jnp.sum(jnp.exp(a - top))) + top

    def turned(form: Callable[..., Any]) -> Callable[..., Any]:
        """The same with the logarithm first."""

        def sum_first(a: Any) -> Any:
            top = jnp.max(a, axis=axes, keepdims=True)
            log = jnp.log(jnp.sum(jnp.exp(a - top), axis=axes, keepdims=form is shifted_kept))
            return log + (top if form is shifted_kept else jnp.squeeze(top, axes))

        return sum_first

    def sum_first_whole(a: Any) -> Any:
        top = jnp.max(a, axis=axes)
        return jnp.log(jnp.sum(jnp.exp(a - jnp.expand_dims(top, axes)), axis=axes)) + top

    forms = plain, kept, shifted, shifted_kept, whole, turned(shifted), turned(shifted_kept), sum_first_whole
    return forms if len(axes) < rank else (*forms, scalar, scalar_sum_first)


def _log_sum_exps(graph: Graph, number: int) -> Iterable[Reference]:
    for reduction in _reductions(graph, number):
        given, axes = reduction.inputs[0], tuple(reduction.params["axes"])
        kind = graph.shapes[given], graph.dtypes[number]
        kept = tuple(1 if axis in axes else size for axis, size in enumerate(kind[0]))
        shape = graph.shapes[number]
        summed = tuple(size for axis, size in enumerate(kind[0]) if axis not in axes)
        if shape not in (kept, summed):
            continue

        def apply(values: list[Value], axes: Any = axes, shape: Any = shape) -> Value:
            return calculus.log_sum_exp(values[0], axes).reshape(*shape)

        for form in _log_sum_exp_forms(axes, len(kind[0])):
            yield Reference("logsumexp", "log_sum_exp", form, (kind,), apply)


@lru_cache(maxsize=256)
def _log_softmax_form(axes: tuple[int, ...]) -> Callable[..., Any]:
    return lambda a: jax.nn.log_softmax(a, axis=axes)


def _log_softmaxes(graph: Graph, number: int) -> Iterable[Reference]:
    for reduction in _reductions(graph, number):
        axes = tuple(reduction.params["axes"])
        if graph.shapes[reduction.inputs[0]] == graph.shapes[number]:
            kind = graph.shapes[number], graph.dtypes[number]

            def apply(values: list[Value], axes: Any = axes) -> Value:
                return calculus.log_softmax(values[0], axes)

            yield Reference("log_softmax", "log_softmax", _log_softmax_form(axes), (kind,), apply)


def _smooth_maximum(g: Any, temperature: Any) -> Any:
    """T log mean exp(g / T) over the last axis but one; above T = 16 by way of expm1 and log1p."""
    wide = g.astype(jnp.promote_types(g.dtype, jnp.float32))
    T = jnp.asarray(temperature, wide.dtype)
    top = jnp.max(wide, axis=-2, keepdims=True)
    u = (wide - top) / T

    def steep() -> Any:
        return jnp.log(jnp.sum(jnp.exp(u), axis=-2)) - math.log(u.shape[-2])

    def flat() -> Any:
        return jnp.log1p(jnp.mean(jnp.expm1(u), axis=-2))

    if isinstance(temperature, float):
        mean = flat() if temperature > 16.0 else steep()
    else:
        mean = jnp.where(temperature > 16.0, flat(), steep())
    return (top.squeeze(-2) + T * mean).astype(g.dtype)


@lru_cache(maxsize=256)
def _smooth_form(temperature: float) -> Callable[..., Any]:
    """Return our smooth maximum at a temperature that is a literal of the program."""
    return lambda g: _smooth_maximum(g, temperature)


def _smooth_maxima(graph: Graph, number: int) -> Iterable[Reference]:
    """The fusion of a hull: its temperature is a value of the program, or a literal by which it divides."""
    for reduction in _reductions(graph, number):
        shape, axes = graph.shapes[reduction.inputs[0]], tuple(reduction.params["axes"])
        if len(shape) < 2 or axes != (len(shape) - 2,):
            continue
        dtype = graph.dtypes[number]
        [axis] = axes

        def learned(values: list[Value], axis: int = axis) -> Value:
            return calculus.smooth_maximum(values[0], values[1], axis)

        def given(values: list[Value], axis: int = axis, literal: float = 1.0) -> Value:
            return calculus.smooth_maximum(values[0], known(literal), axis)

        name, wide = "smooth_maximum", str(jnp.promote_types(dtype, jnp.float32))
        for kind in itertools.product(((), (shape[-1],)), dict.fromkeys((dtype, wide))):
            yield Reference(name, name, _smooth_maximum, ((shape, dtype), kind), learned)
        for literal in _divisors(graph, reduction):
            apply = partial(given, literal=literal)
            yield Reference(name, name, _smooth_form(literal), ((shape, dtype),), apply)


def _divisors(graph: Graph, reduction: Operation) -> list[float]:
    """Return the literals by which values are divided just before a reduction."""
    found = []
    for value in graph.before(reduction.inputs[0]):
        maker = graph.makers.get(value)
        if maker is not None and maker.name == "div":
            array = graph.array(maker.inputs[1])
            if array is not None and array.shape == () and array.dtype.kind == "f":
                found.append(float(array))
    return list(dict.fromkeys(found))[:4]


# The last primitive of an atom -> what it may be.
CANDIDATES: dict[str, tuple[Callable[[Graph, int], Iterable[Reference]], ...]] = {
    "select_n": (_elementwise,),
    "max": (_elementwise,),
    "add": (_elementwise, _log_sum_exps, _smooth_maxima),
    "sub": (_log_softmaxes,),
    "convert_element_type": (_smooth_maxima,),
}
