"""Programs for accelerators, lowered on this machine: one grouped product a product, and no product of all experts."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import compilations
from engines import ENGINES
from flax import nnx
from hierarchies import Case, Level, random_inputs, random_weights, routes_of
from jax import export

import convexmoe_jax

ROWS, EXPERTS, IN, OUT = 96, 8, 16, 32
PRODUCT = ROWS * IN * OUT  # multiplications of every row with one expert
SHAPE = re.compile(r"tensor<([\dx]*)x\w+>")
DOT = re.compile(r"dot_general .*?contracting_dims = \[([\d, ]*)\] .*: \((tensor<\S+>), tensor<\S+>\) -> (tensor<\S+>)")


def sizes_of(text):
    """The sizes of the axes of a tensor's type."""
    return [int(size) for size in SHAPE.search(text)[1].split("x")]


def count(program):
    """(grouped products, multiplications of the largest other product) of a StableHLO program.

    A product is grouped as `chlo.ragged_dot`, as a kernel, or as a batch of one product an expert. How a compiler
    without ragged products would compute one stands in functions of its own, and is not counted.
    """
    functions = re.split(r"(?=func\.func )", program)
    main = "".join(text for text in functions if "@chlo.ragged_dot.impl" not in text.partition("(")[0])
    grouped = len(re.findall(r'stablehlo\.composite "chlo\.ragged_dot"|custom_call @tpu_custom_call', main))
    largest = 0
    for axes, one, result in DOT.findall(main):
        work = math.prod(sizes_of(result)) * math.prod(sizes_of(one)[int(axis)] for axis in axes.split(", "))
        is_batch = sizes_of(result)[0] == EXPERTS and work < 1.5 * PRODUCT
        grouped += is_batch
        largest = max(largest, 0 if is_batch else work)
    return grouped, largest


def lower(function, platform, *shapes):
    """The program of a function for a platform."""
    types = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    return export.export(jax.jit(function), platforms=[platform])(*types).mlir_module()


def gradient(multiply):
    def function(rows, weights, sizes):
        return jax.value_and_grad(lambda x, w: jnp.sum(multiply(x, w, sizes) ** 2), (0, 1))(rows, weights)

    return function


OPERANDS = (((ROWS, IN), np.float32), ((EXPERTS, IN, OUT), np.float32), ((EXPERTS,), np.int32))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("name", ["tiers", "ragged", "megablox"])
def test_a_program_has_one_grouped_product_a_product(name, platform):
    if (name, platform) == ("megablox", "cuda"):
        return  # a kernel for TPUs

    def multiply(rows, weights, sizes):
        return convexmoe_jax.grouped_matmul(rows, weights, sizes, name)

    grouped, largest = count(lower(multiply, platform, *OPERANDS))
    assert grouped == 1 and largest < PRODUCT
    grouped, largest = count(lower(gradient(multiply), platform, *OPERANDS))
    assert grouped == 3 and largest < PRODUCT  # the loop of the second tier has blocks of a few rows


def test_an_infinity_is_left_to_the_expert_of_its_row(monkeypatch):
    """Rows that are not finite are kept apart in grouped products: of the rows of these experts alone."""
    monkeypatch.setenv("CONVEXMOE_GROUPED", "ragged")
    case = Case((Level("a", ("linear", "identity")),), fusion=False)
    model, x = ENGINES[0].build(case, random_weights(case), "float32"), jnp.ones((4, 5)).at[1:3].set(jnp.inf)
    y = model(x, {"a": jnp.array([0, 0, 1, 1])}).fused_hidden
    assert jnp.isnan(y[1]).all() and jnp.isinf(y[2]).all() and jnp.isfinite(y[jnp.array([0, 3])]).all()


def test_calls_outside_jit_compile_once_too():
    rows, weights = jnp.ones((7, 3)), jnp.ones((2, 3, 5))
    sizes = [jnp.array(counts) for counts in ([3, 4], [0, 7], [1, 0])]

    def run():
        return [jax.grad(lambda w, s=s: jnp.sum(convexmoe_jax.grouped_matmul(rows, w, s)))(weights) for s in sizes]

    assert compilations(run) > 0 and compilations(run) == 0


def dense(rows, weights, sizes):
    """Every row times every expert, of which one is chosen."""
    expert = jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(len(rows)), side="right")
    return jnp.take_along_axis(jnp.einsum("bi,eio->beo", rows, weights), expert[:, None, None], 1)[:, 0]


def test_control_a_dense_product_is_seen():
    for function, products in ((dense, 1), (gradient(dense), 3)):
        grouped, largest = count(lower(function, "cuda", *OPERANDS))
        assert grouped < products and largest >= EXPERTS * PRODUCT


CASE = Case((Level("a", ("mlp7",) * EXPERTS),), fusion=False)


@pytest.mark.parametrize("name", ["tiers", "ragged"])
def test_a_hierarchy_for_a_device_has_grouped_products(name, monkeypatch):
    """Two products an expert: two forward, six with the gradient by input and weights; and it compiles once."""
    monkeypatch.setenv("CONVEXMOE_GROUPED", name)
    graph, state = nnx.split(ENGINES[0].build(CASE, random_weights(CASE), "float32"))

    def loss(state, x, routes):
        return jnp.sum(nnx.merge(graph, state)(x, {"a": routes}).fused_hidden ** 2)

    def step(state, x, routes):
        return jax.value_and_grad(loss, (0, 1))(state, x, routes)

    x = random_inputs(CASE, ROWS)["x"].astype(np.float32)
    state, routes = jax.tree.map(jnp.asarray, state), jnp.zeros(ROWS, jnp.int32)

    def program(function):
        call = jax.jit(lambda *given: function(*given))  # traced anew: the environment is no part of what jit knows
        return export.export(call, platforms=["cuda"])(state, x, routes).mlir_module()

    for function, products in ((loss, 2), (step, 6)):
        grouped, largest = count(program(function))
        assert grouped == products and largest < ROWS * 5 * 7
    if name == "ragged":
        compiled, draw = jax.jit(step), np.random.default_rng(0)
        routings = [routes_of(spread, EXPERTS, ROWS, draw) for spread in ("uniform", "zipf", "one")]
        jax.block_until_ready(compiled(state, x, jnp.asarray(routings[0])))
        routings = [jnp.asarray(routes) for routes in routings]
        assert compilations(lambda: [compiled(state, x, routes) for routes in routings]) == 0
    monkeypatch.delenv("CONVEXMOE_GROUPED")
    assert count(program(loss))[0] == 0  # control: on this machine it is the loop of the dispatch
