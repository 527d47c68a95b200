"""`fit`: the same run in both packages, in original units, the best step kept, the given model left alone."""

import functools

import backends
import cases
import numpy as np
import pytest
import tolerances

from convexmoe import HullConfig
from convexmoe.training import Schedule, parts
from convexmoe.training.data import check_data

pytestmark = pytest.mark.usefixtures("quick_compilation")

FIELDS = cases.fields(in_dim=3, petals=5, out_dim=2, hidden_dim=13, temperature="learned")
STEPS = 120


def data(rows=97, seed=0, noise=0.0):
    """A convex function of three inputs, in units far from standard."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 3))
    y = np.stack([np.abs(x).sum(1), (x**2).sum(1)], 1) + noise * rng.normal(size=(rows, 2))
    return x * [1000.0, 0.01, 3.0] + [5000.0, 0.0, -7.0], y * [300.0, 0.2] - [70.0, 5.0]


def fitted(backend, rows=97, noise=0.0, dtype="float32", given=FIELDS, data=data, **options):
    """The result of a fit from the weights that both packages start from."""
    model = backend.model(given, cases.random_weights(given, 5), dtype)
    x, y = data(rows, noise=noise)
    held = data(61, seed=1, noise=noise) if options.pop("validate", False) else 0
    with backend.precision(dtype):
        given = {"steps": STEPS, "batch_size": 31, "learning_rate": 0.03, "validation": held}
        return backend.package.fit(model, x, y, **(given | options))


RUNS = {
    "plain": {},
    "validated": {"validate": True},
    "other_seed": {"seed": 3},
    "odd_steps": {"steps": 83, "validate": True},
    "few_rows": {"rows": 17},
    "share": {"validation": 0.3, "noise": 0.3},
    "folds": {"validation": None, "noise": 0.3},
    "double": {"dtype": "float64", "given": FIELDS | {"hidden_dim": 3}},
    "hard": {"given": FIELDS | {"temperature": 0.0, "trunk": "private", "depth": 2}, "validate": True},
}
WIDE = ("few_rows", "odd_steps")  # of the runs, for a release: each is another compilation


@functools.cache
def run_of(backend, name):
    return fitted(backend, **RUNS[name])


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.release) if n in WIDE else n for n in RUNS])
def test_both_packages_take_the_same_run(name):
    jax_run, torch_run = (run_of(backend, name) for backend in backends.BACKENDS)
    assert jax_run.history.step == torch_run.history.step
    assert jax_run.best_step == torch_run.best_step
    for kind in ("train_loss", "validation_loss"):
        first, second = getattr(jax_run.history, kind), getattr(torch_run.history, kind)
        held_out = {"validate", "validation"} & set(RUNS[name])
        assert len(first) == len(second) == (len(jax_run.history.step) if kind[0] == "t" or held_out else 0)
        assert np.allclose(first, second, rtol=tolerances.HISTORY, atol=0)
    assert jax_run.model.config.to_json() == torch_run.model.config.to_json()
    x, _ = data()
    x = x.astype(RUNS[name].get("dtype", "float32"))
    outputs = [b.apply(run_of(b, name).model, x) for b in backends.BACKENDS]
    assert tolerances.relative_error(*outputs) < 10 * tolerances.HISTORY


def test_control_another_seed_takes_another_run():
    jax_run, torch_run = run_of(backends.BACKENDS[0], "plain"), run_of(backends.BACKENDS[1], "other_seed")
    assert not np.allclose(jax_run.history.train_loss, torch_run.history.train_loss, rtol=1e-3)


def test_a_run_repeats_to_the_bit(backend):
    first, again = run_of(backend, "validated"), fitted(backend, **RUNS["validated"])
    assert first.history == again.history and first.best_step == again.best_step
    weights = backend.weights(again.model)
    assert all(np.array_equal(value, weights[name]) for name, value in backend.weights(first.model).items())
    assert first.history != run_of(backend, "other_seed").history


def test_history_has_one_entry_an_evaluation(backend):
    history = run_of(backend, "validated").history
    assert history.step == tuple(range(0, STEPS + 1, 3))
    assert len(history.step) == len(history.train_loss) == len(history.validation_loss)
    assert all(isinstance(value, float) for value in history.train_loss + history.validation_loss)
    assert run_of(backend, "plain").history.validation_loss == ()
    assert run_of(backend, "plain").best_step == STEPS


def test_the_model_takes_and_gives_original_units(backend):
    result = run_of(backend, "plain")
    x, y = data()
    units = result.model.config.normalization
    for got, wanted in [(units.input_mean, x.mean(0)), (units.input_scale, x.std(0))]:
        assert np.allclose(got, wanted, rtol=1e-12, atol=0)
    for got, wanted in [(units.output_mean, y.mean(0)), (units.output_scale, y.std(0))]:
        assert np.allclose(got, wanted, rtol=1e-12, atol=0)
    error = backend.apply(result.model, x.astype(np.float32)) - y
    explained = 1 - error.var(axis=0) / y.var(axis=0)
    assert (explained > 0.8).all(), explained
    # control: the same weights without the units explain nothing
    bare = backend.model(FIELDS, backend.weights(result.model), "float32")
    error = backend.apply(bare, x.astype(np.float32)) - y
    assert (1 - error.var(axis=0) / y.var(axis=0) < 0.5).any()


def test_units_of_the_data_do_not_matter(backend):
    def moved(rows, seed=0, noise=0.0):
        x, y = data(rows, seed, noise)
        return 64.0 * x + 1.0, y / 16.0 - 3.0

    first, second = run_of(backend, "plain"), fitted(backend, data=moved)
    assert np.allclose(first.history.train_loss, second.history.train_loss, rtol=1e-3)


def test_a_model_with_units_keeps_them(backend):
    units = {"input_mean": (5e3, 0, 1), "input_scale": (900, 0.02, 2), "output_mean": (1, 2), "output_scale": (200, 1)}
    given = FIELDS | {"normalization": units}
    result = fitted(backend, given=given)
    assert result.model.config == backend.config(given)


def test_the_given_model_stays_as_it_is(backend):
    model = backend.model(FIELDS, cases.random_weights(FIELDS, 5), "float32")
    before, config = backend.weights(model), model.config
    x, y = data()
    kept = x.copy(), y.copy()
    result = backend.package.fit(model, x, y, steps=STEPS, batch_size=31, validation=0)
    after = backend.weights(model)
    assert model.config == config and model.config.normalization is None
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert np.array_equal(x, kept[0]) and np.array_equal(y, kept[1])
    # control: the result did move
    moved = backend.weights(result.model)
    assert not any(np.array_equal(before[name], moved[name]) for name in before)


def validation_loss(backend, model, x, y):
    """In the normalized units that the history is in."""
    units = model.config.normalization
    error = (backend.apply(model, x.astype(np.float32)) - y) / np.asarray(units.output_scale)
    return np.mean(error**2)


def test_training_stops_early_and_gives_back_the_best_step(backend):
    """Few rows and much noise: what is learned after some steps makes the rows held out worse."""
    x, y = data(23, noise=1.0)
    model = backend.model(FIELDS, cases.random_weights(FIELDS, 5), "float32")
    held_out = data(61, seed=1)
    result = backend.package.fit(model, x, y, validation=held_out, steps=400, learning_rate=0.1)
    losses = result.history.validation_loss
    best = losses.index(min(losses))
    assert result.best_step == result.history.step[best]
    assert len(losses) == best + 1 + 20 < 40
    got = validation_loss(backend, result.model, *held_out)
    assert np.isclose(got, min(losses), rtol=1e-4)
    assert not np.isclose(got, losses[-1], rtol=1e-2)  # control: the last step's weights would be seen


def test_a_fit_is_a_plane_where_that_is_better_than_what_the_steps_give(backend):
    """A plane, and so high a rate that every step spoils it."""
    plane = np.array([[0.001, 1.0], [3.0, -7.0], [2.0, 0.5]])
    x, y = data()[0], data()[0] @ plane
    model = backend.model(FIELDS, backend.weights(backend.fresh(FIELDS, 0)), "float32")
    options = {"steps": STEPS, "batch_size": 31, "learning_rate": 30.0}
    for validation in (None, 0.3, (data(61, seed=1)[0], data(61, seed=1)[0] @ plane)):
        result = backend.package.fit(model, x, y, validation=validation, **options)
        left = (backend.package.predict(result.model, x) - y).std(axis=0) / y.std(axis=0)
        assert (left < 1e-4).all() and min(result.history.validation_loss) < 1e-9
    # control: without rows held out the last step is given back, and is worse
    spoiled = backend.package.fit(model, x, y, validation=0, **options)
    assert spoiled.best_step == STEPS and spoiled.history.train_loss[-1] > 1e-3


def test_rows_are_held_out_by_the_share_and_the_seed():
    (rows,), (held,) = parts.share(97, 0.3, 5)
    assert len(held) == 29 and sorted([*rows, *held]) == list(range(97))
    assert not np.array_equal(held, parts.share(97, 0.3, 6).held_out[0])
    assert len(parts.share(97, 0, 5).held_out[0]) == 0
    assert [len(part[0]) for part in parts.share(3, 0.9, 5)] == [2, 1]


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_the_fitted_model_has_the_dtype_of_the_given(backend, dtype):
    result = run_of(backend, "double") if dtype == "float64" else fitted(backend, dtype=dtype)
    assert backend.dtype(result.model) == dtype
    assert np.isfinite(result.history.train_loss).all()


@functools.cache
def half_precision_fit(backend, dtype):
    """The result of a model of that dtype in the units of the data."""
    model = backend.model(FIELDS, cases.random_weights(FIELDS, 5), dtype)
    return backend.package.fit(model, *data(), validation=data(61, seed=1), steps=STEPS, batch_size=31)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("argument", "factor", "offset"), [("y", 1, 1e4), ("x", 1, 1e4), ("x", 1e-39, 0)])
def test_units_that_a_half_precision_model_cannot_resolve_are_refused(backend, dtype, argument, factor, offset):
    """Trained in float32 they would do; the model that is given back would be wrong by deviations, in silence."""
    x, y = data()
    rows = {"x": x, "y": y}
    rows[argument] = rows[argument] * factor + offset
    model = backend.model(FIELDS, cases.random_weights(FIELDS, 5), dtype)
    with pytest.raises(ValueError, match=rf"fit.{argument}: expected columns that (float32|{dtype}) can resolve"):
        backend.package.fit(model, rows["x"], rows["y"], steps=STEPS)
    result = half_precision_fit(backend, dtype)  # control: its own units do
    assert backend.dtype(result.model) == dtype and min(result.history.validation_loss) < 1


def test_constant_columns_do_no_harm(backend):
    x, y = data()
    x[:, 1], y[:, 0] = 1e9 + 0.1, -123.456
    model = backend.model(FIELDS, cases.random_weights(FIELDS, 5), "float32")
    result = backend.package.fit(model, x, y, steps=STEPS, batch_size=31, validation=0)
    units = result.model.config.normalization
    assert units.input_scale[1] == units.output_scale[0] == 1.0
    fit = backend.apply(result.model, x.astype(np.float32))
    assert np.isfinite(fit).all() and np.abs(fit[:, 0] + 123.456).max() < 1.0
    predict, others = backend.package.predict, x + [[0, 1e3, 0]] * len(x)
    assert np.array_equal(predict(result.model, others), predict(result.model, x))
    assert not np.array_equal(predict(model, others), predict(model, x))  # control: the hull that it began with


def test_a_column_that_is_constant_in_the_rows_to_train_on_has_no_effect(backend):
    x, y = data()
    x[:, 1] = [0.0] * (len(x) - 1) + [7.0]
    seed = next(seed for seed in range(99) if len(x) - 1 in parts.share(len(x), 0.2, seed).held_out[0])
    model = backend.model(FIELDS, cases.random_weights(FIELDS, 5), "float32")
    for kwargs in ({"seed": seed, "validation": 0.2}, {"validation": (x[-9:], y[-9:])}):
        rows = (x, y) if "seed" in kwargs else (x[:-9], y[:-9])
        result = backend.package.fit(model, *rows, steps=7, **kwargs).model
        values = backend.package.predict(result, [[1.0, 0.0, 2.0], [1.0, 7.0, 2.0], [1.0, 0.0, 3.0]])
        assert np.array_equal(values[0], values[1]) and not np.array_equal(values[0], values[2])


def test_one_output_takes_a_flat_target():
    config, (x, y) = HullConfig(3, petals=5, out_dim=1), data()
    flat, column = (check_data("x", x, target, config) for target in (y[:, 0], y[:, :1]))
    assert flat[1].shape == (len(x), 1) and all(np.array_equal(*pair) for pair in zip(flat, column, strict=True))
    with pytest.raises(ValueError):  # control
        check_data("x", x, y[:-1, 0], config)


@pytest.mark.parametrize(("steps", "size"), [(STEPS, 3), (83, 3), (7, 1)])
def test_the_schedule_evaluates_every_few_steps_and_at_the_end(steps, size):
    sizes = [len(rates) for _, rates in Schedule(steps, 31, 0.03, 0).batches(97, 0, 1.0)]
    assert sizes[:-1] == [size] * (len(sizes) - 1) and sum(sizes) == steps and 0 < sizes[-1] <= size


def test_weights_too_large_for_the_dtype_are_an_error(backend):
    """Units of its own, and inputs of 1e-6: slopes that float16 has no numbers for."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3))
    y = x[:, 0]
    units = {"input_mean": (0,) * 3, "input_scale": (1,) * 3, "output_mean": (0,), "output_scale": (1,)}
    fields = cases.fields(in_dim=3, petals=5, out_dim=1, hidden_dim=13, normalization=units)
    weights = backend.weights(backend.fresh(fields, 0))
    options = {"steps": 2}
    with pytest.raises(FloatingPointError, match=r"fit.weights: expected finite numbers; .* Fit a float32 model"):
        backend.package.fit(backend.model(fields, weights, "float16"), 1e-6 * x, y, **options)
    for dtype, scale in (("float32", 1e-6), ("float16", 1.0)):  # control
        model = backend.package.fit(backend.model(fields, weights, dtype), scale * x, y, **options).model
        assert all(np.isfinite(value.astype(float)).all() for value in backend.weights(model).values())
