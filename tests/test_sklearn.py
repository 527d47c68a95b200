"""`ConvexRegressor` as the checks and the tools of scikit-learn see it, and what it says of the function."""

import io
import pickle
import subprocess
import sys
import warnings
from unittest import mock

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.ensemble import BaggingRegressor
from sklearn.exceptions import NotFittedError
from sklearn.inspection import partial_dependence, permutation_importance
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils import estimator_checks
from typer.testing import CliRunner

import convexmoe_torch
from convexmoe.training import Quantile
from interop import frameworks
from interop.cli import app
from interop.sklearn import ConvexRegressor

pytestmark = pytest.mark.usefixtures("quick_compilation")

TINY = {"framework": "torch", "steps": 6, "petals": 2, "hidden_dim": 4, "random_state": 0}
# Adam draws batches of rows, and folds are of rows: one of weight 2 is drawn and held out once, two are twice.
EXPECTED = {"check_sample_weight_equivalence_on_dense_data": "batches and folds are drawn by rows, not by weights"}


def table(rows=40, seed=0):
    """A frame with two numbers and a category, and a price that is convex in the numbers, and falls in the second."""
    rng = np.random.default_rng(seed)
    size, age, region = rng.uniform(-1, 1, rows), rng.uniform(0, 2, rows), rng.choice(["east", "north"], rows)
    price = 3 * size**2 - age + np.where(region == "east", 1.0, -1.0) * size
    return pd.DataFrame({"size": size, "region": region, "age": age}), pd.Series(price, name="price")


def numbers(rows=40):
    """The table with the region as 0 and 1."""
    frame, price = table(rows)
    return frame.assign(region=(frame["region"] == "north").astype(float)), price


def statuses(estimator, **options):
    """Name of each check to how it ended."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = estimator_checks.check_estimator(estimator, on_fail=None, on_skip=None, **options)
    return [(one["check_name"], one["status"], one["exception"]) for one in found]


def test_check_estimator():
    """About 70 fits of one step."""
    found = statuses(ConvexRegressor(**TINY | {"steps": 1}), expected_failed_checks=EXPECTED)
    assert len(found) > 50
    assert [one for one in found if one[1] == "failed"] == []
    assert {name for name, status, _ in found if status == "xfail"} == EXPECTED.keys()
    # the only one that is skipped is for estimators of arrays of other libraries, where SciPy is told to take these
    assert {name for name, status, _ in found if status == "skipped"} <= {"check_array_api_input"}


class Unfaithful(ConvexRegressor):
    """Predictions that depend on the other rows, and a pickle without the model."""

    def predict(self, X):
        return super().predict(X) + 1e-4 * len(X)

    def __getstate__(self):
        return {name: value for name, value in super().__getstate__().items() if name != "model_"}


@pytest.mark.parametrize("check", ["check_methods_subset_invariance", "check_estimators_pickle"])
def test_control_a_faulty_estimator_fails_the_checks(check):
    getattr(estimator_checks, check)("ConvexRegressor", ConvexRegressor(**TINY | {"steps": 1}))
    with pytest.raises((AssertionError, AttributeError)):
        getattr(estimator_checks, check)("Unfaithful", Unfaithful(**TINY | {"steps": 1}))


def test_frames_give_the_same_as_arrays_and_names_are_kept():
    frame, price = numbers()
    options = TINY | {"convex": ["age", "size"], "monotone": {"age": -1}}
    model = ConvexRegressor(**options).fit(frame, price)
    assert list(model.feature_names_in_) == ["size", "region", "age"]
    assert (model.inputs_, model.context_) == ([0, 2], [1])
    assert model.model_.config.monotone == (0, -1) and model.model_.config.context_dim == 1
    of_polars = ConvexRegressor(**options).fit(pl.from_pandas(frame), pl.Series("price", price.to_numpy()))
    by_number = TINY | {"convex": [0, 2], "monotone": {2: -1}}
    of_array = ConvexRegressor(**by_number).fit(frame.to_numpy(), price.to_numpy())
    for other, rows in ((of_polars, pl.from_pandas(frame)), (of_array, frame.to_numpy())):
        np.testing.assert_array_equal(other.predict(rows), model.predict(frame))
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(frame[["age", "size", "region"]])


def test_several_outputs():
    frame, price = numbers()
    both = np.column_stack([price, price.abs()])
    model = ConvexRegressor(**TINY).fit(frame, both)
    assert model.predict(frame).shape == (40, 2) and model.predict(frame[:1]).shape == (1, 2)
    assert ConvexRegressor(**TINY).fit(frame, price).predict(frame).shape == (40,)


def test_weights_count_and_rows_of_weight_0_do_not():
    frame, price = numbers()
    counts = np.arange(40) < 30
    weighted = ConvexRegressor(**TINY).fit(frame, price.where(counts, 1e3), sample_weight=counts.astype(float))
    without = ConvexRegressor(**TINY).fit(frame[:30], price[:30])
    np.testing.assert_allclose(weighted.predict(frame), without.predict(frame), rtol=1e-5, atol=1e-5)
    heavier = ConvexRegressor(**TINY).fit(frame[:30], price[:30], sample_weight=np.linspace(0.1, 9, 30))
    assert np.abs(heavier.predict(frame) - without.predict(frame)).max() > 1e-3  # control


def test_the_tools_of_scikit_learn():
    frame, price = table()
    encode = make_column_transformer(
        (OneHotEncoder(sparse_output=False), ["region"]), remainder="passthrough", verbose_feature_names_out=False
    ).set_output(transform="pandas")
    way = make_pipeline(encode, ConvexRegressor(convex=["size", "age"], **TINY))
    grid = {"convexregressor__loss": ["squared", Quantile(0.9)]}
    search = GridSearchCV(way, grid, cv=2, error_score="raise").fit(frame, price)
    assert search.best_params_ == {"convexregressor__loss": "squared"}
    best = search.best_estimator_
    assert best[-1].model_.config.context_dim == 2  # a column of 0 and 1 for each region

    shuffled = permutation_importance(best, frame, price, n_repeats=2, random_state=0)
    assert (shuffled.importances_mean > 0).all()

    scaled = make_pipeline(StandardScaler(), ConvexRegressor(**TINY)).fit(*numbers())
    along = partial_dependence(scaled, numbers()[0], ["size"], kind="individual", grid_resolution=9)["individual"][0]
    assert along.shape == (40, 9) and (along[:, :-2] + along[:, 2:] - 2 * along[:, 1:-1] > -1e-6).all()


def test_an_average_is_convex():
    frame, price = numbers()
    average = BaggingRegressor(ConvexRegressor(**TINY), n_estimators=2, random_state=0).fit(frame, price)
    ends = np.random.default_rng(0).uniform(-3, 3, (2, 500, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no names
        left, right, middle = (average.predict(rows) for rows in (*ends, ends.mean(axis=0)))
    assert (middle <= (left + right) / 2 + 1e-9).all()
    assert not (middle <= (left + right) / 2 - 1.0).all()  # control


def test_a_clone_and_a_pickle():
    frame, price = numbers()
    model = ConvexRegressor(convex=["size", "age"], loss=Quantile(0.5), **TINY).fit(frame, price)
    copy = clone(model)
    assert copy.get_params() == model.get_params() and not hasattr(copy, "model_")
    data = pickle.dumps(model)
    loaded = pickle.loads(data)
    np.testing.assert_array_equal(loaded.predict(frame), model.predict(frame))
    np.testing.assert_array_equal(loaded.outside(10 * frame), model.outside(10 * frame))
    assert not frameworks_in(data)
    assert "convexmoe_torch" in frameworks_in(pickle.dumps(model.model_))  # control


def frameworks_in(data):
    """The frameworks whose classes and functions a pickle calls for."""

    class Recorder(pickle.Unpickler):
        def find_class(self, module, name):
            found.add(module.split(".")[0])
            return super().find_class(module, name)

    found = set()
    Recorder(io.BytesIO(data)).load()
    return found & {"torch", "jax", "jaxlib", "flax", "convexmoe_torch", "convexmoe_jax"}


def test_in_jax_too():
    frame, price = (part[:4] for part in numbers())  # too few for folds: fewer programs to compile
    options = TINY | {"framework": "jax", "steps": 2, "curvature": "concave", "monotone": {"age": 1}}
    model = ConvexRegressor(**options).fit(frame, -price)
    assert model.framework_ == "jax" and model.certify().curvature == "concave"
    data = pickle.dumps(model)
    with mock.patch.object(frameworks, "installed", lambda: ("torch",)):
        loaded = pickle.loads(data)
    assert loaded.framework_ == "torch" and isinstance(loaded.model_, convexmoe_torch.VectorHull)
    np.testing.assert_allclose(loaded.predict(frame), model.predict(frame), rtol=1e-10, atol=1e-10)


def test_the_rows_that_speak_for_the_other_curvature_warn():
    x = np.random.default_rng(0).uniform(0, 1, (40, 1))
    y = np.sqrt(x[:, 0])
    options = TINY | {"steps": 40, "hidden_dim": 8}
    with pytest.warns(UserWarning, match=r'ConvexRegressor.y: expected a convex .* a concave .* curvature="concave"'):
        model = ConvexRegressor(**options).fit(x, y)
    assert model.curvature_.shown == "concave"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ConvexRegressor(**options).fit(x, -y).curvature_.shown == "convex"  # control
        chosen = ConvexRegressor(**options | {"curvature": "auto"}).fit(x, y)
    assert chosen.model_.config.curvature == chosen.certify().curvature == "concave"
    assert chosen.score(x, y) > model.score(x, y)


def test_shape_is_chosen():
    frame, price = numbers()
    model = ConvexRegressor(**TINY | {"steps": 5, "shape": "auto", "budget": 0.01}).fit(frame, price)
    assert (model.shape_, model.gain_) == ("the given shape", 1.0)  # the others would end after the budget
    plain = ConvexRegressor(**TINY | {"steps": 5}).fit(frame, price)
    assert plain.shape_ is plain.gain_ is None


def test_proofs_are_of_the_columns_that_convex_names():
    frame, price = numbers()
    model = ConvexRegressor(convex=["size", "age"], monotone={"age": -1}, **TINY).fit(frame, price)
    proof = model.certify()
    assert (proof.verdict, proof.strength) == ("proved", "structural")
    rows = tuple(torch.tensor(part, dtype=torch.float32) for part in ([[0.0, 1.0]], [[0.0]]))
    assert convexmoe_torch.certify(model.model_, rows, argnum=1).verdict != "proved"  # control: of the context


def test_the_options_of_the_hull_are_its_own():
    options = {"petals": 3, "hidden_dim": 5, "depth": 2, "trunk": "private", "group_size": 1, "temperature": 0.5}
    options |= {"activation": "relu", "strong_convexity": 0.1, "nonnegative": True}
    frame, price = numbers()
    config = ConvexRegressor(**TINY | options | {"steps": 1}).fit(frame, price + 9).model_.config
    assert {name: getattr(config, name) for name in options} == options
    assert ConvexRegressor().temperature == "learned"


def test_what_lies_outside():
    frame, price = numbers()
    model = ConvexRegressor(convex=["size", "age"], **TINY).fit(frame, price)
    assert not model.outside(frame).any()
    far = frame[:3].assign(age=[0.5, 50.0, 0.5], region=[0.0, 0.0, 7.0])
    assert model.outside(far).tolist() == [False, True, True]


def test_its_file_is_one_for_the_command(tmp_path):
    frame, price = numbers()
    model = ConvexRegressor(convex=["age", "size"], **TINY).fit(frame, price)
    model.save(tmp_path / "price.safetensors")
    frame.to_csv(tmp_path / "rows.csv", index=False)
    words = ["predict", str(tmp_path / "price.safetensors"), str(tmp_path / "rows.csv"), "--framework", "torch"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    header, *lines = result.stdout.split()
    assert header == "predicted_price"
    np.testing.assert_allclose(np.array(lines, float), model.predict(frame), rtol=1e-4, atol=1e-4)


FAULTS = {
    "a name that X lacks": ({"convex": ["size", "price"]}, ValueError, "columns of X.*got 'price'"),
    "text that is no list": ({"convex": "size"}, TypeError, "\"all\" or a list of columns; got 'size'"),
    "a column twice": ({"convex": ["size", 0]}, ValueError, "each once"),
    "no column": ({"convex": []}, ValueError, "one at least"),
    "a number beyond": ({"convex": [3]}, ValueError, "columns from 0 to 2; got 3"),
    "a bool": ({"convex": [True]}, TypeError, "names or numbers of columns; got True"),
    "a sign of a context": ({"convex": ["size"], "monotone": {"age": -1}}, ValueError, "inputs: nothing is assumed"),
    "no sign": ({"monotone": {"age": 2}}, ValueError, "1, 0 or -1 for a column; got 2 for 'age'"),
    "signs without names": ({"monotone": [0, 0, 1]}, TypeError, "a dict of columns"),
    "a sign twice": ({"monotone": {"age": 1, 2: -1}}, ValueError, "'?2'? twice, by name and by number"),
    "no such curvature": ({"curvature": "linear"}, ValueError, "got 'linear'"),
    "auto of a level": ({"curvature": "auto", "loss": Quantile(0.9)}, ValueError, "a loss with a level"),
    "auto and nonnegative": ({"curvature": "auto", "nonnegative": True}, ValueError, "a nonnegative function"),
    "no time": ({"shape": "auto", "budget": -1}, ValueError, "finite number of seconds above 0; got -1"),
    "no such framework": ({"framework": "numpy"}, ValueError, "'torch'\\]; got 'numpy'"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_does_not_fit_is_refused(case):
    options, kind, text = FAULTS[case]
    with pytest.raises(kind, match=text):
        ConvexRegressor(**TINY | options).fit(*numbers())


def test_names_where_there_are_none():
    frame, price = numbers()
    with pytest.raises(ValueError, match="expected columns by number, as X has no names"):
        ConvexRegressor(convex=["size"], **TINY).fit(frame.to_numpy(), price)
    turned = frame.set_axis([1, 0, 2], axis=1)
    for options in ({"convex": [0]}, {"monotone": {0: 1}}):  # the column that is called 0, or the first?
        with pytest.raises(ValueError, match=r"in order: a number is a place; got \[1, 0, 2\]"):
            ConvexRegressor(**options, **TINY).fit(turned, price)
    assert ConvexRegressor(**TINY).fit(turned, price).inputs_ == [0, 1, 2]  # control
    assert ConvexRegressor(convex=[0, 2], **TINY).fit(frame.set_axis([0, 1, 2], axis=1), price).inputs_ == [0, 2]


def test_tables_of_few_rows_and_constants():
    rng = np.random.default_rng(0)
    for rows in (2, 4, 7):
        x = np.column_stack([rng.normal(size=rows), np.ones(rows)])
        model = ConvexRegressor(**TINY | {"curvature": "auto"}).fit(x, x[:, 0])
        assert np.isfinite(model.predict(3 * x)).all()
    constant = ConvexRegressor(**TINY).fit(rng.normal(size=(20, 2)), np.full(20, 7.0))
    np.testing.assert_allclose(constant.predict(rng.normal(size=(20, 2))), 7.0, rtol=1e-6)


def test_without_scikit_learn_the_line_to_run_is_named():
    program = "import sys\nsys.modules['sklearn'] = None\ntry:\n    import interop.sklearn\n"
    program += "except ImportError as error:\n    print(error)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.stdout.strip().endswith('pip install -e ".[sklearn]"'), result.stderr


def test_a_refit_that_fails_leaves_no_model_of_other_columns():
    x = np.random.default_rng(0).normal(size=(30, 2))
    y = x[:, 0] ** 2
    model = ConvexRegressor(convex=[0], steps=5, framework="torch", random_state=0).fit(x, y)
    with pytest.raises(ValueError, match="curvature"):
        model.set_params(convex=[1], curvature="bogus").fit(x, y)
    with pytest.raises(NotFittedError):
        model.predict(x)


@pytest.mark.parametrize(
    "frame, message",
    [
        ({"a": [1.0, 2.0, 3.0], "region": ["n", "s", "n"]}, "got str in column 'region'. Encode it before"),
        ({"a": [1.0, 2.0, 3.0], 7: np.array(["n", 2.0, "n"], object)}, "got object in column 7. Encode it before"),
        ({"a": [1.0, 2.0, 3.0], "day": pd.date_range("2024-01-01", periods=3)}, "got datetime.* in column 'day'"),
    ],
)
def test_columns_that_are_no_numbers_are_named(frame, message):
    with pytest.raises(ValueError, match=message):
        ConvexRegressor(framework="torch").fit(pd.DataFrame(frame), [1.0, 2.0, 3.0])


@pytest.mark.parametrize("kind", ["U4", "M8[D]"])
def test_an_array_of_text_or_of_dates_is_refused(kind):
    """Numpy would read a year in text, and days since 1970, as numbers."""
    array = np.array([["2001"], ["2002"], ["2003"]]).astype(kind)
    with pytest.raises(ValueError, match=r"ConvexRegressor\.X: expected numbers; got an array of .*\. Write it as"):
        ConvexRegressor(**TINY).fit(array, [1.0, 2.0, 3.0])
    numbers = array.astype(str).astype(object).astype(float) if kind == "U4" else array.astype(float)
    assert ConvexRegressor(**TINY).fit(numbers, [1.0, 2.0, 3.0]).predict(numbers).shape == (3,)  # the control


def test_two_columns_of_one_name_are_refused():
    frame = pd.DataFrame(np.ones((3, 2)), columns=["a", "a"])
    with pytest.raises(ValueError, match=r"a name for each column; got .*'a'.* more than once"):
        ConvexRegressor(framework="torch").fit(frame, [1.0, 2.0, 3.0])


def test_a_framework_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match=r"ConvexRegressor\.framework: expected one of"):
        ConvexRegressor(framework="pytorch").fit(np.ones((3, 1)), [1.0, 2.0, 3.0])
