"""Grouped products: every backend that runs here against a product an expert, and hierarchies that use them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from backends import BACKENDS, rounded
from hierarchies import Case, Level, naive, random_inputs, random_weights
from tolerances import VALUES, relative_error

from convexmoe_jax.hierarchy import grouped as in_jax
from convexmoe_torch.hierarchy import grouped as in_torch

# Without `quick_compilation`: some experts have tanh.
ROWS, EXPERTS, IN, OUT = 29, 5, 8, 24  # widths of which the strides are 16 bytes, as `grouped_mm` wants
SIZES = {  # seven routings
    "uniform": [6, 6, 6, 6, 5],
    "zipf": [15, 7, 4, 2, 1],
    "all to one": [0, 0, 29, 0, 0],
    "empty experts": [0, 12, 0, 17, 0],
    "none": [0, 0, 0, 0, 0],
    "odd counts, and rows without an expert": [3, 5, 1, 7, 1],
    "a rank without rows": [0, 0, 0, 11, 18],
}
CASES = [
    *[("jax", name, dtype) for name in ("loop", "tiers", "ragged") for dtype in ("float64",)],
    ("jax", "megablox", "float32"),
    *[("torch", name, "float64") for name in ("loop", "blocks")],
    ("torch", "grouped_mm", "float32"),
    ("torch", "grouped_mm", "bfloat16"),
]
COMPILED = {}


def operands(dtype="float64"):
    draw = np.random.default_rng(3).normal
    shapes = {"rows": (ROWS, IN), "weights": (EXPERTS, IN, OUT), "grads": (ROWS, OUT)}
    return rounded({name: draw(size=shape) for name, shape in shapes.items()}, dtype)


def one_by_one(rows, weights, grads, sizes):
    """The values, and the gradients by rows and weights, by a product an expert in float64."""
    rows, weights, grads = (np.asarray(x, np.float64) for x in (rows, weights, grads))
    y, by_rows, by_weights, at = np.zeros(grads.shape), np.zeros(rows.shape), np.zeros(weights.shape), 0
    for expert, size in enumerate(sizes):
        own = slice(at, at := at + size)
        y[own] = rows[own] @ weights[expert]
        by_rows[own], by_weights[expert] = grads[own] @ weights[expert].T, rows[own].T @ grads[own]
    return y, by_rows, by_weights


def run(package, implementation, rows, weights, grads, sizes, function=None):
    """What `one_by_one` gives, of a package."""
    if package == "torch":
        function = function or in_torch.grouped_matmul
        x, w = (BACKENDS[1].array(value).requires_grad_() for value in (rows, weights))
        y = function(x, w, torch.tensor(sizes), implementation)
        found = (y, *torch.autograd.grad(y, (x, w), BACKENDS[1].array(grads)))
        return [BACKENDS[1].numpy(value.detach()) for value in found]
    function = function or in_jax.grouped_matmul

    def pulled(rows, weights, grads, sizes):
        y, pull = jax.vjp(lambda x, w: function(x, w, sizes, implementation), rows, weights)
        return y, *pull(grads)

    with BACKENDS[0].precision(str(rows.dtype)):
        call = COMPILED.setdefault((implementation, str(rows.dtype), function), jax.jit(pulled))
        found = call(*map(jnp.asarray, (rows, weights, grads)), jnp.asarray(sizes, jnp.int32))
        assert call._cache_size() == 1  # one compilation over all routings
        return [np.asarray(value) for value in found]


@pytest.mark.parametrize(("package", "implementation", "dtype"), CASES)
def test_values_and_gradients_are_those_of_a_product_an_expert(package, implementation, dtype):
    given = operands(dtype)
    for name, sizes in SIZES.items():
        found = run(package, implementation, **given, sizes=sizes)
        for got, wanted in zip(found, one_by_one(**given, sizes=sizes), strict=True):
            assert relative_error(got, wanted) < VALUES[dtype], name
            assert np.all(got[wanted == 0] == 0), name  # exactly: rows without an expert, experts without rows


@pytest.mark.parametrize(("package", "implementation", "dtype"), CASES)
def test_a_nan_stays_with_its_expert(package, implementation, dtype):
    given, (own, sizes) = operands(dtype), (slice(5, 9), [5, 4, 0, 13, 3])  # the last four rows have no expert
    clean = run(package, implementation, **given, sizes=sizes)
    given["rows"][[6, 27]] = given["grads"][[7, 28]] = np.nan
    y, by_rows, by_weights = run(package, implementation, **given, sizes=sizes)
    assert np.isnan(y[6]).all() and np.isnan(by_rows[7]).all() and np.isnan(by_weights[1]).all()
    others = np.r_[0 : own.start, own.stop : ROWS]
    for got, wanted in ((y[others], clean[0][others]), (by_rows[others], clean[1][others])):
        assert np.array_equal(got, wanted)
    assert np.array_equal(np.delete(by_weights, 1, 0), np.delete(clean[2], 1, 0))


def dense(rows, weights, sizes, implementation):
    """A product of every row with every expert, of which a mask of zeros and ones chooses."""
    expert = jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(len(rows)), side="right")
    return jnp.einsum("be,bi,eio->bo", jax.nn.one_hot(expert, len(sizes), dtype=rows.dtype), rows, weights)


def test_control_a_mask_lets_a_nan_through():
    given = operands()
    assert relative_error(run("jax", None, **given, sizes=SIZES["zipf"], function=dense)[0], 0) == np.inf
    wanted = one_by_one(**given, sizes=SIZES["zipf"])
    found = run("jax", None, **given, sizes=SIZES["zipf"], function=dense)
    assert all(relative_error(*pair) < VALUES["float64"] for pair in zip(found, wanted, strict=True))
    given["rows"][6] = np.nan
    assert np.isnan(run("jax", None, **given, sizes=SIZES["zipf"], function=dense)[2]).all()


def test_reverse_mode_of_the_second_order(engine):
    """The gradient of a gradient, by a central difference of the gradients."""
    given, step = operands(), 1e-6
    direction, sizes = np.random.default_rng(5).normal(size=given["rows"].shape), SIZES["empty experts"]
    name = "blocks" if engine.name == "torch" else "ragged"

    def weight_gradient(shift):
        moved = given | {"rows": given["rows"] + shift * direction}
        return run(engine.name, name, **moved, sizes=sizes)[2]

    wanted = np.sum((weight_gradient(step) - weight_gradient(-step)) / (2 * step))
    if engine.name == "torch":
        x, w, c, d = (BACKENDS[1].array(v) for v in (*given.values(), direction))
        x.requires_grad_(), w.requires_grad_()
        y = in_torch.grouped_matmul(x, w, torch.tensor(sizes), name)
        (first,) = torch.autograd.grad((y * c).sum(), w, create_graph=True)
        found = (torch.autograd.grad(first.sum(), x)[0] * d).sum().item()
    else:
        with BACKENDS[0].precision("float64"):
            x, w, c, d = (jnp.asarray(v) for v in (*given.values(), direction))

            def first(x):
                return jax.grad(lambda w: jnp.sum(c * in_jax.grouped_matmul(x, w, jnp.asarray(sizes), name)))(w).sum()

            found = float(jnp.sum(jax.jit(jax.grad(first))(x) * d))
    assert abs(found - wanted) < 1e-6 * abs(wanted)


def test_who_asks_for_a_backend_gets_it_or_an_error(engine, monkeypatch):
    multiply = engine.package.grouped_matmul
    given = (np.ones((3, 5), np.float32), np.ones((2, 5, 7), np.float32), np.array([2, 1], np.int32))
    rows, weights, sizes = map(engine.array, given)
    with pytest.raises(ValueError, match=r"grouped_matmul.implementation: expected one of \['loop', .*; got 'fast'"):
        multiply(rows, weights, sizes, "fast")
    monkeypatch.setenv("CONVEXMOE_GROUPED", "fast")
    with pytest.raises(ValueError, match=r"CONVEXMOE_GROUPED: expected one of \['loop', .*; got 'fast'. Set"):
        multiply(rows, weights, sizes)
    unable = "grouped_mm" if engine.name == "torch" else "megablox"  # widths of 5 and 7; float16
    rows, weights = (rows, weights) if engine.name == "torch" else (rows.astype("float16"), weights.astype("float16"))
    monkeypatch.setenv("CONVEXMOE_GROUPED", unable)
    with pytest.raises(ValueError, match=rf"takes these operands; got '{unable}'. Pass one of \['loop', "):
        multiply(rows, weights, sizes)
    able = "loop" if engine.name == "torch" else "ragged"
    assert np.all(np.asarray(multiply(rows, weights, sizes, able)) == 5)  # the argument goes before the environment


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("rows", np.ones((2, 3, 5), np.float32), r"rows: expected 2 axes; got float32\[2, 3, 5\]"),
        ("weights", np.ones((2, 3, 7), np.float32), r"weights: expected \[E, I, O\] with E=2 sizes and rows of I=5"),
        ("weights", np.ones((2, 5, 7), np.float16), "weights: expected dtype float32, as the rows have"),
        ("sizes", np.ones(2, np.float32), r"sizes: expected integers; got float32\[2\]"),
        ("rows", [[1.0]], "rows: expected an array; got list"),
    ],
)
def test_operands_are_checked(engine, argument, value, message):
    given = {"rows": np.ones((3, 5), np.float32), "weights": np.ones((2, 5, 7), np.float32)}
    given |= {"sizes": np.array([2, 1], np.int32), argument: value}
    arrays = {name: value if isinstance(value, list) else engine.array(value) for name, value in given.items()}
    with pytest.raises((TypeError, ValueError), match=f"grouped_matmul.{message}"):
        engine.package.grouped_matmul(**arrays)


@pytest.mark.parametrize("sizes", [[3, 4], [-1, 3]])
def test_sizes_on_the_host_are_of_the_rows(engine, sizes):
    rows, weights = engine.array(np.ones((5, 3), np.float32)), engine.array(np.ones((2, 3, 7), np.float32))
    multiply, where = engine.package.grouped_matmul, torch.tensor if engine.name == "torch" else np.array
    words = f"integers >= 0 whose sum is at most 5, the number of rows; got {min(sizes)} at least, {sum(sizes)} in all"
    with pytest.raises(ValueError, match=rf"grouped_matmul\.sizes: expected {words}\."):
        multiply(rows, weights, where(sizes), "loop")
    assert multiply(rows, weights, where([3, 2]), "loop").shape == (5, 7)  # control


PRODUCTS = Case((Level("a", ("linear",) * 3, width=11, scales=((0, 0.5),)), Level("b", ("mlp7",) * 2)))
OTHERS = Case((Level("a", ("tanh",) * 3), Level("b", ("linear",) * 2)), fusion=False)
PATHS = [(PRODUCTS, {"jax": "ragged", "torch": "blocks"}), (OTHERS, {"jax": "tiers", "torch": "blocks"})]


@pytest.mark.parametrize(("case", "names"), PATHS, ids=["products", "others"])
def test_hierarchies_on_the_path_of_devices_are_exact(engine, case, names, monkeypatch):
    monkeypatch.setenv("CONVEXMOE_GROUPED", names[engine.name])
    engine.forget()  # what is compiled is another path
    model = engine.build(case, weights := random_weights(case))
    for spread in ("uniform", "zipf", "one"):
        inputs = random_inputs(case, spread=spread)
        found = engine.run(case, model, inputs)
        for name, wanted in naive(case, weights, inputs).items():
            assert relative_error(found[name], wanted) < 1e-12, (spread, name)
    engine.forget()
