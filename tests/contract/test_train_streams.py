"""`train` to a stream of rows of any shape: the same rows whatever the batches, and a run that goes on bit for bit."""

import backends
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from convexmoe import Stream
from convexmoe.training import stream

pytestmark = pytest.mark.usefixtures("quick_compilation")

JAX, TORCH = backends.BACKENDS
OPTIONS = {"steps": 80, "batch_size": 50, "seed": 3}
RNG = np.random.default_rng(0)
X = RNG.normal(size=(701, 2, 3))
Y = X.sum(axis=(1, 2))[:, None] + 0.1 * RNG.normal(size=(701, 1))
HELD = X[:53], Y[:53]


def flat_plane(params, x):
    return x.reshape(len(x), -1) @ params["weight"] + params["bias"]


def train(backend, *given, **options):
    """A plane over rows of two axes, trained."""
    options = OPTIONS | {"validation": HELD} | options
    if backend is JAX:
        params = {"weight": jnp.zeros((6, 1)), "bias": jnp.zeros(1)}
        return backend.package.train(flat_plane, params, *given, **options)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 1))
    with torch.no_grad():
        for value in module.parameters():
            value.zero_()
    return backend.package.train(module, *given, **options)


def cut(size, x=X, y=Y):
    return [(x[first : first + size], y[first : first + size]) for first in range(0, len(x), size)]


@pytest.mark.parametrize("backend", backends.BACKENDS, ids=["jax", "torch"])
def test_it_learns_from_all_rows_whatever_the_batches(backend):
    losses = [train(backend, Stream(cut(size), rows=200)).history.validation_loss for size in (31, 701)]
    assert losses[0] == losses[1] and losses[0][-1] < 0.2 * losses[0][0]
    other = train(backend, Stream(cut(31), rows=200), seed=4).history.validation_loss
    assert other != losses[0]  # control: the order of the rows is seen


@pytest.mark.parametrize("backend", backends.BACKENDS, ids=["jax", "torch"])
def test_a_run_that_stopped_goes_on_bit_for_bit(backend):
    whole = train(backend, Stream(cut(31), rows=200)).history
    states = []

    def stop(state):
        states[:] = [state]
        return state.history.last_step == 40

    train(backend, Stream(cut(31), rows=200), on_evaluation=stop)
    [state] = states
    assert state.position.passes > 0
    assert train(backend, Stream(cut(31), rows=200), resume=state).history == whole
    with pytest.raises(ValueError, match="no position in a Stream"):
        train(backend, X, Y, resume=state)


@pytest.mark.parametrize("backend", backends.BACKENDS, ids=["jax", "torch"])
def test_a_run_to_arrays_goes_on_from_any_state_and_with_its_own_rows_and_options_alone(backend):
    """The state of an evaluation is that of no later one, whatever became of the module; it is not used up."""
    states = []
    whole = train(backend, X, Y, on_evaluation=states.append).history
    for state in (states[19], states[19], states[3]):
        assert train(backend, X, Y, resume=state).history == whole
    changes = [{"seed": 4}, {"batch_size": 49}, {"learning_rate": 0.1}, {"steps": 160}]
    for changed in changes:
        with pytest.raises(ValueError, match=f"learning_rate and seed; got another {next(iter(changed))}"):
            train(backend, X, Y, resume=states[19], **changed)
    others = [{"x": X + 1}, {"y": 2 * Y}, {"validation": (X[:52], Y[:52])}, {"validation": None}]
    for changed in others:
        rows = [changed.pop("x", X), changed.pop("y", Y)]
        with pytest.raises(ValueError, match="given rows, weights, loss, validation and seed; got one of others"):
            train(backend, *rows, resume=states[19], **changed)
    # control: where nothing is compared, as of states of earlier versions, they go on, and elsewhere
    unknown = states[19]._replace(rows="", schedule=None)
    assert train(backend, X, Y, resume=unknown).history == whole
    assert train(backend, X + 1, Y, resume=unknown, seed=4).history != whole


def test_both_packages_take_the_same_rows():
    found = [train(backend, Stream(cut(64), rows=200)).history.train_loss for backend in backends.BACKENDS]
    np.testing.assert_allclose(*found, rtol=1e-4)


@pytest.mark.parametrize(
    "batches, message",
    [
        ([(X,)], r"expected batches \(x, y\) for train; got a tuple of 1 at row 0"),
        ([(X, Y), (X, Y[:5])], "x and y of as many rows; got .* at row 701"),
        ([(X, Y), (X[:, 0], Y)], r"expected rows shaped as the first, \(2, 3\) and \(1,\); got .* at row 701"),
        ([], "expected 1 row at least; got 0"),
    ],
)
def test_a_source_that_will_not_do_is_refused_before_any_step(batches, message):
    with pytest.raises((TypeError, ValueError), match=message):
        train(TORCH, Stream(batches))


def test_a_source_that_changes_is_refused():
    calls = []

    def source():
        calls.append(1)
        return iter(cut(31, X + (len(calls) > 2)))

    with pytest.raises(ValueError, match="the same 701 rows in each pass"):
        train(TORCH, Stream(source, rows=200))
    with pytest.raises(ValueError, match="None beside a Stream"):
        train(TORCH, Stream(cut(31)), Y)


def test_no_more_rows_are_in_memory_than_two_blocks(monkeypatch):
    sizes, shuffle = [], stream.Draws._shuffle

    def noted(self, passes, block, batches):
        found = shuffle(self, passes, block, batches)
        sizes.append(len(found[0]))
        return found

    monkeypatch.setattr(stream.Draws, "_shuffle", noted)
    counted = Stream(cut(31), rows=200)
    train(TORCH, counted)
    assert max(sizes) == 200 and sum(sizes[:4]) == len(X) and len(counted.count().x) == 200
