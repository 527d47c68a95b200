"""What is no number, or none that the dtype holds, is not proved: in weights, normalizations, what is computed."""

import math
from itertools import cycle

import jax.numpy as jnp
import numpy as np
import pytest
from engines_of_proof import ENGINES
from flax import nnx

import convexmoe_jax
import convexmoe_torch
from convexmoe import HullConfig, Normalization
from convexmoe.hull.parameters import flatten, nest

DIM = 2
HULLS = {"plain": {}, "smooth": {"depth": 2, "temperature": "learned", "gate": True}}
ENGINE_IDS = {"argvalues": ENGINES, "ids": lambda engine: engine.name}


def config_of(name="plain", **normalization):
    one, zero = (1.0,) * DIM, (0.0,) * DIM
    units = {"input_mean": zero, "input_scale": one, "output_mean": zero, "output_scale": one}
    return HullConfig(DIM, petals=3, hidden_dim=5, normalization=Normalization(**units | normalization), **HULLS[name])


def weights_of(engine, config):
    """Weights of a hull by name, as arrays of numpy."""
    if engine.name == "jax":
        model = convexmoe_jax.VectorHull.from_config(config, rngs=nnx.Rngs(0))
        return {name: np.array(value) for name, value in flatten(model.params).items()}
    model = convexmoe_torch.VectorHull.from_config(config)
    return {name: value.detach().numpy().copy() for name, value in flatten(model.params).items()}


def hull_of(engine, config, weights):
    """A hull with these weights."""
    return engine.package.VectorHull.from_params(config, nest({k: engine.xp.array(v) for k, v in weights.items()}))


def spoil(weights, name, bad):
    """The weights with one number in one of them replaced."""
    weights = {key: value.copy() for key, value in weights.items()}
    weights[name].reshape(-1)[-1] = bad
    return weights


def old_reading(monkeypatch):
    """Certify as if every number were one."""
    monkeypatch.setattr("convexmoe.convexity.certify._check_numbers", lambda *given: None)
    monkeypatch.setattr("convexmoe.convexity.certify.find_difference", lambda *given: "")


@pytest.mark.parametrize("share", [3, pytest.param(1, marks=pytest.mark.release)])
@pytest.mark.parametrize("engine", **ENGINE_IDS)
def test_a_weight_that_is_no_number_is_refused(engine, share, monkeypatch):
    """One weight after the other, of a hull that is otherwise proved."""
    config = config_of("smooth")
    weights = weights_of(engine, config)
    x = engine.xp.array(np.ones((1, DIM)))
    bad, strengths = (cycle(group) for group in ((math.nan, math.inf, -math.inf), (None, "structural", "numeric")))
    for name in list(weights)[::share]:
        hull = hull_of(engine, config, spoil(weights, name, next(bad)))
        found = engine.package.certify(hull, x, strength=next(strengths), segments=0)
        assert found.verdict == "unknown"
        assert found.reason == f"the parameter {name} holds NaN or infinity: convexity is of real numbers"
    old_reading(monkeypatch)
    assert engine.package.certify(hull, x, segments=0).verdict == "proved"


@pytest.mark.parametrize("bad", [math.nan, pytest.param(-math.inf, marks=pytest.mark.release)], ids=str)
@pytest.mark.parametrize("engine", **ENGINE_IDS)
def test_functions_and_experts_with_weights_that_are_no_numbers_are_refused(engine, bad):
    package, xp = engine.package, engine.xp
    x, rngs = xp.array(np.ones((1, DIM))), {"rngs": nnx.Rngs(0)} if engine.name == "jax" else {}
    config = config_of()
    spoiled = spoil(weights_of(engine, config), "shifts", bad)
    hull = hull_of(engine, config, spoiled)
    params = {"w": xp.array([1.0, bad])}
    functions = {
        "an expert": (package.HullExpert(hull), None),
        "a folded hull": (hull.fold(), None),
        "a closure": (lambda x: hull(x), None),
        "the function form": (lambda p, x: package.hull.apply(p, x, config), hull.params),
        "a bound method": (hull.__call__, None),
        "a product": (lambda p, x: xp.exp(p["w"]) * xp.relu(x), params),
        "a weight that is not used": (lambda p, x: xp.relu(x), params),
        "a number in a closure": (lambda x: bad * xp.relu(x), None),
        "a weight in a closure": (lambda x: params["w"] * xp.relu(x), None),
        "an array that is made inside": (lambda x: xp.relu(x) + xp.array([bad, 1.0]), None),
    }
    linear = package.LinearExpert(DIM, **rngs)
    functions["a linear expert"] = (linear, None)
    if engine.name == "jax":
        linear.bias[...] = jnp.asarray([1.0, bad])
    else:
        linear.bias.data = xp.array([1.0, bad])
    for name, (function, given) in functions.items():
        row = x[0] if engine.name == "jax" and "expert" in name else x
        found = package.certify(function, row, params=given, segments=0)
        assert found.verdict == "unknown", f"{name}: {found}"


SCALES, MEANS = (1e-60, 1e60, 1e-40, 4e38), (1e60, -1e39)  # that float32 does not hold
FIELDS = {"input_scale": SCALES, "output_scale": SCALES, "input_mean": MEANS, "output_mean": MEANS}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("engine", **ENGINE_IDS)
def test_a_normalization_that_the_dtype_does_not_hold_is_refused(engine, field, monkeypatch):
    x, weights = engine.xp.array(np.ones((1, DIM))), weights_of(engine, config_of())

    def certify(number, form):
        config = config_of(**{field: (1.0, number)})
        hull = hull_of(engine, config, weights)
        function, params = {
            "module": (hull, None),
            "closure": (lambda x: hull(x), None),
            "function form": (lambda p, x: engine.package.hull.apply(p, x, config), hull.params),
        }[form]
        return engine.package.certify(function, x, params=params, segments=0)

    forms = cycle(("module", "closure", "function form"))
    for number in FIELDS[field]:
        found = certify(number, next(forms))
        reason = f"the normalization's {field} has {number:g}, which float32 does not hold"
        assert (found.verdict, found.reason) == ("unknown", reason)
    assert certify(1e3, next(forms)).verdict == "proved"
    old_reading(monkeypatch)  # control: as the number that float32 makes of it, some were proved
    assert not field.endswith("scale") or certify(1e-40, "module").verdict == "proved"


def overflowing(engine):
    """Functions of (p, x) that exact arithmetic proves, and whose values overflow in float32 on the way, by name."""
    xp = engine.xp
    large = xp.array([3e30, 1.0])
    return {
        "a product": lambda p, x: xp.exp(p) * (xp.relu(x * large) * large),
        "a square": lambda p, x: xp.exp(p) * (x * large) * (x * large),
        "a difference of overflows": lambda p, x: (xp.relu(x) * large + 1.0) * 1e10 - xp.array([1e30, 1.0]) * 1e30,
        "an exponential": lambda p, x: xp.exp(x + 200.0) + xp.exp(p),
        "a softplus without a shift": lambda p, x: xp.log(1.0 + xp.exp(x + 200.0)) + xp.exp(p),
        "a norm without a scale": lambda p, x: xp.sqrt(xp.sum((x * large) ** 2)) + xp.exp(p),
        "a quotient by an underflow": lambda p, x: xp.relu(x) / xp.array([1e-39, 1.0]) + xp.exp(p),
        "a parameter": lambda p, x: xp.exp(p + 100.0) * xp.relu(x),
    }


@pytest.mark.parametrize("engine", **ENGINE_IDS)
def test_what_overflows_in_its_dtype_is_refused(engine, monkeypatch):
    x, p = engine.xp.array(np.full(DIM, 0.7)), engine.xp.array(np.zeros(DIM))
    proved = 0
    for name, function in overflowing(engine).items():
        found = engine.package.certify(function, x, params=p, segments=0, fixed=function)
        assert found.verdict == "unknown", f"{name}: {found}"
        with monkeypatch.context() as patch:  # control: without a look at their values most were proved
            old_reading(patch)
            proved += engine.package.certify(function, x, params=p, segments=0, fixed=function).verdict == "proved"
    assert proved >= 5


@pytest.mark.parametrize("engine", **ENGINE_IDS)
def test_a_hull_whose_weights_overflow_is_refused(engine, monkeypatch):
    """In JAX hulls are not evaluated, but for these."""
    config, x = config_of(), engine.xp.array(np.ones((1, DIM)))
    weights = weights_of(engine, config)
    large = {name: value * (1e20 if name.endswith("weight") else 1.0) + 1e20 for name, value in weights.items()}
    found = engine.package.certify(hull_of(engine, config, large), x, segments=0)
    assert found.verdict == "unknown" and "convexity is of real numbers" in found.reason
    far = config_of(input_scale=(1e-37, 1.0))
    assert engine.package.certify(hull_of(engine, far, weights), 100.0 * x, segments=0).verdict == "unknown"
    old_reading(monkeypatch)
    assert engine.package.certify(hull_of(engine, config, large), x, segments=0).verdict == "proved"
