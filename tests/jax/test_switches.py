"""Every part of the package under JAX's switches for finding faults: nothing stops, and the values are the same."""

import contextlib
import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from backends import BACKENDS
from engines import ENGINES
from flax import nnx
from hierarchies import Case, Level, random_inputs, random_weights
from tolerances import relative_error

import convexmoe_jax
from convexmoe_jax import Box, FixedHierarchy, Shared, certify, conjugate, find_violation, hull, max_affine, minimize

pytestmark = pytest.mark.usefixtures("quick_compilation")

SWITCHES = {
    "strict": (lambda: jax.numpy_dtype_promotion("strict"), lambda: jax.numpy_rank_promotion("raise")),
    "debug": (lambda: jax.debug_nans(True), lambda: jax.debug_infs(True)),
    "leaks": (jax.checking_leaks,),
    "disable_jit": (jax.disable_jit,),
    "x64": (lambda: jax.enable_x64(True),),
}
CASE = Case((Level("a", ("linear", "tanh"), scales=((0, 0.5),)),), dropout=0.3, cut_input=True)
OPTIONS = {
    "shared": cases.fields(temperature="learned", normalization=cases.UNITS, strong_convexity=0.5, gate=True),
    "private": cases.fields(trunk="private", activation="huber_relu", depth=2),
}


def build(fields):
    return BACKENDS[0].model(fields, cases.random_weights(fields), "float32")


def run_hull(fields):
    model, x = build(fields), jnp.asarray(cases.random_inputs(fields, (cases.ROWS,)), jnp.float32)

    def loss(params, x):
        return jnp.mean(hull.apply(params, x, model.config) ** 2)

    @jax.jit
    def run(params, x):
        gradients = jax.grad(loss, (0, 1))(params, x)
        state = convexmoe_jax.adamw(1e-2, 1e-3)
        updates, _ = state.update(gradients[0], state.init(params), params)
        return model(x), model.winners(x).margin, model.fold()(x), gradients, updates

    return run(model.params, x)


def run_apply():
    model = build(cases.fields())
    return hull.apply(model.params, cases.random_inputs(cases.fields(), (3,)).astype(np.float32), model.config)


def run_solver():
    fields = cases.fields(out_dim=1, in_dim=2, strong_convexity=0.5, temperature="learned")
    model, y = build(fields), jnp.asarray(cases.random_inputs(fields, (3,)), jnp.float32)
    assert certify(lambda x: model(x)[0], y[0], segments=64).verdict == "proved"
    assert find_violation(model, np.asarray(y), segments=64) is None
    found = minimize(model, Box([-1.0, -1.0], [1.0, 1.0])), conjugate(model, y), max_affine(model, y)
    return found[0].value, found[1].x, found[2].slopes


def trace_solver():
    fields = cases.fields(out_dim=1, in_dim=2, strong_convexity=0.5, temperature="learned")
    model, y = build(fields), jnp.zeros((3, 2), jnp.float32)
    functions = (
        lambda y: minimize(model, Box(y, y + 1.0)),
        lambda y: jax.grad(lambda y: conjugate(model, y).value.sum())(y),
        lambda y: max_affine(model, y),
    )
    return [jnp.zeros(jax.tree.leaves(jax.eval_shape(function, y))[0].shape) for function in functions]


def run_fit():
    x = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    model = build(cases.fields(in_dim=2, out_dim=1, temperature="learned"))
    return convexmoe_jax.fit(model, x, (x**2).sum(1, keepdims=True), steps=10).model(x)


def run_hierarchy(every):
    inputs = random_inputs(CASE, 6, sequence=every == "any")
    x, shift, common, mask = (jnp.asarray(inputs[name], jnp.float32) for name in ("x", "shift", "common", "mask"))
    model = ENGINES[0].build(CASE, random_weights(CASE), "float32", every)
    graph, weights = nnx.split(model)
    given = {"context": {"shift": shift, "of_all": [Shared(common)]}, "mask": mask, "state": {"scale": 1.5}}

    @jax.jit
    def run(weights, x, routes):
        def total(weights, x):
            output = nnx.merge(graph, weights)(x, routes, **given, key=jax.random.key(0))
            api = convexmoe_jax.CELMoELossAPI()
            api.add_global("mean", lambda output: jnp.mean(output.fused_hidden**2))
            return api.compute(output).total, output

        return jax.grad(total, (0, 1), has_aux=True)(weights, x)

    if every == "any":
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), jax.eval_shape(run, weights, x, inputs["routes"]))
    return run(weights, x, inputs["routes"]), FixedHierarchy(model, inputs["routes"])(x, **given)


TASKS = {
    "apply": run_apply,
    "shared": lambda: run_hull(OPTIONS["shared"]),
    "private": lambda: run_hull(OPTIONS["private"]),
    "solver": run_solver,
    "solver traced": trace_solver,
    "fit": run_fit,
    "hierarchy": lambda: run_hierarchy("reverse"),
    "hierarchy any": lambda: run_hierarchy("any"),
}


TRACED = ("solver traced", "hierarchy any")  # compiling them takes seconds, and what stops them stops their trace
# Under "strict" everything is traced anew; under the others only what is quick, and differs.
ROWS = [
    *(("strict", task) for task in TASKS),
    *(("debug", task) for task in ("shared", "private", "solver", "fit", "hierarchy")),
    ("leaks", "private"),
    ("leaks", "hierarchy"),
    ("disable_jit", "apply"),
    ("x64", "apply"),
]


@functools.cache
def plain(task):
    return jax.device_get(jax.tree.leaves(TASKS[task]()))


def switched(switch):
    stack = contextlib.ExitStack()
    for context in SWITCHES[switch]:
        stack.enter_context(context())
    return stack


@pytest.mark.parametrize(("switch", "task"), ROWS)
def test_values_are_the_same_under(switch, task):
    with switched(switch):
        found = jax.device_get(jax.tree.leaves(TASKS[task]()))
    wanted = found if task in TRACED else plain(task)
    for got, value in zip(found, wanted, strict=True):
        assert np.array_equal(got, value) or relative_error(got, value) < 1e-5


def test_control_the_switches_are_on_and_stay_on():
    row = jnp.ones(3)
    with switched("strict"):
        run_hull(OPTIONS["private"])
        with pytest.raises(ValueError, match="rank_promotion"):
            row + jnp.ones((2, 3))
        with pytest.raises(ValueError, match="dtype promotion"):
            row + jnp.arange(3)
    with switched("debug"), pytest.raises(FloatingPointError):
        jnp.log(-row)
