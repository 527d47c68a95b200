"""What a call is given and gives: context, mask, fusion, fallback, losses, and the messages; in both packages."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from documented import compiled
from flax import nnx
from hierarchies import CASES, Case, Level, config_of, random_inputs, random_weights, uniform
from tolerances import relative_error

pytestmark = pytest.mark.usefixtures("quick_compilation")

CASE = Case((Level("a", ("linear",) * 3, fallback=2), Level("b", ("linear",))), fusion=False)


def numpy(value):
    return value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def built(engine, case=CASE):
    return engine.build(case, random_weights(case), "float32")


@pytest.fixture
def x():
    return random_inputs(CASE, 6)["x"].astype(np.float32)


def test_names_integers_and_missing_levels(engine, x):
    model = built(engine)
    names = ["e0", None, "e2", "e1", None, "e0"]
    by_name = model(engine.array(x), {"a": names})
    integers = np.array([0, 2, 2, 1, 2, 0])
    by_number = model(engine.array(x), {"a": engine.array(integers)})
    assert np.array_equal(numpy(by_name.fused_hidden), numpy(by_number.fused_hidden))
    assert names == ["e0", None, "e2", "e1", None, "e0"]
    held = np.array(integers)
    output = model(engine.array(x), {"a": held})
    held[:] = 1  # what was given may be used again
    assert numpy(output.levels["a"].routes).tolist() == integers.tolist()
    for routing in (None, {}, {"b": ["e0"] * 6}):
        assert numpy(model(engine.array(x), routing).levels["a"].routes).tolist() == [2] * 6


def test_without_fusion_the_last_level_is_the_output(engine, x):
    output = built(engine)(engine.array(x))
    assert [level.name for level in output.levels.values()] == list(output.levels) == ["a", "b"]
    assert output.fused_hidden is output.levels["b"].hidden or np.array_equal(
        numpy(output.fused_hidden), numpy(output.levels["b"].hidden)
    )


class JaxLargest(nnx.Module):
    def __init__(self):
        self.scale = nnx.Param(jnp.asarray(3.0))

    def __call__(self, hiddens):
        return self.scale[...] * jnp.maximum(*hiddens)


class TorchLargest(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(3.0))

    def forward(self, hiddens):
        return self.scale * torch.maximum(*hiddens)


def test_a_fusion_of_the_users_own(engine, x):
    config, factory = config_of(engine.package, CASE), engine.factory("float32")
    if engine.name == "jax":
        model = engine.package.HierarchicalCELMoE(config, factory, JaxLargest(), rngs=nnx.Rngs(0))
    else:
        model = engine.package.HierarchicalCELMoE(config, factory, TorchLargest())
    output = model(engine.array(x))
    wanted = 3 * np.maximum(*(numpy(level.hidden) for level in output.levels.values()))
    assert relative_error(numpy(output.fused_hidden), wanted) < 1e-6


def test_no_rows_are_no_fault(engine, x):
    case = Case((Level("a", ("linear", "mlp7"), width=7), Level("b", ("mlp7",) * 2)))
    output = built(engine, case)(engine.array(x[:0]), {"a": [], "b": []})
    assert tuple(output.fused_hidden.shape) == (0, 5) and tuple(output.levels["a"].hidden.shape) == (0, 7)


HIDDEN = "[rows, hidden_size=5] or [rows, length, hidden_size=5]"
FIX = "Give it one entry for each sample, or mark it: Shared(value)."
OWNER = "HierarchicalCELMoE"
CALLS = [
    ((6, 4), {}, ValueError, f"{OWNER}.hidden: expected {HIDDEN}; got float32[6, 4]. Project or reshape it."),
    ((5,), {}, ValueError, f"{OWNER}.hidden: expected {HIDDEN}; got float32[5]. Project or reshape it."),
    (
        (6, 5),
        {"context": np.zeros((5, 6))},
        ValueError,
        f"{OWNER}.context: expected a leading axis of 6 samples; got float32[5, 6]. {FIX}",
    ),
    (
        (6, 5),
        {"context": {"deep": [None, {"in": np.zeros(())}]}},
        ValueError,
        f"{OWNER}.context: expected a leading axis of 6 samples; got float32[]. {FIX}",
    ),
    ((6, 5), {"state": 3.5}, TypeError, f"{OWNER}.state: expected a mapping; got 3.5. Pass {{name: value}}."),
    (
        (6, 5),
        {"state": {"scale": 2.0, "level": 1}},
        ValueError,
        f"{OWNER}.state: expected names other than ['level', 'expert']; got ['level']. "
        "Rename it: the hierarchy gives these.",
    ),
    (
        (6, 5),
        {"mask": np.ones((5, 2))},
        ValueError,
        f"{OWNER}.mask: expected a leading axis of 6 samples; got float32[5, 2]. Give it one.",
    ),
]


def arrays(engine, value):
    if isinstance(value, dict):
        return {name: arrays(engine, item) for name, item in value.items()}
    if isinstance(value, list):
        return [arrays(engine, item) for item in value]
    return engine.array(value.astype(np.float32)) if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize(("shape", "given", "kind", "message"), CALLS, ids=[m[19:90] for *_, m in CALLS])
def test_a_wrong_call_is_refused(engine, shape, given, kind, message):
    model = built(engine)
    with pytest.raises(kind) as error:
        model(engine.array(np.zeros(shape, np.float32)), **arrays(engine, given))
    assert type(error.value) is kind and str(error.value) == message


def test_what_is_no_array_is_refused(engine):
    with pytest.raises(TypeError) as error:
        built(engine)([[0.0] * 5])
    fix = "Convert it to an array of this framework first."
    assert str(error.value) == f"{OWNER}.hidden: expected {HIDDEN}; got list. {fix}"


def test_an_expert_of_another_width_is_refused(engine, x):
    package = engine.package
    level = package.HierarchyLevelConfig("a", [package.ExpertConfig("e0", metadata={"width": 7})])
    options = {"rngs": nnx.Rngs(0)} if engine.name == "jax" else {}

    def factory(level, expert, metadata, **options):
        return package.LinearExpert(5, metadata["width"], **options)

    model = package.HierarchicalCELMoE(package.CELMoEConfig(5, [level]), factory, **options)
    with pytest.raises(ValueError) as error:
        model(engine.array(x))
    fix = "Change the expert, or set hidden_size on the level."
    assert str(error.value) == f"{OWNER}.a: expected hidden of shape [6, 5]; got float32[6, 7]. {fix}"


def test_a_factory_that_gives_no_module_is_refused(engine):
    options = {"rngs": nnx.Rngs(0)} if engine.name == "jax" else {}
    kind = "nnx.Module" if engine.name == "jax" else "nn.Module"
    with pytest.raises(TypeError) as error:
        engine.package.HierarchicalCELMoE(config_of(engine.package, CASE), lambda *_, **__: max, **options)
    fix = "Return an ExpertModule from the factory."
    got = "builtin_function_or_method"
    assert str(error.value) == f"{OWNER}.a.e0: expected an {kind}; got {got}. {fix}"


def test_the_factory_is_called_with_level_name_and_metadata(engine):
    seen = []
    options = {"rngs": nnx.Rngs(0)} if engine.name == "jax" else {}

    def factory(level, expert, metadata, **options):
        seen.append((level, expert, metadata["kind"]))
        metadata["kind"] = "changed"  # it is the factory's own
        return engine.package.LinearExpert(5, **options)

    config = config_of(engine.package, CASES["five_levels"])
    engine.package.HierarchicalCELMoE(config, factory, **options)
    assert seen == [(f"l{i}", f"e{n}", "linear") for i in range(5) for n in range(1 + i % 3)]
    assert config.levels[0].experts[0].metadata["kind"] == "linear"


def test_hulls_are_experts(engine, x):
    package = engine.package
    options = {"rngs": nnx.Rngs(0)} if engine.name == "jax" else {}
    hulls = {}

    def factory(level, expert, metadata, **options):
        hulls[expert] = package.VectorHull(5, 3, 5, hidden_dim=7, **options)
        return package.HullExpert(hulls[expert])

    level = package.HierarchyLevelConfig("a", [package.ExpertConfig(f"e{n}") for n in range(2)])
    config = package.CELMoEConfig(5, [level], use_learned_fusion=False)
    model = package.HierarchicalCELMoE(config, factory, **options)
    routes = np.array([1, 0, 0, 1, 1, 0])
    found = numpy(compiled(engine, model, {"a": routes})(engine.array(x)))
    each = [numpy(compiled(engine, hulls[f"e{n}"])(engine.array(x))) for n in range(2)]
    assert relative_error(found, np.where(routes[:, None] == 0, *each)) < 1e-6
    assert relative_error(*each) > 1e-3  # control


def test_one_expert_is_one_level(engine, x):
    case = uniform("linear", 1)
    assert engine.fused(built(engine, case), x, {}, None).shape == (6, 5)


def hierarchy_of(engine, call, fusion=None):
    """A hierarchy of one expert, which gives `call(package, batch)`."""
    package = engine.package
    if engine.name == "jax":

        class Expert(package.ExpertModule):
            def __call__(self, batch):
                return call(package, batch)

    else:

        class Expert(package.ExpertModule):
            def forward(self, batch):
                return call(package, batch)

    config = package.CELMoEConfig(5, [package.HierarchyLevelConfig("a", {"e0": package.ExpertConfig("e0")})])
    options = {"rngs": nnx.Rngs(0)} if engine.name == "jax" else {}
    return package.HierarchicalCELMoE(config, lambda *_, **__: Expert(), fusion, **options)


HIDDEN_RULE = "ExpertResult.hidden: expected an array of this framework"
LOSSES_RULE = "ExpertResult.losses: expected a mapping of names to scalars"
FAULTY_RESULTS = {
    "no hidden": (lambda p, b: p.ExpertResult(None), f"{HIDDEN_RULE}; got NoneType."),
    "no losses": (lambda p, b: p.ExpertResult(b.hidden, None), f"{LOSSES_RULE}; got None."),
    "a list": (lambda p, b: p.ExpertResult(b.hidden, [1.0]), f"{LOSSES_RULE}; got [1.0]."),
    "a loss of None": (
        lambda p, b: p.ExpertResult(b.hidden, {"l": None}),
        "ExpertResult.losses['l']: expected a scalar; got None.",
    ),
}


@pytest.mark.parametrize("name", FAULTY_RESULTS)
def test_what_an_expert_gives_is_checked(engine, x, name):
    call, message = FAULTY_RESULTS[name]
    with pytest.raises(TypeError) as error:
        hierarchy_of(engine, call)(engine.array(x))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("shape", [None, (), (3, 5)], ids=["nothing", "a number", "other rows"])
def test_what_a_fusion_gives_is_checked(engine, x, shape):
    value = None if shape is None else engine.array(np.zeros(shape, np.float32))
    if engine.name == "jax":

        class Fusion(nnx.Module):
            def __call__(self, hiddens):
                return value

    else:

        class Fusion(torch.nn.Module):
            def forward(self, hiddens):
                return value

    model = hierarchy_of(engine, lambda package, batch: package.ExpertResult(batch.hidden), Fusion())
    with pytest.raises(TypeError, match=r"HierarchicalCELMoE\.fusion_module: expected a fused array of 6 rows; got"):
        model(engine.array(x))


def test_the_mean_of_losses_that_are_counts_is_no_count(engine, x):
    """In JAX each sample has its own; in PyTorch the expert gives the mean itself."""

    def call(package, batch):
        found = (batch.hidden > 0).sum() if engine.name == "jax" else (batch.hidden > 0).sum(1).float().mean()
        return package.ExpertResult(batch.hidden, {"positive": found})

    losses = hierarchy_of(engine, call)(engine.array(x)).losses
    wanted = (x > 0).sum(1).mean()
    assert wanted % 1 != 0 and abs(float(losses["a.e0.positive"]) - wanted) < 1e-6
