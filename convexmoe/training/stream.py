"""Rows that do not fit into memory: read in batches, again and again, with a sample of them for all that is no step.

The first pass takes the spread of each column and a uniform sample. The rows of the steps come from further passes, in
blocks of rows that are shuffled, without those held out. Whatever the batches of the source, the rows are the same.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from itertools import count
from numbers import Real
from operator import length_hint
from typing import Any, NamedTuple

import numpy as np

from ..errors import describe, fail, whole_number
from ..hull.config import HullConfig
from ..hull.rows import as_numbers
from .batches import UNLIKE, USED_UP, check_alike, in_batch, open_source
from .data import Data, Spread, check_count, check_rows, check_weight, held_out_data, spread_of
from .parts import FOLDS, Parts

ROWS = 50_000
ENDLESS = 2**48  # batches: no data set has so many
FORMS = "batches (x, y), (x, y, context) or (x, y, context, sample_weight)"


class Batch(NamedTuple):
    """Some rows of a pass, in the order of the source.

    Args:
        first: the number of its first row; x, target: as `check_data` returns them, with rows of weight 0.
        place: where the source can go on from this batch; None where it cannot tell.
    """

    first: int
    x: np.ndarray
    target: np.ndarray
    place: dict[str, Any] | None

    @property
    def end(self) -> int:
        """The number of the row after its last."""
        return self.first + len(self.x)


class Position(NamedTuple):
    """Where the next row of the steps is.

    Args:
        passes: how many are done; block: its number in this pass; used: how many of its rows are.
        place: where the source can go on from the batch in which the block begins, in what a file can hold; None where
            it cannot: then it is read from its start up to the block.
    """

    passes: int = 0
    block: int = 0
    used: int = 0
    place: dict[str, Any] | None = None


class Survey(NamedTuple):
    """What the first pass over a stream tells.

    Args:
        rows: of the source; counted: those of a weight above 0; checksum: of all numbers.
        columns, targets: the spread of the D + C columns and of the O targets.
        weight: the mean weight, 1 where rows have none.
        x, target, numbers: the rows of the sample, in the order of the source, weights over their mean; their numbers.
    """

    rows: int
    counted: int
    checksum: int
    columns: Spread
    targets: Spread
    weight: float
    x: np.ndarray
    target: np.ndarray
    numbers: np.ndarray

    def hold_out(self, validation: Any, config: HullConfig, seed: int) -> tuple[Data, Parts, np.ndarray]:
        """Return the sample, with rows given to hold out, which are for what, and the numbers that steps leave out."""
        given = isinstance(validation, (tuple, list))
        if not given and validation is not None and not (isinstance(validation, Real) and validation == 0):
            fix = "Leave it out: then a fifth of the sample is held out."
            fail("fit", "validation", "None, (x, y) or 0 beside a Stream", repr(validation), fix)
        part = 1.0 / FOLDS if validation is None else validation
        data, parts = held_out_data(self.x.copy(), self.target.copy(), part, config, seed)
        return data, parts, self.numbers[:0] if given else self.numbers[parts.held_out[0]]


class Count(NamedTuple):
    """What the first pass tells of rows of any shape.

    Args:
        rows, counted: of the source; checksum: of all numbers; weight: 1.
        x, target: the first rows.
    """

    rows: int
    counted: int
    checksum: int
    weight: float
    x: np.ndarray
    target: np.ndarray


class Stream:
    """Batches of rows, of which `fit(model, Stream(source))`, or `train`, has only some in memory.

    Guarantee: memory does not grow with the rows of the source (`tests/test_streams.py`).

    Args:
        source: what gives its batches anew each time: a list, a dataset of Grain, or a function that returns an
            iterator. A batch is `(x, y)`, `(x, y, context)` or `(x, y, context, sample_weight)`, each as `fit` takes
            it; a context may be None. For `train` it is `(x, y)`, arrays `[rows, ...]`. The rows are the same in each
            pass, in the same order.
        rows: how many are in memory, twice: those of the sample, and those of the block that is shuffled; >= 2.

    Raises:
        TypeError: `source` can be read only once, or not at all.

    >>> rows = np.linspace(-1, 1, 64)[:, None]
    >>> stream = Stream([(rows[:40], rows[:40] ** 2), (rows[40:], rows[40:] ** 2)])
    >>> stream.survey(HullConfig(1, 4, 1)).counted
    64
    """

    def __init__(self, source: Any, *, rows: int = ROWS) -> None:
        fix = "Pass a list, a dataset, or a function that returns an iterator."
        if not isinstance(source, Iterable) and not callable(source):
            fail("Stream", "source", FORMS, type(source).__name__, fix, TypeError)
        if isinstance(source, Iterator):
            got = f"{type(source).__name__}, which ends for good"
            fail("Stream", "source", "batches that can be read again", got, fix, TypeError)
        if length_hint(source) >= ENDLESS:  # as Grain says of most datasets that repeat
            fail("Stream", "source", "batches that come to an end", "endless ones", "Leave repeat() out.")
        self.source, self.rows = source, whole_number("Stream", "rows", rows, 2)
        self._surveys: dict[tuple[int, int, int], Survey] = {}
        self._count: Count | None = None

    def read(self, config: HullConfig | None, place: dict[str, Any] | None = None) -> Iterator[Batch]:
        """Yield the batches of a pass, checked; the next one is read when it is asked for.

        Args:
            config: of the hull, None for rows of any shape; place: of a batch to go on from, or None.
        """
        source: Any = open_source(self.source)
        first = 0
        if place is not None and hasattr(source, "set_state"):
            source.set_state(place["state"])
            first = place["row"]
        while True:
            state = state_of(source)
            try:
                given = next(source)
            except StopIteration:
                return
            x, target = check_batch(given, first, config)
            if len(x):
                yield Batch(first, x, target, None if state is None else {"row": first, "state": state})
                first += len(x)

    def survey(self, config: HullConfig) -> Survey:
        """Return what the first pass tells; it is made once.

        Raises:
            TypeError, ValueError: as `fit` for arrays, with the number of the row.
        """
        widths = config.in_dim, config.out_dim, config.context_dim
        if widths not in self._surveys:
            self._surveys[widths] = take_survey(self.read(config), config, self.rows)
        return self._surveys[widths]

    def count(self) -> Count:
        """Return what the first pass tells of rows of any shape; it is made once.

        Raises:
            TypeError, ValueError: a batch is no pair of numbers, or of other shapes than the first; there are no rows.
        """
        if self._count is None:
            self._count = take_count(self.read(None), self.rows)
        return self._count


def state_of(source: Any) -> Any:
    """Return where an iterator stands, by its `get_state`, None where it cannot tell in what a file can hold."""
    get_state = getattr(source, "get_state", None)
    if get_state is None or not hasattr(source, "set_state"):
        return None
    try:
        state = get_state()
        plain = json.loads(json.dumps(state))
    except (TypeError, ValueError):
        return None
    return plain if plain == state else None


def check_batch(batch: Any, first: int, config: HullConfig | None) -> Data:
    """Return columns and targets of a batch after their checks, weights as they are given."""
    if config is None:
        return check_pair(batch, first)
    fix = "Map each element of the source to such a tuple."
    if not isinstance(batch, (tuple, list)) or not 2 <= len(batch) <= 4:
        sized = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
        fail("Stream", "source", FORMS, f"a {type(batch).__name__}{sized} at row {first}", fix, TypeError)
    given, y, context, weight = (*batch, None, None)[:4]
    with in_batch(first):
        x, target = check_rows("x", given, y, config, context, first)
        if weight is None:
            return x, target
        return x, np.concatenate([target, check_weight(weight, len(x), 0, first)[:, None]], axis=1)


def check_pair(batch: Any, first: int) -> Data:
    """Return x and y of a batch for `train` after their checks."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        sized = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
        got, fix = f"a {type(batch).__name__}{sized} at row {first}", "Map each element of the source to such a pair."
        fail("Stream", "source", "batches (x, y) for train", got, fix, TypeError)
    x, y = (as_numbers("train", name, part) for name, part in zip(("x", "y"), batch, strict=True))
    if not x.ndim or not y.ndim or len(x) != len(y):
        got = f"{describe(x)} and {describe(y)} at row {first}"
        fail("Stream", "source", "x and y of as many rows", got, "Give one row of y for each row of x.")
    return x, y


def take_count(batches: Iterable[Batch], size: int) -> Count:
    """Return what a pass tells of rows of any shape, with the first `size` rows."""
    end, checksum, held = 0, 0, 0
    taken: list[Data] = []
    for first, x, target, _ in batches:
        if taken:
            check_alike((x, target), taken[0], "rows shaped as the first,", f"at row {first}", "Pad them to one shape.")
        checksum, end = add_checksum(checksum, x, target), first + len(x)
        if held < size:
            taken.append((x[: size - held], target[: size - held]))
            held += len(taken[-1][0])
    check_count("x", end, 1)
    x, target = (np.concatenate(part) for part in zip(*taken, strict=True))
    return Count(end, end, checksum, 1.0, x, target)


def take_survey(batches: Iterable[Batch], config: HullConfig, size: int) -> Survey:
    """Return what a pass tells, in memory for `2 size` rows and a batch.

    The sample has the rows whose keys are least: each row's key is a hash of its number, so that it is the same
    whatever the batches are.
    """
    O, end, counted, held, checksum, total, limit = config.out_dim, 0, 0, 0, 0, 0.0, 2**64 - 1
    width = None
    spreads: list[Spread] = []
    taken: list[tuple[np.ndarray, ...]] = []  # keys, numbers, x, targets

    def cut() -> None:
        nonlocal taken, limit, held
        keys, *rest = (np.concatenate(part) for part in zip(*taken, strict=True))
        if len(keys) > size:
            least = np.argpartition(keys, size)[:size]
            keys, rest = keys[least], [part[least] for part in rest]
            limit = int(keys.max())
        taken, held = [(keys, *rest)], len(keys)

    for first, x, target, _ in batches:
        checksum, end = add_checksum(checksum, x, target), first + len(x)
        numbers = np.arange(first, end)
        width = target.shape[1] if width is None else width
        if target.shape[1] != width:
            got, fix = f"a batch with and one without, at row {first}", "Give all batches weights, or none."
            fail("fit", "sample_weight", "weights in all batches or in none", got, fix)
        if target.shape[1] > O and not (target[:, O] > 0).all():
            x, target, numbers = (part[target[:, O] > 0] for part in (x, target, numbers))
        if not len(x):
            continue
        counted, total = counted + len(x), total + float(target[:, O:].sum())
        found = [spread_of(x), spread_of(target[:, :O])]
        spreads = [before.merge(new) for before, new in zip(spreads, found, strict=True)] if spreads else found
        keys = keys_of(numbers)
        near = keys <= limit
        if near.any():
            taken.append((keys[near], numbers[near], x[near], target[near]))
            held += int(near.sum())
        if held > 2 * size:
            cut()
    check_count("x", counted, 2)
    cut()
    _, numbers, x, target = taken[0]
    order, weight = np.argsort(numbers), total / counted or 1.0
    x, target = x[order], target[order]
    target[:, O:] /= weight
    columns, targets = spreads
    return Survey(end, counted, checksum, columns, targets, weight, x, target, numbers[order])


def add_checksum(checksum: int, x: np.ndarray, target: np.ndarray) -> int:
    """Return the checksum of all rows so far and these, whatever the batches are."""
    flat = [part.reshape(len(part), -1) for part in (x, target)]
    return zlib.crc32(np.concatenate(flat, axis=1).data, checksum)


def keys_of(numbers: np.ndarray) -> np.ndarray:
    """Return a key for each row number, `uint64[N]`, which no other number has.

    Source: Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014, `mix64`.
    """
    z = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class Draws:
    """The rows of the steps, one after another, in passes over a stream.

    Block b of a pass has the rows b B to (b + 1) B - 1 of the source but for those held out, in an order drawn by the
    seed, the pass and b.

    Args:
        stream, config: what is read, rows of any shape where there is no config.
        held_out: numbers of the rows that are left out, rising.
        seed: of the order; position: of an earlier one to go on from, or None.

    Attributes:
        rows: how many a pass has; position: where the next row is.
    """

    def __init__(
        self, stream: Stream, config: HullConfig | None, held_out: np.ndarray, seed: int, position: Position | None
    ) -> None:
        self.stream, self.config, self.held_out, self.seed = stream, config, held_out, seed
        self.survey: Survey | Count = stream.count() if config is None else stream.survey(config)
        self.rows = self.survey.counted - len(held_out)
        self.position = position or Position()
        self._blocks = self._read(self.position)
        self._block: Data | None = None

    def take(self, rows: int) -> Data:
        """Return the next rows, in the units of the source, weights over their mean."""
        parts: list[Data] = []
        while rows:
            x, target = self._block = self._block or next(self._blocks)
            part = slice(self.position.used, self.position.used + rows)
            parts.append((x[part], target[part]))
            rows -= len(parts[-1][0])
            self.position = self.position._replace(used=min(part.stop, len(x)))
            if rows:
                self._block, self.position = None, self.position._replace(used=0)
        x, target = (np.concatenate(part) for part in zip(*parts, strict=True))
        return x, target

    def _read(self, position: Position) -> Iterator[Data]:
        """Yield the blocks from one on, for ever, and note where they are."""
        first, place = position.block, position.place
        for passes in count(position.passes):
            for block, batches in self._cut(passes, first, place):
                self.position = self.position._replace(passes=passes, block=block, place=batches[0].place)
                yield self._shuffle(passes, block, batches)
            first, place = 0, None

    def _cut(self, passes: int, block: int, place: dict[str, Any] | None) -> Iterator[tuple[int, list[Batch]]]:
        """Yield the number of each block of a pass from one on, and the batches that reach into it."""
        size, checksum, end, whole = self.stream.rows, 0, 0, place is None
        held: list[Batch] = []
        like, rule = (self.survey.x, self.survey.target), f"the same {self.survey.rows} rows in each pass"
        for batch in self.stream.read(self.config, place):
            check_alike(batch[1:3], like, f"{rule}, shaped", f"at row {batch.first} in pass {passes + 2}", UNLIKE)
            end = batch.end
            if whole:
                checksum = add_checksum(checksum, batch.x, batch.target)
            if end <= block * size:
                continue
            held.append(batch)
            while end >= (block + 1) * size:
                yield block, held
                block += 1
                held = [batch] if end > block * size else []
        if held:
            yield block, held
        if end != self.survey.rows or (whole and checksum != self.survey.checksum):
            got = f"{end} rows in pass {passes + 2}" if end != self.survey.rows else f"others in pass {passes + 2}"
            fail("Stream", "source", rule, got, UNLIKE if end else USED_UP)

    def _shuffle(self, passes: int, block: int, batches: list[Batch]) -> Data:
        """Return the rows of a block in their order, without those held out."""
        first = block * self.stream.rows
        parts = [(b, slice(max(first - b.first, 0), first + self.stream.rows - b.first)) for b in batches]
        x, target = (np.concatenate([getattr(b, name)[part] for b, part in parts]) for name in ("x", "target"))
        learned = ~np.isin(np.arange(first, first + len(x)), self.held_out)
        weighted = self.config is not None and target.shape[1] > self.config.out_dim
        if weighted:
            learned &= target[:, -1] > 0
        order = np.random.default_rng([self.seed, 2, passes, block]).permutation(np.flatnonzero(learned))
        x, target = x[order], target[order]
        if weighted:
            target[:, -1] /= self.survey.weight
        return x, target
