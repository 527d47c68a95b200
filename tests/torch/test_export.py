"""`torch.export` and ONNX: what was written and read back gives what the model gives, for batches of any size."""

import functools
import io
from collections import Counter

import cases
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from backends import BACKENDS
from deployments import CASE, FEW, HULLS, ROUTINGS, ROWS, SIZES, in_full, rows_of
from engines import ENGINES
from hierarchies import Case, Level, random_weights, uniform
from tolerances import VALUES, relative_error

import convexmoe_torch

BACKEND, ENGINE = BACKENDS[1], ENGINES[1]
ANY_SIZE = ({0: torch.export.Dim("rows")},)


def exported(model, x, shapes=ANY_SIZE):
    return torch.export.export(model.eval(), (x,), dynamic_shapes=shapes)


def read_back(program):
    """The program after it was written to a file and read."""
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


def onnx_file(program):
    return torch.onnx.export(program, dynamo=True, verbose=False).model_proto


def run_onnx(file, x):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file.SerializeToString(), options, providers=["CPUExecutionProvider"])
    [found] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return found


def hull(name, dtype="float32"):
    return BACKEND.model(HULLS[name], cases.random_weights(HULLS[name]), dtype)


def inputs(name, rows, dtype=torch.float32):
    return torch.from_numpy(cases.random_inputs(HULLS[name], (rows,))).to(dtype)


@functools.cache
def exported_hull(name):
    """A hull, its program, and its ONNX file."""
    model = hull(name)
    program = exported(model, inputs(name, 7))
    return model, program, onnx_file(program)


@pytest.mark.parametrize(
    "name", [name if name in FEW else pytest.param(name, marks=pytest.mark.release) for name in HULLS]
)
def test_a_hull_comes_back_the_same(name):
    model, program, file = exported_hull(name)
    module = read_back(program)
    onnx.checker.check_model(file, full_check=True)
    for rows in SIZES:
        x = inputs(name, rows)
        wanted = model(x).detach()
        assert relative_error(module(x).detach(), wanted) < VALUES["float32"]
        assert relative_error(run_onnx(file, x), wanted) < VALUES["float32"]


def test_so_does_its_gradient_in_float64():
    model = hull("default", "float64")
    module = read_back(exported(model, inputs("default", 7, torch.float64)))
    x = inputs("default", 41, torch.float64).requires_grad_()
    assert relative_error(module(x).detach(), model(x).detach()) < VALUES["float64"]
    found, wanted = (torch.autograd.grad((f(x) ** 2).sum(), x)[0] for f in (module, model))
    assert relative_error(found, wanted) < 1e-12


def test_a_folded_hull_too():
    model, _, _ = exported_hull("default")
    module, x = read_back(exported(model.fold(), inputs("default", 7))), inputs("default", 41)
    assert relative_error(module(x), model(x).detach()) < VALUES["float32"]


def test_control_every_array_of_the_onnx_file_is_seen():
    (model, _, file), x = exported_hull("default"), inputs("default", 41)
    wanted, seen = model(x).detach(), 0
    assert relative_error(run_onnx(file, x), wanted) < VALUES["float32"]
    for place, array in enumerate(file.graph.initializer):
        values = onnx.numpy_helper.to_array(array)
        if values.dtype == np.float32 and values.size > 1:  # what is not of the weights is a number or a shape
            moved = onnx.ModelProto()
            moved.CopyFrom(file)
            moved.graph.initializer[place].CopyFrom(
                onnx.numpy_helper.from_array(values * np.float32(1.001), array.name)
            )
            assert relative_error(run_onnx(moved, x), wanted) > 10 * VALUES["float32"], array.name
            seen += 1
    assert seen == len(list(model.parameters()))


def hierarchy(name, dtype="float32"):
    model = ENGINE.build(CASE, random_weights(CASE), dtype)
    return model.eval(), convexmoe_torch.FixedHierarchy(model, ROUTINGS[name])


def traced(fixed, dtype="float32"):
    x = torch.from_numpy(rows_of(CASE, ROWS, dtype))
    return exported(fixed, x, ANY_SIZE if fixed.rows is None else None)


@functools.cache
def exported_hierarchy(name):
    """A hierarchy, the same with fixed routes, its program, and its ONNX file."""
    model, fixed = hierarchy(name)
    program = traced(fixed)
    return model, fixed, program, onnx_file(program)


@pytest.mark.parametrize("name", ["one expert a level", "names", pytest.param("both", marks=pytest.mark.release)])
def test_a_hierarchy_comes_back_the_same(name):
    model, fixed, program, file = exported_hierarchy(name)
    module = read_back(program)
    onnx.checker.check_model(file, full_check=True)
    for rows in SIZES if fixed.rows is None else (ROWS,):
        x = torch.from_numpy(rows_of(CASE, rows))
        wanted = model(x, in_full(ROUTINGS[name], rows)).fused_hidden.detach()
        assert relative_error(module(x), wanted) < 1e-5
        assert relative_error(run_onnx(file, x), wanted) < 1e-5


@pytest.mark.parametrize("name", ["fallback", "integers"])
def test_a_hierarchy_in_float64(name):
    model, fixed = hierarchy(name, "float64")
    x = torch.from_numpy(rows_of(CASE, ROWS, "float64"))
    wanted = model(x, in_full(ROUTINGS[name], ROWS)).fused_hidden.detach()
    assert relative_error(read_back(traced(fixed, "float64"))(x), wanted) < 1e-12


def test_control_another_plan_is_seen():
    model, _ = hierarchy("both")
    routes, x = ROUTINGS["both"]["b"], torch.from_numpy(rows_of(CASE, ROWS))
    wanted = model(x, in_full(ROUTINGS["both"], ROWS)).fused_hidden.detach()
    other = ROUTINGS["both"] | {"b": [routes[1], routes[0], *routes[2:]]}
    found = run_onnx(onnx_file(traced(convexmoe_torch.FixedHierarchy(model, other))), x)
    assert relative_error(found[:2], wanted[:2]) > 1e-2 and relative_error(found[2:], wanted[2:]) < 1e-5


def operations(name):
    """The operations of an ONNX file, with their numbers."""
    return Counter(node.op_type for node in exported_hierarchy(name)[3].graph.node)


def test_one_expert_a_level_runs_that_expert_and_nothing_else():
    found = operations("one expert a level")
    assert found["Gemm"] + found["MatMul"] == 2 + 1 + 2  # an MLP, a linear, the fusion's gates
    assert not {"Gather", "Split", "Concat", "Scatter", "Loop", "If"} & found.keys()
    by_row = operations("names")
    assert by_row["Gather"] == 2 * 2 and by_row["Split"] == by_row["Concat"] == 2  # control


class Routed(torch.nn.Module):
    """A hierarchy whose routes are an argument."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, routes):
        return self.model(x, {"only": routes}).fused_hidden


def own_operators(program):
    targets = {str(node.target) for node in program.graph.nodes}
    return {target for target in targets if target.startswith("convexmoe")}


def test_no_operator_of_our_own_is_in_a_program():
    for name in ("one expert a level", "names"):
        assert own_operators(exported_hierarchy(name)[2]) == set()
    case, routes = uniform("linear", 3), torch.tensor([2, 0, 0, 1, 2, 2])
    routed = Routed(ENGINE.build(case, random_weights(case), "float32"))
    control = torch.export.export(routed.eval(), (torch.from_numpy(rows_of(case, ROWS)), routes))
    assert own_operators(control) == {"convexmoe.grouped_linear.default"}


def test_it_stays_in_evaluation_and_is_not_trained():
    _, fixed = hierarchy("names")
    assert not fixed.train().training and not any(module.training for module in fixed.modules())
    assert not any(parameter.requires_grad for parameter in fixed.parameters())
    assert not any(name.startswith(("take", "back")) for name in fixed.state_dict())


@pytest.mark.parametrize("names", [["e0"] * 7, ["e0", "e1", "e2", "e1", "e0", "e2", "e2"]], ids=["one", "all"])
def test_a_scaled_gradient_is_exported_as_it_is(names):
    case = Case((Level("a", ("linear",)), Level("b", ("linear",) * 3, stops=(2,), scales=((0, 0.3), (1, 0.7)))))
    model = ENGINE.build(case, random_weights(case))
    fixed = convexmoe_torch.FixedHierarchy(model, {"b": names})
    x = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    program = torch.export.export(fixed, (x,)).module()

    def by_input(call):
        at = x.clone().requires_grad_()
        y = call(at)
        return y, torch.autograd.grad(y.square().sum(), at)[0]

    (y, gradient), (wanted, by_x) = by_input(program), by_input(fixed)
    assert torch.equal(y, wanted) and torch.allclose(gradient, by_x, rtol=1e-13, atol=0)
    whole = ENGINE.build(Case((case.levels[0], Level("b", ("linear",) * 3))), random_weights(case))
    _, other = by_input(convexmoe_torch.FixedHierarchy(whole, {"b": names}))
    assert not torch.allclose(other, by_x, rtol=1e-3, atol=0)  # control


@pytest.mark.filterwarnings("ignore")  # of the exporter's own, and of checks of shapes
@pytest.mark.parametrize("name", ["everything", "temperature 30", *list(ROUTINGS)[:3:2]])
def test_the_older_exporter_and_a_trace(name):
    if name in ROUTINGS:
        model = hierarchy(name)[1]
        x = [torch.from_numpy(rows_of(CASE, ROWS if model.rows else rows)) for rows in (ROWS, 41)]
    else:
        model = hull(name) if name in HULLS else convexmoe_torch.VectorHull(5, 4, temperature=30.0)
        x = [torch.randn(rows, model.config.in_dim) for rows in (7, 41)]
    file, wanted = io.BytesIO(), model(x[1]).detach()
    free = None if getattr(model, "rows", None) else {"x": {0: "rows"}}
    torch.onnx.export(model, (x[0],), file, dynamo=False, input_names=["x"], dynamic_axes=free)
    assert relative_error(run_onnx(onnx.load_from_string(file.getvalue()), x[1]), wanted) < 1e-5
    assert relative_error(torch.jit.trace(model, (x[0],))(x[1]).detach(), wanted) < VALUES["float32"]


@pytest.mark.filterwarnings("ignore")
def test_a_hierarchy_whose_routes_are_not_fixed_is_not_traced():
    """Their plan would be that of the routes of the trace, in silence."""
    model, x = hierarchy("names")[0], torch.from_numpy(rows_of(CASE, ROWS))
    routes = {"a": torch.zeros(ROWS, dtype=torch.int64), "b": torch.zeros(ROWS, dtype=torch.int64)}
    for trace in (torch.jit.trace, lambda *given: torch.onnx.export(*given, io.BytesIO(), dynamo=False)):
        with pytest.raises(
            ValueError, match=r"HierarchicalCELMoE\.routing: expected .* FixedHierarchy\(model, routing\)"
        ):
            trace(model, (x, routes))
