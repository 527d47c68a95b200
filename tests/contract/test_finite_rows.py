"""A row, or a position, that is not finite and that the loss leaves out changes no gradient of another."""

import importlib
from functools import partial

import numpy as np
import pytest
import torch
from documented import model_of
from flax import nnx
from tolerances import relative_error

import convexmoe_torch

pytestmark = pytest.mark.usefixtures("quick_compilation")

WIDTH, ROWS, LENGTH, ROW = 5, 7, 3, 4
ROUTES = {"a": np.array([0, 1, 0, 1, 0, 1, 0], np.int32), "b": np.array([0, 0, 1, 1, 1, 0, 0], np.int32)}
SETTINGS = {  # kinds of the two experts of each level, fusion, whether of sequences
    "learned": (("linear", "mlp"), "learned", False),
    "by position": (("linear", "linear"), "position_aware", True),
}
TORCH_ONLY = {  # of kinds that JAX treats alike
    "grouped": (("mlp", "mlp"), "learned", True),
    "hulls": (("hull", "smooth"), "learned", False),
    "no fusion": (("mlp", "hull"), None, False),
}


class TorchOwn(convexmoe_torch.ExpertModule):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, batch):
        return convexmoe_torch.ExpertResult(self.linear(batch.hidden))


def expert_of(engine, kind, options):
    package = engine.package
    if kind in ("hull", "smooth"):
        temperature = 0.0 if kind == "hull" else "learned"
        return package.HullExpert(package.VectorHull(WIDTH, 3, hidden_dim=4, temperature=temperature, **options))
    return package.LinearExpert(WIDTH, **options) if kind == "linear" else package.MLPExpert(WIDTH, 7, **options)


def model_with(engine, setting):
    kinds, fusion, _ = setting
    package = engine.package
    levels = [
        package.HierarchyLevelConfig(
            level, [package.ExpertConfig(f"e{i}", metadata={"kind": k}) for i, k in enumerate(kinds)]
        )
        for level in ROUTES
    ]
    given = {"use_learned_fusion": False} if fusion is None else {"fusion_type": fusion}
    config = package.CELMoEConfig(WIDTH, levels, fusion_dropout=0.25, **given)

    def factory(level, name, metadata, **options):
        return expert_of(engine, metadata["kind"], options)

    if engine.name == "jax":
        return package.HierarchicalCELMoE(config, factory, rngs=nnx.Rngs(0))
    torch.manual_seed(0)
    return package.HierarchicalCELMoE(config, factory).train()


def jax_gradients(model):
    import jax
    import jax.numpy as jnp

    graph, state = nnx.split(model)

    @jax.jit
    def gradients(x, keep):
        def loss(state, x):
            fused = nnx.merge(graph, state)(x, ROUTES, key=jax.random.key(1)).fused_hidden
            return (jnp.where(keep[..., None], fused, 0) ** 2).sum()

        by_state, by_x = jax.grad(loss, (0, 1))(state, x)
        return {"x": by_x} | {jax.tree_util.keystr(p): v for p, v in jax.tree_util.tree_leaves_with_path(by_state)}

    return lambda x, keep: {name: np.array(value) for name, value in gradients(x, keep).items()}


def torch_gradients(model):
    def gradients(x, keep):
        torch.manual_seed(1)
        model.zero_grad()
        x = torch.tensor(x, requires_grad=True)
        routes = {level: torch.tensor(part) for level, part in ROUTES.items()}
        model(x, routes).fused_hidden[torch.tensor(keep)].square().sum().backward()
        return {name: value.grad.numpy().copy() for name, value in [("x", x), *model.named_parameters()]}

    return gradients


def touched(gradients, bad, is_sequence):
    """Names of the gradients that a number in a row that the loss leaves out has changed; all, if the loss has it."""
    draw = np.random.default_rng(0)
    shape = (ROWS, LENGTH) if is_sequence else (ROWS,)
    place = (ROW, 1) if is_sequence else (ROW,)
    x, keep = draw.normal(size=(*shape, WIDTH)).astype(np.float32), np.ones(shape, bool)
    keep[place] = False
    wanted = gradients(x, keep)
    x[(*place, 2)] = bad
    found, included = gradients(x, keep), gradients(x, keep | True)
    assert not found["x"][place].any()
    wrong = [name for name, value in found.items() if not relative_error(value, wanted[name]) < 1e-5]
    return wrong, [name for name, value in included.items() if not np.isfinite(value).all()]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_row_that_the_loss_leaves_out_touches_no_other(engine, name):
    setting = SETTINGS[name]
    gradients = (jax_gradients if engine.name == "jax" else torch_gradients)(model_with(engine, setting))
    for bad in (np.nan, np.inf, -np.inf):
        wrong, when_included = touched(gradients, bad, setting[2])
        assert wrong == []
        assert any("norm" in path for path in when_included)  # a row that the loss has is not passed over


@pytest.mark.parametrize("name", TORCH_ONLY)
def test_it_holds_for_every_ready_expert(name):
    engine = importlib.import_module("engines").ENGINES[1]
    setting = TORCH_ONLY[name]
    for bad in (np.nan, np.inf):
        wrong, when_included = touched(torch_gradients(model_with(engine, setting)), bad, setting[2])
        assert wrong == [] and len(when_included) > 2


def plain(function, *arrays):
    return function(*arrays)


@pytest.mark.parametrize("module", ["fusion", "module"])
def test_control_without_it_the_weights_that_rows_share_would_be_nan(module, monkeypatch):
    engine = importlib.import_module("engines").ENGINES[1]
    setting = (("mlp", "mlp"), "learned", False)
    monkeypatch.setattr(importlib.import_module(f"convexmoe_torch.hierarchy.{module}"), "keep_apart", plain)
    with pytest.raises(AssertionError):
        assert touched(torch_gradients(model_with(engine, setting)), np.nan, False)[0] == []


@pytest.mark.parametrize("kept", ["apart", "together"])
def test_a_fusion_by_itself_in_jax(kept, monkeypatch):
    """The control needs no program of its own here: the fusion is called eagerly."""
    import jax
    import jax.numpy as jnp

    from convexmoe_jax.hierarchy import fusion as module

    if kept == "together":
        monkeypatch.setattr(module, "keep_apart", plain)
    fusion = module.LearnedFusion(WIDTH, 2, rngs=nnx.Rngs(0))
    graph, state = nnx.split(fusion)
    x = jnp.ones((3, WIDTH)).at[1, 2].set(jnp.nan) * jnp.arange(WIDTH)
    gradient = jax.grad(lambda state: (nnx.merge(graph, state)([x, x])[0] ** 2).sum())(state)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient)) == (kept == "apart")


@pytest.mark.parametrize("included", [False, True])
def test_it_holds_inside_transforms(included):
    """Where PyTorch may look at no value, as where it compiles."""
    engine = importlib.import_module("engines").ENGINES[1]
    model = model_with(engine, SETTINGS["learned"]).eval()
    x = torch.ones(ROWS, WIDTH) * torch.arange(WIDTH)
    x[ROW, 1] = torch.nan
    keep = torch.tensor([included or row != ROW for row in range(ROWS)])

    def loss(params):
        fused = torch.func.functional_call(model, params, (x, ROUTES)).fused_hidden
        return torch.where(keep[:, None], fused, 0).square().sum()

    found = torch.func.grad(loss)(dict(model.named_parameters()))
    assert all(value.isfinite().all() for value in found.values()) != included


def test_an_expert_of_ones_own_spoils_its_own_gradients_alone():
    """In PyTorch an expert sees its rows together; what it does with a NaN is its own affair."""
    engine = importlib.import_module("engines").ENGINES[1]
    config = engine.package.CELMoEConfig(
        WIDTH, [engine.package.HierarchyLevelConfig("a", [engine.package.ExpertConfig(n) for n in "xy"])]
    )
    model = model_of(engine, config, TorchOwn)
    x = torch.ones(4, WIDTH)
    x[1, 0] = torch.nan
    model(x, {"a": ["x", "y", "x", "y"]}).fused_hidden[[0, 2, 3]].square().sum().backward()
    bad = {name.split(".")[2] for name, p in model.named_parameters() if not p.grad.isfinite().all()}
    assert bad == {"y"}


def test_values_are_not_changed():
    """An infinity stays what it is; a linear map takes it to infinity, and no number is another."""
    expert = convexmoe_torch.LinearExpert(2)
    with torch.no_grad():
        expert.weight.copy_(torch.tensor([[1.0, 2.0], [0.5, -1.0]]))
    run = partial(convexmoe_torch.ExpertModule.__call__, expert)
    x = torch.tensor([[1.0, 2.0], [torch.inf, 1.0], [torch.nan, 0.0]])
    from convexmoe.hierarchy import ExpertBatch

    with torch.no_grad():
        wanted = run(ExpertBatch(x)).hidden
    found = run(ExpertBatch(x)).hidden
    assert found.requires_grad and torch.equal(found.nan_to_num(1e9), wanted.nan_to_num(1e9))
    assert found[1, 0] == torch.inf and found[1, 1] == torch.inf
