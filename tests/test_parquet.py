"""A table in Parquet is the table in CSV; a large one of either kind is read in pieces."""

import json

import numpy as np
import pyarrow as pa
import pytest
from commands import assert_one_line_refusal, invoke, rows, write
from pyarrow import csv, parquet

from convexmoe.errors import InputError
from convexmoe.hull import HullConfig
from convexmoe.training import Stream
from interop.command import dataset, tables
from interop.command import parquet as reading
from interop.command.function import Function
from interop.command.tables import read_table

pytestmark = pytest.mark.usefixtures("few_folds", "no_picture")

RUN = ("--target", "y", "--steps", "40", "--petals", "3", "--framework", "torch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """t.csv and t.parquet, the same rows in row groups of 50."""
    found = tmp_path_factory.mktemp("tables")
    table = csv.read_csv(write(found / "t.csv", rows(200)))
    parquet.write_table(table, found / "t.parquet", row_group_size=50)
    return found


@pytest.fixture
def small(monkeypatch):
    """Tables of more than a few bytes are large."""
    monkeypatch.setattr(tables, "LARGE", 1000)


def test_both_kinds_of_file_give_the_same_model_and_predictions(folder, small):
    models, printed = [], []
    for kind in ("csv", "parquet"):
        out, table = folder / kind, folder / f"t.{kind}"
        result = invoke("fit", table, *RUN, "--out", out)
        assert result.exit_code == 0, result.output
        assert "is read in pieces: the model learns from all 200 rows" in result.stdout
        models.append((out / "model.safetensors").read_bytes())
        result = invoke("predict", out / "model.safetensors", table, "--flag", "--framework", "torch")
        assert len(result.output.splitlines()) == 201  # all rows are in memory, and no one lies outside
        printed.append(result.output)
        metrics = json.loads((out / "metrics.json").read_text())
        assert metrics["rows"] == metrics["rows_to_train"] == 200
    assert models[0] == models[1] and printed[0] == printed[1]
    whole = [read_table(folder / f"t.{kind}").numbers(("y", "b", "a")) for kind in ("csv", "parquet")]
    np.testing.assert_array_equal(whole[0][0], whole[1][0])
    assert whole[0][1:] == whole[1][1:] == ("", ())


def test_pieces_are_the_numbers(folder, monkeypatch):
    for kind in ("csv", "parquet"):
        table = read_table(folder / f"t.{kind}")
        whole = table.numbers(("y", "a"))[0]
        monkeypatch.setattr(tables, "_CELLS", 64)
        monkeypatch.setattr(reading, "AT_ONCE", 30)
        pieces = table.pieces(("y", "a"))[0]
        for _ in range(2):
            found = list(pieces())
            assert len(found) > 4
            np.testing.assert_array_equal(np.concatenate(found), whole)


def test_a_sample_stands_for_a_large_table(folder, small, monkeypatch):
    monkeypatch.setattr(dataset, "Stream", lambda source: Stream(source, rows=60))
    data = dataset.prepare(read_table(folder / "t.csv"), "y", (), 0)
    assert data.x.shape == (60, 2) and (data.survey.rows, data.survey.counted) == (200, 200)
    whole = read_table(folder / "t.csv").numbers(("a", "b", "y"))[0]
    np.testing.assert_allclose(data.survey.columns.low, whole[:, :2].min(axis=0))
    table = csv.read_csv(folder / "t.csv").append_column("w", pa.array([0.0, 3.0] * 100))
    parquet.write_table(table.set_column(3, "w", pa.array([-1.0, 3.0] * 100)), folder / "below.parquet")
    result = invoke("fit", folder / "below.parquet", *RUN, "--weights", "w")
    assert_one_line_refusal(result, "below.parquet: fit.sample_weight: expected numbers >= 0")
    parquet.write_table(table, folder / "weighted.parquet")
    data = dataset.prepare(read_table(folder / "weighted.parquet"), "y", (), 0, None, Function(("b",), weights="w"))
    assert (data.inputs, data.columns, data.survey.counted) == (("a",), ("a", "b"), 100)
    np.testing.assert_array_equal(data.weight, np.ones(60))
    np.testing.assert_array_equal(data.x[:, 1], whole[data.survey.numbers, 1])


def changed(folder, name, column):
    table = csv.read_csv(folder / "t.csv").set_column(0, name, column)
    parquet.write_table(table, folder / "changed.parquet")
    return folder / "changed.parquet"


def test_cells_that_are_no_numbers_are_refused_with_their_row(folder, small):
    numbers = np.arange(200.0)
    cells = {
        "column 'a' to vary; got the text 'one' throughout. Leave it out with --drop a": pa.array(["one"] * 200),
        "no missing values; got 2 in column 'a' (first in row 4)": pa.array([1.5, 2, 3, None, np.nan] + [1] * 195),
        "finite numbers up to 1e+30 in size; got 'inf' in column 'a' in row 200": pa.array([*numbers[:-1], np.inf]),
        "numbers; got the text '[1.0]' in column 'a' in row 1. Leave it out with --drop a": pa.array([[1.0]] * 200),
        "numbers, or text of at most 20 categories; got dates or times in column 'a' ('2020-01-01')": pa.array(
            np.full(200, "2020-01-01", "M8[D]")
        ),
    }
    for words, column in cells.items():
        assert_one_line_refusal(invoke("fit", changed(folder, "a", column), *RUN), f"changed.parquet: expected {words}")
    flags = read_table(changed(folder, "a", pa.array([True, False] * 100)))
    assert flags.numbers(("a",))[2] == ("changed.parquet read as: True as 1 in a",)
    whole = read_table(changed(folder, "a", pa.array(np.arange(200, dtype=np.uint8))))
    np.testing.assert_array_equal(whole.numbers(("a",))[0][:, 0], numbers)
    gaps = changed(folder, "a", pa.array([None, *numbers[1:]]))
    result = invoke("fit", gaps, *RUN, "--missing", "mean")
    assert_one_line_refusal(result, "expected drop, as changed.parquet is read in pieces; got mean")
    data = dataset.prepare(read_table(gaps), "y", (), 0, "drop")
    assert data.survey.rows == 199 and "Their rows are left out." in data.remarks[0]


def test_what_cannot_be_read_is_refused(folder, small, monkeypatch):
    damaged = folder / "damaged.parquet"
    damaged.write_bytes((folder / "t.parquet").read_bytes()[:-9])
    result = invoke("fit", damaged, *RUN)
    assert_one_line_refusal(result, "damaged.parquet: expected a whole Parquet file; got a damaged one")
    result = invoke("fit", folder / "t.parquet", *RUN, "--sep", ";")
    assert_one_line_refusal(result, "expected no --sep, --decimal and --encoding for a Parquet file; got one of them")
    result = invoke("fit", folder / "t.parquet", *RUN, "--shape", "auto")
    assert_one_line_refusal(result, "expected a table that is in memory; got t.parquet, which is read in pieces")
    monkeypatch.setattr(reading, "is_installed", lambda name: False)
    result = invoke("fit", folder / "t.parquet", *RUN)
    assert_one_line_refusal(result, "expected pyarrow for a Parquet file; it is not installed", '".[data]"')


def test_a_column_that_varies_beyond_the_sample_is_taken(tmp_path, small, monkeypatch):
    monkeypatch.setitem(Stream.__init__.__kwdefaults__, "rows", 50)
    rng = np.random.default_rng(0)
    a, rare, constant = rng.normal(size=300), np.zeros(300), np.ones(300)
    survey = Stream([(np.arange(300.0)[:, None], a)], rows=50).survey(HullConfig(1, 1, 1))
    rare[np.setdiff1d(np.arange(300), survey.numbers)[0]] = 1.0
    for name, column in (("rare", rare), ("constant", constant)):
        table = read_table(write(tmp_path / f"{name}.csv", [("a", name, "y"), *zip(a, column, a**2, strict=True)]))
        if name == "rare":
            assert dataset.prepare(table, "y", (), 0).columns == ("a", "rare")
        else:  # control
            with pytest.raises(InputError, match="column 'constant' to vary; got the value 1 throughout"):
                dataset.prepare(table, "y", (), 0)
