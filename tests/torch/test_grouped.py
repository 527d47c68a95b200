"""On a device nothing of the routes is looked at by the host. A meta tensor stands for it: it has no values."""

import numpy as np
import pytest
import torch
from engines import ENGINES
from hierarchies import Case, Level, random_inputs, random_weights, routes_of
from torch._dynamo.testing import CompileCounterWithBackend

import convexmoe_torch as cm
from convexmoe_torch.hierarchy import grouped

ENGINE = ENGINES[1]
CASE = Case((Level("a", ("linear",) * 3, scales=((0, 0.5),)), Level("b", ("mlp7",) * 2)))
OTHERS = Case((Level("a", ("identity",) * 2),), fusion=False)
ROWS = 13


def on_meta(case):
    model = ENGINE.build(case, random_weights(case), "float32").to("meta")
    routes = {level.name: torch.empty(ROWS, dtype=torch.int64, device="meta") for level, _, _ in case.enabled}
    return model, torch.empty(ROWS, 5, device="meta", requires_grad=True), routes


@pytest.mark.parametrize("given", ["on the device", "names", "integers"])
def test_a_step_on_a_device_reads_nothing_back(given):
    model, x, routes = on_meta(CASE)
    if given != "on the device":
        routes = {
            level: ["e0"] * ROWS if given == "names" else torch.zeros(ROWS, dtype=torch.int64) for level in routes
        }
    output = model(x, routes)
    output.fused_hidden.square().sum().backward()
    assert output.fused_hidden.device.type == "meta" and x.grad.shape == x.shape
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_other_experts_are_counted_where_the_routes_are():
    """Each gets all its rows at once, whose number the host must know: it counts routes that it has."""
    model, x, routes = on_meta(OTHERS)
    assert model(x, {"a": ["e0", "e1"] * 6 + ["e0"]}).fused_hidden.device.type == "meta"
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):  # control: a look at a meta tensor fails
        model(x, routes)


def test_control_the_loop_reads_the_sizes():
    x, w, sizes = (torch.empty(*shape, device="meta") for shape in ((7, 3), (2, 3, 5), (2,)))
    assert cm.grouped_matmul(x, w, sizes.long()).shape == (7, 5)  # another device than cpu takes blocks
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        cm.grouped_matmul(x, w, sizes.long(), "loop")


def test_a_route_out_of_range_on_a_device_is_nan(monkeypatch):
    """As it is not looked at, it gives NaN in its row, as under `torch.compile`, and no gradient."""
    monkeypatch.setenv("CONVEXMOE_GROUPED", "blocks")
    monkeypatch.setattr(
        "convexmoe_torch.hierarchy.module.HierarchicalCELMoE._read_values", staticmethod(lambda _: None)
    )
    model = ENGINE.build(CASE, random_weights(CASE), "float32")
    x, routes = torch.randn(ROWS, 5, requires_grad=True), {name: torch.zeros(ROWS).long() for name in "ab"}
    routes["a"][4] = 3
    monkeypatch.setattr("convexmoe_torch.hierarchy.module.encode_given", lambda config, routing, rows: routing)
    fused = model(x, routes).fused_hidden
    assert fused[4].isnan().all() and fused.isnan().any(1).sum() == 1
    fused.nansum().backward()
    assert x.grad[4].eq(0).all() and all(p.grad.isfinite().all() for p in model.parameters())


def test_compiled_once_for_all_routes(monkeypatch):
    monkeypatch.setenv("CONVEXMOE_GROUPED", "blocks")
    model, draw = ENGINE.build(CASE, random_weights(CASE), "float32"), np.random.default_rng(0)
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    x = torch.from_numpy(random_inputs(CASE)["x"]).float()
    for spread in ("uniform", "zipf", "one"):
        routes = {lv.name: torch.from_numpy(routes_of(spread, len(lv.kinds), ROWS, draw)) for lv, _, _ in CASE.enabled}
        y = compiled(x, routes).fused_hidden
        assert torch.allclose(y, model(x, routes).fused_hidden, atol=1e-6)
        y.sum().backward()
    assert graphs.frame_count == 1


def test_the_order_of_a_platform():
    """`grouped_mm` where it takes the operands, else blocks: on CUDA bfloat16 in widths of 16 bytes."""
    assert grouped.ORDERS["cuda"] == ("grouped_mm", "blocks")

    class Cuda(torch.Tensor):
        device = torch.device("cuda")

    for dtype, width, taken in ((torch.bfloat16, 16, True), (torch.float32, 16, False), (torch.bfloat16, 12, False)):
        x, w = (torch.ones(shape, dtype=dtype).as_subclass(Cuda) for shape in ((3, 16), (2, 16, width)))
        assert grouped.BACKENDS["grouped_mm"].takes(x, w) == taken
