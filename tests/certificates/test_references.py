"""A proof for every value of the parameters is of a function that reaches no other array than those it is given."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_tricks as tricks
import reference_tricks_jax
import reference_tricks_torch
import torch
from engines_of_proof import ENGINES
from flax import linen, nnx
from torch import nn

import convexmoe_jax
import convexmoe_torch
from convexmoe_jax import VectorHull
from convexmoe_torch import VectorHull as TorchHull

SIZE = tricks.SIZE
BY_NAME = {engine.name: engine for engine in ENGINES}


def function_of(engine):
    """w relu(x) exp(p), for w an array of numpy or a number."""
    xp = engine.xp
    return lambda w, p, x: (w if isinstance(w, float) else xp.array(w)) * xp.relu(x) * xp.exp(p)


def bend(engine, function):
    """How far a function of x lies below its chord at 0: > 0 where it is convex."""
    one, zero, two = (np.sum(_numpy(function(engine.xp.array(np.full(SIZE, at))))) for at in (-1.0, 0.0, 1.0))
    return (one + two) / 2 - zero


def _numpy(value):
    return value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


CASES = [
    *(pytest.param("jax", make, id=f"jax-{name}") for name, make in reference_tricks_jax.JAX.items()),
    *(pytest.param("torch", make, id=f"torch-{name}") for name, make in reference_tricks_torch.TORCH.items()),
    *(
        pytest.param(engine.name, make, id=f"{engine.name}-{make.__name__}")
        for engine in ENGINES
        for make in tricks.SHARED
    ),
]


@pytest.mark.parametrize(("name", "make"), CASES)
def test_what_is_reached_by_a_reference_is_not_proved_for_every_value(name, make, monkeypatch):
    engine = BY_NAME[name]
    function, train = make(function_of(engine)) if make in tricks.SHARED else make()
    x, p = engine.xp.array(np.full(SIZE, 0.5)), engine.xp.array(np.zeros(SIZE))
    is_module = isinstance(function, (nn.Module, nnx.Module))
    options = {"segments": 0, "params": None if is_module else p}

    found = engine.package.certify(function, x, **options)
    assert (found.verdict, found.strength) == ("proved", "numeric"), str(found)
    assert "every value" not in found.reason and "for the given parameters and the present values of" in found.reason
    strict = engine.package.certify(function, x, strength="structural", **options)
    assert strict.verdict == "unknown" and "by a reference" in strict.reason, str(strict)
    # Control: for every value of what it is given it would be proved, and training makes it concave.
    with monkeypatch.context() as patch:
        patch.setattr("convexmoe.convexity.certify.look_through", lambda roots, fixed: ([], []))
        assert engine.package.certify(function, x, **options).strength == "structural"
    if train is None:
        return
    called = function if is_module else functools.partial(function, p)
    try:
        assert bend(engine, called) > 0.5
        train()
        assert bend(engine, called) < -0.5
    finally:
        train()
    assert bend(engine, called) > 0.5


CONSTANT = np.ones(SIZE, np.float32)
NUMBER = 2.0
TUPLE = (1.0, 2.0)


def honest(engine):
    """Functions of (p, x) that hold nothing that training changes, by name, with what is fixed."""
    xp, hull, package = engine.xp, hull_of(engine), engine.package
    of = function_of(engine)
    return {
        "no array": (lambda p, x: NUMBER * xp.relu(x) * xp.exp(p), None),
        "made inside": (lambda p, x: xp.array([1.0, 2.0]) * xp.relu(x) * xp.exp(p), None),
        "a tuple of numbers": (lambda p, x: xp.array(TUPLE) * xp.relu(x) * xp.exp(p), None),
        "a partial number": (functools.partial(lambda p, x, by: by * xp.relu(x) * xp.exp(p), by=2.0), None),
        "an array that is named": (lambda p, x: of(CONSTANT, p, x), CONSTANT),
        "an object that is named": (tricks.Holder(of), None),
        "the config of a hull": (lambda p, x: package.hull.apply(p, x[None], hull.config), None),
    }


def hull_of(engine):
    return TorchHull(SIZE, petals=3) if engine.name == "torch" else VectorHull(SIZE, petals=3, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_what_holds_nothing_is_proved_for_every_value(engine):
    x, p = engine.xp.array(np.full(SIZE, 0.5)), engine.xp.array(np.zeros(SIZE))
    for name, (function, fixed) in honest(engine).items():
        params = hull_of(engine).params if "hull" in name else p
        fixed = function if "object" in name else fixed
        found = engine.package.certify(function, x, params=params, fixed=fixed, segments=0)
        assert (found.verdict, found.strength) == ("proved", "structural"), f"{name}: {found}"
        assert "for every value of the parameters" in found.reason


def test_modules_that_hold_nothing_are_proved_for_every_value():
    """A bound method of a module's own part reaches the parameters that are replaced; in Flax it reaches others."""
    own = reference_tricks_torch.Tricky(lambda self, x: torch.relu(x) * torch.exp(self.of_part(torch.ones(SIZE))))
    own.part = reference_tricks_torch.Scaled()
    own.of_part = own.part.forward
    counted = reference_tricks_torch.Tricky(lambda self, x: torch.relu(x))
    counted.calls, counted.slope, counted.names = 0, 0.5, ["a"]
    for module in (own, counted, nn.Sequential(nn.Linear(SIZE, 3)), nn.Sequential(TorchHull(SIZE, petals=3))):
        found = convexmoe_torch.certify(module, torch.ones(1, SIZE), segments=0)
        assert (found.verdict, found.strength) == ("proved", "structural"), str(found)
    named = reference_tricks_torch.buffer_of_a_module().function
    found = convexmoe_torch.certify(named, torch.ones(SIZE), segments=0, fixed=named.held)
    assert (found.verdict, found.strength) == ("proved", "structural"), str(found)
    for module in (reference_tricks_jax.Static(jax.nn.relu), nnx.Linear(SIZE, 3, rngs=nnx.Rngs(0))):
        found = convexmoe_jax.certify(module, jnp.ones(SIZE), segments=0)
        assert (found.verdict, found.strength) == ("proved", "structural"), str(found)
    dense = linen.Dense(3)
    found = convexmoe_jax.certify(
        dense.apply, jnp.ones(SIZE), params=dense.init(jax.random.key(0), jnp.ones(SIZE)), segments=0
    )
    assert (found.verdict, found.strength) == ("proved", "structural"), str(found)


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_a_bound_method_of_a_hull_has_no_structure(engine):
    """Its weights are numbers to the trace, whatever is asked for."""
    hull, x = hull_of(engine), engine.xp.array(np.ones((1, SIZE)))
    for function in (hull.__call__, lambda x: hull(x)):
        found = engine.package.certify(function, x, segments=0)
        assert (found.verdict, found.strength) == ("proved", "numeric")
        found = engine.package.certify(function, x, segments=0, strength="structural")
        assert found.verdict == "unknown" and "pass it in params=, or in fixed=" in found.reason
        found = engine.package.certify(function, x, segments=0, strength="structural", fixed=hull)
        assert found.verdict == "proved", found.reason


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_an_object_that_cannot_be_looked_through_counts_as_held(engine):
    class Closed:
        def __getattribute__(self, name):
            raise RuntimeError("closed")

    held = Closed()
    p, x = engine.xp.array(np.zeros(SIZE)), engine.xp.array(np.ones(SIZE))
    found = engine.package.certify(lambda p, x: engine.xp.relu(x) * (held is None or engine.xp.exp(p)), x, params=p)
    assert found.strength == "numeric" and "cannot be looked through (RuntimeError: closed)" in found.reason
