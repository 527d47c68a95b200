"""A fit that stops half-way goes on from its file, in the same package bit for bit, in the other within rounding."""

import functools

import backends
import cases
import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("quick_compilation")

TORCH = backends.BACKENDS[1]  # for what the core refuses, which no framework changes
STEPS, HALF = 120, 60  # evaluated every three steps
SCHEDULE = {"steps": STEPS, "batch_size": 67, "seed": 3, "learning_rate": 0.05}
FIELDS = cases.fields(in_dim=3, petals=5, temperature="learned")
BOUNDS = {"float64": 1e-10, "float32": 1e-4}  # at fit's rates rounding grows about a thousandfold in sixty steps


def data(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(300, 3))
    y = np.stack([(x**2).sum(axis=1), np.abs(x).max(axis=1)], axis=1)
    return x[:200], y[:200], (x[200:], y[200:])


def fitted(backend, model, dtype, folds=False, **options):
    x, y, validation = data()
    with backend.precision(dtype):
        return backend.package.fit(model, x, y, validation=None if folds else validation, **(SCHEDULE | options))


def start(backend, dtype):
    """The same hull in both packages."""
    first = backends.BACKENDS[1].fresh(FIELDS, 0, dtype)
    return backend.model(FIELDS, backends.BACKENDS[1].weights(first), dtype)


@functools.cache
def whole(backend, dtype, folds=False):
    """The result of a fit that does not stop."""
    return fitted(backend, start(backend, dtype), dtype, folds)


@functools.cache
def half(backend, dtype, at=HALF, folds=False):
    """The state of a fit at a step."""
    states = []

    def stop(state):
        states.append(state)
        return state.history.step[-1] >= at

    stopped = fitted(backend, start(backend, dtype), dtype, folds, on_evaluation=stop)
    assert stopped.history.step[-1] == at and len(states) == at // 3
    return states[-1]


def through_files(state, source, target, dtype, folder):
    """The state as the other package reads it from two files."""
    with source.precision(dtype):
        source.package.save(state.model, folder / "now", optimizer=state.optimizer)
        source.package.save(state.best, folder / "best")
        for k, fold in enumerate(state.folds):
            source.package.save(fold.model, folder / f"fold-{k}", optimizer=fold.optimizer)
    with target.precision(dtype):
        load, read_optimizer = target.package.load, target.package.read_optimizer
        model, best = (load(folder / name) for name in ("now", "best"))
        optimizer = read_optimizer(folder / "now")
        names = [folder / f"fold-{k}" for k in range(len(state.folds))]
        folds = tuple(target.package.Fold(load(name), read_optimizer(name)) for name in names)
    history = target.package.History(*state.history)
    return target.package.FitState(model, optimizer, history, best, state.best_step, folds, state.rows)


def gap(first, second):
    """The largest difference of the validation losses, relative."""
    a, b = (np.array(result.history.validation_loss) for result in (first, second))
    return float(np.max(np.abs(a - b) / b)) if a.shape == b.shape else np.inf


@pytest.mark.parametrize(("dtype", "folds"), [("float64", False), ("float32", False), ("float64", True)])
def test_a_fit_goes_on_in_the_same_package_bit_for_bit(backend, dtype, folds, tmp_path):
    state = through_files(half(backend, dtype, HALF, folds), backend, backend, dtype, tmp_path)
    assert len(state.folds) == 11 * folds
    resumed, given = fitted(backend, state.model, dtype, folds, resume=state), whole(backend, dtype, folds)
    assert resumed.history == given.history and resumed.best_step == given.best_step
    wanted, got = backend.weights(given.model), backend.weights(resumed.model)
    assert all(np.array_equal(value, got[name]) for name, value in wanted.items())
    assert resumed.model.config == given.model.config


@pytest.mark.parametrize(("dtype", "folds"), [("float64", False), ("float32", False), ("float64", True)])
@pytest.mark.parametrize(("source", "target"), [(0, 1), (1, 0)], ids=["to torch", "to jax"])
def test_a_fit_goes_on_in_the_other_package(source, target, dtype, folds, tmp_path):
    source, target = backends.BACKENDS[source], backends.BACKENDS[target]
    state = through_files(half(source, dtype, HALF, folds), source, target, dtype, tmp_path)
    assert gap(fitted(target, state.model, dtype, folds, resume=state), whole(source, dtype, folds)) < BOUNDS[dtype]
    # control: without the moments it goes another way
    zeros = {
        moment: {name: 0 * value for name, value in values.items()}
        for moment, values in state.optimizer.moments.items()
    }
    lost = state._replace(optimizer=state.optimizer._replace(step=0, moments=zeros))
    lost = lost._replace(folds=tuple(fold._replace(optimizer=lost.optimizer) for fold in state.folds))
    assert (
        gap(fitted(target, state.model, dtype, folds, resume=lost), whole(source, dtype, folds))
        > 100 * BOUNDS["float32"]
    )


def test_the_best_weights_so_far_are_kept(backend, tmp_path):
    """The best step comes before the stop when nothing after it is better."""
    state, last = (half(backend, "float64", at) for at in (HALF, STEPS))
    history = with_validation(state.history, 0.999 * min(last.history.validation_loss))
    best = state._replace(best=last.best, best_step=3, history=history)
    resumed = fitted(backend, state.model, "float64", resume=best)
    assert resumed.best_step == 3
    wanted, got = backend.weights(last.best), backend.weights(resumed.model)
    assert all(np.array_equal(value, got[name]) for name, value in wanted.items())


def with_validation(history, first):
    losses = history.validation_loss
    return history._replace(validation_loss=(first, *losses[1:]))


def test_a_run_at_its_end_stays_as_it_is(backend):
    state = half(backend, "float64", STEPS)
    again = fitted(backend, state.model, "float64", resume=state)
    assert again.history == state.history and again.best_step == state.best_step


@pytest.mark.parametrize("steps", [50, 270, 41 * 40])
def test_another_schedule_is_refused(steps):
    state = half(TORCH, "float32")._replace(schedule=None)  # as earlier versions have it
    x, y, validation = data()
    with pytest.raises(ValueError, match=r"fit.resume: expected a multiple of \d+ steps, at most \d+; got 60"):
        TORCH.package.fit(state.model, x, y, validation=validation, steps=steps, seed=3, resume=state)


@pytest.mark.parametrize("changed", [{"batch_size": 66}, {"learning_rate": 0.06}, {"steps": 240}, {"seed": 4}])
def test_other_options_are_refused_in_the_same_words(backend, changed):
    """Else the run ends in silence as no run would have that did not stop."""
    state = half(backend, "float32")
    text = (
        rf"expected a state of the given steps, batch_size, learning_rate and seed; got another {next(iter(changed))}\."
    )
    with pytest.raises(ValueError, match=text):
        fitted(backend, state.model, "float32", resume=state, **changed)


def test_control_other_options_change_the_result():
    """A state without a schedule, as earlier versions have it, takes any."""
    state = half(TORCH, "float32")._replace(schedule=None)
    assert gap(fitted(TORCH, state.model, "float32", resume=state), whole(TORCH, "float32")) == 0
    other = fitted(TORCH, state.model, "float32", resume=state, batch_size=66)
    assert gap(other, whole(TORCH, "float32")) > BOUNDS["float32"]


@pytest.mark.parametrize("change", ["none now", "none before", "another seed", "other rows"])
def test_other_held_out_rows_are_refused(change):
    """Else rows that chose the step are trained on, or losses on different rows are compared."""
    x, y, validation = data()
    now = {"validation": 0.3, "seed": 3}
    before = {"none before": {"validation": 0}, "other rows": {"validation": validation}}.get(change, {})
    later = {"none now": {"validation": 0}, "another seed": {"seed": 4}}.get(change, {})
    options = SCHEDULE | {"steps": 40}
    states = []
    TORCH.package.fit(
        start(TORCH, "float32"), x, y, **(options | now | before), on_evaluation=lambda s: not states.append(s)
    )
    text = "of the given rows, weights, loss, validation and seed; got one of others"
    text = "learning_rate and seed; got another seed" if change == "another seed" else text
    with pytest.raises(ValueError, match=text):
        TORCH.package.fit(states[-1].model, x, y, **(options | now | later), resume=states[-1])
    # control: with the same rows it goes on
    on = TORCH.package.fit(states[-1].model, x, y, **(options | now | before), resume=states[-1])
    assert on.history.step[-1] == 40


@pytest.mark.parametrize("wrong", ["a state of the other package", "another number of petals"])
def test_other_states_are_refused_in_the_same_words(backend, wrong):
    states = half(backend, "float64"), half(other(backend), "float64")
    if wrong == "a state of the other package":
        name = other(backend).package.__name__
        text = rf"fit.resume: expected a FitState of this package; got {name}.training.FitState"
        with pytest.raises(TypeError, match=text):
            fitted(backend, states[0].model, "float64", resume=states[1])
        return
    model = backend.fresh(FIELDS | {"petals": 4}, 0, "float64")
    with pytest.raises(
        ValueError, match=r"fit.resume: expected a state of the given model and data; got another petals"
    ):
        fitted(backend, model, "float64", resume=states[0])


def other(backend):
    return next(one for one in backends.BACKENDS if one.package is not backend.package)


def test_other_data_are_refused():
    state = half(TORCH, "float32")
    x, y, validation = data(1)
    with pytest.raises(ValueError) as caught:
        TORCH.package.fit(start(TORCH, "float32"), x, y, validation=validation, steps=STEPS, resume=state)
    assert str(caught.value) == (
        "fit.resume: expected a state of the given model and data; got another normalization. "
        "Go on with what the run was begun with."
    )
