"""`convexmoe fit --loss`, `--weights`, signs and bounds: what is minimized, what is compared, and what is refused."""

import json

import numpy as np
import pytest
from commands import assert_one_line_refusal, invoke, put, rows, write
from scipy.optimize import linprog

import convexmoe_torch
from convexmoe.training import Expectile, Huber, Quantile
from interop.command import dataset
from interop.command.baselines import fit_linear
from interop.command.function import Function
from interop.command.tables import read_table

pytestmark = pytest.mark.usefixtures("quick_compilation", "few_folds", "no_picture")

RUN = ("--target", "y", "--steps", 40, "--petals", 3)


def spread(cells):
    """Make y noisy, the more the larger a is, and add a column of weights and one of a context."""
    rng = np.random.default_rng(5)
    cells[0] += ["w", "c"]
    for row in cells[1:]:
        row[2] = f"{float(row[2]) + (1 + abs(float(row[0]))) * rng.normal():.4f}"
        row += [str(rng.integers(0, 3)), f"{rng.normal():.4f}"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write(tmp_path_factory.mktemp("table") / "t.csv", rows(120, spread))


@pytest.fixture(scope="module", params=["torch", pytest.param("jax", marks=pytest.mark.release)])
def quantile(request, table, tmp_path_factory):
    """(directory, console output) of a run that fits a quantile."""
    out = tmp_path_factory.mktemp(request.param) / "run"
    options = ("--loss", "quantile", "--level", 0.8, "--drop", "w", "--drop", "c", "--framework", request.param)
    result = invoke("fit", table, *RUN, *options, "--out", out)
    assert result.exit_code == 0, result.output
    return out, result.stdout


def pinball(r, level=0.8):
    return np.mean(np.maximum(level * r, (level - 1) * r))


def test_a_quantile_is_measured_by_its_loss_and_its_coverage(quantile, table):
    out, printed = quantile
    found = json.loads((out / "metrics.json").read_text())
    assert "mean quantile loss" in printed and "the level is 80.0%." in printed and "The rows speak" not in printed
    assert found["curvature"] == {"fitted": "convex"} and set(found["test_loss"]) == {"hull", "linear", "boosting"}
    data, below = dataset.prepare(read_table(table), "y", ("w", "c"), 0), []
    for fold, test in enumerate(data.folds):
        plane, _ = fit_linear(*data.rows(data.outside(fold)), None, Quantile(0.8))
        below += [data.y[test] <= plane(data.x[test])]
        loss = pinball(data.y[test] - plane(data.x[test]))
        assert found["test_loss_folds"]["linear"][fold] == pytest.approx(loss)
    assert found["coverage"]["linear"] == pytest.approx(np.concatenate(below).mean())
    assert found["coverage"]["level"] == 0.8 and 0.65 < found["coverage"]["hull"] < 0.92
    assert found["test_rmse"]["hull"] > found["test_loss"]["hull"]
    x, y = data.x, data.y
    r = y - convexmoe_torch.predict(convexmoe_torch.load(out / "model.safetensors"), x)[:, 0]
    assert 0.7 < np.mean(r <= 0) < 0.9 and pinball(r) < pinball(y - np.quantile(y, 0.8))


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_the_plane_of_a_quantile_is_that_of_a_linear_program(level):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(150, 2)) * [1.0, 1e3] + [0.0, 5e3]
    y = x @ [2.0, 3e-3] + (1.5 + x[:, 0] / 4) * rng.normal(size=150) + 20
    design, one = np.column_stack([x, np.ones(150)]), np.eye(150)
    cost = np.concatenate([np.zeros(3), np.full(150, level), np.full(150, 1 - level)])
    bounds = [(None, None)] * 3 + [(0, None)] * 300
    best = linprog(cost, A_eq=np.hstack([design, one, -one]), b_eq=y, bounds=bounds).fun / 150
    plane, size = fit_linear(x, y, None, Quantile(level))
    assert size == 3 and best <= pinball(y - plane(x), level) <= 1.01 * best
    least_squares, _ = fit_linear(x, y)
    assert pinball(y - least_squares(x), level) > 1.01 * best or level == 0.5  # the control


@pytest.mark.parametrize("loss", ["squared", "absolute", Huber(0.5), Expectile(0.7)], ids=str)
def test_a_weight_of_three_is_three_rows(loss):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 2))
    weight = np.where(x[:, 0] > 0, 3, rng.integers(0, 2, 40))
    y = 2 * np.abs(x[:, 0]) - x[:, 1] + 0.3 * rng.standard_t(3, size=40)
    again = np.repeat(np.arange(40), weight)
    name, number = (loss, None) if isinstance(loss, str) else (type(loss).__name__.lower(), *vars(loss).values())
    said = Function(loss=name, number=number)
    planes = fit_linear(x, y, weight, loss), fit_linear(x[again], y[again], None, loss), fit_linear(x, y, None, loss)
    weighed, repeated, plain = (said.measure(plane(x[again]), y[again]) for plane, _ in planes)
    assert said.objective == loss and abs(weighed / repeated - 1) < 0.01
    assert plain / repeated - 1 > 0.02  # the control
    p = planes[0][0](x)
    assert said.measure(p, y, weight) == pytest.approx(weighed)
    assert said.measure(p, y) != pytest.approx(weighed, rel=1e-3)


LOSSES = {
    ("absolute",): lambda r: np.abs(r).mean(),
    ("huber", "--delta", 0.5): lambda r: np.sqrt(np.where(np.abs(r) < 0.5, r**2, np.abs(r) - 0.25).mean()),
    ("expectile", "--level", 0.9): lambda r: np.sqrt((np.where(r > 0, 0.9, 0.1) * r**2).mean()),
}


@pytest.mark.parametrize("options", LOSSES)
def test_every_loss_is_fitted_by_name(options, table, tmp_path):
    weights = ("--weights", "w", "--context", "c", "--nonnegative", "--framework", "torch", "--out", tmp_path / "run")
    result = invoke("fit", table, *RUN, *weights, "--loss", *options, "--pause-at", 2)
    assert result.exit_code == 0 and ("The rows speak" in result.stdout) == (options[0] != "expectile"), result.output
    now = tmp_path / "run" / "unfinished" / "now.safetensors"
    hull, said = convexmoe_torch.load(now), convexmoe_torch.read_notes(now)["fit"]["plan"]["function"]
    assert hull.config.nonnegative and hull.config.context_dim == 1
    assert (said["loss"], said["number"], said["weights"]) == (options[0], (*options, None, None)[2], "w")
    r = np.array([2.0, -1.0, 0.25])
    assert Function(loss=options[0], number=said["number"]).measure(0 * r, r) == pytest.approx(LOSSES[options](r))


REFUSED = {
    "loss": (["--loss", "cubic"], "expected squared or absolute or huber or quantile or expectile; got 'cubic'"),
    "no level": (["--loss", "quantile"], "--level: expected a number for --loss quantile; got none. Add --level 0.9."),
    "no delta": (["--loss", "huber"], "--delta: expected a number for --loss huber; got none"),
    "a level for nothing": (["--level", "0.9"], "--level: expected --loss quantile or expectile, which it is for; got"),
    "a delta for a level": (["--loss", "quantile", "--level", ".5", "--delta", "1"], "Leave --delta out."),
    "a level of 1": (["--loss", "quantile", "--level", "1"], "--level: expected a number between 0 and 1; got 1"),
    "a delta of 0": (["--loss", "huber", "--delta", "0"], "--delta: expected a finite number above 0; got 0"),
    "two curvatures": (["--concave", "--curvature", "convex"], "expected concave beside --concave; got convex"),
    "auto of a level": (["--loss", "expectile", "--level", ".9", "--curvature", "auto"], "Say which it is."),
    "auto of a bound": (["--nonnegative", "--curvature", "auto"], "expected convex or concave with --nonnegative; got"),
    "no such context": (["--context", "a,d"], "--context: expected columns of t.csv (a, b, y, w, c); got 'd'."),
    "no such sign": (["--increasing", "aa"], "The closest column to 'aa' is 'a'."),
    "rises and falls": (["--increasing", "a", "--decreasing", "b,a"], "--decreasing: expected columns without another"),
    "rises in a context": (["--context", "c", "--increasing", "c"], "got 'c', a context, in which nothing is assumed."),
    "the target": (["--increasing", "y"], "--increasing: expected columns without another part; got 'y', the target."),
    "dropped weights": (["--drop", "w", "--weights", "w"], "got 'w', one that is dropped. Leave w out of one of them."),
    "weights that rise": (["--weights", "w", "--increasing", "w"], "--weights: expected columns without another part"),
    "no inputs": (["--context", "a,b,w,c"], "expected at least one input column"),
    "negative weights": (["--weights", "b"], "expected weights >= 0 in column 'b'; got -"),
    "a concave bound": (["--concave", "--nonnegative"], "a concave function is kept <= 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_contradict_each_other_are_refused_before_work(name, table, tmp_path):
    options, words = REFUSED[name]
    line = assert_one_line_refusal(invoke("fit", table, *RUN, "--out", tmp_path / "run", *options), words)
    assert len(line) < 300 and not (tmp_path / "run").exists()


def test_weights_that_leave_too_few_rows_are_refused(tmp_path):
    def few(cells):
        cells[0].append("w")
        for k, row in enumerate(cells[1:]):
            row.append(str(int(k < 9)))

    options = ("--weights", "w", "--out", tmp_path / "run", "--framework", "torch", "--pause-at", 1)
    result = invoke("fit", write(tmp_path / "t.csv", rows(40, few)), *RUN, *options)
    assert_one_line_refusal(result, "at least 10 rows of a weight above 0 in column 'w', some in each fold; got 9")


def test_a_text_context_and_a_missing_weight_are_refused(tmp_path):
    def spoil(cells):
        spread(cells)
        put(3, 4, "north")(cells)
        put(5, 3, "")(cells)

    table = write(tmp_path / "t.csv", rows(40, spoil))
    refusal = "got the text 'north' in column 'c' on line 4"
    assert_one_line_refusal(invoke("fit", table, *RUN, "--context", "c", "--out", tmp_path / "run"), refusal)
    result = invoke("fit", table, *RUN, "--drop", "c", "--weights", "w", "--out", tmp_path / "run")
    assert_one_line_refusal(result, "expected no missing values; got 1 in column 'w'")
    kept = dataset.prepare(read_table(table), "y", ("c",), 0, "mean", Function(weights="w"))
    assert len(kept.y) == len(kept.weight) == 39 and kept.columns == ("a", "b")
