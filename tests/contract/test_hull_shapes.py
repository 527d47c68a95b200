"""Hulls with a context, signs of slopes, another curvature or a bound: one contract for both packages."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import shaped_reference
import torch
from tolerances import VALUES, relative_error

from convexmoe import HullConfig, Normalization

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONTEXTS = [name for name, fields in cases.SHAPED.items() if "context_dim" in fields]


def built(backend, name, dtype="float64"):
    fields = cases.SHAPED[name]
    return backend.model(fields, cases.random_weights(fields), dtype)


def values(backend, model, method, *arrays):
    with backend.precision(str(arrays[0].dtype)):
        return backend.numpy(backend.call(model, method, *map(backend.array, arrays)))


@pytest.mark.parametrize("name", cases.SHAPED)
def test_values_are_those_of_the_formulas(backend, name):
    fields, model = cases.SHAPED[name], built(backend, name)
    weights, (x, *context) = cases.random_weights(fields), cases.random_arguments(fields)
    wanted = shaped_reference.hull(weights, x, context[0] if context else None, fields)
    assert relative_error(values(backend, model, "__call__", x, *context), wanted) < VALUES["float64"]
    assert relative_error(values(backend, backend.fold(model), "__call__", x, *context), wanted) < VALUES["float64"]
    if name == "all":  # control: every weight is seen
        for leaf in weights:
            changed = backend.model(fields, weights | {leaf: 1.01 * weights[leaf]})
            assert relative_error(values(backend, changed, "__call__", x, *context), wanted) > 1e-9, leaf


@pytest.mark.parametrize("name", CONTEXTS)
def test_a_batch_of_contexts_is_its_single_contexts(backend, name):
    fields, model = cases.SHAPED[name], built(backend, name)
    x, c = cases.random_arguments(fields, (5,))
    y = values(backend, model, "__call__", x, c)
    for row in range(5):
        assert relative_error(values(backend, model, "__call__", x, c[row])[row], y[row]) < VALUES["float64"]
        with backend.precision("float64"):
            plain = backend.call(model, "at", backend.array(c[row])) if backend.name == "torch" else model.at(c[row])
        assert plain.config.context_dim == 0 and plain.config.monotone == model.config.monotone
        assert relative_error(values(backend, plain, "__call__", x)[row], y[row]) < VALUES["float64"]
    assert relative_error(values(backend, model, "__call__", x, c[::-1].copy()), y) > 1e-3  # control


SHAPES = [((), ()), ((4, 5), ()), ((2, 1, 5), (4, 1)), ((5,), (7, 1)), ((1,), (3,)), ((0,), ()), ((0,), (0,))]


@pytest.mark.parametrize(("of_x", "of_c"), SHAPES)
def test_leading_axes_are_broadcast(backend, of_x, of_c):
    fields, model = cases.SHAPED["all"], built(backend, "all")
    x, c = cases.random_inputs(fields, of_x), cases.random_contexts(fields, of_c)
    leading = np.broadcast_shapes(of_x, of_c)
    y = values(backend, model, "__call__", x, c)
    assert y.shape == (*leading, 2)
    rows = [np.broadcast_to(part, (*leading, part.shape[-1])).reshape(-1, part.shape[-1]) for part in (x, c)]
    if y.size:
        wanted = shaped_reference.hull(cases.random_weights(fields), *rows, fields)
        assert relative_error(y.reshape(-1, 2), wanted) < VALUES["float64"]


@pytest.mark.parametrize("name", ["context_units", "all_rising", "concave"])
def test_winners_follow_the_context(backend, name):
    fields, model = cases.SHAPED[name], built(backend, name)
    x, *context = cases.random_arguments(fields, (13,))
    with backend.precision("float64"):
        found = backend.call(model, "winners", *map(backend.array, (x, *context)))
        group, margin = map(backend.numpy, found)
        one = [backend.array(part[3]) for part in (x, *context)]
        single = backend.call(model, "winners", *one)
    assert group.shape == (13, model.config.out_dim) and (margin >= 0).all()
    assert (backend.numpy(single.group) == group[3]).all()
    assert relative_error(backend.numpy(single.margin), margin[3]) < 1e-12
    if context:
        assert len(set(map(tuple, group.tolist()))) > 1


@pytest.mark.parametrize("name", ["context", pytest.param("all", marks=pytest.mark.release)])
def test_transformations_give_the_same(backend, name):
    fields, model = cases.SHAPED[name], built(backend, name)
    x, c = cases.random_arguments(fields, (5,))
    y = values(backend, model, "__call__", x, c)
    vmap, grad = (jax.vmap, jax.grad) if backend.name == "jax" else (torch.func.vmap, torch.func.grad)
    with backend.precision("float64"):
        x, c = map(backend.array, (x, c))
        assert relative_error(backend.numpy(vmap(model)(x, c)), y) < VALUES["float64"]
        assert relative_error(backend.numpy(vmap(model, (0, None))(x, c[2]))[2], y[2]) < VALUES["float64"]
        slopes = grad(lambda x, c: model(x, c).sum(), (0, 1))(x, c)
        step = 1e-6
        for k, part in enumerate((x, c)):
            at = [[x, c], [x, c]]
            direction = backend.array(np.cos(np.arange(float(np.prod(part.shape)))).reshape(part.shape))
            at[0][k], at[1][k] = part + step * direction, part - step * direction
            rise = float(backend.numpy(model(*at[0]).sum() - model(*at[1]).sum())) / (2 * step)
            assert float((slopes[k] * direction).sum()) == pytest.approx(rise, rel=1e-5, abs=1e-5)


def test_one_graph_compiles_in_torch():
    from backends import Torch

    torch.compiler.reset()
    fields, model = cases.SHAPED["all"], built(Torch(), "all")
    x, c = map(torch.from_numpy, cases.random_arguments(fields))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for context in (c, c[0]):
        assert relative_error(compiled(x, context).detach(), model(x, context).detach()) < VALUES["float64"]
    torch.compiler.reset()


@pytest.mark.parametrize("name", ["context_units", "all"])
def test_state_and_parameters_go_there_and_back(backend, name):
    fields, model = cases.SHAPED[name], built(backend, name)
    given = cases.random_arguments(fields)
    y = values(backend, model, "__call__", *given)
    weights = backend.weights(model)
    assert {key: value.shape for key, value in weights.items()} == cases.weight_shapes(fields)
    assert np.array_equal(values(backend, backend.model(fields, weights), "__call__", *given), y)
    with backend.precision("float64"), pytest.raises(ValueError, match=r"missing .*context.readout.shifts"):
        backend.model(fields, {key: value for key, value in weights.items() if key != "context.readout.shifts"})
    if backend.name == "torch":
        other = backend.fresh(fields, 5, "float64")
        other.load_state_dict(model.state_dict())
        assert np.array_equal(values(backend, other, "__call__", *given), y)
        assert other.normalization.context_mean.tolist() == list(cases.CONTEXT_UNITS["context_mean"])


X, C = np.zeros((4, 5), np.float32), np.zeros((4, 3), np.float32)
BAD_CALLS = {
    "missing": (
        "context",
        (X,),
        TypeError,
        "VectorHull.context: expected an array, [..., context_dim=3]; got None. Pass it: model(x, context).",
    ),
    "of a plain hull": ("nonnegative", (X, C), TypeError, "VectorHull.context: expected None for a hull without a "),
    "another width": (
        "context",
        (X, C[:, :2]),
        ValueError,
        "VectorHull.context: expected last axis context_dim=3; got float32[4, 2]. Give one number for each.",
    ),
    "another dtype": (
        "context",
        (X, C.astype(np.float16)),
        TypeError,
        "VectorHull.context: expected dtype float32, as the parameters have; got float16[4, 3]. ",
    ),
    "other leading axes": (
        "context",
        (X, C[:3]),
        ValueError,
        "VectorHull.context: expected leading axes that broadcast with those of x; got [3] beside [4] of x. "
        "Give one context for all rows, or one a row.",
    ),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_both_packages_refuse_with_the_same_words(backend, case):
    name, given, kind, message = BAD_CALLS[case]
    model = built(backend, name, "float32")
    for method in ("__call__", "winners"):
        with pytest.raises(kind) as error:
            getattr(model, method)(*map(backend.array, given))
        assert str(error.value).startswith(message), str(error.value)
    if case == "missing":
        with pytest.raises(ValueError, match=r"VectorHull.context: expected one context, \[context_dim=3\]; got"):
            model.at(backend.array(C))
    if case == "of a plain hull":
        with pytest.raises(ValueError, match=r"VectorHull.at: expected a hull with a context; got context_dim=0."):
            model.at(backend.array(C[0]))


BAD_CONFIGS = [
    ({"context_hidden_dim": 3}, ValueError, "HullConfig.context_hidden_dim: expected None without a context; got 3. "),
    ({"context_dim": -1}, ValueError, "HullConfig.context_dim: expected a whole number >= 0; got -1. "),
    ({"context_dim": 2, "context_hidden_dim": 0}, ValueError, "HullConfig.context_hidden_dim: expected a whole number"),
    ({"monotone": (1, 1)}, ValueError, "HullConfig.monotone: expected None or 5 numbers of -1, 0 and 1; got (1, 1). "),
    ({"monotone": "+++++"}, TypeError, "HullConfig.monotone: expected None or 5 numbers of -1, 0 and 1; got '+++++'. "),
    ({"monotone": (1, 2, 0, 0, 0)}, ValueError, "HullConfig.monotone: expected None or 5 numbers"),
    (
        {"monotone": (1, 0, 0, 0, 0), "strong_convexity": 0.1},
        ValueError,
        "HullConfig.strong_convexity: expected 0 for a monotone hull: ||x||^2 falls and rises; got 0.1. ",
    ),
    ({"curvature": "flat"}, ValueError, "HullConfig.curvature: expected one of ['convex', 'concave']; got 'flat'. "),
    ({"nonnegative": 1}, ValueError, "HullConfig.nonnegative: expected one of [False, True]; got 1. "),
    (
        {"nonnegative": True, "normalization": Normalization(**cases.UNITS)},
        ValueError,
        "HullConfig.normalization: expected output_mean=0 for a nonnegative hull; got (-4.0, 300.0). ",
    ),
    (
        {"context_dim": 2, "normalization": Normalization(**(cases.UNITS | cases.CONTEXT_UNITS))},
        ValueError,
        "HullConfig.normalization: expected 2 numbers for the context; got 3. ",
    ),
]


@pytest.mark.parametrize(("changes", "kind", "message"), BAD_CONFIGS)
def test_contradictions_are_refused(changes, kind, message):
    with pytest.raises(kind) as error:
        HullConfig(**(cases.fields() | changes))
    assert str(error.value).startswith(message), str(error.value)


def test_json_of_a_shaped_config_goes_there_and_back(backend):
    for fields in cases.SHAPED.values():
        config = backend.config(fields)
        again = HullConfig.from_json(config.to_json())
        assert again == config and again.to_json() == config.to_json()
    assert backend.config(cases.fields(context_dim=3)).context_hidden_dim == 32


def expert(backend, hull):
    return backend.package.HullExpert(hull)


def hierarchy(backend, hull):
    package = backend.package
    level = package.HierarchyLevelConfig("a", [package.ExpertConfig("x")])
    config = package.CELMoEConfig(5, [level], fusion_dropout=0.0)
    if backend.name == "torch":
        return package.HierarchicalCELMoE(config, lambda level, name, _: expert(backend, hull)).eval()
    from flax import nnx

    return package.HierarchicalCELMoE(config, lambda level, name, _, *, rngs: expert(backend, hull), rngs=nnx.Rngs(0))


def test_an_expert_takes_the_context_of_its_rows(backend):
    fields = cases.fields(out_dim=5, **cases.CONTEXT)
    hull = backend.model(fields, cases.random_weights(fields), "float32")
    model, routes = hierarchy(backend, hull), {"a": ["x"] * 4}
    x, c = (part.astype(np.float32) for part in cases.random_arguments(fields, (4,)))
    wanted, one = values(backend, hull, "__call__", x, c), values(backend, hull, "__call__", x, c[0])
    h, shared = backend.array(x), backend.package.Shared
    given = {
        "an array": (backend.array(c), wanted),
        "a mapping": ({"hull": backend.array(c), "text": "t"}, wanted),
        "shared": (shared(backend.array(c[0])), one),
    }
    for name, (context, expected) in given.items():
        assert relative_error(backend.numpy(model(h, routes, context).levels["a"].hidden), expected) < 1e-5, name
    with pytest.raises(ValueError, match=r"HullExpert.context: expected an entry 'hull' for a hull with context_dim=3"):
        model(h, routes, {"other": backend.array(c)})
    with pytest.raises(TypeError, match=r"VectorHull.context: expected an array, \[..., context_dim=3\]; got None"):
        model(h, routes)
    spoilt = np.where(np.arange(4)[:, None] == 0, np.nan, c).astype(np.float32)
    found = backend.numpy(model(h, routes, backend.array(spoilt)).levels["a"].hidden)
    assert np.isnan(found[0]).all() and relative_error(found[1:], wanted[1:]) < 1e-5
    sequence = np.stack([x, 2 * x], 1)  # [rows, positions, width]
    expected = values(backend, hull, "__call__", sequence, c[:, None])
    found = model(backend.array(sequence), routes, backend.array(c)).levels["a"].hidden
    assert relative_error(backend.numpy(found), expected) < 1e-5


def test_exports_of_a_hull_with_everything(backend):
    fields, model = cases.SHAPED["all"], built(backend, "all", "float32")
    example, other = (
        [backend.array(part.astype(np.float32)) for part in cases.random_arguments(fields, (rows,))] for rows in (7, 41)
    )
    wanted = values(backend, model, "__call__", *map(backend.numpy, other))
    if backend.name == "jax":
        from jax import export

        scope = export.SymbolicScope()
        shapes = [export.symbolic_shape(f"rows, {width}", scope=scope) for width in (5, 3)]
        program = export.export(jax.jit(lambda x, c: model(x, c)))(
            *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
        )
        found = np.asarray(export.deserialize(program.serialize()).call(*other))
        assert relative_error(found, wanted) < VALUES["float32"]
        return
    import onnxruntime

    rows = torch.export.Dim("rows")
    program = torch.export.export(model.eval(), tuple(example), dynamic_shapes=({0: rows}, {0: rows}))
    assert relative_error(program.module()(*other).detach(), wanted) < VALUES["float32"]
    file = torch.onnx.export(program, dynamo=True, verbose=False).model_proto
    session = onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [part.name for part in session.get_inputs()]
    [found] = session.run(None, dict(zip(names, map(backend.numpy, other), strict=True)))
    assert relative_error(found, wanted) < VALUES["float32"]
