"""A stream: its first pass, its sample, the rows of its steps, its memory, what it refuses; the core alone."""

import tracemalloc
from functools import partial

import numpy as np
import pytest

from convexmoe import HullConfig, Stream
from convexmoe.training import stream as module
from convexmoe.training.data import check_data, spread_of
from convexmoe.training.stream import Draws, Position

N, D, O = 997, 3, 2
CONFIG = HullConfig(D, 5, O)


def rows(count=N, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, D)) * [1e3, 1e-2, 1.0] + [5e6, 0.0, -7.0]
    return x, np.stack([np.arange(count), (x**2).sum(axis=1)], axis=1)


def cut(size, *arrays):
    """The rows in batches of a size."""
    return [tuple(array[first : first + size] for array in arrays) for first in range(0, len(arrays[0]), size)]


class Dataset:
    """Batches whose iterator can be set to where another one stood, as those of Grain; counts what it gives."""

    def __init__(self, batches):
        self.batches, self.given = batches, 0

    def __iter__(self):
        return Reader(self)


class Reader:
    def __init__(self, dataset):
        self.dataset, self.next = dataset, 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.next == len(self.dataset.batches):
            raise StopIteration
        self.next, self.dataset.given = self.next + 1, self.dataset.given + 1
        return self.dataset.batches[self.next - 1]

    def get_state(self):
        return {"next": self.next}

    def set_state(self, state):
        self.next = state["next"]


@pytest.mark.parametrize("size", [1, 64, 2000])
def test_the_first_pass_tells_what_arrays_tell(size):
    x, y = rows()
    survey = Stream(cut(size, x, y)).survey(CONFIG)
    whole = check_data("x", x, y, CONFIG)
    for found, array in ((survey.columns, whole[0]), (survey.targets, whole[1])):
        wanted = spread_of(array)
        np.testing.assert_array_equal([found.low, found.high], [wanted.low, wanted.high])
        np.testing.assert_allclose([found.mean, found.deviation], [wanted.mean, wanted.deviation], rtol=1e-12)
    assert (survey.rows, survey.counted) == (N, N)  # all of them are in its sample, in order
    np.testing.assert_array_equal(np.concatenate([survey.x, survey.target], axis=1), np.concatenate(whole, axis=1))
    if size == 64:  # control: the mean of the batches' deviations is another number
        mean = np.mean([spread_of(part).deviation for part, _ in cut(size, x, y)], axis=0)
        assert np.abs(mean / survey.columns.deviation - 1).max() > 1e-3


def test_rows_of_weight_zero_are_left_out_and_nothing_overflows():
    x, y = rows()
    x[:, 0] *= 1e200
    weight = np.arange(N) % 3
    survey = Stream([(x[:500], y[:500], None, weight[:500]), (x[500:], y[500:], None, weight[500:])]).survey(CONFIG)
    kept = check_data("x", x, y, CONFIG, None, weight)
    assert (survey.rows, survey.counted) == (N, len(kept[0]))
    np.testing.assert_allclose(survey.target, kept[1], rtol=1e-14)
    np.testing.assert_allclose(survey.columns.deviation, spread_of(kept[0]).deviation, rtol=1e-12)


def test_the_sample_is_uniform_and_the_same_in_all_batches():
    x, y = rows(20_000)
    first, other = (Stream(cut(size, x, y), rows=1000).survey(CONFIG) for size in (64, 7001))
    assert len(first.numbers) == 1000
    np.testing.assert_array_equal(first.numbers, other.numbers)
    np.testing.assert_array_equal(first.x, x[first.numbers])
    counts = np.histogram(first.numbers, bins=20, range=(0, 20_000))[0]
    assert np.sum((counts - 50) ** 2 / 50) < 43.8  # chi-square of 19 degrees: one in a thousand is above
    assert abs(np.corrcoef(module.keys_of(np.arange(20_000)).astype(float), np.arange(20_000))[0, 1]) < 0.03


def drawn(source, takes, held_out=(), position=None, size=100):
    """The first target of each row that is drawn, its number, take by take; and where each take ends."""
    draws = Draws(Stream(source, rows=size), CONFIG, np.array(held_out, int), 3, position)
    found = []
    for take in takes:
        found.append((draws.take(take)[1][:, 0].astype(int), draws.position))
    return found


def test_each_pass_has_each_row_once_but_for_those_held_out():
    x, y = rows()
    held_out = [0, 5, 99, 100, 996]
    left = N - len(held_out)
    (first, _), (second, _) = drawn(cut(64, x, y), [left, left], held_out)
    wanted = np.setdiff1d(np.arange(N), held_out)
    for numbers in (first, second):
        np.testing.assert_array_equal(np.sort(numbers), wanted)
    assert (first != second).mean() > 0.9 and (np.sort(first[:97]) == wanted[:97]).all()
    (other, _), _ = drawn(cut(451, x, y), [left, left], held_out)
    np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize("kind", [list, Dataset])
def test_draws_go_on_where_others_stood(kind):
    x, y = rows()
    source, takes = kind(cut(64, x, y)), [67] * 40
    whole = drawn(source, takes)
    for done in (1, 3, 16, 29):
        position = whole[done - 1][1]
        rest = drawn(source, takes[done:], position=position)
        assert [numbers.tolist() for numbers, _ in rest] == [numbers.tolist() for numbers, _ in whole[done:]]
        for lost in (Position(), position._replace(used=0), position._replace(passes=position.passes + 1)):  # controls
            if lost != position:
                assert drawn(source, takes[done:], position=lost)[0][0].tolist() != rest[0][0].tolist()


def test_a_dataset_that_knows_its_place_is_not_read_up_to_it():
    x, y = rows()
    source = Dataset(cut(10, x, y))
    position = drawn(source, [900])[0][1]
    counts = {}
    for name, place in (("with", position.place), ("without", None)):
        draws = Draws(Stream(source, rows=100), CONFIG, np.array([], int), 3, position._replace(place=place))
        source.given = 0
        draws.take(10)
        counts[name] = source.given
    assert counts["with"] <= 21 and counts["without"] > 80


def generated(count, size=500):
    """Batches that are made when they are asked for."""
    for first in range(0, count, size):
        x = np.random.default_rng(first).normal(size=(size, D))
        yield x, np.stack([x[:, 0], x[:, 1]], axis=1)


def peak(count, size):
    """The largest memory of a first pass and of one that draws."""
    tracemalloc.start()
    draws = Draws(Stream(partial(generated, count), rows=size), CONFIG, np.arange(10), 0, None)
    for _ in range(count // 500 - 1):
        draws.take(500)
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


def test_memory_does_not_grow_with_the_rows():
    few, many = (peak(count, 1000) for count in (5000, 40_000))
    assert many < 1.2 * few
    assert peak(40_000, 40_000) > 5 * few  # control: what has all rows in memory is seen


def spoil(row, column, value):
    x, y = rows()
    x[row, column] = value
    return cut(64, x, y)


X, Y = rows()
REFUSED = {
    "a generator": (lambda: (b for b in cut(64, X, Y)), "got generator, which ends for good"),
    "no batches": (lambda: 5, "got int. Pass a list, a dataset, or a function"),
    "nothing in it": (list, "fit.x: expected 2 rows at least; got 0"),
    "a dict": (lambda: [{"x": X}], "got a dict at row 0. Map each element"),
    "one array": (lambda: [(X,)], "got a tuple of 1 at row 0"),
    "another width": (
        lambda: [*cut(500, X, Y), (X[:, :2], Y)],
        "fit.x: expected [rows, in_dim=3]; got float64[997, 2]",
    ),
    "another width, where": (
        lambda: [*cut(500, X, Y), (X[:, :2], Y)],
        "It is in the batch that begins at row 997 of the Stream.",
    ),
    "a function of nothing": (lambda: lambda: None, "got one that returns NoneType. Return one, or yield the batches."),
    "NaN": (lambda: spoil(777, 2, np.nan), "fit.x: expected finite numbers; got nan at row 777, column 2"),
    "text": (lambda: [(X.astype(str), Y)], "fit.x: expected numbers"),
    "a context": (lambda: [(X, Y, X)], "fit.context: expected no context"),
    "a weight below 0": (lambda: [(X, Y, None, -np.ones(N))], "fit.sample_weight: expected numbers >= 0"),
    "weights in part": (lambda: [(X, Y, None, np.ones(N)), (X, Y)], "got a batch with and one without, at row 997"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_stream_is_refused(name):
    make, words = REFUSED[name]
    with pytest.raises((TypeError, ValueError)) as caught:
        Stream(make()).survey(CONFIG)
    assert words in str(caught.value)


def test_a_source_that_changes_is_refused():
    once = iter(cut(64, X, Y))
    passes = [cut(64, X, Y), cut(64, X[::-1], Y[::-1])]
    for source, words in (
        (lambda: once, r"got 0 rows in pass 2\. Return a new iterator at each call"),
        (lambda: passes.pop(0), "got others in pass 2"),
    ):
        with pytest.raises(ValueError, match=rf"expected the same {N} rows in each pass; {words}"):
            drawn(source, [N, N])
    passes = [cut(64, X, Y), [*cut(64, X[:900], Y[:900]), (X[900:], Y[900:], None, np.ones(N - 900))]]
    message = r"in each pass, shaped \(3,\) and \(2,\); got \(3,\) and \(3,\) at row 900 in pass 2\."
    with pytest.raises(ValueError, match=message):
        drawn(lambda: passes.pop(0), [N, N])
    with pytest.raises(ValueError, match="rows: expected a whole number >= 2"):
        Stream([], rows=1)


def test_a_dataset_of_grain_is_a_source():
    import grain  # it brings JAX: the rest of this file needs no framework

    dataset = grain.MapDataset.range(N).seed(1).shuffle().map(lambda row: (X[row], Y[row])).batch(64)
    whole = drawn(dataset, [67] * 20)
    assert whole[5][1].place["state"] is not None
    for source in (dataset, dataset.to_iter_dataset()):
        rest = drawn(source, [67] * 14, position=drawn(source, [67] * 6)[-1][1])
        assert [numbers.tolist() for numbers, _ in rest] == [numbers.tolist() for numbers, _ in whole[6:]]
    with pytest.raises(ValueError, match=r"got endless ones. Leave repeat\(\) out"):
        Stream(dataset.repeat())
