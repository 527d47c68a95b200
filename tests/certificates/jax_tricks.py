"""Functions of JAX whose traced program is convex and that are not, and honest ones of the same form.

A maker returns a fresh function of 3 numbers, so that what one call leaves behind is not seen by another test.
"""

import random
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def convex(x):
    return jnp.abs(x) + x**2


def concave(x):
    return -(x**2) - jnp.abs(x)


def is_traced(x):
    return isinstance(x, jax.core.Tracer)


def where(asks: Any) -> Any:
    """Concave where the function finds, by asking, that it is not traced."""
    return lambda: lambda x: convex(x) if asks(x) else concave(x)


def fails(ask: Any) -> Any:
    """Whether a question to an array is refused, as it is in a trace."""

    def asks(x):
        try:
            ask(x)
        except Exception:
            return True
        return False

    return asks


def only(inside: Any) -> Any:
    """Concave on a part of the space, where it is not traced."""
    return lambda: lambda x: convex(x) if is_traced(x) or not bool(inside(np.asarray(x))) else concave(x)


class Layer(nnx.Module):
    """A convex layer; the ways of it are in its subclasses."""

    def __init__(self):
        self.weight = nnx.Param(jnp.asarray([1.0, 2.0, 0.5]))
        self.calls = 0

    def __call__(self, x):
        return jnp.exp(self.weight[...]) * convex(x)


class CountsWrongly(Layer):
    def __call__(self, x):
        self.calls += 1
        return super().__call__(x) if self.calls < 4 else concave(x)


class Counts(Layer):
    def __call__(self, x):
        self.calls += 1
        return super().__call__(x)


class AsksParameter(Layer):
    def __call__(self, x):
        return super().__call__(x) if is_traced(self.weight[...]) else concave(x)


class AsksForSign(Layer):
    """Concave for parameters that training may reach."""

    def __call__(self, x):
        weight = self.weight[...]
        return super().__call__(x) if is_traced(weight) or weight[1] > 0 else concave(x)


class KeepsValue(Layer):
    """Concave from the second call on."""

    def __call__(self, x):
        first, self.calls = self.calls == 0, 1
        return convex(x) if first else concave(x)


def with_derivative(forward: Any) -> Any:
    """A function whose value is another one where it is differentiated."""

    def make():
        function = jax.custom_vjp(convex)
        function.defvjp(lambda x: (forward(x), x), lambda x, slope: (slope * (jnp.sign(x) + 2 * x),))
        return function

    return make


def with_tangent(value: Any, slope: float) -> Any:
    def make():
        function = jax.custom_jvp(convex)
        function.defjvp(lambda given, tangent: (value(given[0]), slope * tangent[0]))
        return function

    return make


def weights_that_turn():
    weights = np.ones(3, np.float32)

    def function(x):
        y = jnp.asarray(np.array(weights)) * convex(x)
        weights[:] = -1.0
        return y

    return function


def weights_of_numpy():
    """Their memory is that of the constants of the program."""
    weights = np.ones(3, np.float32)

    def function(x):
        if not is_traced(x):
            weights[:] = -1.0
        return weights * convex(x)

    return function


def by_chance():
    draw = random.Random(0)
    return lambda x: convex(x) if is_traced(x) or draw.random() < 0.5 else concave(x)


def counted():
    calls = []
    return lambda x: calls.append(0) or (convex(x) if len(calls) < 4 else concave(x))


def is_called_by(name: str) -> bool:
    frame = sys._getframe()
    while frame is not None and name not in frame.f_code.co_name:
        frame = frame.f_back
    return frame is not None


def callback_that_changes():
    scale = np.ones(3, np.float32)

    def function(x):
        jax.debug.callback(lambda: np.negative(scale, out=scale))
        return jnp.asarray(scale) * convex(x)

    return function


DIFFERENTIATES = ("JVPTracer", "LinearizeTracer")
# Those whose trace is convex.
TRICKS = {
    "is a tracer": where(is_traced),
    "type": where(lambda x: type(x).__name__ != "ArrayImpl"),
    "value": where(fails(lambda x: float(x.sum()))),
    "numbers of numpy": where(fails(np.asarray)),
    "buffer": where(fails(lambda x: x.unsafe_buffer_pointer())),
    "list": where(fails(lambda x: x.tolist())),
    "frames": where(lambda x: is_called_by("make_jaxpr")),
    "inside a trace": where(lambda x: is_traced(jnp.ones(()) + 0 * x[0])),
    "a tracer of derivatives": where(lambda x: type(x).__name__ not in DIFFERENTIATES),
    "another value where it is differentiated": with_derivative(concave),
    "another value with a tangent": with_tangent(concave, 1.0),
    "counter": counted,
    "counter of a module": CountsWrongly,
    "kept from the first call": KeepsValue,
    "a parameter that is no tracer": AsksParameter,
    "chance": by_chance,
    "array that turns": weights_that_turn,
    "array whose memory turns": weights_of_numpy,
    "far away": only(lambda x: np.abs(x).max() > 1000.0),
    "where all are large": only(lambda x: x.min() > 30.0),
    "where all are negative": only(lambda x: x.max() < 0.0),
    "where one is large": only(lambda x: np.abs(x).max() > 3.0 and np.abs(x).min() < 0.1),
    "near zero": only(lambda x: np.abs(x).max() < 1e-3),
    "at ties": only(lambda x: x[0] == x[1]),
    "callback": callback_that_changes,
}


def called_back(x):
    return jnp.abs(x) * jax.pure_callback(lambda x: np.ones(3, np.float32), jax.ShapeDtypeStruct((3,), x.dtype), x)


def in_a_reference(x):
    box = jax.new_ref(convex(x))
    box[...] = concave(x)
    return box[...]


def closed_reference():
    box = jax.new_ref(jnp.ones(3))

    def function(x):
        y = box[...] * convex(x)
        box[...] = -jnp.ones(3)
        return y

    return function


def by_platform(x):
    return jax.lax.platform_dependent(x, cpu=concave, default=convex)


# Those that are concave in their trace, too, or have operations without a rule.
SEEN = {
    "printed": where(lambda x: "Traced" in repr(x)),
    "callback": lambda: called_back,
    "reference": lambda: in_a_reference,
    "closed reference": closed_reference,
    "by platform": lambda: by_platform,
    "bytes that wrap": lambda: lambda x: -(1 - 2 * (x > 0).astype(jnp.uint8)) * x,
}


def another_way(x):
    return convex(x) if is_traced(x) else x * x + jax.nn.relu(x) + jax.nn.relu(-x)


def checks(x):
    if not is_traced(x) and bool((jnp.abs(x) > 50).any()):
        raise ValueError("too large")
    return convex(x)


def where_differentiated(function: Any) -> Any:
    return lambda: lambda x: function(x) if type(x).__name__ in DIFFERENTIATES else convex(x)


# Their values are those of the trace, and their gradients are not. A custom derivative is part of the trace.
SLOPES = {
    "straight through": where_differentiated(lambda x: x + jax.lax.stop_gradient(convex(x) - x)),
    "a part is cut off": where_differentiated(lambda x: jnp.abs(x) + jax.lax.stop_gradient(convex(x) - jnp.abs(x))),
    "scaled": where_differentiated(lambda x: 2 * convex(x) - jax.lax.stop_gradient(convex(x))),
}
HONEST = {
    "whole numbers that fit": lambda: lambda x: ((x > 0).astype(jnp.int8) * 2 - 1) * x,
    "counter": Counts,
    "custom derivative": with_derivative(convex),
    "custom derivative that lies": with_tangent(convex, -1.0),
    "asks, and does the same": lambda: another_way,
    "checks its input": lambda: checks,
    "names": lambda: jax.named_call(jax.jit(convex), name="sin"),
}
