"""Our models: hulls are proved for every value of their parameters, and broken ones are not."""

from functools import cache
from itertools import count

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from backends import Jax
from flax import nnx

import convexmoe_jax
from convexmoe_jax import (
    CELMoEConfig,
    ExpertConfig,
    HierarchicalCELMoE,
    HierarchyLevelConfig,
    HullExpert,
    LinearExpert,
    MLPExpert,
    NonConvexHull,
    VectorHull,
    certify,
)
from convexmoe_jax.hull import legacy

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Configs that have every part of a hull between them; the others of `cases.HULLS` are for a release where it says so.
PARTS = ("default", "private", "smooth", "huber_relu", "one_petal_learned", "everything")
WIDEST = [name if name in PARTS else pytest.param(name, marks=pytest.mark.release) for name in cases.HULLS]
BACKEND = Jax()


def hull_of(name, seed=0):
    fields = cases.HULLS[name]
    return BACKEND.model(fields, cases.random_weights(fields, seed), "float32")


def rows_of(hull, rows):
    return jnp.asarray(cases.random_inputs(vars(hull.config) | {"normalization": None}, (rows,)), jnp.float32)


# More rows than in_dim + hidden_dim take another path; one row is certified in test_torch_models.py as well.
@pytest.mark.parametrize("rows", [30, pytest.param(1, marks=pytest.mark.release)])
@pytest.mark.parametrize("name", cases.HULLS)
def test_a_hull_is_proved_for_every_value_of_its_parameters(name, rows):
    hull = hull_of(name)
    found = certify(hull, rows_of(hull, rows))
    assert (found.verdict, found.strength, found.outputs[0].weakest) == ("proved", "structural", "convex"), str(found)


@pytest.mark.parametrize("name", WIDEST)
def test_a_hull_is_proved_for_the_values_it_has_and_so_is_its_fold(name):
    hull = hull_of(name)
    x = rows_of(hull, 1)
    assert certify(hull, x, strength="numeric").verdict == "proved"
    folded = certify(hull.fold(), x)
    assert (folded.verdict, folded.strength) == ("proved", "numeric")


@pytest.mark.parametrize("dtype", ["bfloat16", "float64", pytest.param("float16", marks=pytest.mark.release)])
@pytest.mark.parametrize("name", ["learned", "smooth", "everything", "relu"])
def test_a_hull_of_every_dtype_is_proved(name, dtype):
    fields = cases.HULLS[name]
    if dtype == "float16":  # which does not hold the values in those units
        fields = fields | {"normalization": None}
    with BACKEND.precision(dtype):
        hull = BACKEND.model(fields, cases.random_weights(fields), dtype)
        x = BACKEND.array(np.ones((1, fields["in_dim"]))).astype(dtype)
        found = certify(hull, x)
        assert (found.verdict, found.strength) == ("proved", "structural")


def test_the_function_form_is_proved_and_a_closure_for_its_numbers():
    hull = hull_of("everything")
    x = rows_of(hull, 1)
    found = certify(lambda p, x: convexmoe_jax.hull.apply(p, x, hull.config), x, params=hull.params)
    assert (found.verdict, found.strength) == ("proved", "structural")
    assert {step.source for step in found.steps if step.operation == "parameter"} >= {"trunk.0.weight", "shifts"}
    found = certify(lambda x: jax.jit(hull)(x), x)
    assert (found.verdict, found.strength) == ("proved", "numeric")


def test_a_wide_hull_is_proved():
    assert certify(VectorHull(512, petals=8, rngs=nnx.Rngs(0)), jnp.ones((1, 512))).verdict == "proved"


# Controls: the same models with one fault.


def sigmoid_gate(act):
    calls = count()
    return lambda u, name: jax.nn.sigmoid(u) if next(calls) % 2 == 0 else act(u, name)


def another_softplus(function):
    petals = convexmoe_jax.hull.petals
    return petals, "OPERATIONS", petals.OPERATIONS._replace(softplus=function)


def another_activation(function):
    petals = convexmoe_jax.hull.petals
    return petals, "FUNCTIONS", petals.FUNCTIONS | {"huber_relu": function}


FAULTS = {
    "sigmoid gate": (convexmoe_jax.hull.petals, "act", sigmoid_gate(convexmoe_jax.hull.petals.act)),
    "negative weights": another_softplus(lambda raw: -convexmoe_jax.hull.petals.softplus(raw)),
    "raw weights": another_softplus(lambda raw: raw),
    "min for max": (convexmoe_jax.hull.forward, "maximum", lambda g: g.min(axis=-2)),
    "softmax": (convexmoe_jax.hull.forward, "maximum", lambda g: (jax.nn.softmax(g, axis=-2) * g).sum(axis=-2)),
    "negative temperature": (convexmoe_jax.hull.forward, "learned_temperature", lambda raw: -jnp.exp(raw)),
    "temperature of any sign": (convexmoe_jax.hull.forward, "learned_temperature", lambda raw: raw),
    "another mean": (convexmoe_jax.hull.fusion, "log_mean_exp", lambda u, T: jnp.mean(u, axis=-2)),
    "a concave activation": another_activation(lambda u: jnp.minimum(u, 0.5)),
    "a step in the activation": another_activation(
        lambda u: jnp.where(u < 0.5, jnp.maximum(jnp.minimum(u, 1.0) + 1.0, 0.0) ** 2 * 0.25, u)
    ),
}


@cache
def proved_hull(**changes):
    """A hull with the parts that the faults are in, which is proved without them, and rows."""
    fields = cases.fields(gate=True, petals=5, depth=2, activation="huber_relu", temperature="learned") | changes
    hull = BACKEND.model(fields, cases.random_weights(fields), "float32")
    x = rows_of(hull, 1)
    assert certify(hull, x).verdict == "proved"
    return hull, x


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_hull_is_not_proved(fault, monkeypatch):
    hard = {"temperature": 0.0} if fault in ("min for max", "softmax") else {}
    hull, x = proved_hull(**hard, **({"depth": 1} if fault == "sigmoid gate" else {}))
    monkeypatch.setattr(*FAULTS[fault])
    found = certify(hull, x, strength="structural")
    assert found.verdict != "proved" and found.failed is not None, str(found)
    if fault not in ("another mean", "temperature of any sign", "negative temperature"):
        assert found.verdict == "refuted" and found.violation.gap > 0


def test_a_fault_that_the_given_weights_hide_is_numeric_only(monkeypatch):
    """Weights without a positivity map, which happen to be positive: no structure keeps them so."""
    fields = cases.HULLS["default"]
    weights = {name: np.abs(value) for name, value in cases.random_weights(fields).items()}
    hull = BACKEND.model(fields, weights, "float32")
    monkeypatch.setattr(*another_softplus(lambda raw: raw))
    found = certify(hull, rows_of(hull, 1))
    assert (found.verdict, found.strength) == ("proved", "numeric")
    assert certify(hull, rows_of(hull, 1), strength="structural").verdict == "unknown"


def legacy_hull(seed=0):
    shapes = legacy.parameter_shapes(3, 7, 5, 2)
    rng = np.random.default_rng(seed)
    flat = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    return NonConvexHull(convexmoe_jax.hull.nest(flat))


def test_a_non_convex_hull_is_refused():
    found = certify(legacy_hull(), jnp.ones((1, 3)))
    assert found.verdict == "refuted" and found.violation.gap > 0
    found = certify(legacy_hull(), jnp.ones((1, 3)), segments=0)
    assert found.verdict == "unknown" and "NonConvexHull" in found.reason


def test_a_non_convex_hull_that_happens_to_be_convex_is_refused():
    """With gates that do not look at x it is a hull like others, and still promises nothing."""
    flat = convexmoe_jax.hull.flatten(legacy_hull().params)
    still = {k: v * (0 if "gate" in k and k.endswith("weight") else 1) for k, v in flat.items()}
    found = certify(NonConvexHull(convexmoe_jax.hull.nest(still)), jnp.ones((1, 3)))
    assert found.verdict == "unknown" and "NonConvexHull" in found.reason


def test_experts():
    x = jnp.ones(5)
    hull = VectorHull(5, petals=3, rngs=nnx.Rngs(0))
    assert certify(HullExpert(hull), x).verdict == "proved"
    assert certify(LinearExpert(5, 2, rngs=nnx.Rngs(0)), x).outputs[0].weakest == "affine"
    assert certify(MLPExpert(5, 7, 2, rngs=nnx.Rngs(0)), x).verdict == "refuted"


def hierarchy(levels, fused=False):
    made = [HierarchyLevelConfig(f"level{k}", (ExpertConfig("one"), ExpertConfig("two"))) for k in range(levels)]
    return HierarchicalCELMoE(
        CELMoEConfig(3, tuple(made), use_learned_fusion=fused),
        lambda level, expert, metadata, *, rngs: HullExpert(VectorHull(3, petals=3, hidden_dim=5, rngs=rngs)),
        rngs=nnx.Rngs(0),
    )


def test_one_level_of_hulls_is_convex_and_two_are_not():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3)), jnp.float32)

    def fused(model):
        routing = {level.name: ["one", "two", "two"] for level in model.config.levels}
        return lambda x: model(x, routing).fused_hidden

    found = certify(fused(hierarchy(1)), x, segments=0)
    assert found.verdict == "proved", str(found)[:2000]
    found = certify(fused(hierarchy(2)), x, segments=0)
    assert found.verdict != "proved"
    assert certify(fused(hierarchy(1, fused=True)), x, segments=0).verdict != "proved"  # LayerNorm
