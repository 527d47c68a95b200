"""What a certificate says beside its verdict: claims by input, its record, and the programs it reads."""

import json

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from convexmoe.convexity.certificate import EXACT
from convexmoe.convexity.walk import Walk
from convexmoe_jax import Certificate, certify
from convexmoe_jax.convexity import control as control_rules

pytestmark = pytest.mark.usefixtures("quick_compilation")

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
    found = certify(lambda x, y: y * jax.nn.relu(x), pair, argnum=0)  # refuted where y < 0, as it is in the example
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
    assert {step["operation"] for step in record["steps"]} >= {"input", "parameter", "dot_general", "max", "exp"}
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
        for k in range(120):
            x = jax.nn.relu(x) + jnp.float32(k)
        return x

    found = certify(function, X)
    assert found.verdict == "proved" and "to_json()" in str(found)
    assert len(json.loads(found.to_json())["steps"]) > 240


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
    assert verdict(lambda n, x: lax.fori_loop(0, n, lambda k, c: jnp.maximum(c, x), x), (3, X), argnum=1) == "proved"
    assert verdict(lambda x: lax.while_loop(lambda c: jnp.sum(c) < 9, lambda c: c + 1, x)) == "unknown"
    flag = jnp.asarray(True)
    assert verdict(lambda x: lax.cond(flag, jnp.abs, jnp.sin, x)) == "proved"
    assert verdict(lambda p, x: lax.cond(p, jnp.abs, jnp.exp, x), params=flag, strength="structural") == "proved"
    assert verdict(lambda p, x: lax.cond(p, jnp.abs, jnp.sin, x), params=flag, strength="structural") == "unknown"
    assert verdict(lambda x: lax.cond(x[0] > 0, jnp.abs, jnp.exp, x)) == "unknown"
    assert verdict(lambda x: lax.switch(jnp.int32(1), [jnp.sin, jnp.abs], x)) == "proved"


def test_loops_in_loops_are_not_all_walked_step_by_step(monkeypatch):
    """Their steps multiply: three loops of 9 would be 819 walks."""
    made = []
    inner = Walk.inner
    monkeypatch.setattr(Walk, "inner", lambda walk, *given: made.append(walk.depth) or inner(walk, *given))

    def loop(depth, x):
        body = (lambda i, c: c + jnp.abs(x)) if depth == 1 else (lambda i, c: c + loop(depth - 1, x))
        return lax.fori_loop(0, 9, body, 0.0 * x)

    monkeypatch.setattr(control_rules, "LARGEST_UNROLLED", 32)
    assert verdict(lambda x: loop(3, x)) == "proved" and len(made) < 700
    made.clear()
    monkeypatch.setattr(control_rules, "LARGEST_UNROLLED", 1 << 12)  # control
    assert verdict(lambda x: loop(3, x)) == "proved" and len(made) == 9 + 9**2 + 9**3


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
    assert verdict(lambda x: jnp.einsum("bij,bjk->bik", jnp.abs(x[0] * a), b.at[1, 2, 3].set(-1.0))) == "unknown"
    assert verdict(lambda x: jnp.outer(x, x)[0, 0]) == "proved"
    assert verdict(lambda x: jnp.outer(x, x)) == "unknown"
    image = jnp.ones((1, 1, 5, 5))
    kernel = jnp.ones((1, 1, 3, 3))

    def convolved(x, kernel):
        return lax.conv(jax.nn.relu(image * x[0] - 1.0), kernel, (1, 1), "SAME")

    assert verdict(lambda x: convolved(x, kernel)) == "proved"
    assert verdict(lambda x: convolved(x, kernel.at[0, 0, 0, 0].set(-1.0))) == "unknown"
