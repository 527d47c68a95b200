"""`fit` to a stream: the same run in both packages, as good as one to arrays, and one that goes on bit for bit."""

import functools
import importlib
import warnings
from dataclasses import astuple

import backends
import cases
import numpy as np
import pytest

from convexmoe import Stream
from convexmoe.training import Position, stream
from convexmoe.training.losses import Quantile

pytestmark = pytest.mark.usefixtures("quick_compilation")

TORCH = backends.BACKENDS[1]  # for what the core says, which no framework changes
FIELDS = cases.fields(in_dim=3, petals=5, temperature="learned")
O = FIELDS["out_dim"]
STEPS, HALF = 80, 40
SCHEDULE = {"steps": STEPS, "batch_size": 67, "seed": 3, "learning_rate": 0.05}


@functools.cache
def rows(count=1500):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 3))
    y = np.stack([(x**2).sum(axis=1), np.abs(x).max(axis=1), x[:, 0] ** 2][:O], axis=1)
    return x * [100.0, 1.0, 0.01], 5.0 * y - 7.0


def batches(size=64):
    x, y = rows()
    return [(x[first : first + size], y[first : first + size]) for first in range(0, len(x), size)]


def fitted(backend, given=None, **options):
    model = backend.model(FIELDS, cases.random_weights(FIELDS, 5), "float32")
    given = (Stream(batches(), rows=500),) if given is None else given
    return backend.package.fit(model, *given, **(SCHEDULE | options))


def predict(backend, result):
    return backend.package.predict(result.model, rows()[0])


@functools.cache
def whole(backend):
    """A fit that does not stop, its states, and the rows of its steps."""
    states, taken, take = [], [], stream.Draws.take

    def noted(self, count):
        found = take(self, count)
        taken.append(found[0].tobytes())
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream.Draws, "take", noted)
        result = fitted(backend, compare=False, on_evaluation=states.append)
    return result, states, taken


def test_both_packages_take_the_same_rows_and_agree():
    (first, _, taken), (other, _, too) = (whole(backend) for backend in backends.BACKENDS)
    assert taken == too and len(taken) == 40
    a, b = (predict(backend, result) for backend, result in zip(backends.BACKENDS, (first, other), strict=True))
    assert np.abs(a - b).max() < 1e-3 * np.abs(a).max()
    np.testing.assert_allclose(first.history.validation_loss, other.history.validation_loss, rtol=1e-2)
    assert first.best_step == other.best_step and len(first.judged.hull) == 100  # a fifth of the sample


@pytest.mark.parametrize("backend", backends.BACKENDS, ids=lambda backend: backend.name)
def test_a_run_goes_on_bit_for_bit(backend):
    result, states, _ = whole(backend)
    state = next(state for state in states if state.history.last_step == HALF)
    assert state.position == Position(1, 2, 350, None)  # 2,680 rows, of which a pass has 1,400
    again = fitted(backend, resume=state)
    assert again.history == result.history
    np.testing.assert_array_equal(predict(backend, again), predict(backend, result))
    lost = fitted(backend, resume=state._replace(position=Position()))  # control: another place in the data
    assert lost.history.train_loss[:21] == result.history.train_loss[:21]
    assert lost.history.train_loss[21:] != result.history.train_loss[21:]


@pytest.mark.parametrize("backend", backends.BACKENDS, ids=lambda backend: backend.name)
def test_steps_that_are_taken_in_parts_have_one_mean(backend, monkeypatch):
    """Two steps to an evaluation: in two parts they are the same, if the mean goes on."""
    result, _, _ = whole(backend)
    monkeypatch.setattr(importlib.import_module("convexmoe.training.run"), "READ_AT_ONCE", 67)
    parts = fitted(backend, compare=False)
    np.testing.assert_allclose(parts.history.validation_loss, result.history.validation_loss, rtol=1e-2)
    engine = next(part for part in backend.package.training.engine.HullEngine.__mro__ if "take_steps" in vars(part))
    take = engine.take_steps
    monkeypatch.setattr(engine, "take_steps", lambda self, picked, rates, before=0: take(self, picked, rates))
    lost = fitted(backend, compare=False)  # control: the mean of the last part alone
    assert not np.allclose(lost.history.validation_loss, result.history.validation_loss, rtol=1e-2)


def test_it_is_about_as_good_as_a_fit_to_arrays():
    x, y = rows()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        streamed = fitted(TORCH, steps=200)
    arrays = fitted(TORCH, (x, y), steps=200)
    errors = [np.mean((predict(TORCH, result) - y) ** 2) / y.var() for result in (streamed, arrays)]
    assert errors[0] < 3 * errors[1] < 0.05 and streamed.curvature.shown == "convex"
    ours, theirs = (astuple(result.model.config.normalization)[:4] for result in (streamed, arrays))
    np.testing.assert_allclose(np.concatenate(ours), np.concatenate(theirs), rtol=1e-12)


def test_a_concave_hull_with_weights_context_and_a_level():
    x, y = rows()
    weight = np.where(np.arange(len(x)) % 2, 2.0, 0.0)
    given = [(x[:, :2], -y[:, :1], x[:, 2:], weight)]
    fields = cases.fields(in_dim=2, petals=3, out_dim=1, context_dim=1, context_hidden_dim=4)
    fields |= {"curvature": "concave", "temperature": "learned"}
    model = TORCH.model(fields, cases.random_weights(fields, 5), "float32")
    options = {"steps": 200, "loss": Quantile(0.9)}
    found = TORCH.package.fit(model, Stream(given, rows=600), **options).model
    below = -y[:, 0] <= TORCH.package.predict(found, x[:, :2], x[:, 2:])[:, 0]
    assert 0.8 < below[1::2].mean() < 0.97 and found.config.is_concave


REFUSED = {
    "no targets": ({"given": (rows()[0],)}, "fit.y: expected targets beside x; got None. Pass them, or batches"),
    "y": ({"y": 1.0}, "fit.y: expected None beside a Stream"),
    "weights": ({"sample_weight": 1.0}, "fit.sample_weight: expected None beside a Stream"),
    "a share": ({"validation": 0.2}, "fit.validation: expected None, (x, y) or 0 beside a Stream; got 0.2"),
    "a choice": ({"shape": "auto"}, "fit.shape: expected None beside a Stream"),
    "a state of arrays": ({"position": None}, "fit.resume: expected a position in a Stream; got none"),
    "another stream": ({"rows": 499}, "fit.resume: expected a state of the given rows"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_stream_has_is_refused(name):
    options, words = REFUSED[name]
    state = whole(TORCH)[1][5]
    if name == "a state of arrays":
        options = {"resume": state._replace(position=None)}
    if name == "another stream":
        options = {"given": (Stream(batches(), rows=499),), "resume": state}
    with pytest.raises((TypeError, ValueError)) as caught:
        fitted(TORCH, **options)
    assert words in str(caught.value)


def test_rows_to_hold_out_may_be_given_or_none():
    x, y = rows()
    given = fitted(TORCH, validation=(x[:50], y[:50]))
    assert len(given.judged.hull) == 50 and given.curvature is None
    assert fitted(TORCH, validation=0).history.validation_loss == ()
