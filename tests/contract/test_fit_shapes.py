"""`fit` with a context, weights, losses, signs, concave and non-negative hulls: the same run in both packages."""

import functools
import warnings

import backends
import jax.numpy as jnp
import numpy as np
import pytest
import tolerances
import torch

from convexmoe import HullConfig
from convexmoe.hull.parameters import nest, parameter_shapes
from convexmoe.training import Expectile, Huber, Quantile
from convexmoe.training.start import NOWHERE

pytestmark = pytest.mark.usefixtures("quick_compilation")

TORCH = backends.BACKENDS[1]
# For what the core says of a fit, and other tests hold in JAX: there each is another compilation.
MOSTLY_TORCH = pytest.mark.parametrize(
    "backend", [pytest.param(backends.BACKENDS[0], marks=pytest.mark.release), TORCH]
)

ROWS, BASE = 131, {"in_dim": 3, "petals": 5, "out_dim": 1, "hidden_dim": 7, "temperature": "learned"}
CONTEXT = {"context_dim": 2, "context_hidden_dim": 11}


def data(rows=ROWS, seed=0, sign=1, noise=0.1):
    """x, a convex function that rises in the first input and does not fall below zero, and a context."""
    rng = np.random.default_rng(seed)
    x, c = rng.normal(size=(rows, 3)), rng.normal(size=(rows, 2))
    y = np.logaddexp(x[:, 0] + x[:, 1], 0) * np.exp(0.5 * c[:, 0]) + noise * rng.normal(size=rows)
    return x * [100.0, 0.01, 3.0] + [500.0, 0.0, -7.0], sign * 30.0 * y, c * [5.0, 1.0] + [40.0, 0.0]


def model_of(backend, seed=5, **fields):
    config = HullConfig(**(BASE | fields))
    rng = np.random.default_rng(seed)
    weights = {name: rng.normal(size=shape) / 3 for name, shape in parameter_shapes(config).items()}
    arrays = {name: backend.array(value) for name, value in weights.items()}
    return backend.package.VectorHull.from_params(config, nest(arrays))


def evaluate(backend, model, x, c=None):
    with backend.precision("float64"):
        arrays = [backend.array(np.asarray(value, float)) for value in (x, c) if value is not None]
        return backend.numpy(backend.call(model, "__call__", *arrays))[:, 0]


RUNS = {
    "context": (CONTEXT, {}),
    "concave": ({"curvature": "concave", "strong_convexity": 0.1}, {"loss": Quantile(0.9)}),
    "signs": ({"monotone": (1, 0, -1), "gate": True}, {"loss": "absolute"}),
    "non-negative": ({"nonnegative": True}, {"loss": Huber(3.0)}),
    "weights": ({"trunk": "private", "depth": 2}, {"sample_weight": np.arange(1.0, ROWS + 1)}),
    "everything": (
        CONTEXT | {"curvature": "concave", "monotone": (-1, 0, 1), "nonnegative": True},
        {"loss": Expectile(0.3), "sample_weight": np.arange(1.0, ROWS + 1)},
    ),
}


@functools.cache
def run_of(backend, name):
    fields, options = RUNS[name]
    x, y, c = data(sign=-1 if fields.get("curvature") == "concave" else 1)
    given = {"context": c if "context_dim" in fields else None, "steps": 80, "validation": 0.3}
    with backend.precision("float64"):
        return backend.package.fit(model_of(backend, **fields), x, y, **(given | options))


@pytest.mark.parametrize("name", RUNS)
def test_both_packages_take_the_same_run(name):
    x, _, c = data(seed=1)
    c = c if "context_dim" in RUNS[name][0] else None
    one, other = (run_of(backend, name) for backend in backends.BACKENDS)
    assert one.best_step == other.best_step
    assert one.model.config == other.model.config
    assert np.allclose(one.history.validation_loss, other.history.validation_loss, rtol=tolerances.HISTORY, atol=0)
    outputs = [evaluate(b, run_of(b, name).model, x, c) for b in backends.BACKENDS]
    assert tolerances.relative_error(*outputs) < 10 * tolerances.HISTORY


@pytest.mark.parametrize("name", RUNS)
def test_the_fitted_hull_has_the_shape_that_was_asked_for(backend, name):
    fields, model = RUNS[name][0], run_of(backend, name).model
    x, _, c = data(seed=2)
    c = c if "context_dim" in fields else None
    sign = -1 if fields.get("curvature") == "concave" else 1
    middle = (evaluate(backend, model, x, c) + evaluate(backend, model, x[::-1], c)) / 2
    assert (sign * (middle - evaluate(backend, model, (x + x[::-1]) / 2, c)) > -1e-9).all()
    if fields.get("nonnegative"):
        assert (sign * evaluate(backend, model, x, c) >= 0).all()
        assert set(model.config.normalization.output_mean) == {0.0}
    for j, own in enumerate(fields.get("monotone", ())):
        step = evaluate(backend, model, x + np.eye(3)[j] * x.std(axis=0), c) - evaluate(backend, model, x, c)
        assert (own * step >= 0).all() if own else True
    found = model.config.normalization.context_mean
    assert found == () if c is None else np.allclose(found, [40.0, 0.0], atol=2.0)


def test_a_context_explains_what_it_does(backend):
    x, y, c = data(300)
    errors = []
    for fields, context in ((CONTEXT, c), ({}, None)):
        with backend.precision("float64"):
            options = {"steps": 300, "validation": 0.2}
            fitted = backend.package.fit(model_of(backend, **fields), x, y, context, **options).model
        rows = data(300, seed=3, noise=0.0)
        errors.append(np.std(evaluate(backend, fitted, rows[0], rows[2] if fields else None) - rows[1]) / rows[1].std())
    assert errors[0] < 0.3 < 0.4 < errors[1], errors


def test_rows_without_weight_teach_nothing(backend):
    x, y, _ = data(300)
    weight = np.arange(300) % 3 > 0
    x = np.where(weight[:, None], x, 1e6 * x)
    wrong = np.where(weight, y, 1000 * np.random.default_rng(0).normal(size=300))
    errors = []
    for given in (weight.astype(float), None):
        with backend.precision("float64"):
            options = {"sample_weight": given, "steps": 200, "validation": 0.3}
            fitted = backend.package.fit(model_of(backend), x, wrong, **options).model
        errors.append(np.std(evaluate(backend, fitted, x)[weight] - y[weight]) / y.std())
    assert errors[0] < 0.7 < errors[1], errors


@pytest.mark.parametrize("level", [0.1, 0.9])
def test_a_quantile_covers_its_share_of_rows_not_seen(backend, level):
    x, y, c = data(1200, noise=0.5)
    with backend.precision("float64"):
        model, options = (
            model_of(backend, **CONTEXT),
            {"steps": 200, "validation": (x[600:900], y[600:900], c[600:900])},
        )
        result = backend.package.fit(model, x[:600], y[:600], c[:600], loss=Quantile(level), **options)
    assert abs(np.mean(y[600:] <= evaluate(backend, result.model, x[600:], c[600:])) - level) < 0.06
    learned = y[:600] - evaluate(backend, result.model, x[:600], c[:600])
    assert abs(np.mean(learned <= 1e-5) - level) < 0.005  # of the rows to train on, but for rounding
    assert abs(np.mean(learned <= 1.0) - level) > 0.005  # control: an offset by a hundredth of the deviation


def test_columns_that_are_constant_have_no_effect(backend):
    x, y, c = data()
    x[:, 2], c[:, 1] = 4.0, 7.0
    with backend.precision("float64"):
        model = model_of(backend, **CONTEXT, monotone=(0, 0, 1))
        fitted = backend.package.fit(model, x, y, c, steps=20, validation=0.3).model
    here = evaluate(backend, fitted, x, c)
    assert np.array_equal(here, evaluate(backend, fitted, x + np.array([0, 0, 50.0]), c + np.array([0, 9.0])))
    assert not np.array_equal(here, evaluate(backend, fitted, x + np.array([0, 1.0, 0]), c))
    weights = backend.weights(fitted)
    assert (weights["trunk.0.weight"][2] == NOWHERE).all() and not weights["context.0.weight"][1].any()


def test_a_function_is_a_loss_in_original_units(backend):
    x, y, _ = data()
    seen = []

    def loss(prediction, y):
        seen.append(y)
        absolute = torch.abs if backend.name == "torch" else jnp.abs
        return absolute(prediction - y) + 0.1 * (prediction - y) ** 2

    with backend.precision("float64"):
        fitted = backend.package.fit(model_of(backend), x, y, loss=loss, steps=80, validation=0.2, compare=False).model
    assert np.isclose(np.max(np.asarray(seen[-1])), y.max(), rtol=0.5)
    assert np.std(evaluate(backend, fitted, x) - y) < 0.8 * y.std()


@MOSTLY_TORCH
def test_a_concave_hull_is_told_when_rows_are_convex(backend):
    x, y, _ = data(300)
    text = r"fit.y: expected a concave function; got rows that speak for a convex function: .*\. Build the hull"
    with backend.precision("float64"):
        with pytest.warns(match=text):
            result = backend.package.fit(model_of(backend, curvature="concave"), x, y, steps=400)
        with warnings.catch_warnings():  # control: the right way round there is none
            warnings.simplefilter("error")
            other = backend.package.fit(model_of(backend), x, y, steps=400)
    assert result.curvature.shown == other.curvature.shown == "convex"


NUMBERS = np.zeros((ROWS, 2))
FAULTS = [
    (CONTEXT, {}, TypeError, r"fit.context: expected a context \[rows=131, context_dim=2\]; got None. Pass one row"),
    ({}, {"context": NUMBERS}, TypeError, "fit.context: expected no context for a hull without one; got"),
    (
        CONTEXT,
        {"context": NUMBERS[:7]},
        ValueError,
        r"fit.context: expected a context \[rows=131, context_dim=2\]; got",
    ),
    (CONTEXT, {"context": NUMBERS * np.nan}, ValueError, "fit.context: expected finite numbers"),
    ({}, {"sample_weight": NUMBERS}, ValueError, r"fit.sample_weight: expected \[rows=131\]; got float64\[131, 2\]"),
    ({}, {"sample_weight": NUMBERS[:, 0]}, ValueError, "fit.sample_weight: expected numbers >= 0, .* Give a row 0"),
    ({}, {"sample_weight": NUMBERS[:, 0] - 1}, ValueError, "fit.sample_weight: expected numbers >= 0"),
    ({}, {"loss": "mse"}, ValueError, "fit.loss: expected"),
    ({}, {"loss": lambda p, y: ((p - y) ** 2).mean()}, ValueError, "fit.loss: expected a function that returns"),
    ({"nonnegative": True, "curvature": "concave"}, {}, ValueError, "fit.y: expected a mean below 0 for such"),
    ({"context_dim": 1}, {"context": NUMBERS[:, 0]}, ValueError, r"expected a context \[rows=131, context_dim=1\]"),
    (CONTEXT, {"context": NUMBERS, "validation": (NUMBERS, NUMBERS)}, TypeError, "fit.validation: expected"),
]


@pytest.mark.parametrize(("fields", "options", "error", "message"), FAULTS)
def test_bad_input_is_refused_before_any_work(backend, fields, options, error, message):
    x, y, _ = data()
    with backend.precision("float64"), pytest.raises(error, match=message):
        backend.package.fit(model_of(backend, **fields), x, y, **options)


@MOSTLY_TORCH
def test_another_loss_is_another_run(backend):
    x, y, _ = data()
    states = []
    with backend.precision("float64"):
        model = model_of(backend)
        options = {"steps": 40, "compare": False}
        backend.package.fit(model, x, y, on_evaluation=lambda state: states.append(state) or True, **options)
        with pytest.raises(ValueError, match=r"fit.resume: expected a state of the given rows"):
            backend.package.fit(model, x, y, loss="absolute", resume=states[0], **options)
        backend.package.fit(model, x, y, resume=states[0], **options)


@MOSTLY_TORCH
@pytest.mark.parametrize(("level", "rows", "says"), [(0.999, 131, True), (0.001, 131, True), (0.99, 131, False)])
def test_a_level_beyond_the_rows_is_said(backend, level, rows, says):
    x, y, _ = data(rows)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        backend.package.fit(model_of(backend), x, y, loss=Quantile(level), steps=1, validation=0)
    assert any(f"a row beyond the level {level:g}; got 131 in all" in str(one.message) for one in caught) == says
