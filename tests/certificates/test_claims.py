"""What a certificate says beside its verdict, and what it says of functions that are not as it likes them."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import Primitive

from convexmoe_jax import Certificate, certify
from convexmoe_jax.convexity import control_rules
from convexmoe_jax.convexity.proof import Walk
from convexmoe_jax.convexity.verdict import EXACT

X = jnp.asarray([0.5, -1.0, 2.0])


def verdict(function, x=X, **options):
    return certify(function, x, segments=0, **options).verdict


# Parameters, arguments, strengths.


def relu_layer(params, x):
    return jnp.exp(params["w"]) @ jax.nn.relu(params["a"] @ x + params["b"])


PARAMS = {"w": jnp.ones((2, 4)), "a": jnp.ones((4, 3)), "b": jnp.ones(4)}


def test_a_positivity_map_is_structure_and_positive_numbers_are_not():
    found = certify(relu_layer, X, params=PARAMS)
    assert (found.verdict, found.strength) == ("proved", "structural")
    assert "every value of the parameters" in found.reason

    def bare(params, x):
        return params["w"] @ jax.nn.relu(params["a"] @ x)

    found = certify(bare, X, params=PARAMS)
    assert (found.verdict, found.strength) == ("proved", "numeric") and "given parameters" in found.reason
    assert verdict(bare, params=PARAMS, strength="structural") == "unknown"
    found = certify(bare, X, params=PARAMS | {"w": -PARAMS["w"]})
    assert (found.verdict, found.strength) == ("refuted", "numeric")


def test_partial_and_joint_convexity():
    def bilinear(x, y):
        return jnp.dot(x, y) + jnp.sum(y**2)

    pair = (X, X)
    assert [verdict(bilinear, pair, argnum=k) for k in (0, 1)] == ["proved", "proved"]
    assert certify(bilinear, pair, argnum=0).outputs[0].weakest == "affine"
    assert certify(bilinear, pair, argnum=(0, 1)).verdict == "refuted"
    assert verdict(lambda x, y: jnp.sum((x - y) ** 2), pair, argnum=(0, 1)) == "proved"
    found = certify(
        lambda x, y: y * jax.nn.relu(x), pair, argnum=0
    )  # refuted where y < 0, as it is in the example
    assert found.verdict == "refuted"
    assert verdict(lambda x, y: jnp.exp(y) * jax.nn.relu(x), pair) == "proved"


def test_monotonicity_in_each_input():
    found = certify(lambda x: jnp.stack([jnp.exp(x[0]) - x[1], x[1] * x[1] + 0.0 * x[2]]), X, per_input=True)
    [output] = found.outputs
    assert output.per_input.tolist() == [
        ["nondecreasing", "nonincreasing", "constant"],
        ["constant", "unknown", "constant"],
    ]
    assert output.monotonicity.tolist() == ["unknown", "unknown"]
    assert output.curvature.tolist() == ["convex", "convex"] and output.weakest == "convex"


def test_signs_and_bounds():
    found = certify(lambda x: (jnp.exp(x), -jnp.abs(x), jnp.tanh(x) * 0.5 + 2.0, x), X, segments=0)
    assert [set(output.sign.tolist()) for output in found.outputs] == [
        {"positive"},
        {"nonpositive"},
        {"positive"},
        {"unknown"},
    ]
    assert found.outputs[2].lower[0] == pytest.approx(1.5) and found.outputs[2].lower[0] <= 1.5
    assert found.outputs[2].upper[0] == pytest.approx(2.5) and found.outputs[2].upper[0] >= 2.5
    assert [output.name for output in found.outputs] == ["0", "1", "2", "3"]


def test_one_output_that_is_not_convex_decides():
    found = certify(lambda x: jnp.stack([x[0], -(x[1] ** 2), jnp.exp(x[2])]), X)
    assert found.verdict == "refuted" and found.violation.output == 1
    assert found.outputs[0].curvature.tolist() == ["affine", "concave", "convex"]


# The record.


def test_text_and_json_of_a_proof():
    found = certify(relu_layer, X, params=PARAMS)
    text = str(found)
    assert text.startswith("proved: ") and EXACT in text
    for part in ("dot_general [2]", "max [4]", "parameter [4]  [b]", "test_claims.py:", "> 0"):
        assert part in text
    record = json.loads(found.to_json())
    assert record["verdict"] == "proved" and record["arithmetic"] == EXACT and record["failed"] is None
    assert {step["operation"] for step in record["steps"]} >= {
        "input",
        "parameter",
        "dot_general",
        "max",
        "exp",
    }
    assert record["outputs"][0]["upper"] == [None, None] and record["outputs"][0]["lower"] == [0.0, 0.0]


def test_text_and_json_of_a_refutation():
    found = certify(lambda x: jnp.sum(jnp.sin(x)), X)
    assert isinstance(found, Certificate) and found.failed.operation == "sin"
    assert "test_claims.py" in found.failed.source
    assert "above the chord" in str(found) and str(found).startswith("refuted: ")
    record = json.loads(found.to_json())
    assert record["violation"]["gap"] == pytest.approx(found.violation.gap)
    assert len(record["violation"]["left"]) == 3 and record["failed"]["operation"] == "sin"


def test_the_step_that_stops_the_proof_is_the_first():
    def function(x):
        inner = jnp.tanh(x)
        return jnp.sum(jnp.exp(inner) * 2.0 + x)

    found = certify(function, X, segments=0)
    assert found.failed.operation == "tanh" and found.failed.curvature == "unknown"
    found = certify(lambda x: -jnp.exp(x), X, segments=0)
    assert found.failed.operation == "neg" and found.failed.curvature == "concave"


def test_a_large_proof_is_cut_in_print_and_whole_in_json():
    def function(x):
        for k in range(500):
            x = jax.nn.relu(x) + jnp.float32(k)
        return x

    found = certify(function, X)
    assert found.verdict == "proved" and "to_json()" in str(found)
    assert len(json.loads(found.to_json())["steps"]) > 1000


# Programs.


def test_calls_are_written_out():
    @jax.custom_vjp
    def absolute(x):
        return jnp.abs(x)

    absolute.defvjp(lambda x: (absolute(x), None), lambda residual, g: (g,))

    @jax.custom_jvp
    def sine(x):
        return jnp.sin(x)

    sine.defjvp(lambda given, tangent: (given[0], tangent[0]))  # a derivative that lies changes nothing
    assert verdict(lambda x: jax.jit(jax.checkpoint(absolute))(x)) == "proved"
    assert verdict(lambda x: jax.jit(sine)(x)) == "unknown"
    assert verdict(lambda x: lax.stop_gradient(jnp.abs(x))) == "proved"
    assert verdict(lambda x: x - lax.stop_gradient(x * x)) == "unknown"
    assert verdict(jax.vmap(jnp.abs)) == "proved"
    assert verdict(jax.grad(lambda x: jnp.sum(x**2))) == "proved"


def test_loops_and_branches():
    def steps(function, length):
        return lambda x: lax.scan(lambda carry, k: (function(carry, k), carry), x, jnp.arange(length))

    for length in (0, 1, 5, 200):
        assert verdict(steps(lambda carry, k: jax.nn.relu(carry) + k, length)) == "proved"
        assert verdict(steps(lambda carry, k: jnp.exp(carry) * 0.5, length)) == "proved"
    for length in (2, 200):
        assert verdict(steps(lambda carry, k: jax.nn.relu(carry) - carry * carry, length)) == "unknown"
        assert verdict(steps(lambda carry, k: -jax.nn.relu(carry), length)) == "unknown"
        assert verdict(steps(lambda carry, k: jnp.sin(carry), length)) == "unknown"
    weights = jnp.asarray([[1.0], [2.0], [-1.0]])
    total = jnp.zeros(3)
    assert verdict(lambda x: lax.scan(lambda c, w: (c + w * x, c), total, weights)[0]) == "proved"
    assert verdict(lambda x: lax.scan(lambda c, w: (c + w * jnp.abs(x), c), total, weights)[0]) == "unknown"
    assert verdict(lambda x: lax.scan(lambda c, w: (c + jnp.abs(w * x), c), total, weights)[0]) == "proved"
    assert verdict(lambda x: lax.fori_loop(0, 3, lambda k, c: jnp.maximum(c, x * k), x)) == "proved"
    assert (
        verdict(lambda n, x: lax.fori_loop(0, n, lambda k, c: jnp.maximum(c, x), x), (3, X), argnum=1)
        == "proved"
    )
    assert verdict(lambda x: lax.while_loop(lambda c: jnp.sum(c) < 9, lambda c: c + 1, x)) == "unknown"
    flag = jnp.asarray(True)
    assert verdict(lambda x: lax.cond(flag, jnp.abs, jnp.sin, x)) == "proved"
    assert (
        verdict(lambda p, x: lax.cond(p, jnp.abs, jnp.exp, x), params=flag, strength="structural") == "proved"
    )
    assert (
        verdict(lambda p, x: lax.cond(p, jnp.abs, jnp.sin, x), params=flag, strength="structural")
        == "unknown"
    )
    assert verdict(lambda x: lax.cond(x[0] > 0, jnp.abs, jnp.exp, x)) == "unknown"
    assert verdict(lambda x: lax.switch(jnp.int32(1), [jnp.sin, jnp.abs], x)) == "proved"


def test_loops_in_loops_are_not_all_walked_step_by_step(monkeypatch):
    """Their steps multiply: three loops of 17 would be 5,219 walks."""
    made = []
    inner = Walk.inner
    monkeypatch.setattr(Walk, "inner", lambda walk, *given: made.append(walk.depth) or inner(walk, *given))

    def loop(depth, x):
        body = (lambda i, c: c + jnp.abs(x)) if depth == 1 else (lambda i, c: c + loop(depth - 1, x))
        return lax.fori_loop(0, 17, body, 0.0 * x)

    assert verdict(lambda x: loop(3, x)) == "proved" and len(made) < 2500
    made.clear()
    monkeypatch.setattr(control_rules, "LARGEST_UNROLLED", 1 << 12)  # control
    assert verdict(lambda x: loop(3, x)) == "proved" and len(made) == 17 + 17**2 + 17**3


def test_places():
    """Gathering and putting, at known places, at places that are fixed but unknown, and at places that depend on x."""
    at = jnp.asarray([2, 0])
    convex = jnp.asarray([1.0, -1.0, 1.0])
    mixed = lambda x: jnp.abs(x) * convex  # noqa: E731  # concave in the middle
    assert verdict(lambda x: mixed(x)[at]) == "proved" and verdict(lambda x: mixed(x)[at - 1]) == "unknown"
    assert verdict(lambda x: mixed(x)[::2]) == "proved" and verdict(lambda x: mixed(x)[1:]) == "unknown"
    assert verdict(lambda x: mixed(x).at[1].set(0.0)) == "proved"
    assert verdict(lambda x: mixed(x).at[0].set(0.0)) == "unknown"
    assert verdict(lambda x: lax.dynamic_update_slice(mixed(x), x[:1], (1,))) == "proved"
    assert verdict(lambda x: jnp.pad(mixed(x)[:1], 1)) == "proved"
    assert verdict(lambda x: jnp.pad(mixed(x), 1, mode="reflect")) == "unknown"

    def fixed(k, x):
        return lax.dynamic_slice(jnp.abs(x), (k,), (1,))

    assert verdict(fixed, (0, X), argnum=1) == "proved"
    assert verdict(lambda k, x: lax.dynamic_slice(mixed(x), (k,), (1,)), (0, X), argnum=1) == "unknown"
    assert verdict(lambda x: jnp.abs(x)[jnp.argmax(x)]) == "unknown"
    assert verdict(lambda x: lax.dynamic_slice(jnp.abs(x), (jnp.argmax(x),), (1,))) == "unknown"
    assert verdict(lambda x: x[jnp.argsort(x)]) == "unknown"


def test_products_and_convolutions():
    a, b = jnp.ones((2, 3, 4)), jnp.ones((2, 4, 5))
    assert verdict(lambda x: jnp.einsum("bij,bjk->bik", a * x[0], b)) == "proved"
    assert verdict(lambda x: jnp.einsum("bij,bjk->bik", jnp.abs(x[0] * a), b)) == "proved"
    assert (
        verdict(lambda x: jnp.einsum("bij,bjk->bik", jnp.abs(x[0] * a), b.at[1, 2, 3].set(-1.0))) == "unknown"
    )
    assert verdict(lambda x: jnp.outer(x, x)[0, 0]) == "proved"
    assert verdict(lambda x: jnp.outer(x, x)) == "unknown"
    image = jnp.ones((1, 1, 5, 5))
    kernel = jnp.ones((1, 1, 3, 3))

    def convolved(x, kernel):
        return lax.conv(jax.nn.relu(image * x[0] - 1.0), kernel, (1, 1), "SAME")

    assert verdict(lambda x: convolved(x, kernel)) == "proved"
    assert verdict(lambda x: convolved(x, kernel.at[0, 0, 0, 0].set(-1.0))) == "unknown"


# What is not as it should be.


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
    [
        jnp.ones(()),
        jnp.ones((0,)),
        jnp.ones((2, 0, 3)),
        jnp.ones((1, 1, 1)),
        2.0,
        np.ones(2),
        jnp.ones(2, jnp.float16),
    ],
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
    monkeypatch.setattr("convexmoe_jax.convexity.proof.in_range", lambda value, dtype: value)
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
    monkeypatch.setattr("convexmoe_jax.convexity.tracing.name_of", lambda primitive: primitive.name)
    assert verdict(foreign(name).bind) == "proved"


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
    from convexmoe_jax.convexity import atoms
    from convexmoe_jax.convexity.proof import Rule
    from convexmoe_jax.convexity.rules import RULES

    def failing(*given):
        raise RuntimeError("a fault")

    with monkeypatch.context() as patch:
        patch.setitem(RULES, "abs", Rule("scalar", failing))
        found = certify(jnp.abs, X, segments=0)
        assert found.verdict == "unknown" and "a fault" in found.reason
    with monkeypatch.context() as patch:
        patch.setattr(atoms, "match", failing)
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
    huber = half(lambda u: jnp.where(jnp.abs(u) <= 1, 0.5 * u * u, jnp.abs(u) - 0.5))
    assert certify(huber, X).verdict == "unknown"
    found = certify(half(lambda u: -u * u), X)
    assert found.verdict == "refuted" and found.violation.dtype == "bfloat16"
    # Control: held to float64, the convex function is refuted.
    monkeypatch.setattr("convexmoe_jax.convexity.certificate.coarsest", lambda walk, dtype: "")
    assert certify(huber, X).verdict == "refuted"


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
        with pytest.raises(
            (TypeError, ValueError), match=r"certify\.(segments|seed): expected a whole number >= 0"
        ):
            certify(jnp.abs, X, **option)
    for example in (None, {"x": X}, [[1.0], [1.0, 2.0]]):
        with pytest.raises(
            TypeError, match=r"certify\.x_example: expected an array, or a tuple of arrays; got"
        ):
            certify(jnp.abs, example)
