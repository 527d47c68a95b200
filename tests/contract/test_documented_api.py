"""The documented API of celmoe-vp runs in both packages by changing the import alone."""

import dataclasses
import inspect
import typing
from types import SimpleNamespace

import documented
import jax
import numpy as np
import pytest
from documented import ROUTING, ROWS, config_of, example, inputs, model_of, numpy
from engines import ENGINES
from flax import nnx

import convexmoe.hierarchy.module
import convexmoe_jax
import convexmoe_torch

pytestmark = pytest.mark.usefixtures("quick_compilation")

JAX, WIDTH = ENGINES[0], documented.WIDTH
ONE_FRAMEWORK_ALONE = {"unfreeze", "adam", "adamw"}  # staged training and optimizers, which differ


def test_experts_are_a_mapping_in_order(engine):
    package = engine.package
    config = config_of(package)
    experts = config.levels[1].experts
    assert experts["b"].stop_gradient_from_parent and not experts["a"].stop_gradient_from_parent
    assert list(experts) == ["b", "a"] and len(experts) == 2
    assert config.levels[1].expert_names == ("b", "a")
    sequence = package.HierarchyLevelConfig("alpha", list(experts.values()))
    assert sequence == config.levels[1]
    other = package.HierarchyLevelConfig("alpha", dict(reversed(experts.items())))
    assert other != config.levels[1]  # control


WRONG_EXPERTS = [
    (
        lambda p: {"a": p.ExpertConfig("b")},
        ValueError,
        "keys that are the names of their configs; got the key 'a' for ExpertConfig('b'). "
        "Rename the key or the config.",
    ),
    (lambda p: {"a": "a"}, TypeError, "ExpertConfig entries; got 'a'. Wrap it: ExpertConfig(name)."),
    (lambda p: "a", TypeError, "a mapping or a sequence of ExpertConfig; got 'a'. Pass {name: ExpertConfig(name)}."),
    (lambda p: {}, ValueError, "one entry at least, all of different names; got []. Rename or remove some."),
]


@pytest.mark.parametrize(("experts", "kind", "message"), WRONG_EXPERTS, ids=["key", "entry", "text", "none"])
def test_experts_that_are_no_such_mapping_are_refused(engine, experts, kind, message):
    with pytest.raises(kind) as error:
        engine.package.HierarchyLevelConfig("l", experts(engine.package))
    assert str(error.value) == f"HierarchyLevelConfig.experts: expected {message}"


def test_configs_are_dataclasses(engine):
    config = config_of(engine.package)
    assert dataclasses.replace(config, fusion_dropout=0.0).fusion_dropout == 0.0
    level = dataclasses.replace(config.levels[1], fallback_expert="a")
    assert level.fallback_expert == "a" and level.experts == config.levels[1].experts
    values = dataclasses.asdict(config)
    assert values["levels"][1]["experts"]["b"]["stop_gradient_from_parent"] is True
    expert = engine.package.ExpertConfig(**values["levels"][1]["experts"]["b"])
    assert expert == config.levels[1].experts["b"]
    assert expert != config.levels[1].experts["a"]  # control


def test_levels_are_named_and_in_order(engine):
    config, model, output, _ = example(engine)
    assert [level.name for level in model.levels] == ["zeta", "alpha"]
    assert list(output.levels) == ["zeta", "alpha"]
    assert all(isinstance(level, engine.package.LevelOutput) for level in output.levels.values())
    assert [level.name for level in output.levels.values()] == ["zeta", "alpha"]
    assert output.levels["alpha"].route_names == ROUTING["alpha"]
    assert output.levels["zeta"].route_names == ["core"] * ROWS  # the routing leaves it out
    assert output.levels["alpha"].expert_names == config.levels[1].expert_names
    last = config_of(engine.package).levels[1]
    off = dataclasses.replace(config, levels=[dataclasses.replace(config.levels[0], enabled=False), last])
    assert [level.name for level in model_of(engine, off).levels] == ["alpha"]


def test_control_a_plain_dict_loses_the_order(monkeypatch):
    monkeypatch.setattr(convexmoe.hierarchy.module, "OrderedDict", dict)
    model = example(JAX)[1]
    output = jax.jit(lambda x: model(x, ROUTING, {"embedding": x[:, 0]}))(inputs()["x"])
    assert list(output.levels) == ["alpha", "zeta"]


def test_an_expert_sees_where_it_stands_and_what_it_was_given(engine):
    batches = example(engine)[3]
    for batch in batches:
        assert batch.context["name"] == "text" and batch.context["number"] == 3
    child = [batch for batch in batches if batch.state["level"] == "alpha"]
    assert 0 < len(child) < len(batches)
    if engine.name == "jax":  # one trace for all experts of one structure
        assert all(batch.state["expert"].shape == () for batch in child)
        assert all(batch.context["embedding"].shape == (documented.CONTEXT,) for batch in child)
        return
    assert [batch.state["expert"] for batch in child] == ["b", "a"]
    rows = [row for row, name in enumerate(ROUTING["alpha"]) if name == "a"]
    given = inputs()
    assert np.array_equal(numpy(child[1].context["embedding"]), given["embedding"][rows])
    assert np.array_equal(numpy(child[1].mask), given["mask"][rows])
    assert not np.array_equal(numpy(child[0].mask), given["mask"][rows])  # control


class JaxIndex(convexmoe_jax.ExpertModule):
    def __call__(self, batch):
        return convexmoe_jax.ExpertResult(0.0 * batch.hidden + batch.state["expert"])


def test_the_index_of_an_expert_in_jax_is_its_place_in_the_level():
    config = config_of(convexmoe_jax, use_learned_fusion=False)
    output = model_of(JAX, config, lambda rngs: JaxIndex())(inputs()["x"], ROUTING)
    level = output.levels["alpha"]
    assert numpy(output.fused_hidden)[:, 0, 0].tolist() == [0.0, 1.0, 0.0, 1.0, 1.0] == level.routes.tolist()


def test_aux_is_there_by_expert(engine):
    output = example(engine)[2]
    parent, child = output.levels["zeta"], output.levels["alpha"]
    assert {level: set(aux) for level, aux in output.aux.items()} == {"zeta": {"core"}, "alpha": {"a", "b"}}
    largest = numpy(parent.hidden).max(axis=(1, 2))
    for name in ("a", "b"):
        rows = np.array([route == name for route in ROUTING["alpha"]])
        aux = numpy(child.aux[name]["largest"])
        aux = aux[rows] if engine.name == "jax" else aux  # JAX: an axis of all rows; torch: the expert's alone
        assert np.allclose(aux, largest[rows], rtol=1e-6, atol=0)
        assert not np.allclose(aux[::-1], largest[rows], rtol=1e-6, atol=0)  # control


def test_losses_of_experts_are_named_and_weighed(engine):
    output = example(engine)[2]
    assert set(output.losses) == {"zeta.core.size", "alpha.a.size", "alpha.b.size"}
    assert output.loss_weights == {"zeta.core.size": 0.5, "alpha.a.size": 1.0, "alpha.b.size": 1.0}
    size = (inputs()["x"] ** 2).mean()
    assert abs(float(output.losses["zeta.core.size"]) - size) < 1e-6 * size


def losses_of(package):
    def quadratic(output, targets, context):
        return abs(output.fused_hidden).mean() * targets.sum() * context["scale"]

    def both(level, output, targets, context):
        return {"p": level.hidden.mean(), "q": targets.sum()}

    def gap(parent, child, output, targets, context):
        return ((parent.hidden - child.hidden) ** 2).mean() * context["scale"]

    api = package.CELMoELossAPI()
    api.add_global(name="g", f=quadratic, weight=2.0)
    api.add_level(level="alpha", name="v", f=both)
    api.add_bridge(parent="zeta", child="alpha", name="b", f=gap, weight=0.1)
    api.add_global("n", lambda output: abs(output.fused_hidden).mean())
    return api


def test_losses_get_targets_and_context(engine):
    output = example(engine)[2]
    targets = engine.array(np.arange(ROWS, dtype=np.float32))
    bundle = losses_of(engine.package).compute(output, targets=targets, context={"scale": 3.0})
    flat = bundle.as_dict()
    zeta, alpha, fused = (
        numpy(value) for value in (output.levels["zeta"].hidden, output.levels["alpha"].hidden, output.fused_hidden)
    )
    wanted = {
        "global.g": (2.0, "global", abs(fused).mean() * 10 * 3),
        "alpha.v.p": (1.0, "alpha", alpha.mean()),
        "alpha.v.q": (1.0, "alpha", 10.0),
        "zeta->alpha.b": (0.1, "zeta->alpha", ((zeta - alpha) ** 2).mean() * 3),
        "global.n": (1.0, "global", abs(fused).mean()),
    }
    found = {term.name: (term.weight, term.scope) for term in bundle.terms if term.scope != "expert"}
    assert found == {name: value[:2] for name, value in wanted.items()}
    for name, (weight, _, value) in wanted.items():
        assert abs(flat[name] - value) < 1e-5 * abs(value), name
        assert abs(flat[f"{name}.weighted"] - weight * flat[name]) < 1e-5
    total = sum(term.weight * float(numpy(term.value)) for term in bundle.terms)
    assert abs(float(numpy(bundle.total)) - total) < 1e-5 * abs(total)
    other = losses_of(engine.package).compute(output, 2 * targets, {"scale": 3.0}).as_dict()  # positional
    assert other["alpha.v.q"] == 2 * flat["alpha.v.q"] and other["global.g"] != flat["global.g"]  # control


def test_bundles_and_terms_by_hand(engine):
    package, value = engine.package, engine.array(np.float32(2.0))
    assert package.LossTerm("a", value).scope == "global" and package.LossTerm("a", value).weight == 1.0
    terms = [package.LossTerm(name="a", value=value, weight=3.0, scope="alpha")]
    bundle = package.LossBundle(terms=terms)
    bundle.add("extra", 1.5, weight=2.0)
    bundle.add(name="more", value=value, weight=0.0, scope="expert")
    assert float(bundle.total) == 9.0 and len(terms) == 1  # the list is copied
    assert [(term.name, term.scope) for term in bundle.terms] == [
        ("a", "alpha"),
        ("extra", "global"),
        ("more", "expert"),
    ]
    empty, other = package.LossBundle(), package.LossBundle()
    empty.add("a", 1.0)
    assert other.terms == [] and float(other.total) == 0.0
    with pytest.raises(ValueError) as error:
        bundle.add("a", engine.array(np.zeros(3, np.float32)))
    assert str(error.value) == ("LossBundle.a: expected a scalar; got float32[3]. Reduce it, by its mean for example.")
    with pytest.raises(ValueError) as error:
        bundle.add("a", 1.0, weight=float("nan"))
    fix = "Pass weight=1.0, or multiply inside the loss."
    assert str(error.value) == f"LossBundle.weight: expected a finite number; got nan. {fix}"


def test_an_output_by_hand(engine):
    package, (_, _, output, _) = engine.package, example(engine)
    levels = {name: level for name, level in reversed(output.levels.items())}
    by_hand = package.CELMoEOutput(levels, output.fused_hidden, output.losses, output.aux)
    targets = engine.array(np.ones(ROWS, np.float32))
    flat = losses_of(package).compute(by_hand, targets, {"scale": 3.0}).as_dict()
    weighed = losses_of(package).compute(output, targets, {"scale": 3.0}).as_dict()
    assert flat["zeta.core.size.weighted"] == flat["zeta.core.size"]  # no weights are known
    assert weighed["zeta.core.size.weighted"] == 0.5 * flat["zeta.core.size"]
    assert flat["zeta->alpha.b"] == weighed["zeta->alpha.b"]
    alone = package.LevelOutput("x", output.fused_hidden, output.levels["alpha"].routes, {}, {})
    assert alone.expert_names == ()


# types for annotations first, then classes and functions
NAMES = """
ExpertAux ExpertContext ExpertMetadata LevelRouting LossMap LossResult LossCallable LevelLossCallable
BridgeLossCallable ExpertConfig HierarchyLevelConfig CELMoEConfig ExpertBatch ExpertResult ExpertModule
HierarchicalCELMoE CELMoEOutput LevelOutput CELMoELossAPI LossTerm LossBundle LearnedFusion PositionAwareFusion
merge_routing routing_constant validate_routing_length
"""


def missing(module, names):
    return [name for name in names if not hasattr(module, name)]


def test_the_documented_names_are_there(engine):
    names = NAMES.split()
    assert missing(engine.package, names) == [] and set(names) <= set(engine.package.__all__)
    assert missing(SimpleNamespace(ExpertAux=1), names) == names[1:]  # control
    assert typing.get_origin(engine.package.ExpertMetadata) is not None


def test_both_packages_have_the_same_names():
    names = [set(package.__all__) for package in (convexmoe_jax, convexmoe_torch)]
    assert names[0] ^ names[1] == ONE_FRAMEWORK_ALONE
    assert all(len(package.__all__) == len(set(package.__all__)) for package in (convexmoe_jax, convexmoe_torch))


# documented parameters in their order; what is ours comes after them or by keyword
SIGNATURES = {
    "ExpertConfig": "name loss_weight stop_gradient_from_parent metadata gradient_scale",
    "HierarchyLevelConfig": "name experts fallback_expert enabled",
    "CELMoEConfig": "hidden_size levels use_learned_fusion fusion_dropout",
    "ExpertBatch": "hidden context mask state",
    "ExpertResult": "hidden losses aux",
    "HierarchicalCELMoE": "config expert_factory fusion_module",
    "CELMoEOutput": "levels fused_hidden losses aux",
    "LevelOutput": "name hidden routes losses aux",
    "CELMoELossAPI.add_global": "name f weight",
    "CELMoELossAPI.add_level": "level name f weight",
    "CELMoELossAPI.add_bridge": "parent child name f weight",
    "CELMoELossAPI.compute": "output targets context",
    "LossTerm": "name value weight scope",
    "LossBundle": "terms",
    "LossBundle.add": "name value weight scope",
    "LearnedFusion": "hidden_size num_levels dropout",
    "PositionAwareFusion": "hidden_size num_levels dropout",
    "merge_routing": "base extra",
    "routing_constant": "name batch_size",
    "validate_routing_length": "level routes batch_size",
}


def parameters_of(package, path):
    """The parameters of a function, a method or a class, without self."""
    value = package
    for name in path.split("."):
        value = getattr(value, name)
    function = value.__init__ if isinstance(value, type) else value
    return [p for p in inspect.signature(function).parameters.values() if p.name != "self"]


def begins_with(parameters, names):
    """Whether documented names stand first, and all others have a default or are the keyword `rngs`."""
    rest = parameters[len(names) :]
    optional = all(p.default is not p.empty or (p.kind is p.KEYWORD_ONLY and p.name == "rngs") for p in rest)
    return [p.name for p in parameters[: len(names)]] == names and optional


@pytest.mark.parametrize("path", SIGNATURES)
def test_the_documented_parameters_stand_first(engine, path):
    parameters, names = parameters_of(engine.package, path), SIGNATURES[path].split()
    assert begins_with(parameters, names)
    assert not begins_with(parameters[1:], names)  # control


def test_the_call_takes_the_documented_order(engine):
    model = engine.package.HierarchicalCELMoE
    parameters = parameters_of(model, "__call__" if engine.name == "jax" else "forward")
    assert begins_with(parameters, ["hidden", "routing", "context", "mask"])


def test_every_documented_parameter_is_taken_by_name(engine):
    package = engine.package
    options = {"rngs": nnx.Rngs(0)} if engine.name == "jax" else {}
    expert = package.ExpertConfig(
        name="a", loss_weight=2.0, stop_gradient_from_parent=False, metadata={"depth": 3}, gradient_scale=0.5
    )
    level = package.HierarchyLevelConfig(
        name="l", experts={"a": expert}, fallback_expert="a", enabled=True, hidden_size=WIDTH
    )
    config = package.CELMoEConfig(hidden_size=WIDTH, levels=(level,), use_learned_fusion=True, fusion_dropout=0.0)
    fusion = package.LearnedFusion(hidden_size=WIDTH, num_levels=1, dropout=0.0, **options)

    def factory(level_name, expert_name, metadata, **options):
        assert (level_name, expert_name, metadata) == ("l", "a", {"depth": 3})
        return package.LinearExpert(in_dim=WIDTH, **options)

    model = package.HierarchicalCELMoE(config=config, expert_factory=factory, fusion_module=fusion, **options)
    x = engine.array(inputs()["x"])
    mask = engine.array(inputs()["mask"])
    output = model(hidden=x, routing={"l": ["a"] * ROWS}, context={"s": "t"}, mask=mask)
    assert output.fused_hidden.shape == x.shape
    batch = package.ExpertBatch(hidden=x, context=None, mask=None, state={})
    result = package.ExpertResult(hidden=batch.hidden, losses={}, aux={})
    routes = output.levels["l"].routes
    by_hand = package.LevelOutput(name="l", hidden=result.hidden, routes=routes, losses={}, aux={})
    full = package.CELMoEOutput(levels={"l": by_hand}, fused_hidden=x, losses={}, aux={})
    bundle = package.CELMoELossAPI().compute(output=full, targets=None, context=None)
    assert bundle.terms == []
