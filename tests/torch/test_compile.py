"""`torch.compile(fullgraph=True)`: one graph, the same outputs and gradients, compiled once for equal shapes."""

import cases
import pytest
import torch
from backends import BACKENDS
from tolerances import VALUES, relative_error
from torch._dynamo.testing import CompileCounter

BACKEND = BACKENDS[1]
# softplus with private trunks stands below: the backend "aot_eager" takes the gradient of softplus for contiguous
HULLS = ["default", "learned", "gate_private", "units_smooth"]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def model_of(hull, dtype="float64"):
    fields = cases.HULLS[hull]
    return BACKEND.model(fields, cases.random_weights(fields), dtype)


def inputs(hull, rows=cases.ROWS, dtype=torch.float64):
    return torch.from_numpy(cases.random_inputs(cases.HULLS[hull], (rows,))).to(dtype)


def outcome(function, model, x):
    """y, and the gradients of sum(y^2) by every weight and by x."""
    x = x.clone().requires_grad_()
    y = function(x)
    gradients = torch.autograd.grad((y**2).sum(), [*model.parameters(), x], allow_unused=True, materialize_grads=True)
    return [y.detach(), *gradients]


@pytest.mark.parametrize("hull", HULLS)
def test_one_graph_gives_the_same_outputs_and_gradients(hull):
    model, x = model_of(hull), inputs(hull)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for got, wanted in zip(outcome(compiled, model, x), outcome(model, model, x), strict=True):
        assert relative_error(got, wanted) < VALUES["float64"]


def test_control_a_break_in_the_graph_is_an_error():
    model = model_of("default")

    def broken(x):
        y = model(x)
        torch._dynamo.graph_break()
        return y + 1.0

    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(broken, fullgraph=True, backend="eager")(inputs("default"))


@pytest.mark.release
def test_the_default_compiler_gives_the_same():
    fields = cases.fields(trunk="private", temperature="learned", normalization=cases.UNITS)
    model, x = (BACKEND.model(fields, cases.random_weights(fields), "float32"), inputs("units", dtype=torch.float32))
    compiled = torch.compile(model, fullgraph=True)
    for got, wanted in zip(outcome(compiled, model, x), outcome(model, model, x), strict=True):
        assert relative_error(got, wanted) < 5 * VALUES["float32"]  # fused sums round in another order


def test_equal_shapes_compile_once():
    counter = CompileCounter()
    model = model_of("learned")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for _ in range(3):
        compiled(inputs("learned"))
    assert counter.frame_count == 1
    for rows in (7, 13, 17, 19, 23):
        compiled(inputs("learned", rows))
    assert counter.frame_count == 2  # control: one more, which serves every number of rows


def test_winners_and_folded_compile():
    model, x = model_of("units_smooth"), inputs("units_smooth")
    group, margin = torch.compile(model.winners, fullgraph=True, backend="aot_eager")(x)
    wanted = model.winners(x)
    assert (
        torch.equal(group, wanted.group) and relative_error(margin.detach(), wanted.margin.detach()) < VALUES["float64"]
    )
    folded = model.fold()
    y = torch.compile(folded, fullgraph=True, backend="aot_eager")(x)
    assert relative_error(y, model(x).detach()) < VALUES["float64"]


def test_checks_survive_compilation():
    compiled = torch.compile(model_of("default"), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=r"VectorHull\.x: expected last axis in_dim=5"):
        compiled(torch.zeros(cases.ROWS, 7, dtype=torch.float64))


def test_export_keeps_one_graph():
    model, x = model_of("units_smooth"), inputs("units_smooth")
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("rows")},))
    more = inputs("units_smooth", 29)
    assert relative_error(program.module()(more).detach(), model(more).detach()) < VALUES["float64"]
