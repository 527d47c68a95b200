"""New weights follow their laws, and layer after layer the pre-activations keep mean 0 and deviation 1."""

import functools
import math

import cases
import numpy as np
import pytest
import reference

import convexmoe.hull.activations
from convexmoe import HullConfig
from convexmoe.hull.parameters import initial_law

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROWS, SEEDS = 211, range(3)
DEEP = cases.fields(in_dim=61, hidden_dim=127, depth=12, petals=5, out_dim=3, temperature="learned")


@functools.cache
def drawn(backend, seed, **changes):
    """New weights of the deep hull, or of one like it. Every other shape is compiled anew in JAX."""
    return backend.weights(backend.fresh(DEEP | changes, seed))


def units_of_layers(weights, fields):
    """Pre-activations (ROWS, H) of every layer at standard normal inputs."""
    x = np.random.default_rng(1).standard_normal((ROWS, fields["in_dim"]))
    exact = {name: value.astype(np.float64) for name, value in weights.items()}
    return reference.pre_activations(exact, x, 0, fields)


@pytest.mark.parametrize("activation", ["softplus", "relu", "huber_relu"])
def test_pre_activations_stay_alive_and_do_not_explode(backend, activation):
    fields = DEEP | {"activation": activation}
    for seed in SEEDS:
        layers = units_of_layers(drawn(backend, seed), fields)
        assert len(layers) == 12
        for u in layers:
            assert abs(u.mean()) < 0.5 and 0.6 < u.std() < 1.6
            # every unit still moves with x: the median unit's deviation over the rows
            assert 0.5 < np.median(u.std(axis=0)) < 1.6
            # and rows are told apart: units of one layer do not all say the same
            assert np.median(np.abs(np.corrcoef(u.T)[np.triu_indices(u.shape[1], 1)])) < 0.95


def test_control_he_initialization_of_non_negative_weights_explodes(backend, monkeypatch):
    weights = dict(drawn(backend, 0))
    rng = np.random.default_rng(0)
    for name in weights:
        if name.endswith("raw_weight"):
            weights[name] = np.abs(rng.standard_normal(weights[name].shape)) * math.sqrt(2 / DEEP["hidden_dim"])
    monkeypatch.setattr(reference, "positive", lambda weight, fan_in: weight)
    assert np.abs(units_of_layers(weights, DEEP)[-1]).max() > 1e4


def test_control_without_the_signed_weights_the_layers_fade(backend):
    weights = dict(drawn(backend, 0))
    for k in range(1, DEEP["depth"]):
        weights[f"trunk.{k}.weight"] = 0 * weights[f"trunk.{k}.weight"]
    assert np.median(units_of_layers(weights, DEEP)[-1].std(axis=0)) < 0.1


def near(got, wanted, samples, factor=1.0):
    """Whether a sample's mean (or variance, with factor sqrt(2)) is within five standard errors."""
    return abs(got - wanted) < 5 * factor / math.sqrt(samples)


@pytest.mark.parametrize(("name", "spread"), [("trunk.1.raw_weight", 0.5), ("readout.raw_weight", 0.1)])
def test_positive_weights_are_log_normal_and_nearly_equal(backend, name, spread):
    """E w = tau / N, and ln w has the spread."""
    N = DEEP["hidden_dim"]
    for seed in SEEDS:
        raw = drawn(backend, seed)[name].astype(np.float64).ravel()
        log_weight = np.log(reference.positive(raw, N))
        assert near(log_weight.std(), spread, raw.size, spread)
        assert near(log_weight.mean(), math.log(reference.TAU / N) - spread**2 / 2, raw.size, spread)
        z = (log_weight - log_weight.mean()) / log_weight.std()
        quantiles = np.quantile(z, [0.025, 0.16, 0.5, 0.84, 0.975])
        assert np.allclose(quantiles, [-1.960, -0.9945, 0, 0.9945, 1.960], atol=0.1)


def test_positive_weights_have_the_mean_itself(backend):
    fields = cases.fields(in_dim=2, hidden_dim=3, petals=70_001, depth=2, trunk="private", out_dim=1)
    raw = backend.weights(backend.fresh(fields, 0))["trunk.1.raw_weight"].astype(np.float64)
    assert np.isclose(reference.positive(raw, 3).mean(), reference.TAU / 3, rtol=0.005)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_positive_weights_have_their_tails_in_half_precision(backend, dtype):
    """Draws made of ten random bits have none, and the smallest w must not round to 0."""
    fields = cases.fields(in_dim=2, hidden_dim=1031, depth=2, petals=2, out_dim=1)
    raw = backend.weights(backend.fresh(fields, 0, dtype))["trunk.1.raw_weight"]
    assert str(raw.dtype) == dtype
    raw = raw.astype(np.float64).ravel()
    assert np.isfinite(raw).all(), f"{np.sum(~np.isfinite(raw))} infinite"
    z = (np.log(reference.softplus(raw)) + 0.5 * math.log(1031)) / 0.5 + 0.25
    quantiles = np.quantile(z, [0.0001, 0.001, 0.5, 0.999, 0.9999])
    assert np.allclose(quantiles, [-3.719, -3.090, 0, 3.090, 3.719], atol=0.2), quantiles


@pytest.mark.parametrize("gate", [False, True])
def test_signed_weights_have_their_share_of_the_variance(backend, gate):
    first = 0.5 if gate else 1.0
    D = DEEP["in_dim"]
    variances = {"trunk.0.weight": first / D, "trunk.0.bias": first / 4, "trunk.1.weight": 0.5 / D}
    variances["readout.weight"] = 0.09 * 0.5 / D
    if gate:
        variances |= {"gate.weight": first / D, "gate.bias": first / 4}
    for seed in SEEDS:
        weights = drawn(backend, seed, gate=gate) if gate else drawn(backend, seed)
        for name, variance in variances.items():
            values = weights[name].astype(np.float64)
            assert near(values.var(), variance, values.size, variance * math.sqrt(2)), name
            assert near(values.mean(), 0.0, values.size, math.sqrt(variance)), name
        assert not any(weights[name].any() for name in ("trunk.1.bias", "readout.bias", "shifts"))


@pytest.mark.parametrize(
    ("units", "trunk", "share"), [(101, "shared", 0.09 * 0.5), (97, "shared", 1.0), (7, "private", 0.09 * 0.5)]
)
def test_petals_that_outnumber_the_units_they_share_start_apart(units, trunk, share):
    """By the law, which stands in the core; that it is drawn from is tested above."""
    config = HullConfig(31, petals=100, out_dim=3, hidden_dim=units, trunk=trunk)
    law = initial_law("readout.weight", config)
    assert (law.kind, law.mean) == ("normal", 0.0) and math.isclose(law.deviation**2, share / 31)


@pytest.mark.parametrize("in_dim, depth, trunk", [(61, 12, "shared"), (131, 2, "shared"), (61, 2, "private")])
def test_signed_weights_of_a_layer_bend_no_direction_more_than_another(backend, in_dim, depth, trunk):
    """A A' is a multiple of 1 for a wide layer, A' A for a narrow one; independent weights have no such thing."""
    weights = drawn(backend, 0, gate=True, in_dim=in_dim, depth=depth, trunk=trunk)
    assert uneven(np.random.default_rng(0).standard_normal((in_dim, 127))) > 0.3
    for name in ("trunk.0.weight", "trunk.1.weight", "gate.weight"):
        assert uneven(weights[name].astype(np.float64).reshape(in_dim, -1)) < 1e-5, name


def uneven(matrix):
    """How far the rows of a wide matrix, or the columns of a narrow one, are from orthogonal ones of one length."""
    gram = matrix @ matrix.T if matrix.shape[1] >= matrix.shape[0] else matrix.T @ matrix
    return np.abs(gram / np.trace(gram) * len(gram) - np.eye(len(gram))).max()


@pytest.mark.parametrize(
    "in_dim, petals, trunk, temperature",
    [
        (5, 7, "shared", 0.3),
        (5, 13, "shared", 1.0),
        (5, 13, "private", 0.3),
        (61, 7, "shared", 61 / 25),
        (61, 13, "shared", 61 / 25),
    ],
)
def test_the_learned_temperature_starts_higher_for_more_inputs_and_for_petals_that_outnumber_the_units(
    in_dim, petals, trunk, temperature
):
    config = HullConfig(in_dim, petals=petals, hidden_dim=11, trunk=trunk, temperature="learned", out_dim=3)
    law = initial_law("raw_temperature", config)
    assert law.kind == "constant"
    assert math.isclose(reference.softplus(law.mean) + 1e-3, temperature, rel_tol=1e-12)


def test_the_learned_temperature_is_drawn_by_its_law(backend):
    raw = drawn(backend, 0)["raw_temperature"]
    assert raw.shape == (3,) and np.allclose(reference.softplus(raw) + 1e-3, 61 / 25, rtol=1e-5)


def test_seeds_draw_different_weights_and_one_seed_the_same(backend):
    again = backend.weights(backend.fresh(DEEP, 0))
    for name, value in drawn(backend, 0).items():
        assert np.array_equal(value, again[name])
        other = drawn(backend, 1)[name]
        assert initial_law(name, HullConfig(**DEEP)).deviation == 0 or not np.array_equal(value, other)


@pytest.mark.parametrize("activation", ["softplus", "relu", "huber_relu"])
def test_activations_are_standardized_by_quadrature(backend, activation):
    row = convexmoe.hull.activations.ACTIVATIONS[activation]
    assert np.allclose((row.mean, row.deviation), reference.standard_moments(activation), rtol=1e-13, atol=0)
    u = np.random.default_rng(0).standard_normal(10**5)
    z = backend.numpy(backend.package.hull.petals.act(backend.array(u.astype(np.float32)), activation))
    assert abs(z.mean()) < 0.015 and abs(z.std() - 1) < 0.015


def test_the_quadrature_agrees_with_closed_forms():
    """Control of the reference: relu's moments are 1/sqrt(2 pi) and 1/2 - 1/(2 pi)."""
    mean, deviation = reference.standard_moments("relu")
    assert np.isclose(mean, 1 / math.sqrt(2 * math.pi), rtol=1e-14)
    assert np.isclose(deviation**2, 0.5 - 0.5 / math.pi, rtol=1e-14)
