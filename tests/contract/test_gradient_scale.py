"""`gradient_scale`: the level before gets that share of the gradient; values and the expert's own gradients stay."""

import functools

import jax
import numpy as np
import pytest
import torch
from engines import ENGINES
from hierarchies import Case, Level, random_inputs, random_weights
from tolerances import relative_error

from convexmoe_torch.hierarchy import gradient_scale as torch_scale

ROWS, SCALE = 7, 0.3
ROUNDING = 2e-15  # of a few products in float64, relative to the largest entry
# PyTorch runs linear experts as one product and others one by one; JAX has one way
PATHS = [(ENGINES[0], "tanh"), (ENGINES[1], "linear"), (ENGINES[1], "tanh")]
EVERY_PATH = pytest.mark.parametrize(("engine", "kind"), PATHS, ids=["jax", "torch-grouped", "torch-one by one"])


def case_of(kind, scales=(), parents=2):
    """A level of linear experts, and after it one of three experts whose gradients are scaled."""
    child = Level("b", (kind,) * 3, width=11, scales=tuple(enumerate(scales)))
    return Case((Level("a", ("linear",) * parents), child), hidden_size=5, fusion=False)


@functools.cache
def inputs_of(kind):
    """Inputs whose loss hangs on the last level alone."""
    inputs = random_inputs(case_of(kind), ROWS)
    inputs["routes"] = {"a": np.array([0, 1, 1, 0, 1, 0, 0]), "b": np.array([0, 1, 2, 0, 1, 2, 1])}
    inputs["cotangents"]["a"] = np.zeros_like(inputs["cotangents"]["a"])
    return inputs


def run(engine, case, inputs):
    return engine.run(case, engine.build(case, random_weights(case)), inputs)


@functools.cache
def plain(engine, kind):
    """Everything at scale 1."""
    return run(engine, case_of(kind), inputs_of(kind))


@functools.cache
def scaled(engine, kind):
    return run(engine, case_of(kind, (SCALE,) * 3), inputs_of(kind))


def above(found):
    """The gradients of what stands before the scaled level."""
    return {name for name in found if name == "gradient of x" or "level_modules.a." in name}


def error_above(found, wanted, scale):
    return max(relative_error(found[name], scale * wanted[name]) for name in above(wanted))


@EVERY_PATH
def test_the_level_before_gets_its_share(engine, kind):
    found, wanted = scaled(engine, kind), plain(engine, kind)
    assert len(above(wanted)) == 5 and found.keys() == wanted.keys()
    assert error_above(found, wanted, SCALE) < ROUNDING
    assert error_above(found, wanted, SCALE * (1 + 1e-12)) > ROUNDING  # control
    assert error_above(found, wanted, 1.0) > 0.1


@EVERY_PATH
def test_values_and_own_gradients_stay_to_the_bit(engine, kind):
    found, wanted = scaled(engine, kind), plain(engine, kind)
    kept = wanted.keys() - above(wanted)
    assert {"fused", "total", "a", "b", "gradient of level_modules.b.e2.weight"} <= kept
    assert all(found[name].tobytes() == wanted[name].tobytes() for name in kept)
    name = "gradient of level_modules.a.e0.weight"
    assert found[name].tobytes() != wanted[name].tobytes()  # control


def test_control_a_scale_that_is_not_applied_is_seen(engine, monkeypatch):
    hierarchy = engine.package.hierarchy.module
    monkeypatch.setattr(hierarchy, "scale_gradient_of_rows", lambda x, routes, scales: x)
    kind = "linear" if engine.name == "torch" else "tanh"
    engine.forget()
    found = run(engine, case_of(kind, (SCALE,) * 3), inputs_of(kind))
    engine.forget()
    assert error_above(found, plain(engine, kind), SCALE) > 0.1


def with_nan(kind, row):
    """The inputs with a NaN in the cotangent of one row."""
    inputs = inputs_of(kind)
    fused = inputs["cotangents"]["fused"].copy()
    fused[row] = np.nan
    return inputs | {"cotangents": inputs["cotangents"] | {"fused": fused}}


@EVERY_PATH
def test_zero_stops_the_gradient(engine, kind):
    """Also one that is NaN. `stop_gradient_from_parent` is the scale 0 (below)."""
    zero = case_of(kind, (0.0,) * 3)
    for inputs in (inputs_of(kind), with_nan(kind, row=3)):
        found = run(engine, zero, inputs)
        assert all(not found[name].any() for name in above(found))
    assert np.isnan(found["gradient of level_modules.b.e0.weight"]).any()  # control: there was a NaN


@EVERY_PATH
def test_each_row_has_the_scale_of_its_expert(engine, kind):
    scales = np.array([1.0, SCALE, 0.0])
    case, wanted = case_of(kind, scales), plain(engine, kind)["gradient of x"]
    share = scales[inputs_of(kind)["routes"]["b"]][:, None]
    found = run(engine, case, inputs_of(kind))
    assert relative_error(found["gradient of x"], share * wanted) < ROUNDING
    assert relative_error(found["gradient of x"], share[::-1] * wanted) > 0.1  # control
    for row, lost in ((0, True), (1, True), (2, False)):  # of scales 1, 0.3, 0
        by_x = run(engine, case, with_nan(kind, row))["gradient of x"]
        assert np.isnan(by_x[row]).all() == lost and (lost or not by_x[row].any())
        others = np.arange(ROWS) != row
        assert relative_error(by_x[others], found["gradient of x"][others]) < ROUNDING


@pytest.mark.parametrize("cut_input", [False, True])
def test_the_first_level_scales_only_where_the_config_says_so(engine, cut_input):
    levels = tuple(Level("a", ("linear",) * 2, scales=scales) for scales in ((), ((0, SCALE), (1, 0.0))))
    routes = np.array([0, 1, 1, 0, 1, 0, 0])
    found = []
    for level in levels:
        case = Case((level,), hidden_size=5, fusion=False, cut_input=cut_input)
        inputs = random_inputs(case, ROWS) | {"routes": {"a": routes}}
        found.append(run(engine, case, inputs))
    share = np.array([SCALE, 0.0])[routes][:, None] if cut_input else 1.0
    assert relative_error(found[1]["gradient of x"], share * found[0]["gradient of x"]) < ROUNDING
    name = "gradient of level_modules.a.e0.weight"
    assert found[1][name].tobytes() == found[0][name].tobytes()


def reference(case, weights, routes, direction):
    """Hessian of the sum of cubes, and derivative along a direction, where a share of h is differentiated."""
    w = {name: torch.tensor(value) for name, value in weights.items()}
    scales = dict(case.levels[1].scales)

    def function(x):
        rows = []
        for row, route in enumerate(routes["b"]):
            h = x[row] @ w["level_modules.a.e0.weight"] + w["level_modules.a.e0.bias"]
            share = scales.get(int(route), 1.0)
            h = share * h + (1 - share) * h.detach()
            p = {name: w[f"level_modules.b.e{route}.{name}"] for name in ("weight_1", "bias_1", "weight_2", "bias_2")}
            z = torch.nn.functional.gelu(h @ p["weight_1"] + p["bias_1"])
            rows.append(z @ p["weight_2"] + p["bias_2"])
        return (torch.stack(rows) ** 3).sum()

    def at(x):
        hessian = torch.autograd.functional.hessian(function, x)
        return hessian.numpy(), (torch.autograd.functional.jacobian(function, x) * direction).sum().item()

    return at


def derivatives(engine, model, x, routes, direction):
    """Hessians, one a way to compute them, and the derivative along a direction in forward mode."""
    if engine.name == "jax":

        def function(x):
            return (model(x, routes).fused_hidden ** 3).sum()

        @jax.jit
        def both(x):
            return jax.hessian(function)(x), jax.jvp(function, (x,), (direction,))[1]

        hessian, along = both(x)
        return [np.asarray(hessian)], float(along)
    x, routes = engine.array(x), {name: engine.array(value) for name, value in routes.items()}
    model.eval()

    def function(x):
        return (model(x, routes).fused_hidden ** 3).sum()

    hessians = [torch.func.hessian(function)(x), torch.autograd.functional.hessian(function, x)]
    along = torch.func.jvp(function, (x,), (engine.array(direction),))[1]
    return [hessian.detach().numpy() for hessian in hessians], along.item()


def test_forward_mode_and_second_derivatives_scale(engine):
    """Twice in the second: what is scaled is the derivative, wherever it is taken."""
    level = Level("b", ("mlp7",) * 3, width=2, scales=((0, SCALE), (2, 0.0)))
    case = Case((Level("a", ("linear",)), level), hidden_size=3, fusion=False)
    weights, routes = random_weights(case), {"a": np.zeros(4, int), "b": np.array([1, 0, 2, 0])}
    draw = np.random.default_rng(2)
    x, direction = draw.normal(size=(2, 4, 3))
    wanted, along = reference(case, weights, routes, torch.tensor(direction))(torch.tensor(x))
    with engine.precision("float64"):
        model = engine.build(case, weights, every="any")
        hessians, found = derivatives(engine, model, x, routes, direction)
    assert all(relative_error(hessian, wanted) < 1e-12 for hessian in hessians)
    assert abs(found - along) < 1e-12 * abs(along)
    free = Case((case.levels[0], Level("b", ("mlp7",) * 3, width=2)), hidden_size=3, fusion=False)
    whole = reference(free, weights, routes, torch.tensor(direction))(torch.tensor(x))
    assert relative_error(wanted, whole[0]) > 0.1 and abs(along - whole[1]) > 1e-3  # control


@pytest.mark.parametrize("scales", [pytest.param((SCALE,) * 3, marks=pytest.mark.release), (1.0, SCALE, 0.0)])
def test_torch_compiles_one_graph_with_a_scale(monkeypatch, scales):
    engine, case = ENGINES[1], case_of("linear", scales)
    model, inputs = engine.build(case, random_weights(case)), inputs_of("linear")
    routes = {name: torch.tensor(value) for name, value in inputs["routes"].items()}
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = []
    for call in (model, compiled):
        x = torch.tensor(inputs["x"], requires_grad=True)
        output = call(x, routes).fused_hidden
        found.append([output, *torch.autograd.grad((output**3).sum(), [x, *model.parameters()])])
    for one, other in zip(*found, strict=True):
        assert relative_error(other.detach(), one.detach()) < ROUNDING
    monkeypatch.setattr(torch_scale, "_Scale", torch_scale._ScaleBothWays)  # control
    torch.compiler.reset()
    with pytest.raises(Exception, match="jvp"):
        torch.compile(model, fullgraph=True, backend="aot_eager")(x, routes)
    torch.compiler.reset()


def test_torch_copies_scales_to_the_device_once():
    """Also where the first call is in inference mode, whose tensors take no part in gradients."""
    torch_scale._scale_table.cache_clear()
    x, routes = torch.ones(3, 2), torch.tensor([0, 1, 0])
    with torch.inference_mode():
        torch_scale.scale_gradient_of_rows(x, routes, [1.0, 0.25])
    for scale in (0.25, 0.25, 0.5):
        x = torch.ones(3, 2, requires_grad=True)
        torch_scale.scale_gradient_of_rows(x, routes, [1.0, scale]).sum().backward()
        assert x.grad[:, 0].tolist() == [1.0, scale, 1.0]
    found = torch_scale._scale_table.cache_info()
    assert (found.hits, found.misses) == (2, 2)  # control: other scales are copied


SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-310, 1.7e308, 0.1])


def test_no_value_is_changed(engine):
    """A sum of shares would change a minus zero, an infinity or the last bit."""
    scale = engine.package.hierarchy.gradient_scale
    with engine.precision("float64"):
        x = engine.array(SPECIAL)
        assert scale.scale_gradient(x, 1.0) is x
        for share in (SCALE, 0.0):
            assert np.asarray(scale.scale_gradient(x, share)).tobytes() == SPECIAL.tobytes()
        rows = scale.scale_gradient_of_rows(x, engine.array(np.arange(8) % 3), [1.0, SCALE, 0.0])
        assert np.asarray(rows).tobytes() == SPECIAL.tobytes()
        with np.errstate(all="ignore"):
            sums = np.asarray(SCALE * SPECIAL + (1 - SCALE) * SPECIAL)
        assert sums.tobytes() != SPECIAL.tobytes()  # control


@pytest.mark.parametrize("scale", [-0.1, 1.1, float("nan"), "1", True, None])
def test_a_scale_out_of_range_is_refused(engine, scale):
    with pytest.raises(ValueError) as error:
        engine.package.ExpertConfig("a", gradient_scale=scale)
    fix = "Pass gradient_scale=1.0 for the whole gradient."
    assert str(error.value) == f"ExpertConfig.gradient_scale: expected a number in [0, 1]; got {scale!r}. {fix}"


def test_a_stop_comes_before_a_scale(engine):
    expert = engine.package.ExpertConfig
    assert expert("a", gradient_scale=0.5).scale_to_parent == 0.5
    assert expert("a", stop_gradient_from_parent=True, gradient_scale=0.5).scale_to_parent == 0.0
    assert expert("a").scale_to_parent == 1.0 and type(expert("a", gradient_scale=1).gradient_scale) is float
