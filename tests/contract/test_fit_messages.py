"""What `fit` cannot use, it refuses before the first step, in the same words in both packages: they have one `fit`."""

import cases
import numpy as np
import pytest
from backends import BACKENDS

from convexmoe.training import HullFit

pytestmark = pytest.mark.usefixtures("quick_compilation")

FIELDS = cases.fields(in_dim=3, petals=5, out_dim=2, hidden_dim=13)
X, Y = np.random.default_rng(0).normal(size=(23, 3)), np.random.default_rng(1).normal(size=(23, 2))


def spoiled(array, value, row=7, column=1):
    copy = array.copy()
    copy[row, column] = value
    return copy


COLUMNS = "Give one column for each input of the hull."
TARGETS = "Give one target row for each row of x, out_dim=2 wide."
SHARE = "None for folds, (x, y), or a share of the rows from 0 to below 1"
LEAVE = "Leave it out for folds, pass 0 for none."
REMOVE = "Remove that row or fill it."
BAD = {
    "narrow": ((X[:, :2], Y), {}, ValueError, f"fit.x: expected [rows, in_dim=3]; got float64[23, 2]. {COLUMNS}"),
    "flat": ((X[:, 0], Y), {}, ValueError, f"fit.x: expected [rows, in_dim=3]; got float64[23]. {COLUMNS}"),
    "wide_y": ((X, X), {}, ValueError, f"fit.y: expected targets [rows=23, out_dim=2]; got float64[23, 3]. {TARGETS}"),
    "flat_y": (
        (X, Y[:, 0]),
        {},
        ValueError,
        f"fit.y: expected targets [rows=23, out_dim=2]; got float64[23, 1]. {TARGETS}",
    ),
    "short_y": (
        (X, Y[:19]),
        {},
        ValueError,
        f"fit.y: expected targets [rows=23, out_dim=2]; got float64[19, 2]. {TARGETS}",
    ),
    "one_row": ((X[:1], Y[:1]), {}, ValueError, "fit.x: expected 2 rows at least; got 1. Give more rows."),
    "no_row": ((X[:0], Y[:0]), {}, ValueError, "fit.x: expected 2 rows at least; got 0. Give more rows."),
    "nan": (
        (spoiled(X, np.nan), Y),
        {},
        ValueError,
        f"fit.x: expected finite numbers; got nan at row 7, column 1. {REMOVE}",
    ),
    "inf_y": (
        (X, spoiled(Y, -np.inf, row=0)),
        {},
        ValueError,
        f"fit.y: expected finite numbers; got -inf at row 0, column 1. {REMOVE}",
    ),
    "text": (
        (X.astype(str), Y),
        {},
        TypeError,
        "fit.x: expected numbers; got <U32[23, 3]. Encode text and missing values first.",
    ),
    "objects": (
        (X, spoiled(Y.astype(object), "red")),
        {},
        TypeError,
        "fit.y: expected numbers; got 'red' at row 7, column 1. Encode text and missing values first.",
    ),
    "validation_nan": (
        (X, Y),
        {"validation": (X, spoiled(Y, np.nan))},
        ValueError,
        f"fit.validation: expected finite numbers; got nan at row 7, column 1. {REMOVE}",
    ),
    "validation_narrow": (
        (X, Y),
        {"validation": (X[:, :2], Y)},
        ValueError,
        f"fit.validation: expected [rows, in_dim=3]; got float64[23, 2]. {COLUMNS}",
    ),
    "validation_empty": (  # its loss would be the mean of nothing, and the advice to lower the rate wrong
        (X, Y),
        {"validation": (X[:0], Y[:0])},
        ValueError,
        "fit.validation: expected 1 row at least; got 0. Give more rows.",
    ),
    "validation_text": (
        (X, Y),
        {"validation": "folds"},
        TypeError,
        f"fit.validation: expected {SHARE}; got 'folds'. {LEAVE}",
    ),
    "validation_whole": (
        (X, Y),
        {"validation": 1.0},
        ValueError,
        f"fit.validation: expected {SHARE}; got 1.0. {LEAVE}",
    ),
    "steps": (
        (X, Y),
        {"steps": 0},
        ValueError,
        "fit.steps: expected a whole number >= 1; got 0. Pass steps=1 or more.",
    ),
    "steps_float": (
        (X, Y),
        {"steps": 2.0},
        TypeError,
        "fit.steps: expected a whole number >= 1; got 2.0. Pass steps=1 or more.",
    ),
    "seed": ((X, Y), {"seed": -1}, ValueError, "fit.seed: expected a whole number >= 0; got -1. "),
    "batch_size": (
        (X, Y),
        {"batch_size": 0},
        ValueError,
        "fit.batch_size: expected a whole number >= 1; got 0. Pass batch_size=1 or more.",
    ),
    "learning_rate": (
        (X, Y),
        {"learning_rate": -0.1},
        ValueError,
        "fit.learning_rate: expected a finite number > 0; got -0.1. ",
    ),
    "learning_rate_text": (
        (X, Y),
        {"learning_rate": "fast"},
        TypeError,
        "fit.learning_rate: expected a finite number > 0; got 'fast'. ",
    ),
    "learning_rate_nan": (
        (X, Y),
        {"learning_rate": float("nan")},
        ValueError,
        "fit.learning_rate: expected a finite number > 0; got nan. ",
    ),
}


def test_both_packages_have_one_fit(backend):
    assert backend.package.fit.__func__ is HullFit.fit.__func__


@pytest.mark.parametrize("name", BAD)
def test_bad_data_are_refused(name):
    arrays, options, kind, message = BAD[name]
    backend = BACKENDS[1]
    model = backend.model(FIELDS, cases.random_weights(FIELDS), "float32")
    with pytest.raises(kind) as error:
        backend.package.fit(model, *arrays, **options)
    assert str(error.value).startswith(message)
    assert type(error.value) is kind


def test_a_loss_that_is_not_finite_is_an_error(backend):
    model = backend.model(FIELDS, cases.random_weights(FIELDS), "float32")
    with pytest.raises(FloatingPointError) as error:
        backend.package.fit(model, X, Y, steps=20, learning_rate=1e30)
    assert str(error.value) in [
        f"fit.loss: expected a finite number; got {value}. Lower learning_rate." for value in ("nan", "inf")
    ]


def test_a_model_of_the_other_package_is_refused(backend):
    other = next(one for one in BACKENDS if one is not backend)
    with pytest.raises(TypeError, match=rf"^fit\.model: expected a {backend.package.__name__}\.VectorHull; got "):
        backend.package.fit(other.model(FIELDS, cases.random_weights(FIELDS), "float32"), X, Y)


def test_control_good_data_in_other_forms_are_taken(backend):
    model = backend.model(FIELDS, cases.random_weights(FIELDS), "float32")
    others = [(X.tolist(), Y.tolist()), (X.astype(np.float32), np.round(9 * Y).astype(int)), (X > 0, Y.astype(object))]
    for x, y in [(X, Y), *others]:
        assert np.isfinite(backend.package.fit(model, x, y, steps=3, batch_size=101).history.train_loss).all()
