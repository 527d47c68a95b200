"""What `convexmoe fit` says beside its errors: boosted trees, intervals that `predict` gives, contradictions."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from commands import assert_one_line_refusal, invoke, rows, write

import convexmoe_torch
from convexmoe.training import Quantile, conformal_width
from interop.command import baselines, dataset
from interop.command.contradiction import ask_rows, explain_contradiction
from interop.command.function import Function
from interop.command.tables import read_table

pytestmark = pytest.mark.usefixtures("few_folds", "no_picture")

RUN = ("--target", "y", "--steps", 40, "--petals", 3, "--framework", "torch")


def spread(cells):
    """Make y noisy, add weights of which some are 0, and a context that lifts it."""
    rng = np.random.default_rng(5)
    cells[0] += ["w", "c"]
    for row in cells[1:]:
        season = rng.integers(0, 2)
        row[2] = f"{float(row[2]) + 3 * season + 0.3 * rng.normal():.4f}"
        row += [str(rng.integers(0, 3)), str(season)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(directory, table, console output, metrics) of a run with weights, a context and a sign."""
    folder = tmp_path_factory.mktemp("run")
    table = write(folder / "t.csv", rows(240, spread))
    options = ("--weights", "w", "--context", "c", "--decreasing", "b")
    result = invoke("fit", table, *RUN, *options, "--out", folder / "run")
    assert result.exit_code == 0, result.output
    return folder / "run", table, result.stdout, json.loads((folder / "run" / "metrics.json").read_text())


def prepared(table, **options):
    return dataset.prepare(read_table(table), "y", (), 0, None, Function(**options))


def test_trees_have_the_folds_the_weights_and_the_signs_of_the_hull(run):
    _, table, printed, metrics = run
    data = prepared(table, weights="w", context=("c",), decreasing=("b",))
    assert "boosted trees" in printed and metrics["hull_ahead"].keys() == {"linear", "boosting"}
    for fold, test in enumerate(data.folds):
        found = baselines.fit_baselines(None, data, data.outside(fold), 0, 0, 0)
        predict = found["boosting"][0]
        error = data.function.measure(predict(data.x[test]), data.y[test], data.weight[test])
        assert (
            metrics["test_rmse_folds"]["boosting"][fold]
            == pytest.approx(
                np.sqrt(np.average((predict(data.x[test]) - data.y[test]) ** 2, weights=data.weight[test]))
            )
            == error
        )
        along = np.column_stack([np.zeros(50), np.linspace(-2, 2, 50), np.ones(50)])
        assert (np.diff(predict(along)) <= 0).all() and np.ptp(predict(along)) > 0
    half = np.array_split(data.outside(0), [18])
    free = baselines.fit_boosting(*data.rows(half[1]), data.rows(half[0]), [0, 0, 0], (None, None), "squared", 0)
    assert (np.diff(free(along)) > 0).any()  # the control: without the sign


def test_trees_of_a_quantile_are_of_its_level_and_what_is_left_out_is_said(run, monkeypatch):
    x, y = np.random.default_rng(0).normal(size=(2, 2000))
    fit = [(x[200:, None], y[200:]), (x[:200, None], y[:200])]
    predict = baselines.fit_boosting(*fit[0], fit[1], [0], (None, None), Quantile(0.8), 0)
    assert abs(np.mean(y <= predict(x[:, None])) - 0.8) < 0.06
    _, table, *_ = run
    options = ("--out", table.parent / "other", "--pause-at", 2)
    words = "No boosted trees: scikit-learn has none of this loss."
    assert words in invoke("fit", table, *RUN, *options, "--loss", "huber", "--delta", "1").stdout
    monkeypatch.setattr(baselines, "is_installed", lambda name: name != "sklearn")
    assert baselines.reason_against_boosting("squared", 100).startswith("scikit-learn 1.7 or newer is not installed")
    found = baselines.fit_baselines(None, data := prepared(table, weights="w"), data.outside(0), 0, 0, 0)
    assert found.keys() == {"linear"}


def test_intervals_are_those_of_rows_held_out_and_their_coverage_is_measured(run):
    out, table, printed, metrics = run
    widths = convexmoe_torch.read_notes(out / "model.safetensors")["interval_widths"]
    found = metrics["interval_coverage"]
    assert found.keys() == {"0.5", "0.8", "0.9", "0.95"} and "Prediction intervals, measured on the folds" in printed
    assert found["0.9"]["half_width"] == widths[40] and widths == sorted(widths)
    counted = sum(float(row[3]) > 0 for row in rows(240, spread)[1:])
    slack = 3 * np.sqrt(0.09 / counted) + 2 / counted  # of another half of the rows
    assert all(abs(part["coverage"] - float(level)) < 1.5 * slack + 0.05 for level, part in found.items())
    model = out / "model.safetensors"
    assert '"interval_widths": "..."' in invoke("inspect", model).stdout
    result = invoke("predict", model, table, "--interval", 0.9, "--flag", "--framework", "torch")
    head, *lines = result.stdout.splitlines()
    assert head == "predicted_y,lower_y,upper_y,outside" and len(lines) == 240
    values = np.array([line.split(",")[:3] for line in lines], float)
    assert np.allclose(values[:, 0] - values[:, 1], widths[40]) and np.allclose(values[:, 2] - values[:, 0], widths[40])
    y = prepared(table).y
    assert np.mean(abs(y - values[:, 0]) <= widths[40]) > 0.8
    data = prepared(table, weights="w", context=("c",))
    plane, _ = baselines.fit_linear(data.x, data.y)
    assert conformal_width(data.y - plane(data.x), 0.9) != pytest.approx(widths[40])


def test_files_without_widths_and_levels_that_there_are_not_are_refused(run, tmp_path):
    out, table, *_ = run
    model, other = out / "model.safetensors", tmp_path / "m.safetensors"
    hull, notes = convexmoe_torch.load(model), convexmoe_torch.read_notes(model)

    def refuse(path, level, *words):
        options = ("--interval", level, "--framework", "torch")
        assert_one_line_refusal(invoke("predict", path, table, *options), *words)

    for level in (0.3, 0.995, 0.123, 90, "nan"):
        refuse(model, level, "--interval: expected a level from 0.5 to 0.99 in whole per cent; got", "Try --interval")
    widths = notes.pop("interval_widths")
    spoiled = {
        "expected a model with widths of intervals": None,
        "expected 9 training rows or more for --interval 0.9; got fewer": [*widths[:40], None, *widths[41:]],
        "expected widths of intervals >= 0 in the notes; got -1": [*widths[:40], -1, *widths[41:]],
    }
    for words, value in spoiled.items():
        convexmoe_torch.save(hull, other, notes=notes | ({} if value is None else {"interval_widths": value}))
        refuse(other, 0.9, words)


def test_a_contradiction_is_said(run, tmp_path):
    _, table, printed, metrics = run
    assert metrics["convexity_test"]["p_value"] > 0.05 and metrics["convexity_test"]["rows"] < 240
    assert "The rows do not contradict a convex function (p = " in printed
    data = prepared(table, weights="w", context=("c",))
    again = ask_rows(data, "convex", 0)
    assert again == metrics["convexity_test"] | {"at": again["at"]} and [*again["at"]] == ["a", "b"]
    against = ask_rows(data, "concave", 0)
    words = explain_contradiction(against, "concave")
    assert against["p_value"] < 0.05 and words.startswith("The rows contradict a concave function (p = 0.00")
    assert ", most around a " in words
    assert ask_rows(prepared(table, loss="quantile", number=0.9), "convex", 0) is None
    nothing = explain_contradiction(against | {"at": {}, "p_value": 1.0}, "convex")
    assert nothing == "No rows lie between enough others to contradict a convex function."


def test_the_file_knows_of_a_contradiction_and_minimize_says_it(run, tmp_path):
    def bend(cells):
        for row in cells[1:]:
            row[2] = f"{-(float(row[0]) ** 2) - float(row[1]) ** 2:.4f}"

    options = ("--target", "y", "--steps", 5, "--petals", 2, "--framework", "torch", "--out", tmp_path / "run")
    printed = invoke("fit", write(tmp_path / "t.csv", rows(80, bend)), *options).stdout
    model = tmp_path / "run" / "model.safetensors"
    words = convexmoe_torch.read_notes(model)["contradiction"]
    assert words in printed and words.startswith("The rows contradict a convex function (p = ")
    assert f"{words} The model cannot follow" in invoke("minimize", model, "--framework", "torch").stdout
    assert "contradiction" not in convexmoe_torch.read_notes(run[0] / "model.safetensors")  # the control


def test_rows_that_stop_trees_have_weights():
    """Of many rows of weight 0 none stops them: scikit-learn refuses weights that are all 0."""
    weight = np.zeros(200)
    weight[180:] = 1.0
    data = SimpleNamespace(weights=lambda rows: weight[rows])
    held_out, learned = baselines.rows_to_learn(data, np.arange(200))
    assert weight[held_out].all() and weight[learned].all() and len(held_out) + len(learned) == 20
    assert "too few for a split" in baselines.reason_against_boosting("squared", len(learned))
    assert baselines.reason_against_boosting("squared", 40) is None
