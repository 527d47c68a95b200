"""Functions w relu(x) exp(p) that reach w by a reference: no trace tells, and training may turn its sign.

A trick makes a function of (p, x), or a module with the parameter p, and what turns the sign of its w.
"""

import functools
import sys
import types
import weakref
from collections import deque
from contextvars import ContextVar
from decimal import Decimal
from importlib import import_module
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np

SIZE = 2
W = np.ones(SIZE, np.float32)  # a global
FLOATS = [1.0, 1.0]
CONTEXT = ContextVar("CONTEXT")
SETTINGS = types.ModuleType("settings_of_a_user")
SETTINGS.w = np.ones(SIZE, np.float32)


class Trick(NamedTuple):
    """A function and how what it holds is changed; None where a trace is kept, until the shapes change."""

    function: Any
    train: Any


def turn(w):
    """Turn the sign of numpy's array in place."""
    np.negative(w, out=w)


def ones():
    return np.ones(SIZE, np.float32)


class Holder:
    w = np.ones(SIZE, np.float32)

    def __init__(self, of):
        self.of = of
        self.own = ones()

    def __call__(self, p, x):
        return self.of(self.own, p, x)

    def method(self, p, x):
        return self.of(self.own, p, x)

    @property
    def looked_up(self):
        return W


# Of both frameworks: `of(w, p, x)` is the function, of an array of numpy or of a number.


def closure(of):
    w = ones()
    return Trick(lambda p, x: of(w, p, x), lambda: turn(w))


def rebound_closure(of):
    w = ones()

    def train():
        nonlocal w
        w = -w

    return Trick(lambda p, x: of(w, p, x), train)


def default_argument(of):
    w = ones()
    return Trick(lambda p, x, w=w: of(w, p, x), lambda: turn(w))


def keyword_default(of):
    w = ones()

    def function(p, x, *, w=w):
        return of(w, p, x)

    return Trick(function, lambda: turn(w))


def partial_argument(of):
    w = ones()
    return Trick(functools.partial(of, w), lambda: turn(w))


def partial_keyword(of):
    w = ones()
    return Trick(functools.partial(lambda p, x, w: of(w, p, x), w=w), lambda: turn(w))


def a_global(of):
    return Trick(lambda p, x: of(W, p, x), lambda: turn(W))


def a_list(of):
    held = [ones()]
    return Trick(lambda p, x: of(held[0], p, x), lambda: held.append(-held.pop()))


def a_dict_in_a_tuple(of):
    held = ({"w": ones()},)
    return Trick(lambda p, x: of(held[0]["w"], p, x), lambda: held[0].update(w=-held[0]["w"]))


def a_deque(of):
    held = deque([ones()])
    return Trick(lambda p, x: of(held[0], p, x), lambda: held.append(-held.popleft()))


def an_attribute(of):
    state = types.SimpleNamespace(w=ones())
    return Trick(lambda p, x: of(state.w, p, x), lambda: setattr(state, "w", -state.w))


def an_attribute_by_name(of):
    state = types.SimpleNamespace(w=ones())
    return Trick(lambda p, x: of(getattr(state, "w"), p, x), lambda: setattr(state, "w", -state.w))  # noqa: B009


def an_attribute_of_a_class(of):
    return Trick(lambda p, x: of(Holder.w, p, x), lambda: turn(Holder.w))


def a_property(of):
    holder = Holder(None)
    return Trick(lambda p, x: of(holder.looked_up, p, x), lambda: turn(W))


def a_bound_method(of):
    holder = Holder(of)
    return Trick(holder.method, lambda: turn(holder.own))


def a_callable_object(of):
    holder = Holder(of)
    return Trick(holder, lambda: turn(holder.own))


def a_number_taken_at_each_call(of):
    w = ones()
    return Trick(lambda p, x: of(float(w[0]), p, x), lambda: turn(w))


def an_item_taken_at_each_call(of):
    w = ones()
    return Trick(lambda p, x: of(w.sum().item() / SIZE, p, x), lambda: turn(w))


def numbers_in_a_list(of):
    return Trick(lambda p, x: of(FLOATS[0], p, x), lambda: FLOATS.insert(0, -FLOATS[0]))


def decimals_in_a_list(of):
    held = [Decimal(1)]
    return Trick(lambda p, x: of(float(held[0]), p, x), lambda: held.insert(0, -held[0]))


def complex_numbers_in_a_list(of):
    held = [1.0 + 0.0j]
    return Trick(lambda p, x: of(held[0].real, p, x), lambda: held.insert(0, -held[0]))


def a_file_in_memory(of):
    held = BytesIO(b"+1.0")

    def train():
        turned = b"%+.1f" % -float(held.getvalue())
        held.seek(0)
        held.write(turned)

    return Trick(lambda p, x: of(float(held.getvalue()), p, x), train)


def a_decorated_function(of):
    w = ones()

    @functools.wraps(of)
    def wrapped(*given):
        return of(w, *given)

    return Trick(wrapped, lambda: turn(w))


def a_function_in_a_function(of):
    return Trick(lambda p, x: next((lambda: of(W, p, x))() for _ in range(1)), lambda: turn(W))


def a_weak_reference(of):
    holder = Holder(of)
    weak = weakref.ref(holder)
    return Trick(lambda p, x: weak()(p, x), lambda: turn(holder.own))


def a_context_variable(of):
    CONTEXT.set(ones())
    return Trick(lambda p, x: of(CONTEXT.get(), p, x), lambda: turn(CONTEXT.get()))


def a_module_of_python(of):
    return Trick(lambda p, x: of(SETTINGS.w, p, x), lambda: turn(SETTINGS.w))


def by_globals(of):
    return Trick(lambda p, x: of(globals()["W"], p, x), lambda: turn(W))


def by_eval(of):
    return Trick(lambda p, x: of(eval("W"), p, x), lambda: turn(W))


def a_buffer_of_bytes(of):
    held = bytearray(ones().tobytes())
    values = lambda: np.frombuffer(held, np.float32)  # noqa: E731
    return Trick(lambda p, x: of(values(), p, x), lambda: turn(values()))


def made_inside(of):
    w = ones()

    class Made:
        def __init__(self, own=w):
            self.own = own

    return Trick(lambda p, x: of(Made().own, p, x), lambda: turn(w))


def a_module_named_like_a_library(of):
    scope = {"__name__": "jax.of_a_user", "of": of, "w": ones()}
    exec("def function(p, x): return of(w, p, x)", scope)
    return Trick(scope["function"], lambda: turn(scope["w"]))


def an_import_beside(of):
    package, beside = types.ModuleType("package_of_a_user"), types.ModuleType("package_of_a_user.math")
    beside.w, package.__path__ = ones(), []
    sys.modules |= {package.__name__: package, beside.__name__: beside}
    scope = {"__name__": "package_of_a_user.model", "__package__": "package_of_a_user", "of": of}
    exec("def function(p, x):\n    from .math import w\n    return of(w, p, x)", scope)
    return Trick(scope["function"], lambda: turn(beside.w))


def numbers_in_tuples_of_a_list(of):
    pairs = [(1.0, 1.0)]

    def train():
        pairs[0] = tuple(-number for number in pairs[0])

    return Trick(lambda p, x: of(np.array(pairs[0], np.float32), p, x), train)


def by_a_function_of_importlib(of):
    return Trick(lambda p, x: of(import_module(__name__).W, p, x), lambda: turn(W))


def a_constant_of_the_code(of):
    w = ones()
    code = (lambda p, x: of("w", p, x)).__code__
    code = code.replace(
        co_consts=tuple(w if isinstance(each, str) and each == "w" else each for each in code.co_consts)
    )
    return Trick(types.FunctionType(code, {}, closure=(types.CellType(of),)), lambda: turn(w))


SHARED = [
    made_inside,
    a_module_named_like_a_library,
    an_import_beside,
    numbers_in_tuples_of_a_list,
    by_a_function_of_importlib,
    a_constant_of_the_code,
    closure,
    rebound_closure,
    default_argument,
    keyword_default,
    partial_argument,
    partial_keyword,
    a_global,
    a_list,
    a_dict_in_a_tuple,
    a_deque,
    an_attribute,
    an_attribute_by_name,
    an_attribute_of_a_class,
    a_property,
    a_bound_method,
    a_callable_object,
    a_number_taken_at_each_call,
    an_item_taken_at_each_call,
    numbers_in_a_list,
    decimals_in_a_list,
    complex_numbers_in_a_list,
    a_file_in_memory,
    a_decorated_function,
    a_function_in_a_function,
    a_weak_reference,
    a_context_variable,
    a_module_of_python,
    by_globals,
    by_eval,
    a_buffer_of_bytes,
]
