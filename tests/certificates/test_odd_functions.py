"""What a certificate says of functions and inputs that are not as it likes them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import Primitive

from convexmoe_jax import certify

X = jnp.asarray([0.5, -1.0, 2.0])


def verdict(function, x=X, **options):
    return certify(function, x, segments=0, **options).verdict


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_constants_that_are_not_numbers(bad):
    found = certify(lambda x: x + jnp.asarray([0.0, bad, 0.0]), X, segments=0)
    assert found.verdict == "unknown" and "finite" in str(found)
    assert verdict(lambda p, x: x * p, params=jnp.full(3, bad), strength="numeric") == "unknown"
    assert verdict(lambda x: 0.0 * (x + bad)) == "unknown"


def test_minus_infinity_is_a_mask_for_a_maximum():
    mask = jnp.asarray([True, False, True])
    assert verdict(lambda x: jnp.max(jnp.where(mask, x, -jnp.inf))) == "proved"
    assert verdict(lambda x: jnp.max(x, initial=-jnp.inf, where=mask)) == "proved"
    assert verdict(lambda x: jax.nn.logsumexp(jnp.where(mask, x, -jnp.inf))) == "proved"
    assert verdict(lambda x: jax.nn.logsumexp(jnp.where(mask, -jnp.abs(x), -jnp.inf))) == "unknown"
    assert verdict(lambda x: jax.nn.logsumexp(jnp.where(mask, -jnp.inf, -jnp.inf)) + x) == "unknown"
    assert verdict(lambda x: jax.nn.logsumexp(jnp.where(mask, x, jnp.inf))) == "unknown"
    assert verdict(lambda x: jnp.logaddexp(x, -jnp.inf)) == "proved"
    assert verdict(lambda x: jnp.min(jnp.where(mask, x, -jnp.inf))) == "unknown"
    assert verdict(lambda x: jnp.max(jnp.where(mask, x, jnp.inf))) == "unknown"
    assert verdict(lambda x: jnp.sum(jnp.where(mask, x, -jnp.inf))) == "unknown"


def test_functions_that_are_not_defined_everywhere():
    for function in (
        lambda x: -jnp.log(x),
        lambda x: 0.0 * jnp.log(x) + jnp.abs(x),
        lambda x: jnp.maximum(-jnp.log(x), 0.0),
        lambda x: jnp.where(jnp.maximum(jnp.log(x), 0.0) >= 0, x, -x * x),
        lambda x: jnp.sum(x) / jnp.zeros(()),
        lambda x: (x / 0.0) * 0.0,
        lambda x: jnp.sqrt(x) * 0.0,
        lambda x: x**-2.0,
        lambda x: jnp.abs(x) ** -1.0,
    ):
        assert verdict(function) == "unknown"


def test_casts():
    assert verdict(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32)) == "proved"
    assert verdict(lambda x: x.astype(jnp.int32).astype(jnp.float32)) == "unknown"
    assert verdict(lambda x: (x > 0).astype(jnp.float32)) == "unknown"
    assert verdict(lambda x: jnp.round(x)) == "unknown"
    assert verdict(lambda x: lax.reduce_precision(x, 5, 2)) == "unknown"
    # in int32 the sum is negative
    sums = lambda p, x: jnp.abs(x) * (p + p)  # noqa: E731
    assert verdict(sums, params=jnp.int32(2**30), strength="numeric") == "unknown"
    assert verdict(sums, params=jnp.int32(2**29), strength="numeric") == "proved"


@pytest.mark.parametrize(
    "x",
    [jnp.ones(()), jnp.ones((0,)), jnp.ones((2, 0, 3)), jnp.ones((1, 1, 1)), 2.0, np.ones(2), jnp.ones(2, jnp.float16)],
    ids=str,
)
def test_shapes(x):
    assert certify(lambda x: jnp.abs(x) + 1.0, x).verdict == "proved"
    assert certify(lambda x: jnp.max(jnp.abs(x), initial=0.0), x).verdict == "proved"
    assert certify(lambda x: jnp.sum(x**2, axis=None), x).verdict == "proved"


@pytest.mark.parametrize("x", [jnp.arange(3), jnp.asarray([True, False]), 3])
def test_inputs_that_are_not_real(x):
    found = certify(lambda x: x * 1.0, x)
    assert found.verdict == "unknown" and "real inputs" in found.reason and found.steps == ()


def test_integer_and_boolean_values_inside():
    assert verdict(lambda x: x * jnp.arange(3)) == "proved"
    assert verdict(lambda x: jnp.abs(x) * (jnp.arange(3) % 2)) == "proved"
    assert verdict(lambda x: jnp.abs(x) * (jnp.arange(3) // 2 - 1)) == "unknown"
    assert verdict(lambda x: jnp.where(~jnp.asarray([True, False, True]), jnp.abs(x), x)) == "proved"
    assert verdict(lambda x: jnp.sum(x > 0).astype(jnp.float32)) == "unknown"


def counted_truths(x):
    """Three times true is true, and not 3."""
    truths = jnp.asarray([True, True, True])
    return jnp.abs(x) * (lax.dot(truths, truths).astype(jnp.float32) - 1.5)


def test_a_product_of_truth_values_is_a_truth_value(monkeypatch):
    assert certify(counted_truths, X).verdict == "refuted"
    # Control: bounds that are left as they are prove what is false.
    monkeypatch.setattr("convexmoe.convexity.walk.in_range", lambda value, dtype: value)
    monkeypatch.setattr("convexmoe.convexity.certify.find_difference", lambda *given: "")  # which sees it, too
    assert verdict(counted_truths) == "proved"


def foreign(name):
    """A primitive of a user, - x^2, that has the name of another one."""
    primitive = Primitive(name)
    primitive.def_impl(lambda x: -(x**2))
    primitive.def_abstract_eval(lambda x: x)
    return primitive


@pytest.mark.parametrize("name", ["exp", "square", "copy", "stop_gradient", "optimization_barrier"])
def test_a_primitive_is_not_known_by_its_name(name, monkeypatch):
    found = certify(foreign(name).bind, X, segments=0)
    assert found.verdict == "unknown" and "not JAX's own" in found.reason
    # Control: by its name it would be another function.
    monkeypatch.setattr("convexmoe_jax.convexity.trace.name_of", lambda primitive: primitive.name)
    monkeypatch.setattr("convexmoe.convexity.certify.find_difference", lambda *given: "")  # which sees it, too
    assert verdict(foreign(name).bind) == "proved"


def test_a_primitive_with_another_kernel_proves_nothing(monkeypatch):
    monkeypatch.setattr(lax.exp_p, "impl", lambda x, **params: -x * x)
    found = certify(lax.exp, X, segments=0)
    assert found.verdict == "unknown" and "by the rules it is" in found.reason
    monkeypatch.setattr("convexmoe.convexity.agreement.LARGEST_WALK", -1)  # control: the rules are not asked
    assert verdict(lax.exp) == "proved"


def test_parameters_of_a_shape_alone_are_compared_at_some_values(monkeypatch):
    params = jax.ShapeDtypeStruct((3,), jnp.float32)
    honest = lambda p, x: jnp.exp(p) * jnp.abs(x)  # noqa: E731
    lying = lambda p, x: honest(p, x) * (1 if isinstance(x, jax.core.Tracer) else -1)  # noqa: E731
    assert (verdict(honest, params=params), verdict(lying, params=params)) == ("proved", "unknown")
    monkeypatch.setattr("convexmoe.convexity.certify.find_difference", lambda *given: "")  # control
    assert verdict(lying, params=params) == "proved"


def test_calls_of_jax_are_its_own():
    """Their primitives are not public: they are found in a trace."""
    for call in (jax.checkpoint, lambda f: lax.composite(f, name="user.square"), jax.jit):
        assert verdict(call(lambda x: x**2)) == "proved" and verdict(call(lambda x: -(x**2))) == "unknown"


def test_a_function_that_decides_in_python():
    found = certify(lambda x: x if x[0] > 0 else -x, X)
    assert found.verdict == "unknown" and "in Python" in found.reason
    for function in (lambda x: x[x > 0], lambda x: x * range(3)[x[0].astype(int)]):
        assert "in Python" in certify(function, X).reason
    assert "out of JAX" in certify(np.sin, X).reason


def test_an_unknown_primitive_proves_nothing():
    for function in (lax.erf_inv, jnp.fft.rfft, lambda x: lax.igamma(jnp.ones(3), x), jnp.linalg.inv):
        x = jnp.eye(3) if function is jnp.linalg.inv else X
        found = certify(lambda x, f=function: jnp.real(f(x)), x, segments=0)
        assert found.verdict == "unknown" and found.failed is not None


def test_a_rule_that_fails_proves_nothing(monkeypatch):
    from convexmoe.convexity.walk import Rule
    from convexmoe_jax.convexity.rules import RULES

    def failing(*given):
        raise RuntimeError("a fault")

    with monkeypatch.context() as patch:
        patch.setitem(RULES, "abs", Rule("scalar", failing))
        found = certify(jnp.abs, X, segments=0)
        assert found.verdict == "unknown" and "a fault" in found.reason
    with monkeypatch.context() as patch:
        patch.setattr("convexmoe.convexity.atoms.match", failing)
        found = certify(jax.nn.softplus, X, segments=0)
        assert found.verdict == "unknown" and "a fault" in str(found)


def test_a_function_that_cannot_be_batched():
    def called(x):
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    found = certify(called, X)
    assert found.verdict == "unknown" and "the search for a counterexample failed" in found.reason
    assert "no counterexample was looked for" in certify(jnp.sin, X, segments=0).reason


@pytest.mark.parametrize("nothing", [None, (), {}])
def test_a_function_without_outputs(nothing):
    found = certify(lambda x: nothing, X)
    assert (found.verdict, found.reason) == ("unknown", "the function returns no array")


def test_outputs_that_are_not_real():
    found = certify(lambda x: x.astype(jnp.complex64), X)
    reason = "the function returns complex64[3]: convexity is of real outputs"
    assert (found.verdict, found.reason) == ("unknown", reason)


def test_rounding_inside_refutes_nothing(monkeypatch):
    """A search in float64 sees the rounding of a cast that the function makes itself."""
    half = lambda function: lambda x: function(x.astype(jnp.bfloat16)).astype(jnp.float32)  # noqa: E731
    product = half(lambda u: jax.nn.relu(u) * (jnp.exp(u) + jax.nn.relu(u)))  # convex, by no rule
    assert certify(product, X).verdict == "unknown"
    found = certify(half(lambda u: -u * u), X)
    assert found.verdict == "refuted" and found.violation.dtype == "bfloat16"
    # Control: held to float64, the convex function is refuted.
    monkeypatch.setattr("convexmoe.convexity.certify.coarsest_dtype", lambda walk, dtype: "")
    assert certify(product, X).verdict == "refuted"


def test_an_example_around_which_nothing_can_be_looked_for():
    found = certify(lambda x: -(x**2), jnp.asarray([jnp.nan, 1.0]))
    assert found.verdict == "unknown"
    assert found.reason.endswith("around an example that is empty or not finite")


def test_parameters_that_are_no_numbers():
    """A key of random numbers, and an integer that float64 does not hold."""
    params = {"key": jax.random.key(0), "w": jnp.ones(3)}
    noisy = lambda p, x: jnp.abs(x) * p["w"] + jax.random.normal(p["key"], (3,))  # noqa: E731
    assert verdict(noisy, params=params) == "unknown"
    assert verdict(lambda p, x: jnp.abs(x) * jnp.exp(p["w"]), params=params) == "proved"
    with jax.enable_x64(True):
        big = jnp.asarray(2**53 + 1, jnp.int64)
        x = jnp.ones(3)
        difference = lambda x: jnp.abs(x) * (big - 2**53 - 1).astype(jnp.float32)  # noqa: E731
        assert verdict(difference, x) == "unknown"  # 0, but not for float64


def test_messages():
    for argnum in (1, -1, True, (), (0, 0), 0.0):
        with pytest.raises(ValueError, match=r"certify\.argnum: expected indices of 1 arguments, each once"):
            certify(jnp.abs, X, argnum=argnum)
    with pytest.raises(ValueError, match=r"certify\.strength: expected one of \['structural', 'numeric'\]"):
        certify(jnp.abs, X, strength="strong")
    for option in ({"segments": -1}, {"segments": 1.5}, {"seed": -1}):
        with pytest.raises((TypeError, ValueError), match=r"certify\.(segments|seed): expected a whole number >= 0"):
            certify(jnp.abs, X, **option)
    for example in (None, {"x": X}, [[1.0], [1.0, 2.0]]):
        with pytest.raises(TypeError, match=r"certify\.x_example: expected an array, or a tuple of arrays; got"):
            certify(jnp.abs, example)
