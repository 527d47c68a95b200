"""Columns with large offsets and odd units: float64 until normalized, in `fit`, `predict` and `minimize`.

A plain call of a float32 hull cannot have them, and says so once.
"""

import functools
import warnings

import backends
import cases
import numpy as np
import pytest

from convexmoe.minimization.scalar_hull import ScalarHull

FIELDS = cases.fields(in_dim=1, out_dim=1, hidden_dim=13, petals=5, temperature="learned")
T = np.linspace(0.0, 30.0, 211)[:, None]
Y = 0.1 * (T - 12.0) ** 2
COLUMNS = {  # offset and unit of x, of y
    "julian days": (2460000.5, 1.0, 0.0, 1.0),
    "seconds": (1.7e9, 1.0, 0.0, 1.0),
    "price": (1e9, 0.01, 1e9, 1.0),
    "tiny": (1e-9, 1e-9, -1e-9, 1e-10),
}


@functools.cache
def fitted(backend, column):
    """A hull fitted to the column, and what it predicts there; by hand it is the column in standard units."""
    x_offset, x_unit, y_offset, y_unit = COLUMNS.get(column, (0.0, 1.0, 0.0, 1.0))
    x, y = (T, Y) if column == "by hand" else (x_offset + x_unit * T, y_offset + y_unit * Y)
    model = backend.model(FIELDS, cases.random_weights(FIELDS, 5), "float32")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none of this calls the hull plainly
        model = backend.package.fit(model, x, y, steps=80, batch_size=31, validation=0).model
        return model, x, (backend.package.predict(model, x) - y_offset) / y_unit


@pytest.mark.parametrize("column", COLUMNS)
def test_the_fit_is_that_of_the_column_standardized_by_hand(backend, column):
    _, _, wanted = fitted(backend, "by hand")
    model, x, predicted = fitted(backend, column)
    assert np.abs(predicted - wanted).max() < 1e-4 * np.ptp(Y)
    assert len(np.unique(predicted)) == len(T)  # no two rows are one
    folded = backend.fold(model)
    np.testing.assert_allclose(backend.package.predict(folded, x), backend.package.predict(model, x), rtol=1e-5, atol=0)


@pytest.mark.parametrize("column", ["julian days", "price"])
def test_a_plain_call_is_wrong_and_says_so_once(backend, column):
    model, x, predicted = fitted(backend, column)
    y_offset, y_unit = COLUMNS[column][2:]
    fresh = backend.package.VectorHull.from_params(model.config, model.params)
    backend.forget()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vars(model.config.normalization).pop("dtypes_seen", None)  # another test may have called it
        plain, _ = (backend.numpy(fresh(backend.array(x.astype(np.float32)))) for _ in range(2))
    # the control: float32 cannot have the column
    assert np.abs((plain.astype(float) - y_offset) / y_unit - predicted).max() > 1e-3 * np.ptp(Y)
    said = [str(entry.message) for entry in caught if issubclass(entry.category, UserWarning)]
    assert said[0].startswith("VectorHull.x: expected columns that float32 can carry; got column 0 of mean ")
    assert "Call predict(model, x)" in said[0]
    assert len(said) == (1 if column == "julian days" else 2)  # the price is the target as well


def test_ordinary_columns_are_no_matter(backend):
    model, x, predicted = fitted(backend, "by hand")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = backend.apply(model, (x + 0.0).astype(np.float32))
    np.testing.assert_allclose(plain, predicted, atol=1e-5 * np.ptp(Y))


@pytest.mark.parametrize("column", COLUMNS)
def test_the_minimum_is_found_where_an_offset_is_most_of_the_value(column):
    """`tol (1 + |value|)` alone would take any point of a target of 1e9, or of 1e-9."""
    backend = backends.BACKENDS[1]
    model, x, predicted = fitted(backend, column)
    y_offset, y_unit = COLUMNS[column][2:]
    found = backend.package.minimize(model, backend.package.Box(x.min(0), x.max(0)))
    value = (float(found.value) - y_offset) / y_unit
    assert value < predicted.min() + 1e-3 * np.ptp(Y)
    x0, unit = COLUMNS[column][:2]
    assert abs((float(found.x[0]) - x0) / unit - 12.0) < 1.5


def test_rows_of_another_width_are_refused(backend):
    model, x, _ = fitted(backend, "by hand")
    assert backend.package.predict(model, x[:0]).shape == (0, 1)
    assert backend.package.predict(model, x[0]).shape == (1,)
    for wrong in (x[:, 0], np.ones((3, 2)), 1.0):
        with pytest.raises(ValueError, match=r"predict.x: expected \[..., in_dim=1\]; got "):
            backend.package.predict(model, wrong)
    with pytest.raises(TypeError, match=r"predict.model: expected a VectorHull or FoldedHull; got "):
        backend.package.predict(len, x)


STRONG = cases.fields(in_dim=2, out_dim=1, hidden_dim=13, petals=4, temperature="learned", strong_convexity=0.1)
WEIGHTS = cases.random_weights(STRONG, 3)
CORNER = np.array([0.75, -2.0])  # the lower corner of the box, in input scales from the mean; one side of it binds
SETS = ("Box", "Ball")


def minimum(backend, ratio, kind):
    """The record for a set at the same place in input scales, with means of so many scales."""
    mean, scale = np.array([ratio * 16.0, -ratio * 4.0]), np.array([16.0, 4.0])
    units = dict(input_mean=mean.tolist(), input_scale=scale.tolist(), output_mean=[0.0], output_scale=[1.0])
    model = backend.model(STRONG | {"normalization": units}, WEIGHTS)
    low, package = mean + scale * CORNER, backend.package
    given = package.Box(low, low + 4 * scale) if kind == "Box" else package.Ball(low, 8.0)
    return {name: backend.numpy(part) for name, part in package.minimize(model, given)._asdict().items()}


def misses(found, wanted):
    """Whether the two intervals have no point in common; the sets are the same up to 1e-9."""
    return not (wanted["lower_bound"] - 1e-9 <= found["value"] and found["lower_bound"] <= wanted["value"] + 1e-9)


@pytest.mark.parametrize("kind", SETS)
def test_the_gap_of_a_strongly_convex_hull_closes_on_an_offset_column(backend, kind, monkeypatch):
    wanted = minimum(backend, 0.0, kind)
    for ratio in (1e5, 1e6):
        found = minimum(backend, ratio, kind)
        assert found["status"] == 0 and found["gap"] <= 1e-6 * (1 + abs(found["value"]))
        assert not misses(found, wanted)
    own, raised = ScalarHull.rounding, ScalarHull.minorant

    def rounding(hull, reach):  # the control: the square of the offset, which is not of first order
        offset = abs(hull.input_mean / hull.input_scale)
        return own(hull, reach) + 4e-14 * (offset * offset).sum()

    def minorant(hull, z, tangent):  # and a bound that is wrong by a little
        value, slope = raised(hull, z, tangent)
        return value + 1e-4, slope

    monkeypatch.setattr(ScalarHull, "rounding", rounding)
    assert minimum(backend, 1e6, kind)["status"] == 1
    monkeypatch.setattr(ScalarHull, "rounding", own)
    monkeypatch.setattr(ScalarHull, "minorant", minorant)
    assert misses(minimum(backend, 1e6, kind), wanted)
