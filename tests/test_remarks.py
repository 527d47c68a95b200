"""What `convexmoe fit` says of a table before it is fitted, of errors that are none, and of names without a font."""

import json

import numpy as np
import pytest
from commands import assert_one_line_refusal, invoke, rows, write

from interop import frameworks
from interop.command import dataset, report
from interop.command.tables import read_table
from interop.plots.style import choose_fonts


def remarks(tmp_path, n=300, change=None):
    return dataset.remarks_on(dataset.prepare(read_table(write(tmp_path / "t.csv", rows(n, change))), "y", (), 0))


def column(name, values):
    def change(cells):
        cells[0].append(name)
        for row, value in zip(cells[1:], values, strict=True):
            row.append(str(value))

    return change


def test_of_a_plain_table_nothing_is_said(tmp_path):
    assert remarks(tmp_path) == []
    assert remarks(tmp_path, change=column("width", [k % 299 for k in range(300)])) == []  # whole, not all different
    assert remarks(tmp_path, change=column("valid", np.random.default_rng(0).random(300))) == []


@pytest.mark.parametrize("name", ["id", "ID", "user_id", "userId", "index", "Unnamed: 0", "row number", "k"])
def test_an_id_is_said(tmp_path, name):
    values = np.random.default_rng(0).permutation(300) if name == "k" else np.random.default_rng(0).random(300)
    [line] = remarks(tmp_path, change=column(name, values))
    assert line.startswith("Perhaps an id") and name in line
    assert f"--drop '{name}'" in line if " " in name else f"--drop {name}." in line


def test_duplicates_in_several_folds_are_said_and_an_id_hides_none(tmp_path):
    def twice(cells):
        cells.extend([list(row) for row in cells[1:101]])
        column("id", range(400))(cells)

    _, line = remarks(tmp_path, change=twice)
    assert line.startswith("Duplicates: ") and "rows stand in several folds" in line
    assert 120 < int(line.split()[1]) < 200  # of 100 pairs a fifth stand in one fold

    def apart(cells):  # control: the same inputs with other targets
        cells.extend([[*row[:2], f"{float(row[2]) + 1}"] for row in cells[1:101]])

    assert remarks(tmp_path, change=apart) == []


def test_a_small_table_is_said(tmp_path):
    [line] = remarks(tmp_path, 27)
    assert line.startswith("Only 27 rows: the errors are uncertain by 14% or more")
    assert remarks(tmp_path, 30) == []


def test_an_error_is_compared_with_one_that_is_no_rounding():
    metrics = {"exact": [], "test_rmse": {"hull": 0.2, "linear": 0.4, "mlp": 6.0}}
    assert [report._against(metrics, name) for name in ("hull", "linear", "mlp")] == ["-50.0%", "+0.0%", "15 times"]
    metrics = {"exact": ["linear"], "test_rmse": {"hull": 0.2, "linear": 0.0, "mlp": 6.0}}
    assert [report._against(metrics, name) for name in ("hull", "linear")] == ["linear is exact", ""]


def test_letters_are_drawn_by_a_font_that_has_them_or_by_none():
    from matplotlib import rcParams

    assert choose_fonts(["mpg", "größe λ"]) == (list(rcParams["font.family"]), set())
    families, missing = choose_fonts(["a\u1d84", "\U0010fffdb"])  # the first in a font beside the default
    assert families[:-1] == list(rcParams["font.family"]) and missing == {"\U0010fffd"}


def test_five_folds_of_ten_rows_of_which_one_differs(tmp_path, monkeypatch):
    """A column and the target are constant outside one fold: no end of the run."""
    monkeypatch.setattr(dataset, "FOLDS", 5)
    monkeypatch.setattr(frameworks, "installed", lambda: ("torch",))
    data = write(tmp_path / "t.csv", [["a", "b", "y"], *[[k * k % 7, k == 3, 5 + (k == 3)] for k in range(10)]])
    options = ["--target", "y", "--framework", "torch", "--steps", "5", "--out", tmp_path / "run"]
    result = invoke("fit", data, *options)
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["folds"] == [2] * 5 and np.isfinite([*metrics["test_rmse"].values()]).all()
    assert "Only 10 rows: the errors are uncertain by 22% or more" in result.stdout
    write(data, [["a", "y"], *[[k, k] for k in range(9)]])  # control: too few
    assert_one_line_refusal(invoke("fit", data, *options), "at least 10 rows", "got 9")
