"""`convexmoe` with a context, signs, a concave function and weights, from the table to predictions and proofs."""

import json
import shutil

import numpy as np
import pytest
from commands import FRAMEWORKS, assert_one_line_refusal, invoke, write

import convexmoe
import convexmoe_torch
from interop import frameworks
from interop.command import dataset, experiment, minimize
from interop.command.baselines import fit_linear
from interop.command.function import Function
from interop.command.tables import read_table

pytestmark = pytest.mark.usefixtures("quick_compilation", "few_folds")

NAMES = ("age", "season", "area", "price", "n", "level, old")
CONTEXT = ("season", "level, old")
STEPS = 40
SAID = ("--context", "season", "--context", "level, old", "--increasing", "area", "--decreasing", "age", "--concave")
RUN = ("--target", "price", "--steps", STEPS, "--petals", 3, *SAID, "--weights", "n")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table whose price rises and is concave in area, falls in age, as much as season and level say."""
    rng = np.random.default_rng(1)
    age, area, season, level = rng.uniform(0, 4, (4, 60))
    price = (2 + season) * np.sqrt(area) - 0.3 * age * (1 + level) + 0.1 * rng.normal(size=60)
    columns = np.column_stack([age, season, area, price, rng.integers(0, 4, 60), level])
    return write(tmp_path_factory.mktemp("table") / "t.csv", [NAMES, *([f"{x:.5g}" for x in row] for row in columns)])


@pytest.fixture(scope="module", params=["torch", pytest.param("jax", marks=pytest.mark.release)])
def fitted(request, table, tmp_path_factory):
    """(framework, directory, console output, what was drawn) of a run."""
    out, drawn = tmp_path_factory.mktemp(request.param) / "run", []
    with pytest.MonkeyPatch.context() as patch:
        draw = experiment.draw_report
        patch.setattr(experiment, "draw_report", lambda *given: drawn.append(given) or draw(*given))
        result = invoke("fit", table, *RUN, "--framework", request.param, "--out", out)
    assert result.exit_code == 0, result.output
    return request.param, out, result.stdout, drawn[0]


def columns_of(table):
    """Inputs, contexts, prices and weights of the table."""
    values = read_table(table).numbers(("age", "area", *CONTEXT, "price", "n"))[0]
    return values[:, :2], values[:, 2:4], values[:, 4], values[:, 5]


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_a_run_says_what_it_fits_and_its_file_has_it(fitted, table):
    _, out, printed, _ = fitted
    assert "price from age, area, for each season, level, old, weighted by n; 60 rows to train" in printed
    assert "Concavity for each season, level, old: no violation in 100,000 segments." in printed
    assert "rows weighted by n" in printed and "the same within" in printed and "MLP" not in printed
    config = convexmoe.inspect(out / "model.safetensors").config
    wanted = {"in_dim": 2, "context_dim": 2, "monotone": [-1, 1], "curvature": "concave"}
    assert {name: config[name] for name in wanted} == wanted and "nonnegative" not in config
    notes, (x, context, y, _) = convexmoe_torch.read_notes(out / "model.safetensors"), columns_of(table)
    assert (notes["columns"], notes["context"], notes["weights"]) == (["age", "area"], list(CONTEXT), "n")
    both = np.hstack([x, context])
    assert notes["ranges"] == np.stack([both.min(axis=0), both.max(axis=0)], axis=1).tolist()
    assert notes["target_range"] == [y.min(), y.max()]
    found = metrics(out)
    assert found["data"] | {"name": ""} == {
        "name": "", "target": "price", "columns": ["age", "area"], "context": list(CONTEXT), "weights": "n"
    }  # fmt: skip
    assert set(found["importance"]) == {"age", "area", *CONTEXT} and found["parity"]["max_difference"] < 1e-5
    assert found["plan"]["function"]["increasing"] == ["area"] and found["coverage"] is None


def test_weights_count_in_the_errors(fitted, table):
    errors, said = metrics(fitted[1])["test_rmse_folds"], Function(CONTEXT, weights="n")
    data = dataset.prepare(read_table(table), "price", (), 0, None, said)
    assert data.columns == ("age", "area", *CONTEXT) and (data.weight == columns_of(table)[3]).all()
    for fold, test in enumerate(data.folds):
        rest = data.outside(fold)
        plane, _ = fit_linear(*data.rows(rest), data.weights(rest))
        squares = (plane(data.x[test]) - data.y[test]) ** 2
        weighed = np.sqrt(np.sum(data.weight[test] * squares) / data.weight[test].sum())
        assert errors["linear"][fold] == pytest.approx(weighed)
        assert abs(errors["linear"][fold] / np.sqrt(squares.mean()) - 1) > 1e-3  # the control
    assert set(errors) == {"hull", "linear"}  # trees want more rows


def test_the_report_has_slices_at_quantiles_of_each_context(fitted, table):
    _, out, _, (seen, _) = fitted
    groups, slices = seen.groups, seen.slices
    assert set(groups.names) == {"age", "area"} and {part.context for part in slices} == set(CONTEXT)
    x, context, *_ = columns_of(table)
    hull = convexmoe_torch.load(out / "model.safetensors")
    for part in slices:
        column, along = CONTEXT.index(part.context), ("age", "area").index(part.along)
        assert part.levels.tolist() == np.quantile(context[:, column], [0.1, 0.5, 0.9]).tolist()
        rows, contexts = (np.tile(np.median(values, axis=0), (len(part.at), 1)) for values in (x, context))
        rows[:, along] = part.at
        for level, values in zip(part.levels, part.value, strict=True):
            contexts[:, column] = level
            np.testing.assert_allclose(values, convexmoe_torch.predict(hull, rows, contexts)[:, 0], rtol=1e-4)
        assert not np.allclose(part.value[0], part.value[2], rtol=1e-3)  # the control: a context says something
    from matplotlib.image import imread

    height, width, _ = imread(out / "report.png").shape
    assert height > 0.55 * width  # a second row
    assert {part.name for part in seen.effects} == {"age", "area", *CONTEXT}


def test_both_frameworks_compute_the_same_of_a_hull_with_a_context(fitted, table):
    """What a run in JAX, which a release does, asks of it beside `fit`."""
    x, context, *_ = columns_of(table)
    rows, sides, found = np.hstack([x, context]), [frameworks.get(name) for name in FRAMEWORKS], []
    for side in sides:
        hull, names, *_ = experiment.read_model(fitted[1] / "model.safetensors", side)
        assert names == ("age", "area", *CONTEXT)
        assert side.largest_violation(hull, rows, segments=300, seed=0) is None
        found.append((side.predict(hull, rows), side.winners(hull, rows)))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5, atol=1e-5)
    assert (found[0][1] == found[1][1]).mean() > 0.95 and len(set(found[0][1].tolist())) > 1
    mixed = sides[1].predict(experiment.read_model(fitted[1] / "model.safetensors", sides[1])[0], rows[:, [0, 1, 3, 2]])
    assert not np.allclose(mixed, found[1][0], rtol=1e-3)  # the control: contexts in another order


@pytest.mark.parametrize("reader", FRAMEWORKS)
def test_predict_needs_the_context_and_no_weights(fitted, table, tmp_path, reader):
    model, (x, context, _, weight) = fitted[1] / "model.safetensors", columns_of(table)
    names = ("level, old", "area", "season", "age")
    rows = np.column_stack([context[:, 1], x[:, 1], context[:, 0], x[:, 0]])
    good = write(tmp_path / "good.csv", [names, *rows.tolist(), [9.0, 1.0, 1.0, 1.0]])
    result = invoke("predict", model, good, "--framework", reader, "--flag")
    assert result.exit_code == 0, result.output
    _, *lines = (line.split(",", 1) for line in result.stdout.splitlines() if "Outside" not in line)
    predicted = np.array([float(value) for value, _ in lines])
    expected = convexmoe_torch.predict(convexmoe_torch.load(model), x, context)[:, 0]
    np.testing.assert_allclose(predicted[:-1], expected, rtol=1e-5, atol=1e-5)
    assert lines[-1][1] == '"level, old"' and not any(mark for _, mark in lines[:-1])
    mixed = convexmoe_torch.predict(convexmoe_torch.load(model), x, context[::-1])[:, 0]
    assert not np.allclose(predicted[:-1], mixed, rtol=1e-3)  # the control: the context of another row
    bad = write(tmp_path / "bad.csv", [row[:2] + row[3:] for row in ([*names], *rows.tolist())])
    assert_one_line_refusal(invoke("predict", model, bad, "--framework", reader), "convexmoe predict", "got 'season'")
    gap = write(tmp_path / "gap.csv", [names, ["", 1, 1, 1]])
    filled = invoke("predict", model, gap, "--framework", reader, "--missing", "mean").stdout.split()[1]
    middle = convexmoe_torch.predict(convexmoe_torch.load(model), [1.0, 1.0], [1.0, context[weight > 0, 1].mean()])[0]
    assert float(filled) == pytest.approx(float(middle), rel=1e-5)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_largest_value_at_a_context_is_certified(fitted, framework):
    model, side = fitted[1] / "model.safetensors", frameworks.get(framework)
    grid = np.stack(np.meshgrid(np.linspace(0.5, 3, 21), np.linspace(0.5, 3, 21)), axis=-1).reshape(-1, 2)
    values, hull = [], convexmoe_torch.load(model)
    for context, at in (([2.0, 1.0], ("season=2", "level, old=1")), ([0.5, 3.0], ("level, old = 3e0", "season=.5"))):
        found = minimize.minimize(model, side, ["0.5<=age<=3", "0.5<=area<=3"], 1e-6, None, at)
        assert found.is_largest and found.certified and found.binding == ("lower", "upper")
        on_grid = convexmoe_torch.predict(hull, grid, context)[:, 0]
        assert on_grid.max() <= found.bound + 1e-5 * abs(found.bound) and found.value <= found.bound
        assert convexmoe_torch.predict(hull, found.x, context)[0] == pytest.approx(found.value, rel=1e-5)
        values.append(found.value)
    assert abs(values[0] - values[1]) > 0.1  # the control: another context
    printed = invoke("minimize", model, "--framework", framework, "--at", "season=1", "--at", "level, old=2")
    assert "maximum at" in printed.stdout and "No point of the box is higher than" in printed.stdout


REFUSED = {
    "no context": ([], "--at: expected a value for each column of the context (season, level, old); got none for"),
    "half of it": (["--at", "season=1"], "got none for level, old. Add --at level, old=2.03"),
    "another column": (["--at", "saeson=1"], "got 'saeson'. The closest is 'season'."),
    "no number": (["--at", "season=summer"], "expected a column and a number, as season=2; got 'season=summer'"),
    "infinity": (["--at", "season=inf"], "expected a column and a number, as season=2; got 'season=inf'"),
    "two numbers": (["--at", "season=1,season=2"], "got two for 'season'"),
    "a box of a context": (["--at", "season=1", "--at", "level, old=1", "--box", "season<=1"], "Use --at season=0."),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_context_that_cannot_be_taken_is_refused(fitted, name):
    options, words = REFUSED[name]
    model = fitted[1] / "model.safetensors"
    assert_one_line_refusal(invoke("minimize", model, "--framework", "torch", *options), words)


def test_a_context_for_a_plain_model_is_refused(tmp_path):
    path = tmp_path / "bare.safetensors"
    convexmoe_torch.save(convexmoe_torch.VectorHull(1, petals=3), path)
    result = invoke("minimize", path, "--framework", "torch", "--box", "0<=x0<=1", "--at", "x0=1")
    assert_one_line_refusal(result, "--at: expected a model with a context; got one without")


def test_it_is_proved_for_every_context_and_described(fitted, tmp_path):
    framework, out, *_ = fitted
    model = shutil.copy(out / "model.safetensors", tmp_path / "m.safetensors")
    words = "The function of age, area: concave, rises in area, falls in age, for every value of season, level, old."
    proof = invoke("certify", model, "--framework", framework)
    assert proof.exit_code == 0 and "proved: concave in argument 0" in proof.stdout and words in proof.stdout
    shown = invoke("inspect", model)
    assert words in shown.stdout and '"context_dim": 2' in shown.stdout
    convexmoe_torch.save(convexmoe_torch.VectorHull(2, petals=3), model)  # the control: a plain hull
    assert "The function of x0, x1: convex.\n" in invoke("inspect", model).stdout


@pytest.mark.parametrize("fitted", ["torch"], indirect=True)
def test_a_paused_run_keeps_what_was_said(table, fitted, tmp_path):
    framework, whole, *_ = fitted
    again = ("fit", table, "--resume", tmp_path / "run", "--framework", framework)
    paused = invoke("fit", table, *RUN, "--framework", framework, "--out", tmp_path / "run", "--pause-at", STEPS // 2)
    assert paused.exit_code == 0 and "--context" not in paused.stdout.splitlines()[-1]
    for option in ("--context=age", "--increasing=age", "--nonnegative", "--loss=huber", "--weights=n", "--concave"):
        assert_one_line_refusal(invoke(*again, option), f"got {option.split('=')[0]} beside it")
    assert invoke(*again).exit_code == 0
    assert metrics(tmp_path / "run") | {"parts": []} == metrics(whole) | {"parts": []}


GOOD = {"context": ["c"], "increasing": ["a"], "decreasing": [], "nonnegative": False, "weights": "n"}
GOOD |= {"loss": "expectile", "number": 0.9}
BAD_RECORDS = {
    "another field": {"width": 3},
    "a list of numbers": {"context": [1]},
    "a word for a list": {"increasing": "area"},
    "another loss": {"loss": "cubic"},
    "no level": {"number": None},
    "a level for the square": {"loss": "squared"},
    "a level above 1": {"number": 2.0},
    "a number for a flag": {"nonnegative": 1},
    "a number for a name": {"weights": 3},
}


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_a_record_that_no_options_make_is_refused(name):
    good = Function(("c",), ("a",), loss="expectile", number=0.9, weights="n")
    assert Function.from_json(GOOD) == good  # the control
    with pytest.raises(ValueError):
        Function.from_json(GOOD | BAD_RECORDS[name])
