"""Our models in PyTorch: hulls are proved for every value of their parameters, as in JAX, and broken ones are not."""

import json
from itertools import count

import cases
import numpy as np
import pytest
import torch
from backends import BACKENDS, Torch

import convexmoe_torch
from convexmoe_torch import (
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
from convexmoe_torch.hull import legacy

# Configs that have every part of a hull between them; the others of `cases.HULLS` are for a release where it says so.
PARTS = ("default", "private", "smooth", "huber_relu", "one_petal_learned", "everything")
WIDEST = [name if name in PARTS else pytest.param(name, marks=pytest.mark.release) for name in cases.HULLS]
BACKEND = Torch()


def hull_of(name, seed=0, backend=BACKEND):
    fields = cases.HULLS[name]
    return backend.model(fields, cases.random_weights(fields, seed), "float32")


def rows_of(name, rows, backend=BACKEND):
    fields = cases.HULLS[name] | {"normalization": None}
    return backend.array(cases.random_inputs(fields, (rows,)).astype(np.float32))


@pytest.mark.parametrize("name", cases.HULLS)
def test_a_hull_is_proved_for_every_value_of_its_parameters_as_in_jax(name):
    found = {
        backend.name: backend.package.certify(hull_of(name, backend=backend), rows_of(name, 1, backend))
        for backend in BACKENDS
    }
    ours = found["torch"]
    assert (ours.verdict, ours.strength, ours.outputs[0].weakest) == ("proved", "structural", "convex"), str(ours)
    records = {key: json.loads(value.to_json()) for key, value in found.items()}
    for field in ("schema", "verdict", "property", "arithmetic", "strength", "reason", "outputs", "failed"):
        assert records["torch"][field] == records["jax"][field], field


@pytest.mark.parametrize("name", WIDEST)
def test_a_hull_is_proved_on_the_path_of_many_rows(name, monkeypatch):
    """`torch.export` says that it compiles; without that a hull averages its read-outs for many rows."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: False)
    found = certify(hull_of(name), rows_of(name, 30))
    assert (found.verdict, found.strength) == ("proved", "structural"), str(found)


@pytest.mark.parametrize("name", WIDEST)
def test_a_hull_is_proved_for_the_values_it_has_and_so_is_its_fold(name):
    hull, x = hull_of(name), rows_of(name, 1)
    assert certify(hull, x, strength="numeric").verdict == "proved"
    folded = certify(hull.fold(), x)
    assert (folded.verdict, folded.strength) == ("proved", "numeric")


@pytest.mark.parametrize("dtype", ["bfloat16", "float64", pytest.param("float16", marks=pytest.mark.release)])
@pytest.mark.parametrize("name", ["learned", "smooth", "everything", "relu"])
def test_a_hull_of_every_dtype_is_proved(name, dtype):
    fields = cases.HULLS[name]
    if dtype == "float16":  # which does not hold the values in those units
        fields = fields | {"normalization": None}
    hull = BACKEND.model(fields, cases.random_weights(fields), dtype)
    found = certify(hull, torch.ones((1, fields["in_dim"]), dtype=getattr(torch, dtype)))
    assert (found.verdict, found.strength) == ("proved", "structural"), str(found)


def test_the_function_form_is_proved_and_a_closure_for_its_numbers():
    hull, x = hull_of("everything"), rows_of("everything", 1)
    found = certify(lambda p, x: convexmoe_torch.hull.apply(p, x, hull.config), x, params=hull.params)
    assert (found.verdict, found.strength) == ("proved", "structural")
    named = {step.source for step in found.steps if step.operation == "parameter"}
    assert named >= {"trunk.0.weight", "shifts"}
    found = certify(lambda x: hull(x), x)
    assert (found.verdict, found.strength) == ("proved", "numeric")


def test_a_wide_hull_is_proved():
    assert certify(VectorHull(512, petals=8), torch.ones((1, 512))).verdict == "proved"


def test_certify_leaves_a_module_as_it_was():
    hull = hull_of("everything")
    before = {name: value.clone() for name, value in hull.state_dict().items()}
    certify(hull, rows_of("everything", 1))
    assert hull.training and all(p.requires_grad and p.grad is None for p in hull.parameters())
    assert all(torch.equal(before[name], value) for name, value in hull.state_dict().items())


# Controls: the same models with one fault.


def sigmoid_gate(act):
    calls = count()
    return lambda u, name: torch.sigmoid(u) if next(calls) % 2 == 0 else act(u, name)


def another_softplus(function):
    petals = convexmoe_torch.hull.petals
    return petals, "OPERATIONS", petals.OPERATIONS._replace(softplus=function)


def step_in_the_activation(u):
    return torch.where(u < 0.5, torch.relu(torch.clamp(u, max=1.0) + 1.0) ** 2 * 0.25, u)


def another_activation(function):
    petals = convexmoe_torch.hull.petals
    return petals, "FUNCTIONS", petals.FUNCTIONS | {"huber_relu": function}


FAULTS = {
    "sigmoid gate": (convexmoe_torch.hull.petals, "act", sigmoid_gate(convexmoe_torch.hull.petals.act)),
    "negative weights": another_softplus(lambda raw: -convexmoe_torch.hull.petals.softplus(raw)),
    "raw weights": another_softplus(lambda raw: raw),
    "min for max": (convexmoe_torch.hull.forward, "maximum", lambda g: torch.amin(g, dim=-2)),
    "softmax": (convexmoe_torch.hull.forward, "maximum", lambda g: (torch.softmax(g, -2) * g).sum(-2)),
    "negative temperature": (convexmoe_torch.hull.forward, "learned_temperature", lambda raw: -torch.exp(raw)),
    "temperature of any sign": (convexmoe_torch.hull.forward, "learned_temperature", lambda raw: raw),
    "another mean": (convexmoe_torch.hull.fusion, "log_mean_exp", lambda u, T: torch.mean(u, dim=-2)),
    "a concave activation": another_activation(lambda u: torch.clamp(u, max=0.5)),
    "a step in the activation": another_activation(step_in_the_activation),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_hull_is_not_proved(fault, monkeypatch):
    fields = cases.fields(gate=True, petals=5, depth=2, activation="huber_relu", temperature="learned")
    if fault in ("min for max", "softmax"):
        fields |= {"temperature": 0.0}
    if fault == "sigmoid gate":
        fields |= {"depth": 1}
    hull = BACKEND.model(fields, cases.random_weights(fields), "float32")
    x = rows_of("default", 1)
    assert certify(hull, x).verdict == "proved"
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
    found = certify(hull, rows_of("default", 1))
    assert (found.verdict, found.strength) == ("proved", "numeric")
    assert certify(hull, rows_of("default", 1), strength="structural").verdict == "unknown"


def legacy_hull(seed=0):
    shapes = legacy.parameter_shapes(3, 7, 5, 2)
    rng = np.random.default_rng(seed)
    flat = {name: torch.as_tensor(rng.normal(size=shape)).float() for name, shape in shapes.items()}
    return NonConvexHull(convexmoe_torch.hull.nest(flat))


def test_a_non_convex_hull_is_refused():
    found = certify(legacy_hull(), torch.ones((1, 3)))
    assert found.verdict == "refuted" and found.violation.gap > 0
    found = certify(legacy_hull(), torch.ones((1, 3)), segments=0)
    assert found.verdict == "unknown" and "NonConvexHull" in found.reason


def test_a_non_convex_hull_that_happens_to_be_convex_is_refused():
    """With gates that do not look at x it is a hull like others, and still promises nothing."""
    flat = convexmoe_torch.hull.flatten(legacy_hull().params)
    still = {k: v * (0 if "gate" in k and k.endswith("weight") else 1) for k, v in flat.items()}
    found = certify(NonConvexHull(convexmoe_torch.hull.nest(still)), torch.ones((1, 3)))
    assert found.verdict == "unknown" and "NonConvexHull" in found.reason


def test_experts():
    x = torch.ones((1, 5))
    assert certify(HullExpert(VectorHull(5, petals=3)), x).verdict == "proved"
    assert certify(LinearExpert(5, 2), x).outputs[0].weakest == "affine"
    torch.manual_seed(0)
    assert certify(MLPExpert(5, 7, 2), x).verdict == "refuted"


def hierarchy(levels):
    made = [HierarchyLevelConfig(f"level{k}", (ExpertConfig("one"), ExpertConfig("two"))) for k in range(levels)]
    torch.manual_seed(0)
    return HierarchicalCELMoE(
        CELMoEConfig(3, tuple(made)), lambda level, expert, metadata: HullExpert(VectorHull(3, petals=3, hidden_dim=5))
    )


def test_a_hierarchy_is_beyond_torch_export():
    """Its dispatch reads counts of samples, which `torch.export` does not follow: nothing is claimed."""
    model = hierarchy(1)
    routing = {"level0": ["one", "two", "two", "one"]}
    found = certify(lambda x: model(x, routing).fused_hidden, torch.ones((4, 3)))
    assert found.verdict == "unknown" and "in Python" in found.reason and found.steps == ()
