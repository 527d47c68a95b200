"""`jax.export`: what was written as StableHLO and read back gives what the model gives, for batches of any size."""

import re
from collections import Counter

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from backends import BACKENDS
from deployments import CASE, FEW, HULLS, ROUTINGS, ROWS, SIZES, in_full, rows_of, wanted
from engines import ENGINES
from flax import nnx
from hierarchies import random_weights
from jax import export
from tolerances import VALUES, relative_error

import convexmoe_jax

BACKEND, ENGINE = BACKENDS[0], ENGINES[0]
PLATFORMS = ["cpu", "cuda", "tpu"]
EXACT = {"float32": 1e-5, "float64": 1e-12}


def hull(name, dtype="float32"):
    return BACKEND.model(HULLS[name], cases.random_weights(HULLS[name]), dtype)


def inputs(name, rows, dtype="float32"):
    return jnp.asarray(cases.random_inputs(HULLS[name], (rows,)), dtype)


def written(function, *axes, dtype="float32", order=0, platforms=None):
    """The bytes of the exported function; `axes` are those of its argument, a name for one of any size."""
    shape = export.symbolic_shape(", ".join(map(str, axes)))
    program = export.export(jax.jit(function), platforms=platforms)(jax.ShapeDtypeStruct(shape, dtype))
    return program.serialize(vjp_order=order)


def gradient(function, x):
    return jax.jit(jax.grad(lambda x: jnp.sum(function(x) ** 2)))(x)


@pytest.mark.parametrize(
    "name", [name if name in FEW else pytest.param(name, marks=pytest.mark.release) for name in HULLS]
)
def test_a_hull_comes_back_the_same(name):
    model = hull(name)
    program = export.deserialize(written(model, "rows", HULLS[name]["in_dim"], platforms=PLATFORMS))
    assert program.platforms == tuple(PLATFORMS)
    for rows in SIZES:
        x = inputs(name, rows)
        assert relative_error(program.call(x), jax.jit(model)(x)) < VALUES["float32"]


def test_so_does_its_gradient_in_float64(x64):
    model, x = hull("default", "float64"), inputs("default", 41, "float64")
    program = export.deserialize(written(model.fold(), "rows", 5, dtype="float64", order=1))
    assert relative_error(program.call(x), jax.jit(model)(x)) < VALUES["float64"]
    assert relative_error(gradient(program.call, x), gradient(model, x)) < 1e-12


def test_control_another_weight_is_seen():
    model, x = hull("default"), inputs("default", 41)
    flat, good = convexmoe_jax.hull.flatten(model.params), jax.jit(model)(x)
    apply = jax.jit(lambda params, x: convexmoe_jax.hull.apply(params, x, model.config))
    for leaf in flat:
        params = convexmoe_jax.hull.nest(flat | {leaf: 1.001 * flat[leaf]})
        assert relative_error(apply(params, x), good) > 10 * VALUES["float32"], leaf
    other = convexmoe_jax.VectorHull.from_params(model.config, params)
    found = export.deserialize(written(other, "rows", 5)).call(x)
    assert relative_error(found, good) > 10 * VALUES["float32"]


def model_of(dtype):
    return ENGINE.build(CASE, random_weights(CASE), dtype)


@pytest.mark.parametrize(
    ("name", "dtype"), [pytest.param("one expert a level", "float32", marks=pytest.mark.release), ("both", "float64")]
)
def test_a_hierarchy_comes_back_the_same(name, dtype):
    with ENGINE.precision(dtype):
        model, routing = model_of(dtype), ROUTINGS[name]
        fixed = convexmoe_jax.FixedHierarchy(model, routing)
        axis = "rows" if fixed.rows is None else ROWS
        program = export.deserialize(written(fixed, axis, 5, dtype=dtype, order=1, platforms=PLATFORMS))
        for rows in SIZES if fixed.rows is None else (ROWS,):
            x = jnp.asarray(rows_of(CASE, rows, dtype))
            assert relative_error(program.call(x), jax.jit(fixed)(x)) < EXACT[dtype]
        assert relative_error(gradient(program.call, x), gradient(fixed, x)) < 10 * EXACT[dtype]
        x = rows_of(CASE, ROWS, dtype)
        assert relative_error(program.call(x), wanted(ENGINE, model, routing, x)) < EXACT[dtype]


def test_control_another_plan_is_seen():
    model, x, routing = model_of("float32"), rows_of(CASE, ROWS), ROUTINGS["both"]
    good, routes = wanted(ENGINE, model, routing, x), routing["b"]
    other = routing | {"b": [routes[1], routes[0], *routes[2:]]}
    found = export.deserialize(written(convexmoe_jax.FixedHierarchy(model, other), ROWS, 5)).call(x)
    assert relative_error(found[:2], good[:2]) > 1e-2 and relative_error(found[2:], good[2:]) < 1e-5


def operations(function):
    """The operations of a function of six rows, with their numbers."""
    program = export.export(jax.jit(function))(jax.ShapeDtypeStruct((ROWS, 5), "float32"))
    return Counter(re.findall(r"(?<!#)stablehlo\.(\w+)", program.mlir_module()))


def test_one_expert_a_level_runs_that_expert_and_nothing_else():
    model, routing = model_of("float32"), ROUTINGS["one expert a level"]
    found = operations(convexmoe_jax.FixedHierarchy(model, routing))
    assert found["dot_general"] == 2 + 1 + 2  # an MLP, a linear, the fusion's gates
    routed = {"sort", "while", "gather", "dynamic_slice", "scatter"}
    assert not routed & found.keys()
    control = operations(lambda x: model(x, in_full(routing, ROWS)).fused_hidden)
    assert {"while", "dynamic_slice"} <= control.keys()
    by_row = operations(convexmoe_jax.FixedHierarchy(model, ROUTINGS["names"]))
    assert by_row["gather"] == 2 * 2 and not (routed - {"gather"}) & by_row.keys()


def test_hulls_as_experts_of_sequences_of_any_length():
    hulls = [convexmoe_jax.VectorHull(5, 3, hidden_dim=7, rngs=nnx.Rngs(n)) for n in range(2)]
    level = convexmoe_jax.HierarchyLevelConfig("a", [convexmoe_jax.ExpertConfig(f"e{n}") for n in range(2)])
    model = convexmoe_jax.HierarchicalCELMoE(
        convexmoe_jax.CELMoEConfig(5, [level], use_learned_fusion=False),
        lambda level, expert, metadata, *, rngs: convexmoe_jax.HullExpert(hulls[int(expert[1])]),
        rngs=nnx.Rngs(0),
    )
    fixed = convexmoe_jax.FixedHierarchy(model, {"a": "e1"})
    program = export.deserialize(written(fixed, "rows", "length", 5))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(7, 3, 5)), jnp.float32)
    errors = [relative_error(program.call(x), jax.jit(hull)(x)) for hull in hulls]
    assert errors[1] < VALUES["float32"] and errors[0] > 1e-2  # control: the other expert


def test_a_plan_of_rows_is_for_no_other_number_of_them():
    fixed = convexmoe_jax.FixedHierarchy(model_of("float32"), ROUTINGS["both"])
    with pytest.raises(ValueError, match=r"FixedHierarchy\.hidden: expected 6 rows, as the routing has"):
        written(fixed, "rows", 5)
