"""Tables of numbers of any library: each kind of cell is taken or refused by one rule, in one function of the core."""

import datetime
from decimal import Decimal
from fractions import Fraction

import cases
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
import torch

import convexmoe.training.data
from convexmoe.hull.rows import as_numbers

X = np.arange(6.0).reshape(3, 2)
MASKED = np.ma.array(X, mask=[[0, 1], [0, 0], [1, 0]])


class NAType:
    """A missing cell, as pandas calls it."""


class Frame:
    """A frame of several dtypes, as pandas has them: numpy would give it one."""

    def __init__(self, cells, dtypes):
        self.cells, self.dtypes = np.array(cells, object), np.array(dtypes, object)

    def to_numpy(self, dtype):
        return self.cells.astype(dtype)

    def __array__(self, dtype=None, copy=None):
        return self.cells.astype(float)


class Nulls:
    """A series with nulls, as Polars has them: numpy would make NaN of them."""

    def __init__(self, cells):
        self.cells = cells

    def null_count(self):
        return self.cells.count(None)

    def to_list(self):
        return self.cells

    def __array__(self, dtype=None, copy=None):
        return np.array(self.cells, float)


class Masks:
    """A variable of a library whose array is masked: numpy.asarray would read behind the mask."""

    def __init__(self, mask):
        self.mask = mask

    def __array__(self, dtype=None, copy=None):
        return np.ma.array(X, mask=self.mask)


def objects(*cells):
    """Rows of two cells each; numpy itself would open arrays among them, or refuse."""
    array = np.empty(len(cells), object)
    for at, cell in enumerate(cells):
        array[at] = cell
    return array.reshape(-1, 2)


VIEW = torch.complex(torch.zeros(3, 2).double(), -torch.tensor(X)).conj().imag  # torch keeps its sign apart

TAKEN = {
    "scalars of any library": objects(
        torch.tensor(0.0, requires_grad=True), jnp.float32(1), np.ma.array(2.0), jnp.bfloat16(3), 4, torch.tensor(5)
    ),
    "scalars of ml_dtypes": objects(*X.ravel().astype(ml_dtypes.bfloat16)),
    "an object with a mask of none": Masks(False),
    "negative view": VIEW,
    "negative views in a list": list(VIEW),
    "scalars of a negative view": objects(*VIEW.ravel()),
    "masked nowhere": np.ma.array(X, mask=False),
    "whole": X.astype(int),
    "big-endian": X.astype(">f4"),
    "read-only": np.broadcast_to(X, X.shape),
    "bfloat16": X.astype(ml_dtypes.bfloat16),
    "objects": np.array([[0, 1.0], [Decimal(2), Fraction(3)], [np.float32(4), np.int64(5)]], object),
    "nested": [[0, 1], (2, 3.0), np.array([4, 5])],
    "with gradient": torch.tensor(X, requires_grad=True),
    "half": torch.tensor(X).half(),
    "bfloat16 with gradient": torch.tensor(X, dtype=torch.bfloat16, requires_grad=True),
    "tensors in a list": [torch.tensor(row, requires_grad=True) for row in X],
    "bfloat16 of JAX": jnp.asarray(X, jnp.bfloat16),
    "frame": Frame(X, ["Int64", np.dtype(float)]),
}


@pytest.mark.parametrize("name", TAKEN)
def test_numbers_are_taken(name):
    numbers = as_numbers("fit", "x", TAKEN[name])
    assert type(numbers) is np.ndarray and numbers.dtype == np.float64
    np.testing.assert_array_equal(numbers, X)


def test_booleans_are_numbers_and_whole_seconds_in_nanoseconds_are_exact():
    np.testing.assert_array_equal(as_numbers("fit", "x", X > 2), X > 2)
    np.testing.assert_array_equal(as_numbers("fit", "x", np.array([[True, 2]], object)), [[1, 2]])
    assert as_numbers("fit", "x", np.array([1_700_000_000 * 10**9]))[0] == 1.7e18


COUNT, TEXT = "a number in every cell; got {} (masked, NA or None)", "numbers; got {}. Encode text"
REFUSED = {
    "masked": (MASKED, ValueError, COUNT.format("2 missing cells") + ", the first at row 0, column 1"),
    "masked whole numbers": (MASKED.astype(int), ValueError, COUNT.format("2 missing cells")),
    "masked rows": (list(MASKED), ValueError, COUNT.format("2 missing cells")),
    "None": ([[1.0, None]], ValueError, COUNT.format("1 missing cell")),
    "NA": (Frame([[1, NAType()]], ["Int64", np.dtype(float)]), ValueError, COUNT.format("1 missing cell")),
    "nullable": (Frame([[NAType(), NAType()]], ["Int64"]), ValueError, COUNT.format("2 missing cells")),
    "null": (Nulls([1, None, None]), ValueError, COUNT.format("2 missing cells") + ", the first at row 1"),
    "masked scalars": (
        objects(np.ma.masked, 1, np.ma.array(2, mask=True), 3),
        ValueError,
        COUNT.format("2 missing cells") + ", the first at row 0, column 0",
    ),
    "one masked": (np.ma.masked, ValueError, COUNT.format("1 missing cell") + ", as a scalar"),
    "an object with a mask": (Masks(MASKED.mask), ValueError, COUNT.format("2 missing cells")),
    "objects with a mask": ([Masks(MASKED.mask)], ValueError, COUNT.format("2 missing cells")),
    "signaling NaN": (objects(1, Decimal("sNaN")), ValueError, "a Decimal that float() refuses at row 0, column 1"),
    "a fraction too large": ([Fraction(10**5000)], ValueError, "a Fraction that float() refuses at row 0"),
    "conjugate view": (torch.tensor([1j]).conj(), TypeError, "Pass the real part."),
    "text": (X.astype(str), TypeError, TEXT.format("<U32[3, 2]")),
    "text among objects": (np.array([[1, "red"]], object), TypeError, TEXT.format("'red' at row 0, column 1")),
    "dates": (np.array(["2020-01-01"], "M8[D]"), TypeError, "got dates, datetime64[D][1]. Subtract one, then divide"),
    "days": (np.array([datetime.date(2020, 1, 1)]), TypeError, "Subtract one, then divide by a unit"),
    "durations": (np.array([1], "m8[s]"), TypeError, "Divide them by a unit"),
    "complex": (X + 0j, TypeError, "got complex numbers, complex128[3, 2]. Pass the real part."),
    "complex tensor": (torch.tensor([1j]), TypeError, "Pass the real part."),
    "too large": (np.array([0, 2**53 + 1]), ValueError, "got 9007199254740993 at row 1. Subtract an offset"),
    "too large unsigned": (np.array([2**64 - 1], np.uint64), ValueError, "got 18446744073709551615 at row 0"),
    "huge": ([10**5000], ValueError, "got one of 16610 bits at row 0"),
    "ragged": ([[1, 2], [3]], ValueError, "rows of equal length; got a list of unequal ones"),
    "sparse": (scipy.sparse.csr_matrix(X), TypeError, "got a sparse csr_matrix. Make it dense first"),
    "sparse tensor": (torch.tensor(X).to_sparse(), TypeError, "got a sparse Tensor. Make it dense first"),
    "structured": (np.zeros(3, [("a", float)]), TypeError, "structured_to_unstructured"),
    "nothing": (None, TypeError, "an array of numbers; got NoneType"),
    "a generator": (iter([1]), TypeError, "an array of numbers; got list_iterator"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_table_of_numbers_is_refused(name):
    value, kind, words = REFUSED[name]
    with pytest.raises(kind) as caught:
        as_numbers("fit", "x", value)
    assert str(caught.value).startswith("fit.x: expected ") and words in str(caught.value)
    assert type(caught.value) is kind


FIELDS = cases.fields(in_dim=2, out_dim=1, hidden_dim=3)


def test_control_numpy_reads_behind_the_mask(backend, monkeypatch):
    """`fit` refuses masked cells; with numpy's own conversion it takes what is behind them, without a word."""
    model = backend.model(FIELDS, cases.random_weights(FIELDS), "float32")
    hidden = np.ma.array(np.arange(20.0).reshape(10, 2), mask=np.arange(20).reshape(10, 2) == 7)
    options = {"steps": 1, "batch_size": 7, "validation": 0}
    for rows, targets in [(hidden, np.ones(10)), (hidden.data, hidden[:, 1])]:
        with pytest.raises(ValueError, match="1 missing cell"):
            backend.package.fit(model, rows, targets, **options)
    with pytest.raises(ValueError, match=r"predict.x: expected a number in every cell"):
        backend.package.predict(model, hidden)
    with pytest.raises(ValueError, match=r"Box.lower: expected a number in every cell"):
        backend.package.Box(hidden[3], np.ones(2))
    with pytest.raises(ValueError, match=r"Ball.radius: expected a number in every cell; got 1 missing cell"):
        backend.package.Ball([0, 0], np.ma.masked)
    with pytest.raises(ValueError, match=r"Simplex.total: expected a number in every cell; got 1 missing cell"):
        backend.package.Simplex(np.ma.masked)
    with pytest.raises(ValueError, match=r"minimize.x0: expected a number in every cell; got 1 missing cell"):
        backend.package.minimize(model, backend.package.Box([0, 0], [1, 1]), x0=[None, 0.0])
    monkeypatch.setattr(convexmoe.training.data, "as_numbers", lambda owner, argument, value: np.asarray(value, float))
    backend.package.fit(model, hidden, np.ones(10), **options)


def test_control_numpy_reads_behind_the_mask_of_an_object():
    np.testing.assert_array_equal(np.asarray(Masks(True)), X)


def test_a_starting_point_may_be_a_list(backend):
    model = backend.model(FIELDS, cases.random_weights(FIELDS), "float64")
    box = backend.package.Box([-1, -1], [1, 1])
    given, wanted = (backend.package.minimize(model, box, x0=x0) for x0 in ([0.5, 0.25], np.array([0.5, 0.25])))
    np.testing.assert_array_equal(np.asarray(given.x), np.asarray(wanted.x))
    with pytest.raises(ValueError, match=r"minimize.x0: expected \[..., in_dim=2\]"):
        backend.package.minimize(model, box, x0=[0.5])


def test_numbers_that_are_not_finite_are_counted(backend):
    model = backend.model(FIELDS, cases.random_weights(FIELDS), "float32")
    rows = np.where(np.arange(20).reshape(10, 2) % 7 == 3, np.nan, 1.0)
    with pytest.raises(ValueError, match=r"got 3 cells that are not, the first nan at row 1, column 1\."):
        backend.package.fit(model, rows, np.ones(10))
    with pytest.raises(ValueError, match=r"predict.x: expected finite numbers; got 3 cells"):
        backend.package.predict(model, rows)


def test_train_takes_no_masked_rows():
    layer, package = torch.nn.Linear(2, 1), __import__("convexmoe_torch")
    with pytest.raises(ValueError, match=r"train.x: expected a number in every cell; got 2 missing cells"):
        package.train(layer, MASKED, np.ones((3, 1)), steps=1)
    package.train(layer, torch.tensor(X), np.ones((3, 1)), steps=1)
