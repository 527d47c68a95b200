"""The command: every fault of the input is one line with its remedy; a good run writes what it says."""

import dataclasses
import json
import os
from itertools import islice

import numpy as np
import pytest
import torch
from commands import FRAMEWORKS, QUICK, Runs, assert_one_line_refusal, fill, invoke, put, rows, write

import convexmoe_jax
import convexmoe_torch
from interop import frameworks
from interop.command import dataset, experiment
from interop.command.tables import embedded_table, read_table

pytestmark = pytest.mark.usefixtures("quick_compilation", "few_folds")

# What is wrong with the table: (change, parts of the message: what came, the remedy).
BAD_TABLES = {
    "missing value": (put(3, 0, ""), ["no missing values", "'a'", "line 4", "Fill in or remove"]),
    "question mark": (put(3, 1, "?"), ["no missing values", "'b'", "--drop"]),
    "text column": (fill(1, "red"), ["'red'", "'b'", "--drop b"]),
    "text in the target": (put(5, 2, "high"), ["'high'", "'y'", "Write it as numbers"]),
    "NaN in the target": (put(5, 2, "nan"), ["no missing values", "'y'", "line 6"]),
    "infinity in the target": (put(5, 2, "inf"), ["finite", "'y'", "line 6", "remove"]),
    "a huge value": (put(5, 0, "1e200"), ["1e+30", "'a'", "line 6"]),
    "underscores": (put(5, 0, "1_000"), ["'1_000'", "--drop a"]),
    "constant column": (fill(0, "4"), ["'a' to vary", "--drop a"]),
    "constant target": (fill(2, "4"), ["'y' to vary", "--target"]),
    "almost constant column": (
        lambda cells: [row.__setitem__(0, f"{1e15 + k}") for k, row in enumerate(cells[1:])],
        ["'a' to vary", "Subtract"],
    ),
    "a tiny column": (
        lambda cells: [row.__setitem__(0, f"{float(row[0]) * 1e-42}") for row in cells[1:]],
        ["'a' to spread over 1e-30 to 1e+30", "another unit"],
    ),
    "a tiny target": (
        lambda cells: [row.__setitem__(2, f"{float(row[2]) * 1e-50}") for row in cells[1:]],
        ["'y' to spread over 1e-30", "another unit"],
    ),
    "too wide a column": (
        lambda cells: [row.__setitem__(1, "1e30" if k % 2 else "-1e30") for k, row in enumerate(cells[1:])],
        ["'b' to spread over 1e-30 to 1e+30; got 2e+30"],
    ),
    "one row": (lambda cells: cells.__delitem__(slice(2, None)), ["at least 10 rows", "got 1", "Add rows"]),
    "no rows": (lambda cells: cells.__delitem__(slice(1, None)), ["at least 10 rows", "got 0"]),
    "a short row": (lambda cells: cells[9].pop(), ["3 cells", "got 2 on line 10", "Correct that line"]),
    "a long row": (lambda cells: cells[9].append("1"), ["3 cells", "got 4 on line 10"]),
    "duplicate header": (put(0, 1, "a"), ["distinct column names", "a more than once", "Rename"]),
    "nameless column": (put(0, 1, ""), ["a name for every column", "column 2", "Name it"]),
    "no header": (lambda cells: cells.pop(0), ["header line", "Put the names on the first line"]),
    "only the target": (
        lambda cells: [row.__delitem__(slice(0, 2)) for row in cells],
        ["at least one input column", "Add a column"],
    ),
}


@pytest.mark.parametrize("change, parts", BAD_TABLES.values(), ids=BAD_TABLES)
def test_a_bad_table_is_refused_in_one_line(tmp_path, change, parts):
    data, out = write(tmp_path / "t.csv", rows(change=change)), tmp_path / "out"
    line = assert_one_line_refusal(invoke("fit", data, "--target", "y", "--out", out, *QUICK), *parts)
    assert line.startswith("t.csv")
    assert sorted(os.listdir(tmp_path)) == ["t.csv"]


NOT_CSV = {
    "binary": (b"\x89PNG\r\n\x1a\n\x00\x01\x02\x03", ["binary data", "Export"]),
    "empty": (b"", ["empty file", "Export"]),
    "blank lines": (b"\n\n\n", ["empty file"]),
    "an open quote": (b'a,b,y\n1,"2,3\n1,2,3\n', ["fault on line", "quotes"]),
    "prose": (b"It was the best of times,\nit was the worst of times, and, well,\n", ["a name for every column"]),
}


@pytest.mark.parametrize("content, parts", NOT_CSV.values(), ids=NOT_CSV)
def test_a_file_that_is_not_csv_is_refused_in_one_line(tmp_path, content, parts):
    data = tmp_path / "t.csv"
    data.write_bytes(content)
    assert_one_line_refusal(invoke("fit", data, "--target", "y", "--out", tmp_path / "out"), "t.csv", *parts)
    assert sorted(os.listdir(tmp_path)) == ["t.csv"]


# Options over a good table; OUT stands for the output directory, DATA for the table.
BAD_OPTIONS = {
    "wrong target": (["DATA", "--target", "yy"], ["'yy'", "closest column", "is 'y'"]),
    "target in capitals": (["DATA", "--target", "Y"], ["is 'y'"]),
    "no target": (["DATA"], ["--target", "a, b, y"]),
    "wrong drop": (["DATA", "--target", "y", "--drop", "c"], ["--drop", "'c'", "Name one of these"]),
    "target dropped": (["DATA", "--target", "y", "--drop", "y"], ["Leave --drop y out"]),
    "everything dropped": (["DATA", "--target", "y", "--drop", "a", "--drop", "b"], ["one input column"]),
    "no such file": (["nowhere.csv", "--target", "y"], ["nowhere.csv", "no such file", "Check the path"]),
    "a directory": ([".", "--target", "y"], ["got a directory", "Name a file"]),
    "petals 0": (["--petals", "0"], ["--petals", "got 0", "Try --petals 8"]),
    "depth 0": (["--depth", "0"], ["--depth", "got 0", "Try"]),
    "steps 0": (["--steps", "0"], ["--steps", "got 0", "Try --steps 2000"]),
    "negative seed": (["--seed", "-1"], ["--seed", "got -1", "Try"]),
    "petals in words": (["--petals", "many"], ["--petals", "integer", "--help"]),
    "unknown framework": (["--framework", "tensorflow"], ["'tensorflow'", "Try --framework jax"]),
    "unknown option": (["--petal", "3"], ["--petal", "--help"]),
    "out under a file": (["--out", "DATA/run"], ["--out", "a file", "Name another"]),
    "out is a file": (["--out", "DATA"], ["--out", "a file", "Name another"]),
    "wrong target of the embedded data": (["--target", "mgp"], ["closest column", "'mpg'"]),
}


@pytest.mark.parametrize("options, parts", BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_options_are_refused_in_one_line(tmp_path, monkeypatch, options, parts):
    monkeypatch.chdir(tmp_path)
    data = write(tmp_path / "t.csv", rows())
    options = [option.replace("DATA", str(data)) for option in options]
    assert_one_line_refusal(invoke("fit", *options), *parts)
    assert sorted(os.listdir(tmp_path)) == ["t.csv"]


def test_an_unwritable_directory_is_refused_before_training(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)  # root may write anywhere, so the refusal is simulated
    result = invoke("fit", "--out", tmp_path / "run", *QUICK)
    assert_one_line_refusal(result, "--out", "Permission denied", "Name another")
    assert os.listdir(tmp_path) == []


def test_an_interrupted_run_leaves_what_it_can_go_on_from_and_nothing_else(tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("interop.command.experiment.draw_report", stop)
    result = invoke("fit", "--framework", "torch", "--out", tmp_path / "run", *QUICK)
    assert result.exit_code == 130 and f"--resume {tmp_path / 'run'}" in result.stdout
    assert os.listdir(tmp_path) == ["run"] and os.listdir(tmp_path / "run") == ["unfinished"]


FILES = ["metrics.json", "model.safetensors", "report.png", "report.safetensors"]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """The directory and the console output of a short run on the embedded data in each framework."""

    def make(name):
        out = tmp_path_factory.mktemp(name) / "run"
        result = invoke("fit", "--framework", name, "--out", out, *QUICK)
        assert result.exit_code == 0, result.output
        return out, result.stdout

    return Runs(make)


@pytest.fixture(params=FRAMEWORKS)
def trained(request, fitted):
    """(framework, directory, console output) of a short run."""
    return request.param, *fitted[request.param]


def test_a_run_writes_four_files(trained):
    _, out, printed = trained
    assert sorted(os.listdir(out)) == FILES
    assert str(out) in printed
    from matplotlib.image import imread

    height, width, _ = imread(out / "report.png").shape
    assert width > height > 300


def test_the_report_is_drawn_again_from_the_folder_alone(trained, tmp_path):
    name, out, printed = trained
    assert printed.splitlines()[-1].endswith(f"convexmoe report {out} --html")
    again = invoke("report", out, "--framework", name, "--out", tmp_path / "again.png")
    assert again.exit_code == 0 and str(tmp_path / "again.png") in again.stdout, again.output
    from matplotlib.image import imread

    first, second = imread(out / "report.png"), imread(tmp_path / "again.png")
    assert first.shape == second.shape and (np.abs(first - second) > 0.01).mean() < 1e-3
    page = invoke("report", out, "--html", "--framework", name, "--out", tmp_path / "page.html")
    assert page.exit_code == 0 and sorted(os.listdir(out)) == FILES, page.output
    text, metrics = (tmp_path / "page.html").read_text(), json.loads((out / "metrics.json").read_text())
    assert text.startswith("<!DOCTYPE html>") and f"{metrics['test_rmse']['mlp']:.2f} ± " in text


def test_the_metrics_are_those_of_the_saved_model(trained):
    name, out, printed = trained
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["framework"] == name
    assert metrics["rows"] == 392 and metrics["folds"] == [196, 196]
    assert set(metrics["test_rmse"]) == {"hull", "linear", "mlp", "boosting"} == {*metrics["parameters"], "boosting"}
    for model, errors in metrics["test_rmse_folds"].items():
        assert metrics["test_rmse"][model] == pytest.approx(np.mean(errors)) and all(0 < error < 20 for error in errors)
        assert metrics["test_rmse_spread"][model] == pytest.approx(abs(errors[0] - errors[1]) / 2**0.5)
    folds = metrics["test_rmse_folds"]
    ahead = {name: sum(map(float.__lt__, folds["hull"], errors)) for name, errors in folds.items() if name != "hull"}
    assert metrics["hull_ahead"] == ahead
    assert abs(metrics["parameters"]["mlp"] / metrics["parameters"]["hull"] - 1) < 0.05
    assert metrics["convexity"]["violation"] is None
    assert metrics["convexity"]["segments"] >= 10_000
    assert metrics["parity"]["framework"] != name
    assert 0 < metrics["parity"]["max_difference"] < 2e-6
    assert "{:.2f} ± {:.2f}".format(*(metrics[key]["hull"] for key in ("test_rmse", "test_rmse_spread"))) in printed


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_the_saved_model_learns_from_all_rows_and_is_tested_by_others(fitted, name):
    out, _ = fitted[name]
    errors = json.loads((out / "metrics.json").read_text())["test_rmse_folds"]["hull"]
    data, side = dataset.prepare(embedded_table(), "mpg", (), seed=0), frameworks.get(name)
    saved, *_ = experiment.read_model(out / "model.safetensors", side)
    new = side.new_hull(dataclasses.replace(saved.config, normalization=None), 0)
    again = side.package.fit(new, data.x, data.y, steps=30).model
    np.testing.assert_allclose(side.predict(again, data.x), side.predict(saved, data.x), rtol=1e-6)
    test, rest = data.folds
    apart = side.package.fit(new, *data.rows(rest), steps=30).model
    assert np.array_equal(rest, data.outside(0)) and not set(test) & set(rest)
    assert experiment.rmse(side.predict(apart, data.x[test]), data.y[test]) == pytest.approx(errors[0], rel=1e-6)
    seen = experiment.rmse(side.predict(saved, data.x[test]), data.y[test])  # the control: rows that were learned
    assert seen != pytest.approx(errors[0], rel=1e-3)


@pytest.mark.parametrize("number", [2, 5])
def test_the_folds_use_every_row_once(number, monkeypatch):
    monkeypatch.setattr(dataset, "FOLDS", number)
    first, second = (dataset.prepare(embedded_table(), "mpg", (), seed=seed) for seed in (0, 1))
    for data in (first, second):
        assert len(data.folds) == number and sorted(np.concatenate(data.folds)) == list(range(392))
        for k, fold in enumerate(data.folds):
            assert sorted([*fold, *data.outside(k)]) == list(range(392))
    assert set(first.folds[0]) != set(second.folds[0])


@pytest.mark.parametrize("reader", FRAMEWORKS)
def test_predict_reads_the_file_in_either_framework(trained, tmp_path, reader):
    name, out, _ = trained
    table = embedded_table()
    columns = list(reversed(table.columns))  # by name, whatever the order; mpg and an extra one are ignored
    shuffled = [[*columns, "note"]] + [
        [*(row[table.columns.index(column)] for column in columns), "text"] for _, row in table.rows()
    ]
    data, target = write(tmp_path / "cars.csv", shuffled), tmp_path / "p.csv"
    result = invoke("predict", out / "model.safetensors", data, "--framework", reader, "--out", target)
    assert result.exit_code == 0, result.output
    predicted = read_table(target)
    assert predicted.columns == ("predicted_mpg",)

    inputs = [column for column in table.columns if column != "mpg"]
    x = np.float32(table.numbers(inputs)[0])
    if name == "jax":
        expected = np.asarray(convexmoe_jax.load(out / "model.safetensors")(x))
    else:
        expected = convexmoe_torch.load(out / "model.safetensors")(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(predicted.numbers(["predicted_mpg"])[0], expected, rtol=2e-6)
    assert sorted(os.listdir(tmp_path)) == ["cars.csv", "p.csv"]


def first_cars():
    """The names of the columns of the embedded data, and the cells of three rows."""
    table = embedded_table()
    return table.columns, [cells for _, cells in islice(table.rows(), 3)]


def test_predict_prints_without_out(trained, tmp_path):
    _, out, _ = trained
    columns, cars = first_cars()
    data = write(tmp_path / "cars.csv", [columns, *cars[:2]])
    result = invoke("predict", out / "model.safetensors", data)
    assert result.exit_code == 0, result.output
    heading, *values = result.stdout.splitlines()
    assert heading == "predicted_mpg"
    assert len([float(value) for value in values]) == 2


def test_bad_input_to_predict_is_refused_in_one_line(trained, tmp_path):
    _, out, _ = trained
    model, (columns, cars) = out / "model.safetensors", first_cars()
    good = write(tmp_path / "good.csv", [columns, *cars])
    renamed = write(tmp_path / "renamed.csv", [["wait" if c == "weight" else c for c in columns], *cars])
    gap = write(tmp_path / "gap.csv", [columns, *cars[:2], ["", *cars[2][1:-1], ""]])
    empty = write(tmp_path / "empty.csv", [columns])
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(model.read_bytes()[:-40])
    before = sorted(os.listdir(tmp_path))
    for arguments, parts in [
        ([good, good], ["good.csv", "a model", "convexmoe fit"]),
        ([cut, good], ["cut.safetensors", "a model", "convexmoe fit"]),
        ([tmp_path / "nowhere", good], ["nowhere", "no such file", "Check the path"]),
        ([tmp_path, good], ["directory", "Name"]),
        ([model, renamed], ["'weight'", "closest", "'wait'"]),
        ([model, gap], ["'model_year'", "line 4", "Fill in or remove"]),
        ([model, empty], ["at least one row", "Add rows"]),
        ([model, model], ["binary data", "Export"]),
        ([model, good, "--out", good], ["--out", "is an input", "Name another"]),
        ([model, good, "--out", model], ["--out", "is an input", "Name another"]),
        ([model, good, "--out", tmp_path], ["--out", "a directory", "Name a file"]),
        ([model, good, "--out", tmp_path / "no" / "p.csv"], ["--out", "No such file", "Name another"]),
        ([model], ["DATA.csv", "--help"]),
    ]:
        assert_one_line_refusal(invoke("predict", *arguments), *parts)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_model_without_column_names_is_refused(tmp_path):
    path = tmp_path / "bare.safetensors"
    convexmoe_torch.save(convexmoe_torch.VectorHull(2, petals=3, out_dim=1), path)
    data = write(tmp_path / "t.csv", rows())
    assert_one_line_refusal(invoke("predict", path, data), "bare.safetensors", "column names", "convexmoe fit")


def test_a_seed_gives_the_same_files(trained, tmp_path):
    name, out, _ = trained
    assert invoke("fit", "--framework", name, "--out", tmp_path, "--seed", 0, *QUICK).exit_code == 0
    for file in FILES:
        assert (tmp_path / file).read_bytes() == (out / file).read_bytes(), file


def test_control_another_seed_gives_other_files(fitted, tmp_path):
    assert invoke("fit", "--framework", "torch", "--out", tmp_path, "--seed", 1, *QUICK).exit_code == 0
    for file in FILES:
        assert (tmp_path / file).read_bytes() != (fitted["torch"][0] / file).read_bytes(), file


def test_one_input_column_petals_one_and_an_existing_directory(tmp_path):
    data = write(tmp_path / "t.csv", rows())
    (tmp_path / "run").mkdir()
    kept = tmp_path / "run" / "notes.txt"
    kept.write_text("mine")
    options = ["--target", "y", "--drop", "b", "--petals", "1", "--depth", "2", "--steps", "5"]
    result = invoke("fit", data, *options, "--out", tmp_path / "run", "--framework", "torch")
    assert result.exit_code == 0, result.output
    assert sorted(os.listdir(tmp_path / "run")) == sorted([*FILES, "notes.txt"])
    assert kept.read_text() == "mine"


def test_help_names_both_commands():
    for arguments in ([], ["--help"]):
        result = invoke(*arguments)
        assert result.exit_code == 0
        assert "fit" in result.stdout and "predict" in result.stdout
