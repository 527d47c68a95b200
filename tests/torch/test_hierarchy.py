"""What only PyTorch has: compilation in one graph, state dicts, autocast, double backward, the grouped path."""

import copy

import numpy as np
import pytest
import torch
from engines import ENGINES
from hierarchies import CASES, Case, Level, config_of, random_inputs, random_weights, routes_of, uniform
from tolerances import relative_error
from torch.autograd import forward_ad
from torch.nn.utils import prune

import convexmoe_torch
from convexmoe_torch.hierarchy import module as hierarchy

ENGINE = ENGINES[1]
TWO = {
    "linear": Case((Level("a", ("linear",) * 3), Level("b", ("linear",) * 2))),
    "mlp": Case((Level("a", ("mlp7",) * 3, stops=(1,)), Level("b", ("mlp11",) * 2))),
}


def built(case, dtype="float32"):
    return ENGINE.build(case, random_weights(case), dtype)


def ten_routings(case, rows=13):
    draw = np.random.default_rng(0)
    spreads = ["uniform"] * 6 + ["zipf"] * 3 + ["one"]
    return [
        {lv.name: torch.tensor(routes_of(s, len(lv.kinds), rows, draw)) for lv, *_ in case.enabled} for s in spreads
    ]


def inputs_of(case, dtype=torch.float32):
    return torch.tensor(random_inputs(case)["x"]).to(dtype).requires_grad_()


def gradients(model, x, routes, loss=lambda output: output.fused_hidden.square().sum()):
    model.zero_grad()
    x.grad = None
    output = model(x, routes)
    loss(output).backward()
    return output, {"x": x.grad} | {name: leaf.grad.clone() for name, leaf in model.named_parameters()}


@pytest.mark.parametrize("kind", [pytest.param("linear", marks=pytest.mark.release), "mlp"])
def test_ten_routings_are_one_graph(kind):
    """Forward and backward in full; the code generator, which takes most of the time, makes no difference to graphs."""
    case = TWO[kind]
    model, x, routings = built(case), inputs_of(case), ten_routings(case)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for routes in routings:
        output, found = gradients(compiled, x, routes)
        eager, wanted = gradients(model, x, routes)
        assert relative_error(output.fused_hidden.detach(), eager.fused_hidden.detach()) < 1e-6
        for name, value in found.items():
            assert relative_error(value, wanted[name.removeprefix("_orig_mod.")]) < 1e-5, name
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    if kind == "mlp":
        lost_rows(model, compiled, x, routings[0])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    compiled(x[:7].detach(), {name: value[:7] for name, value in routings[0].items()})
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # control: another number of rows


def lost_rows(model, compiled, x, routes):
    """A route out of range gives NaN in its row, from its level on, and no gradient of that row."""
    wrong = {name: value.clone() for name, value in routes.items()}
    wrong["a"][4] = 99
    output, found = gradients(compiled, x, wrong, lambda output: output.fused_hidden.nan_to_num().square().sum())
    keep = torch.arange(len(x)) != 4
    for hidden in (output.fused_hidden, *(level.hidden for level in output.levels.values())):
        assert torch.equal(hidden.isnan().any(1), ~keep)
    without = {name: value[keep] for name, value in routes.items()}
    other, wanted = gradients(model, x[keep].detach().requires_grad_(), without)
    assert relative_error(output.fused_hidden[keep].detach(), other.fused_hidden.detach()) < 1e-6
    by_x = found.pop("x")
    assert not by_x[4].any() and relative_error(by_x[keep], wanted.pop("x")) < 1e-5
    for name, value in found.items():
        assert relative_error(value, wanted[name.removeprefix("_orig_mod.")]) < 1e-5, name


@pytest.mark.release
def test_the_generated_code_agrees():
    """A compiler of C++ runs, for a minute where its cache is empty."""
    case = uniform("linear", 3)
    model, x, routes = built(case), inputs_of(case), ten_routings(case)[0]
    torch._dynamo.reset()
    found = gradients(torch.compile(model, fullgraph=True), x, routes)[1]
    wanted = gradients(model, x, routes)[1]
    assert all(relative_error(v, wanted[n.removeprefix("_orig_mod.")]) < 1e-5 for n, v in found.items())


def test_names_in_the_state_dict():
    case = CASES["disabled_levels"]
    names = {f"level_modules.a.e{n}.{leaf}" for n in range(2) for leaf in ("weight", "bias")}
    names |= {f"level_modules.b.e{n}.weight" for n in range(3)}
    names |= {"fusion.gates.0.weight", "fusion.gates.1.weight", "fusion.norm.weight", "fusion.norm.bias"}
    state = built(case).state_dict()
    assert set(state) == names
    assert tuple(state["fusion.gates.0.weight"].shape) == (5, 3)  # Linear's own layout
    assert tuple(state["level_modules.a.e0.weight"].shape) == (5, 3)


def test_names_of_attributes(tmp_path):
    """Every name that a `ModuleDict` has itself is one of an expert and of a level; "items_" keeps its place."""
    names = ["items_", *sorted(set(dir(torch.nn.ModuleDict())) - {"items_"}), "other"]
    members = [convexmoe_torch.ExpertConfig(name) for name in names]
    levels = [
        convexmoe_torch.HierarchyLevelConfig(name, members if name == "items" else members[1:3]) for name in names
    ]
    config = convexmoe_torch.CELMoEConfig(3, levels)
    model = convexmoe_torch.HierarchicalCELMoE(config, lambda *_: convexmoe_torch.LinearExpert(3)).eval()
    attributes = [name for name, _ in model.level_modules["items"].named_children()]
    assert attributes[0] == "items_" and attributes[names.index("items")] == "items__" and attributes[-1] == "other"
    x, routes = (
        torch.randn(len(names), 3),
        {name: names if name == "items" else [names[1]] * len(names) for name in names},
    )
    y = model(x, routes).fused_hidden
    swapped = torch.func.functional_call(model, dict(model.named_parameters()), (x, routes)).fused_hidden
    assert torch.equal(swapped, y)
    convexmoe_torch.save(model, tmp_path / "model")
    again = convexmoe_torch.load(tmp_path / "model").eval()
    assert torch.equal(again(x, routes).fused_hidden, y)
    neutral = {name: value + 1 for name, value in convexmoe_torch.files.layers.parameters_of(again).items()}
    again.load_state_dict(neutral)  # as `convexmoe convert` writes them
    assert all(torch.equal(value, model.get_parameter(name) + 1) for name, value in again.named_parameters())
    fixed = convexmoe_torch.FixedHierarchy(model, {name: "keys" if name == "items" else names[1] for name in names})
    assert list(fixed.level_modules["items"].keys()) == ["keys"]


def test_a_deep_copy_stands_alone():
    case = TWO["mlp"]
    model, x, routes = built(case), inputs_of(case).detach(), ten_routings(case)[0]
    other, before = copy.deepcopy(model), model(x, routes).fused_hidden
    assert torch.equal(other(x, routes).fused_hidden, before) and other.config == model.config
    with torch.no_grad():
        for leaf in other.parameters():
            leaf.mul_(2)
    assert torch.equal(model(x, routes).fused_hidden, before)
    assert not torch.equal(other(x, routes).fused_hidden, before)


@pytest.mark.parametrize("kinds", [("linear",) * 3, ("mlp7", "identity", "linear")], ids=["alike", "mixed"])
def test_autocast_lets_experts_change_dtype(kinds):
    case = Case((Level("a", kinds), Level("b", ("mlp7",) * 2)))
    model, x = built(case), inputs_of(case)
    routes = {"a": torch.arange(13) % 3, "b": torch.arange(13) % 2}
    exact, wanted = gradients(model, x, routes)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x, routes)
    assert output.levels["b"].hidden.dtype == torch.bfloat16
    model.zero_grad()
    x.grad = None
    output.fused_hidden.float().square().sum().backward()
    for found, value in [(output.fused_hidden.detach().float(), exact.fused_hidden.detach())]:
        assert 1e-5 < relative_error(found, value) < 0.05
    for name, leaf in [("x", x), *model.named_parameters()]:
        assert leaf.grad.dtype == torch.float32 and relative_error(leaf.grad, wanted[name]) < 0.1, name


@pytest.mark.parametrize("kinds", [("linear",) * 3, ("mlp7",) * 3, ("mlp7", "linear", "linear")])
def test_second_derivatives(kinds):
    case = Case((Level("only", kinds),), fusion=False)
    model, x = built(case, "float64"), inputs_of(case, torch.float64)
    routes = {"only": torch.tensor([0, 2, 0, 0, 2, 0, 0, 2, 0, 0, 0, 2, 0])}  # e1 has no rows
    leaves = [x, *model.parameters()]
    directions = [torch.randn_like(leaf) for leaf in leaves]

    def first(create_graph):
        found = torch.autograd.grad(model(x, routes).fused_hidden.pow(3).sum(), leaves, create_graph=create_graph)
        return sum((g * d).sum() for g, d in zip(found, directions, strict=True))

    found = torch.autograd.grad(first(True), leaves, materialize_grads=True)
    for leaf, value, number in zip(leaves, found, range(99), strict=False):
        direction, step = torch.randn_like(leaf), 1e-6
        with torch.no_grad():
            leaf.add_(step * direction)
        up = first(False)
        with torch.no_grad():
            leaf.sub_(2 * step * direction)
        down = first(False)
        with torch.no_grad():
            leaf.add_(step * direction)
        wanted = (up - down) / (2 * step)
        assert abs((value * direction).sum() - wanted) < 1e-6 * (1 + abs(wanted)), number


@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("kind", TWO)
def test_the_grouped_path_is_the_one_by_one_path(monkeypatch, kind, sequence):
    case = TWO[kind]
    model = built(case, "float64")
    inputs = random_inputs(case, spread="zipf", sequence=sequence)
    inputs["routes"]["b"][:] = 0
    called = []
    one_by_one = hierarchy._run_one_by_one
    monkeypatch.setattr(hierarchy, "_run_one_by_one", lambda *given: called.append(1) or one_by_one(*given))
    grouped = ENGINE.run(case, model, inputs)
    assert not called
    monkeypatch.setattr(hierarchy, "_can_be_grouped", lambda experts: False)
    single = ENGINE.run(case, model, inputs)
    assert len(called) == 2 and grouped.keys() == single.keys()
    for name, value in single.items():
        assert relative_error(grouped[name], value) < 1e-12, name
    unused = [name for name in single if ".b.e1." in name]
    assert unused and not any(single[name].any() or grouped[name].any() for name in unused)


class Halved(convexmoe_torch.LinearExpert):
    def forward(self, batch):
        result = super().forward(batch)
        return convexmoe_torch.ExpertResult(result.hidden / 2, {"size": result.hidden.abs().mean()})


def test_a_subclass_with_a_forward_of_its_own_is_called():
    case = uniform("linear", 2)
    config = config_of(convexmoe_torch, case)
    plain = convexmoe_torch.HierarchicalCELMoE(config, lambda *_: convexmoe_torch.LinearExpert(5))
    model = convexmoe_torch.HierarchicalCELMoE(config, lambda *_: Halved(5))
    model.load_state_dict(plain.state_dict())
    x, routes = inputs_of(case), {"only": torch.arange(13) % 2}
    output = model(x, routes)
    assert torch.allclose(output.fused_hidden, plain(x, routes).fused_hidden / 2)
    assert set(output.losses) == {"only.e0.size", "only.e1.size"}
    with torch.no_grad():
        assert model(x, routes).fused_hidden.requires_grad is False


def test_experts_of_one_class_and_other_widths():
    widths = iter((7, 11))
    model = convexmoe_torch.HierarchicalCELMoE(
        config_of(convexmoe_torch, uniform("mlp7", 2)), lambda *_: convexmoe_torch.MLPExpert(5, next(widths))
    )
    x, routes = torch.ones(4, 5), {"only": torch.tensor([0, 1, 1, 0])}
    found = model(x, routes).fused_hidden
    for n, expert in enumerate(model.level_modules["only"].values()):
        wanted = expert(convexmoe_torch.ExpertBatch(x)).hidden
        assert torch.allclose(found[routes["only"] == n], wanted[routes["only"] == n])


def test_frozen_experts_without_rows_stay_without_gradient():
    case = Case((Level("a", ("linear", "mlp7", "mlp11")),))
    model, x = built(case), inputs_of(case)
    for leaf in model.level_modules["a"]["e1"].parameters():
        leaf.requires_grad_(False)
    model(x, {"a": torch.zeros(13, dtype=torch.int64)}).fused_hidden.sum().backward()
    grads = {name: leaf.grad for name, leaf in model.named_parameters()}
    assert all((grad is None) == (".e1." in name) for name, grad in grads.items())
    assert not any(grad.any() for name, grad in grads.items() if ".e2." in name)


@pytest.mark.parametrize("argument", ["context", "mask"])
def test_numpy_arrays_are_refused_before_any_work(argument):
    model = built(TWO["linear"])
    value = np.ones(13, np.float32)
    given = {"context": {"a": [value]}} if argument == "context" else {"mask": value}
    message = f"HierarchicalCELMoE.{argument}: expected tensors; got ndarray. Convert it to an array of this"
    with pytest.raises(TypeError, match=message):
        model(inputs_of(TWO["linear"]), ten_routings(TWO["linear"])[0], **given)


def test_what_hangs_on_an_expert_is_honoured():
    """Hooks, and a forward of its own: such an expert is called, and not run in a group."""
    model, x = built(TWO["linear"]), inputs_of(TWO["linear"])
    routes = ten_routings(TWO["linear"])[0]
    expert = model.level_modules["b"]["e1"]
    own = routes["b"] == 1
    assert own.any() and not own.all()
    plain = model(x, routes).levels["b"].hidden

    def check(changed):
        assert torch.all(changed[own] == 0) and torch.equal(changed[~own], plain[~own])

    hook = expert.register_forward_hook(lambda m, i, result: convexmoe_torch.ExpertResult(0 * result.hidden))
    check(model(x, routes).levels["b"].hidden)
    assert not hierarchy._can_be_grouped(list(model.level_modules["b"].values()))
    hook.remove()
    expert.forward = lambda batch: convexmoe_torch.ExpertResult(0 * batch.hidden)
    check(model(x, routes).levels["b"].hidden)
    del expert.forward
    prune.l1_unstructured(expert, "weight", 0.5)  # works by a hook before the call
    with torch.no_grad():
        expert.weight_orig.zero_()
        expert.bias.zero_()
    check(model(x, routes).levels["b"].hidden)


def test_one_module_for_two_experts():
    one, other = convexmoe_torch.LinearExpert(5), convexmoe_torch.LinearExpert(5)
    made = iter([one, one, other])
    model = convexmoe_torch.HierarchicalCELMoE(config_of(convexmoe_torch, uniform("linear", 3)), lambda *_: next(made))
    x = torch.randn(3, 5)
    found = model(x, {"only": [0, 1, 2]}).fused_hidden
    batch = convexmoe_torch.ExpertBatch(x)
    wanted = torch.stack([one(batch).hidden[0], one(batch).hidden[1], other(batch).hidden[2]])
    assert torch.allclose(found, wanted, atol=1e-6)
    convexmoe_torch.freeze(model, "only.e2")
    assert one.weight.requires_grad and not other.weight.requires_grad


class Shifting(convexmoe_torch.ExpertModule):
    """Gives its rows without the first, or with one more."""

    def __init__(self, more):
        super().__init__()
        self.more = more

    def forward(self, batch):
        hidden = torch.cat([batch.hidden, batch.hidden[:1]]) if self.more else batch.hidden[1:]
        return convexmoe_torch.ExpertResult(hidden)


def test_rows_lost_by_one_expert_and_added_by_another_are_an_error():
    made = iter([Shifting(False), Shifting(True)])
    model = convexmoe_torch.HierarchicalCELMoE(config_of(convexmoe_torch, uniform("linear", 2)), lambda *_: next(made))
    with pytest.raises(ValueError, match=r"hidden of shape \[2, 5\]; got float32\[1, 5\]"):
        model(torch.randn(4, 5), {"only": [0, 0, 1, 1]})


@pytest.mark.parametrize("kinds", [("linear",) * 3, ("mlp7", "linear", "linear")])
def test_transforms_of_torch_func(kinds):
    """Forward mode, reverse mode over reverse mode, vmap, and batched gradients; one expert has no rows."""
    case = Case((Level("only", kinds),), fusion=False)
    model = built(case, "float64").eval()
    x = inputs_of(case, torch.float64).detach()
    routes = {"only": torch.tensor([0, 2] * 6 + [0])}

    def function(x):
        return model(x, routes).fused_hidden

    forward, reverse = torch.func.jacfwd(function)(x), torch.func.jacrev(function)(x)
    assert relative_error(forward.detach(), reverse.detach()) < 1e-12
    assert torch.func.hessian(lambda x: function(x).pow(3).sum())(x).shape == (13, 5, 13, 5)
    assert torch.allclose(torch.func.vmap(function)(torch.stack([x, 2 * x]))[1], function(2 * x))
    weights = dict(model.named_parameters())
    by_weights = torch.func.grad(
        lambda w: torch.func.functional_call(model, w, (x, routes)).fused_hidden.square().sum()
    )(weights)
    _, wanted = gradients(model, x.requires_grad_(), routes)
    units = torch.eye(13 * 5, dtype=torch.float64).reshape(-1, 13, 5)
    (batched,) = torch.autograd.grad(function(x), x, units, is_grads_batched=True)
    assert relative_error(batched.reshape(13, 5, 13, 5), reverse.detach()) < 1e-12
    with forward_ad.dual_level():
        dual = function(forward_ad.make_dual(x.detach(), torch.ones_like(x)))
        tangent = forward_ad.unpack_dual(dual).tangent.detach()
    assert relative_error(tangent, reverse.detach().sum((2, 3))) < 1e-12
    for name, value in by_weights.items():
        assert relative_error(value.detach(), wanted[name]) < 1e-12, name


def test_save_refuses_buffers(tmp_path):
    """They would be lost: the neutral file has parameters alone."""

    class Counting(convexmoe_torch.LinearExpert):
        def __init__(self):
            super().__init__(5)
            self.register_buffer("seen", torch.zeros(()))
            self.register_buffer("cache", torch.zeros(()), persistent=False)

    model = convexmoe_torch.HierarchicalCELMoE(config_of(convexmoe_torch, uniform("linear", 1)), lambda *_: Counting())
    with pytest.raises(TypeError, match="parameters alone; got Counting with the buffer seen"):
        convexmoe_torch.save(model, tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []
