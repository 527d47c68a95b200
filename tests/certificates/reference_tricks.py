"""Functions w relu(x) exp(p) that reach w by a reference: no trace tells, and training may turn its sign.

A trick makes a function of (p, x), or a module with the parameter p, and what turns the sign of its w.
"""

import functools
import sys
import types
import weakref
from collections import deque
from contextvars import ContextVar
from importlib import import_module
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen, nnx
from torch import nn

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
    a_decorated_function,
    a_function_in_a_function,
    a_weak_reference,
    a_context_variable,
    a_module_of_python,
    by_globals,
    by_eval,
    a_buffer_of_bytes,
]


# PyTorch: modules whose parameter is named "p", and functions.


class Scaled(nn.Module):
    """w relu(x), with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(SIZE))

    def forward(self, x):
        return self.w * torch.relu(x)

    def train_away(self):
        with torch.no_grad():
            self.w.neg_()


OTHER = Scaled()


class Tricky(nn.Module):
    """exp(p) inner(self, x)."""

    def __init__(self, inner):
        super().__init__()
        self.p = nn.Parameter(torch.zeros(SIZE))
        self.inner = inner

    def forward(self, x):
        return torch.exp(self.p) * self.inner(self, x)


def held_by_a_module(hold, inner=lambda self, x: self.held * torch.relu(x), of=Scaled, made=Tricky):
    """A trick whose module keeps something of another module, whose parameter is trained."""

    def make():
        module, other = made(inner), of()
        hold(module, other)
        return Trick(module, other.train_away)

    return make


class Hidden(Tricky):
    """Keeps one of its parameters out of `named_parameters`."""

    def named_parameters(self, *given, **options):
        return (pair for pair in super().named_parameters(*given, **options) if pair[0] == "p")


def torch_function(take):
    def make():
        other = Scaled()
        held = take(other)
        return Trick(lambda p, x: held * torch.relu(x) * torch.exp(p), other.train_away)

    return make


def hooked():
    module = Tricky(lambda self, x: torch.relu(x))
    module.register_forward_hook(lambda module, given, y: y * OTHER.w)
    return Trick(module, OTHER.train_away)


def buffer_of_a_module():
    module = Tricky(lambda self, x: self.held * torch.relu(x))
    module.register_buffer("held", torch.ones(SIZE))
    return Trick(module, lambda: module.held.neg_())


def statistics_of_a_normalization():
    module = Tricky(lambda self, x: (self.norm.running_mean + 1.0) * torch.relu(x))
    module.norm = nn.BatchNorm1d(SIZE)
    return Trick(module.eval(), lambda: module.norm.running_mean.neg_().sub_(2.0))


def the_leaf_of_params_itself():
    p = torch.zeros(SIZE)
    return Trick(lambda q, x: (p + 1.0) * torch.relu(x) * torch.exp(q), lambda: p.neg_().sub_(2.0))


def traced_by_jit():
    other = Scaled()
    traced = torch.jit.trace(other, torch.ones(SIZE))
    return Trick(lambda p, x: traced(x) * torch.exp(p), None)


TORCH = {
    "a traced module": traced_by_jit,
    "a parameter in a list": held_by_a_module(
        lambda module, other: setattr(module, "held", [other.w]), lambda self, x: self.held[0] * torch.relu(x)
    ),
    "a parameter in a dict": held_by_a_module(
        lambda module, other: setattr(module, "held", {"w": other.w}), lambda self, x: self.held["w"] * torch.relu(x)
    ),
    "a list of modules": held_by_a_module(
        lambda module, other: setattr(module, "held", [other]), lambda self, x: self.held[0](x)
    ),
    "a bound method": held_by_a_module(
        lambda module, other: setattr(module, "held", other.forward), lambda self, x: self.held(x)
    ),
    "a lambda": held_by_a_module(
        lambda module, other: setattr(module, "held", lambda x: other(x)), lambda self, x: self.held(x)
    ),
    "past the registration": held_by_a_module(
        lambda module, other: object.__setattr__(module, "held", other), lambda self, x: self.held(x)
    ),
    "detached": held_by_a_module(lambda module, other: setattr(module, "held", other.w.detach())),
    "data": held_by_a_module(lambda module, other: setattr(module, "held", other.w.data)),
    "a view": held_by_a_module(lambda module, other: setattr(module, "held", other.w.detach()[:])),
    "numpy's view": held_by_a_module(
        lambda module, other: setattr(module, "held", other.w.detach().numpy()),
        lambda self, x: torch.as_tensor(self.held) * torch.relu(x),
    ),
    "a number at each call": held_by_a_module(
        lambda module, other: setattr(module, "held", other.w.detach().numpy()),
        lambda self, x: float(self.held[0]) * torch.relu(x),
    ),
    "a hidden parameter": held_by_a_module(lambda module, other: setattr(module, "held", other.w), made=Hidden),
    "a closure over a parameter": torch_function(lambda other: other.w),
    "a closure over its data": torch_function(lambda other: other.w.data),
    "a global module": lambda: Trick(lambda p, x: OTHER(x) * torch.exp(p), OTHER.train_away),
    "torch.vmap": lambda: Trick(torch.vmap(lambda p, x: OTHER.w[0] * torch.relu(x) * torch.exp(p)), OTHER.train_away),
    "a hook": hooked,
    "a buffer": buffer_of_a_module,
    "running statistics": statistics_of_a_normalization,
    "the leaf of params": the_leaf_of_params_itself,
}


# JAX: modules of Flax whose parameter is named "p", and functions.


class Scaling(nnx.Module):
    """w relu(x), with a parameter of its own."""

    def __init__(self):
        self.w = nnx.Param(jnp.ones(SIZE))

    def __call__(self, x):
        return self.w[...] * jax.nn.relu(x)

    def train_away(self):
        self.w[...] = -self.w[...]


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        return self.param("w", linen.initializers.ones, (SIZE,)) * jax.nn.relu(x)


ANOTHER = Scaling()


class Static(nnx.Module):
    """exp(p) held(x), where what is held is static to Flax."""

    def __init__(self, held):
        self.p, self.held = nnx.Param(jnp.zeros(SIZE)), held

    def __call__(self, x):
        return jnp.exp(self.p[...]) * self.held(x)


def held_statically(hold, is_cached=False):
    def make():
        other = Scaling()
        return Trick(Static(hold(other)), None if is_cached else other.train_away)

    return make


def jax_function(take, is_cached=False):
    """A trick of a function of x that a module gives."""

    def make():
        other = Scaling()
        inner = take(other)
        return Trick(lambda p, x: inner(x) * jnp.exp(p), None if is_cached else other.train_away)

    return make


def bound_module_of_linen():
    bound = Linen().bind({"params": {"w": ones()}})
    return Trick(lambda p, x: bound(x) * jnp.exp(p), lambda: turn(bound.variables["params"]["w"]))


def an_array_of_params_itself():
    params = {"p": jnp.zeros(SIZE), "w": jnp.ones(SIZE)}
    return Trick(lambda p, x: params["w"] * jax.nn.relu(x) * jnp.exp(p), lambda: params.update(w=-params["w"]))


JAX = {
    "a static lambda": held_statically(lambda other: lambda x: other(x)),
    "a static bound method": held_statically(lambda other: other.__call__),
    "a static partial": held_statically(lambda other: functools.partial(Scaling.__call__, other)),
    "a static object": held_statically(lambda other: types.SimpleNamespace(other=other).other.__call__),
    "a static jit": held_statically(lambda other: jax.jit(lambda x: other(x)), is_cached=True),
    "a global module": lambda: Trick(Static(lambda x: ANOTHER(x)), ANOTHER.train_away),
    "a module in a closure": jax_function(lambda other: other),
    "a bound method": jax_function(lambda other: other.__call__),
    "a variable": jax_function(lambda other: lambda x, w=other.w: w[...] * jax.nn.relu(x)),
    "jit of nnx": jax_function(lambda other: nnx.jit(lambda x: other(x)), is_cached=True),
    "a number at each call": jax_function(
        lambda other: lambda x: float(np.asarray(other.w.get_value())[0]) * jax.nn.relu(x)
    ),
    "vmap": jax_function(lambda other: jax.vmap(lambda x: other.w[0] * jax.nn.relu(x))),
    "a bound module of Linen": bound_module_of_linen,
    "an array of params": an_array_of_params_itself,
}
