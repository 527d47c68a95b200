"""The loss API: names, weights, scopes, dict results, duplicates, the total; in both packages."""

import jax
import numpy as np
import pytest
import torch
from hierarchies import Case, Level, random_inputs, random_weights

import convexmoe_jax

pytestmark = pytest.mark.usefixtures("quick_compilation")


def output_of(engine):
    """The output of a hierarchy whose second level has losses, of all rows on e1; `loss_weight` 3."""
    case = Case((Level("a", ("linear",) * 2), Level("b", ("tanh",) * 2, loss_weight=3.0)))
    inputs = random_inputs(case, 5)
    inputs = {n: inputs[n].astype(np.float32) for n in ("x", "shift", "common", "mask")}
    model = engine.build(case, random_weights(case), "float32")
    context = {
        "shift": engine.array(inputs["shift"]),
        "of_all": [engine.package.Shared(engine.array(inputs["common"]))],
    }
    given = {"context": context, "mask": engine.array(inputs["mask"]), "state": {"scale": 1.5}}
    return model(engine.array(inputs["x"]), {"a": ["e0"] * 5, "b": ["e1"] * 5}, **given)


@pytest.fixture(scope="module")
def outputs():
    return {}


@pytest.fixture
def output(engine, outputs):
    if engine.name not in outputs:
        outputs[engine.name] = output_of(engine)
    return outputs[engine.name]


def api_of(engine):
    api = engine.package.CELMoELossAPI()
    api.add_global("l2", lambda output: (output.fused_hidden**2).mean(), weight=0.5)
    api.add_level("b", "size", lambda level: {"x": abs(level.hidden).mean(), "y": 2}, weight=2.0)
    api.add_bridge("a", "b", "gap", lambda a, b: abs(a.hidden - b.hidden).mean())
    api.add_global("l2", lambda output: abs(output.fused_hidden).mean(), weight=0.0)
    return api


def number(value):
    return float(value.detach() if isinstance(value, torch.Tensor) else value)


def test_names_scopes_weights_and_the_total(engine, output):
    bundle = api_of(engine).compute(output)
    terms = [(t.name, t.weight, t.scope) for t in bundle.terms if ".e0." not in t.name]
    assert terms == [
        ("b.e1.act", 3.0, "expert"),
        ("b.e1.size", 3.0, "expert"),
        ("global.l2", 0.5, "global"),
        ("b.size.x", 2.0, "b"),
        ("b.size.y", 2.0, "b"),
        ("a->b.gap", 1.0, "a->b"),
        ("global.l2", 0.0, "global"),
    ]
    total = sum(t.weight * number(t.value) for t in bundle.terms)
    assert abs(number(bundle.total) - total) < 1e-5 * abs(total)
    assert all(number(t.value) == 0 for t in bundle.terms if ".e0." in t.name)  # JAX: an expert without rows
    size = next(t.value for t in bundle.terms if t.name == "b.e1.size")  # a mean over rows of the sums over units
    assert abs(number(size) - number(abs(output.levels["b"].hidden).sum()) / 5) < 1e-4


def test_names_of_one_kind_stay_apart(engine, output):
    bundle = api_of(engine).compute(output)
    found = bundle.as_dict()
    assert found["global.l2"] != found["global.l2#2"] and found["global.l2#2.weighted"] == 0
    assert found["b.size.y"] == 2 and found["b.size.y.weighted"] == 4
    assert abs(found["b.e1.act.weighted"] - 3 * found["b.e1.act"]) < 1e-5
    weighted = sum(value for name, value in found.items() if name.endswith(".weighted"))
    assert abs(found["total"] - weighted) < 1e-4 and all(type(value) is float for value in found.values())
    assert len(found) == 1 + 2 * len(bundle.terms)


def test_losses_without_terms(engine, output):
    bundle = engine.package.CELMoELossAPI().compute(output)
    assert all(term.scope == "expert" for term in bundle.terms)
    assert engine.package.LossBundle(()).as_dict() == {"total": 0.0}


def test_terms_of_several_dtypes_keep_the_widest(engine):
    values = [engine.array(np.asarray(value, dtype)) for value, dtype in [(1 + 2**-12, "float32"), (1, "float16")]]
    terms = tuple(engine.package.LossTerm(str(n), value, 1.0, "global") for n, value in enumerate(values))
    assert float(engine.package.LossBundle(terms).total) == 2 + 2**-12


def test_a_level_that_is_not_there_is_refused(engine, output):
    api = engine.package.CELMoELossAPI()
    api.add_bridge("a", "c", "gap", lambda a, b: 0.0)
    with pytest.raises(ValueError) as error:
        api.compute(output)
    assert str(error.value) == (
        "CELMoELossAPI.add_bridge: expected levels among ['a', 'b']; got 'c'. Correct the name, or enable the level."
    )


def test_a_loss_that_is_no_scalar_is_refused(engine, output):
    api = engine.package.CELMoELossAPI()
    api.add_level("b", "size", lambda level: {"x": level.hidden})
    with pytest.raises(ValueError) as error:
        api.compute(output)
    assert str(error.value) == (
        "CELMoELossAPI.b.size.x: expected a scalar; got float32[5, 5]. Reduce it, by its mean for example."
    )


def test_a_weight_that_is_an_array_is_refused(engine):
    """As a float it would be cut off from its gradient in silence."""
    weight = engine.array(np.asarray(2.0, np.float32))
    api = engine.package.CELMoELossAPI()
    calls = {
        "CELMoELossAPI.add_global": lambda: api.add_global("n", lambda output: 0.0, weight=weight),
        "LossBundle": lambda: engine.package.LossBundle().add("n", 1.0, weight=weight),
        "ExpertConfig.loss": lambda: engine.package.ExpertConfig("a", loss_weight=weight),
    }
    for owner, call in calls.items():
        with pytest.raises(ValueError) as error:
            call()
        assert str(error.value).startswith(owner) and "; got float32[]. Pass" in str(error.value)
    assert engine.package.ExpertConfig("a", loss_weight=np.float32(0.5)).loss_weight == 0.5  # a number of numpy is one


@pytest.mark.parametrize(
    ("value", "got"), [(None, "None"), ("x", "'x'"), ({"a": {"b": 1.0}}, "{'b': 1.0}")], ids=["none", "text", "nested"]
)
def test_what_is_no_loss_is_named(engine, output, value, got):
    api = engine.package.CELMoELossAPI()
    api.add_level("b", "mine", lambda level: value)
    with pytest.raises(TypeError) as error:
        api.compute(output)
    name = "b.mine.a" if isinstance(value, dict) else "b.mine"
    fix = "Return the value of the loss."
    assert str(error.value) == f"CELMoELossAPI.{name}: expected a scalar, or a dict of scalars; got {got}. {fix}"


def test_no_term_hides_another_in_the_dict(engine):
    bundle = engine.package.LossBundle()
    for name, value in [("x", 1.0), ("x.weighted", 9.0), ("x#2", 7.0), ("x", 2.0), ("x", 3.0), ("total", 5.0)]:
        bundle.add(name, value)
    found = bundle.as_dict()
    assert found["total"] == 27.0 and found["total#2"] == 5.0 and found["x"] == found["x.weighted"] == 1.0
    assert len(found) == 1 + 2 * len(bundle.terms)
    values = [found[name] for name in found if not name.endswith(".weighted") and name != "total"]
    assert sorted(values) == [1.0, 2.0, 3.0, 5.0, 7.0, 9.0]


def test_the_total_of_half_precision_does_not_overflow(engine):
    term = engine.package.LossTerm("a", engine.array(np.asarray(40_000.0, np.float16)), 2.0)
    assert float(engine.package.LossBundle([term]).total) == 80_000.0
    with np.errstate(over="ignore"):
        assert np.isinf(np.float16(2) * np.float16(40_000))  # control: in half precision it would


def test_a_bundle_of_vmap_has_no_dict():
    package = convexmoe_jax
    many = jax.vmap(lambda v: package.LossBundle([package.LossTerm("a", v)]))(jax.numpy.arange(3.0))
    with pytest.raises(ValueError, match=r"LossBundle\.a: expected a scalar; got float32\[3\]\."):
        many.as_dict()


def test_terms_may_be_numbers(engine):
    bundle = engine.package.LossBundle([engine.package.LossTerm("a", 3, 2.0)])
    assert float(bundle.total) == 6.0 and bundle.as_dict()["a.weighted"] == 6.0
